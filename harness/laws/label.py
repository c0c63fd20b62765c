"""Labels of tokens: where there is one, and where there must be none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated

from pydantic import Field

from harness.errors import count
from harness.laws.data import IGNORED, by_argument
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable, vacuous
from harness.record import Example, Record

CHANCE = 4.5
"""Standard deviations from its mean that a count of draws may be: 7 of a million right trainings are further off."""


@dataclass(frozen=True)
class Row:
    """The labels of one row of a batch, beside those of its example."""

    place: str
    example: Example
    found: tuple[int, ...]
    declared: tuple[int, ...]
    start: int
    """Where in `found` the example begins."""
    ids: tuple[int, ...]
    """What the model got in that row; empty where labels are not of the same places."""

    @property
    def inside(self) -> range:
        """The places of the example in `found`."""
        return range(self.start, self.start + len(self.declared))

    def at(self, place: int) -> int:
        """The declared label at a place of `found`."""
        return self.declared[place - self.start] if place in self.inside else IGNORED


def _rows(record: Record) -> Iterator[Row] | None:
    """Every row of the kept batches; none where labels are not those of tokens."""
    examples = {example.index: example for example in record.examples}
    if not any(_of_tokens(example) for example in record.examples):
        return None
    left = record.tokenizer is not None and record.tokenizer.padding_side == "left"

    def rows() -> Iterator[Row]:
        for batch in record.batches:
            ids = batch.tensors.get("input_ids", ())
            for number, (index, found) in enumerate(zip(batch.examples, batch.tensors.get("labels", ()), strict=False)):
                if not isinstance(found, list) or index not in examples:
                    continue
                declared = tuple(examples[index].label)
                same = len(ids) > number and len(ids[number]) == len(found)
                yield Row(
                    place=f"step {batch.step + 1}, row {number} (example {index}: {examples[index].text!r})",
                    example=examples[index],
                    found=tuple(found),
                    declared=declared,
                    start=max(len(found) - len(declared), 0) if left else 0,
                    ids=tuple(ids[number]) if same else (),
                )

    return rows()


def _of_tokens(example: Example) -> bool:
    labels = by_argument(example).get("labels")
    return isinstance(labels, list) and all(isinstance(label, int) for label in labels)


@law()
def labels_masked_right(record: Record) -> Verdict:
    """Labels are -100 on padding and on all that is declared not to be learnt, and on nothing else.

    What is to be learnt follows from each example alone: prompts, special tokens and all but the first token of a word
    have no label, the end of a text has one. Labels made from ids, with -100 wherever an id is the pad token, remove
    the label at the end of every text if the pad token is the end token: such a model never learns to stop. Exact. If
    tokens are masked at random, the others have no label; which tokens are masked is left to masking_is_random.

    What a causal language model learns to say has to hold a token at which generation stops (the model's or the
    tokenizer's `eos_token_id`), unless it is cut off, or there is no such token. A chat template that ends turns with
    another token, or with none, is a common mistake: a base model stops at `<|endoftext|>`, and not at `<|im_end|>`.
    """
    found = _rows(record)
    if found is None:
        return not_applicable("labels are of whole texts")
    rows = list(found)
    if not rows:
        return invalid("no labels of tokens reached the model")
    for row in rows:
        if len(row.found) < len(row.declared):
            return broken(f"{row.place}: {len(row.found)} labels for {len(row.declared)} tokens")
        lost = [place for place in row.inside if row.found[place] == IGNORED != row.at(place)]
        if lost and record.masking is None:
            declared = row.at(lost[0])
            message = f"{row.place}: label -100 at position {lost[0]}, expected {declared}"
            return broken(message, _why_ignored(record, declared))
    for row in rows:
        for place, label in enumerate(row.found):
            if label != IGNORED == row.at(place):
                message = f"{row.place}: label {label} at position {place}, expected -100"
                return broken(message, _why_labelled(row, place))
    if (endless := _endless(record)) is not None:
        return broken(
            endless,
            cause="the chat template ends turns with another token or with none: such a model never learns to stop",
        )
    learnt = sum(label != IGNORED for row in rows for label in row.found)
    return held(f"{learnt} labels in {count(len(rows), 'row')}")


def _endless(record: Record) -> str | None:
    """The first text, or part of it, that is learnt to its end without a token at which generation stops."""
    words = record.tokenizer
    if record.settings.get("task") != "causal-lm" or words is None or not words.end_token_ids:
        return None
    ends = set(words.end_token_ids)
    for example in record.examples:
        for learnt, run in groupby(enumerate(example.label), key=lambda place: place[1] != IGNORED):
            places, said = zip(*run, strict=True)
            cut = places[-1] + 1 == words.max_length
            if learnt and not cut and ends.isdisjoint(said):
                stops = ", ".join(map(str, sorted(ends)))
                where = f"example {example.index} ({example.text!r}), positions {places[0]} to {places[-1]}"
                return f"{where}: no token is learnt at which generation stops ({stops})"
    return None


def _why_labelled(row: Row, place: int) -> str:
    if place not in row.inside:
        return "padding is learnt: labels are padded with another number than -100"
    return "a prompt, a special token or the rest of a word is learnt, or labels are shifted"


def _why_ignored(record: Record, declared: int) -> str:
    pad = record.tokenizer.pad_token_id if record.tokenizer is not None else None
    if declared == pad:
        return (
            "the end-of-sequence token is also the pad token, and labels are ignored wherever the id is that token "
            "(DataCollatorForLanguageModeling does so): ignore what attention_mask hides instead"
        )
    return "labels are shifted, cut, or ignored for what is to be learnt"


@law()
def labels_survive_truncation(
    record: Record,
    *,
    most: Annotated[float, Field(ge=0, le=1, description="Share of the examples that may lose a label.")] = 0.0,
) -> Verdict:
    """No example loses what is to be learnt from it by truncation to train.max_length.

    Such as the answer to a question that is cut off, a word without a token, a target or an answer without its end. By
    default no example may; an experiment that accepts a share of them declares it.
    """
    if not any(_of_tokens(example) or isinstance(example.label, dict) for example in record.examples):
        return not_applicable("labels are of whole texts: cutting loses none")
    if not (size := record.lost_among or record.settings.get("data.examples", 0)):
        return invalid("how many examples were looked at is missing from the evidence")
    if len(record.lost) > most * size:
        assert record.tokenizer is not None
        return broken(
            f"{count(len(record.lost), 'example')} of {size} lost a label: "
            f"{', '.join(map(str, record.lost[:8]))}; cut to {record.tokenizer.max_length} tokens",
            cause="train.max_length is too small for them, or a word has no token at all",
        )
    return held(f"{size - len(record.lost)} of {size} examples are whole")


@law()
def decoder_inputs_shifted(record: Record) -> Verdict:
    """The decoder gets the labels shifted by one: at each place the token before the one it has to predict.

    Without the shift a decoder copies what it sees, and the loss falls to 0; shifted twice, it predicts across a gap.
    Exact, over the labels that are not -100. Its first input is the token with which generation begins, or, as MBART
    has it, the last label of the row.
    """
    if not any("decoder_input_ids" in batch.tensors for batch in record.batches):
        return not_applicable("the model gets no decoder_input_ids")
    seen = 0
    for batch in record.batches:
        for number, (inputs, labels) in enumerate(
            zip(batch.tensors.get("decoder_input_ids", ()), batch.tensors.get("labels", ()), strict=False)
        ):
            if not isinstance(labels, list):
                return not_applicable("labels are of whole texts: the decoder predicts no token")
            place = f"step {batch.step + 1}, row {number} (example {batch.examples[number]})"
            if len(inputs) != len(labels):
                return broken(f"{place}: {len(inputs)} decoder_input_ids for {len(labels)} labels")
            for t in range(1, len(labels)):
                if IGNORED in (labels[t - 1], labels[t]):
                    continue
                seen += 1
                if inputs[t] != labels[t - 1]:
                    return broken(
                        f"{place}: decoder_input_ids[{t}] is {inputs[t]}, expected {labels[t - 1]}, the label before",
                        cause="the decoder sees what it has to predict"
                        if list(inputs[1:]) == list(labels[1:]) or inputs[t] == labels[t]
                        else "they are shifted otherwise, or made from another text",
                    )
            if (wrong := _wrong_start(record, inputs, labels)) is not None:
                return broken(f"{place}: {wrong}", cause="the decoder learns to go on from another token")
    return held(f"{seen} tokens") if seen else vacuous("no target has two tokens")


def _wrong_start(record: Record, inputs: Sequence[int], labels: Sequence[int]) -> str | None:
    """What is wrong with the first token of a decoder, if that is known."""
    start = record.tokenizer.decoder_start_token_id if record.tokenizer is not None else None
    last = next((label for label in reversed(labels) if label != IGNORED), None)
    if start is None or inputs[0] in (start, last):
        return None
    return f"decoder_input_ids[0] is {inputs[0]}, and generation begins with {start}"


@law()
def masking_is_random(record: Record) -> Verdict:
    """Of the tokens of each text the declared share is drawn; 80 % of those are masked, 10 % replaced, 10 % left as is.

    As in BERT's pretraining (Devlin et al. 2019, section 3.1), but drawn anew for each batch: an example that comes
    again is masked elsewhere. Counts over all kept batches must be within 4.5 standard deviations of a binomial's mean.
    """
    if record.masking is None:
        return not_applicable("no token is hidden")
    rows = list(_rows(record) or ())
    if not rows or any(len(row.ids) != len(row.found) or len(row.found) < len(row.declared) for row in rows):
        return invalid("no batch with labels of its tokens was kept")
    counts = _Counts.of(record.masking.token, rows)
    share, vocabulary = record.masking.probability, record.tokenizer.vocabulary if record.tokenizer else math.inf
    checks = (
        ("tokens are drawn", counts.drawn, counts.possible, share, "the masking probability is another one"),
        ("drawn tokens are hidden", counts.hidden, counts.drawn, 0.8 + 0.1 / vocabulary, "all of them are hidden"),
        ("drawn tokens are left as they are", counts.left, counts.drawn, 0.1 + 0.1 / vocabulary, "none is hidden"),
    )
    for what, found, of, expected, cause in checks:
        away = abs(found - of * expected)
        # One more: a count is a whole number.
        if away > CHANCE * math.sqrt(of * expected * (1 - expected)) + 1:
            return broken(
                f"{found} of {of} {what}, expected {expected:.0%}",
                cause=f"{cause}, or labels are given to tokens that are not drawn",
            )
    if (again := _drawn_again(rows)) is not None:
        return broken(again, cause="tokens are hidden once, before the training, and not anew for each batch")
    if counts.drawn == 0:
        return vacuous(f"none of {counts.possible} tokens is drawn")
    return held(f"{counts.drawn} of {counts.possible} tokens drawn, {counts.hidden} hidden, {counts.left} left")


@dataclass(frozen=True)
class _Counts:
    possible: int
    drawn: int
    hidden: int
    left: int

    @classmethod
    def of(cls, token: int, rows: list[Row]) -> _Counts:
        possible = drawn = hidden = left = 0
        for row in rows:
            for place in row.inside:
                possible += row.at(place) != IGNORED
                if row.found[place] != IGNORED:
                    drawn += 1
                    hidden += row.ids[place] == token
                    left += row.ids[place] == row.found[place]
        return cls(possible, drawn, hidden, left)


def _drawn_again(rows: list[Row]) -> str | None:
    """Whether examples that come several times are always hidden in the same places."""
    seen: dict[int, Counter[tuple[int, ...]]] = {}
    for row in rows:
        drawn = tuple(place - row.start for place in row.inside if row.found[place] != IGNORED)
        seen.setdefault(row.example.index, Counter())[drawn] += 1
    several = {index: draws for index, draws in seen.items() if draws.total() > 1 and any(len(d) > 0 for d in draws)}
    if len(several) < 3 or any(len(draws) > 1 for draws in several.values()):
        return None
    index, draws = next(iter(several.items()))
    times = draws.total()
    return f"each of {len(several)} examples is hidden in the same places whenever it comes: {index}, {times} times"
