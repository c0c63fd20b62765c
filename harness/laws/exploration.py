"""Texts that nobody wrote, made up to find what the experiment's own do not show."""

from __future__ import annotations

from typing import Any

from harness.errors import count
from harness.laws.data import every_example_once, labels_travel
from harness.laws.dependence import padding_changes_nothing
from harness.laws.law import Law, Verdict, broken, held, invalid, law, probed, vacuous
from harness.laws.padding import padding_mask_correct, tokens_match_tokenizer
from harness.record import Record

EXPLORED: tuple[Law, ...] = (
    every_example_once,
    tokens_match_tokenizer,
    padding_mask_correct,
    labels_travel,
    padding_changes_nothing,
)
"""Laws that must hold whatever the texts are."""
SHOWN = 60
"""Characters of a text, at most."""


def explored(record: Record) -> dict[str, str]:
    """Outcome of each law that must hold for any text, on the record that made-up texts leave.

    What the experiment knows to be broken is left out: no text that keeps such a law says that it is mended.
    """
    return {law.name: law.judge(record, about="").outcome for law in EXPLORED if law.name not in record.expect_broken}


@law(probes=("exploration",), slow=True)
def holds_for_any_text(record: Record) -> Verdict:
    """Whatever the texts, their lengths and the batches they are in: mask, encoding, coverage and padding are right.

    With ``--explore N`` only: hypothesis makes up N small data sets (any Unicode, special tokens spelt out, one-letter
    and over-long texts, batches of one, of equal lengths, of a long text and many short) and puts them through the
    case's own encoding, loop and collator, judged as the experiment's own texts are by every_example_once,
    tokens_match_tokenizer, padding_mask_correct, labels_travel and, on the trained model's twin,
    padding_changes_nothing. What breaks one of them is made as small as possible, and tried first the next time. Texts
    without any token are left out. Texts whose words become special tokens are not put to the model: heads find the
    padding, or the end of a text, by its id.
    """
    evidence = probed(record, "exploration")
    if isinstance(evidence, Verdict):
        return evidence
    if (found := evidence["found"]) is not None:
        return _found(record, found)
    if not evidence["held"]:
        return vacuous("no text could be judged")
    again = f", {evidence['known']} found before" * bool(evidence["known"])
    times = evidence["held"].get("padding_changes_nothing", 0)
    return held(f"{count(evidence['trials'], 'data set')}{again}; padding_changes_nothing could have failed in {times}")


def _found(record: Record, found: dict[str, Any]) -> Verdict:
    """The law's own words for the smallest data set."""
    texts = ", ".join(map(_shown, found["sequences"]))
    again = " (found before)" * found["known"]
    which = f"{texts} in batches of {found['batch_size']}{again}"
    if found["error"]:
        return broken(
            f"{which}: it crashes: {found['error']}",
            cause="tokenizer or collator cannot take such a text, or it is longer than the model has positions for",
        )
    said = {"invariants": record.invariants, "expect_broken": record.expect_broken}
    trial = Record.model_validate(found["record"]).model_copy(update=said)
    name = next((name for name, outcome in explored(trial).items() if outcome == "broken"), None)
    if name is None:
        return invalid(f"{which}: {found['law']} was broken, and is not as it is judged now")
    verdict = next(law for law in EXPLORED if law.name == name).judge(trial, about="")
    return broken(f"{which}: {name}: {verdict.message}", cause=verdict.cause)


def _shown(text: str) -> str:
    """A text in quotes, with what cannot be seen spelt out, cut where it is long."""
    cut = ascii(text[:SHOWN]) if not text.isprintable() else repr(text[:SHOWN])
    return cut if len(text) <= SHOWN else f"{cut}... ({len(text)} characters, {count(len(text.split()), 'word')})"
