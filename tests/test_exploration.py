"""Exploring: hypothesis finds the text on which a set-up breaks, makes it small, and finds nothing in a right one."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from project import messages
from test_faults import QUICKLY
from transformers.utils import logging
from trial import SEQUENCES, case, other_words, save

from harness.exploration import Exploration, Trial
from harness.laws import LAWS, Verdict, judge
from harness.laws.exploration import explored
from harness.record import Record
from harness.training import tokenizer, workload
from harness.training.checkpoint import Shelf
from harness.training.devices import find as find_device
from harness.training.exploration import Bench
from harness.training.fault import HEALTHY, Fault, Patch
from harness.training.faults.rare import FAULTS, PADDING, mask_made_from_ids
from harness.training.run import run
from harness.training.texts import SPELT, trials

LONGEST = 64
"""Tokens that the checkpoint's tokenizer and model take."""


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Train on one thread, which is quicker for models this small; say nothing of it."""
    threads, level = torch.get_num_threads(), logging.get_verbosity()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose tokenizer reads special tokens in a text as such, as most tokenizers do."""
    folder = save(tmp_path_factory.mktemp("checkpoint"), words=False)
    words = tokenizer.train(SEQUENCES, model_max_length=LONGEST)
    words.split_special_tokens = False
    words.save_pretrained(folder)
    return folder


def explore(checkpoint: Any, fault: Fault = HEALTHY, *, trials: int = 100, loop: str = "custom", **said: Any) -> Record:
    """The record of a short training that was explored, with a fault or without."""
    known = said.pop("known", ())
    train = {"steps": 2, "batch_size": 2, "loop": loop, **said.pop("train", {})}
    one = case(checkpoint, train=train, **said)
    one = replace(one, exploration=Exploration(trials, known, explored))
    return run(one, shelf=Shelf(), root=one.path.parent, fault=fault)


def verdict(record: Record) -> Verdict:
    """What the law says of it."""
    assert record.finished, record.traceback
    (only,) = judge(record, [law for law in LAWS if law.name == "holds_for_any_text"])
    return only


def found(record: Record) -> dict[str, Any]:
    """What was found; there must be something."""
    evidence: dict[str, Any] = record.probes["exploration"]["found"]
    assert evidence is not None
    return evidence


# Faults

SHOWS: dict[str, tuple[str, Callable[[list[str]], bool]]] = {
    "mask_made_from_ids": ("padding_mask_correct", lambda texts: len(texts) == 1 and "[PAD]" in texts[0]),
    "texts_stripped_to_ascii": ("tokens_match_tokenizer", lambda texts: len(texts) == 1 and not texts[0].isascii()),
    "texts_end_at_a_line": ("tokens_match_tokenizer", lambda texts: len(texts) == 1 and len(texts[0].split()) <= 2),
    "long_texts_cut_short": ("tokens_match_tokenizer", lambda texts: len(texts) == 1 and len(texts[0]) > 20),
    "mask_left_out_where_all_are_ones": ("padding_mask_correct", lambda texts: len(texts) == 1 and len(texts[0]) < 9),
    "duplicates_dropped": ("tokens_match_tokenizer", lambda texts: len(texts) == 2),
    "single_row_doubled": ("tokens_match_tokenizer", lambda texts: len(texts) == 1 and len(texts[0]) < 9),
    "mask_ignored_beyond_some_padding": ("padding_changes_nothing", lambda texts: len(texts) == 2),
    "long_texts_find_no_position": ("it crashes: IndexError: index out of range", lambda texts: len(texts) == 1),
}
"""What is said of each fault, and how small the texts are that show it."""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_rare_fault_is_found_and_made_small(checkpoint: Path, fault: Fault) -> None:
    """A fault that the experiment's own texts do not show is found, by the law that it breaks, in a text or two."""
    record = explore(checkpoint, fault)
    law, small = SHOWS[fault.name]
    assert law in verdict(record).message
    assert verdict(record).outcome == "broken"
    assert small(found(record)["sequences"]), found(record)["sequences"]


def test_the_trainer_is_explored_through_its_own_loop(checkpoint: Path) -> None:
    """Both loops meet the same texts, and break in the same way."""
    custom, trainer = (explore(checkpoint, mask_made_from_ids, loop=loop) for loop in ("custom", "trainer"))
    assert found(custom) == {**found(trainer), "record": {**found(trainer)["record"], "started": _started(custom)}}


def _started(record: Record) -> str:
    return str(found(record)["record"]["started"])


@pytest.mark.parametrize("name", ["mask_made_from_ids", "texts_stripped_to_ascii", "long_texts_cut_short"])
def test_rare_fault_does_not_show_in_the_experiments_own_texts(checkpoint: Path, name: str) -> None:
    """That is what exploring is for: without it, every law that looks at batches is content."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    one = case(checkpoint, train={"steps": 2}, probes=["padding"], invariants={"loss_decreases": False})
    record = run(one, shelf=Shelf(), root=one.path.parent, fault=fault)
    outcomes = {verdict.law: verdict.outcome for verdict in judge(record)}
    assert outcomes["padding_mask_correct"] == outcomes["tokens_match_tokenizer"] == "held"
    assert outcomes["padding_changes_nothing"] == "held"
    assert "broken" not in outcomes.values()


# What is right


def test_nothing_is_found_in_a_right_training(checkpoint: Path) -> None:
    """Texts that spell the pad token, have no known word or are far too long break no law of a right set-up."""
    record = explore(checkpoint, trials=50)
    held = record.probes["exploration"]["held"]
    assert verdict(record).outcome == "held"
    assert held["padding_mask_correct"] == held["tokens_match_tokenizer"] == record.probes["exploration"]["trials"]
    assert held["padding_changes_nothing"] >= 12  # the others have one length, or nothing but special tokens


@pytest.mark.parametrize(
    "train",
    [{"gradient_checkpointing": True}, {"drop_last": True}, {"batching": "grouped", "shuffle": False}],
    ids=str,
)
def test_nothing_is_found_whatever_is_chosen(checkpoint: Path, train: dict[str, Any]) -> None:
    """What stands where the model does has no layers to compute again, and epochs are those that are declared."""
    record = explore(checkpoint, trials=8, train=train)
    assert verdict(record).outcome == "held", verdict(record).message


def test_ids_of_another_tokenizer_are_no_matter_of_a_text(checkpoint: Path, tmp_path: Path) -> None:
    """The case's own law says that they mean other words to the model; no text is found for it."""
    others = tmp_path / "others"
    shutil.copytree(checkpoint, others)
    words = (others / "tokenizer.json").read_text(encoding="utf-8")
    (others / "tokenizer.json").write_text(other_words(words), encoding="utf-8")
    record = explore(checkpoint, tokenizer=str(others), trials=20)
    (own,) = judge(record, [law for law in LAWS if law.name == "tokens_match_tokenizer"])
    assert own.outcome == "broken"
    assert verdict(record).outcome == "held"


def test_a_law_that_is_turned_off_is_not_explored(checkpoint: Path) -> None:
    """The experiment says which laws hold: a known break is no find."""
    for said in ({"invariants": {"padding_mask_correct": False}}, {"expect_broken": {"padding_mask_correct": "known"}}):
        record = explore(checkpoint, mask_made_from_ids, trials=30, **said)
        # The model itself does not mind a mask with a hole where the text holds the pad token.
        assert verdict(record).outcome == "held"


def test_texts_without_a_token_are_left_out(checkpoint: Path) -> None:
    """There is nothing to train on, and no set-up could: nothing is judged, so nothing is said to hold."""
    words = tokenizer.train(SEQUENCES)
    words.backend_tokenizer.post_processor = None  # no special tokens around a text
    words.save_pretrained(folder := checkpoint.parent / "bare")
    one = explore(checkpoint, tokenizer=str(folder), known=(Trial(("\u200b",), 1),), trials=1)
    assert one.probes["exploration"]["known"] == 1
    assert sum(one.probes["exploration"]["held"].values()) <= 4  # of the one data set that was made up


def test_the_search_depends_on_the_seed_alone(checkpoint: Path) -> None:
    """Two runs make up the same texts; what is left is equal but for the time."""
    one, two = (explore(checkpoint, mask_made_from_ids).probes["exploration"] for _ in range(2))
    del one["found"]["record"], two["found"]["record"]
    assert one == two


# What was found before


def test_what_was_found_is_tried_first(checkpoint: Path) -> None:
    """No search is needed to see that it is still broken."""
    known = Trial(("it was [PAD] cold",), 3)
    record = explore(checkpoint, mask_made_from_ids, known=(known,))
    evidence = record.probes["exploration"]
    assert (evidence["trials"], evidence["known"], found(record)["known"]) == (0, 1, True)
    assert "'it was [PAD] cold' in batches of 3 (found before): padding_mask_correct" in verdict(record).message


def test_what_is_mended_is_searched_again(checkpoint: Path) -> None:
    """A find of an earlier run that holds now does not end the search."""
    record = explore(checkpoint, known=(Trial(("it [PAD]",), 1),), trials=5)
    assert "5 data sets, 1 found before" in verdict(record).message
    assert record.probes["exploration"]["held"]["padding_mask_correct"] == 6


def test_a_find_survives_the_record(checkpoint: Path) -> None:
    """Stored, read and judged again, without torch, it says the same."""
    record = explore(checkpoint, mask_made_from_ids)
    assert verdict(Record.from_json(record.to_json())) == verdict(record)


def test_command_line_finds_and_finds_again(
    checkpoint: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pytest --explore N` fails with the smallest text, keeps it, and the next run meets it at once."""
    (pytester.path / "a.yaml").write_text(
        f"checkpoint: {checkpoint}\ndata: {{sequences: [it was cold, bread], labels: [0, 1]}}\ntrain: {{steps: 2}}\n"
    )
    with Patch() as patch:
        mask_made_from_ids.seed(None, patch)  # type: ignore[arg-type]  # it changes the collator alone
        runs = [
            pytester.runpytest_inprocess("a.yaml", "--explore", "60", "-k", "any_text", "--device", "cpu", *QUICKLY)
            for _ in range(2)
        ]
    first, second = (messages(result)["a.yaml::cpu::holds_for_any_text"] for result in runs)
    assert first.startswith("'it [PAD]' in batches of 1: padding_mask_correct: step 1, row 0 (example 0: 'it [PAD]'")
    assert second.startswith("'it [PAD]' in batches of 1 (found before): padding_mask_correct: ")
    kept = (pytester.path / "reports" / "explored.jsonl").read_text()
    assert json.loads(kept) == {"experiment": "a.yaml", "sequences": ["it [PAD]"], "batch_size": 1}


# Texts

WORDS = ("an", "soup")
MADE = trials(tokenizer.train(SEQUENCES), WORDS, LONGEST)


@given(MADE)
def test_every_text_may_stand_in_an_experiment(trial: Trial) -> None:
    """None is blank, none holds half of a surrogate pair, and there are batches to make of them."""
    assert 1 <= len(trial.sequences) <= 8
    assert all(text.strip() and text.encode() for text in trial.sequences)
    assert 1 <= trial.batch_size <= 6


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(lambda one: any(len(text.split()) > LONGEST for text in one.sequences), id="longer than allowed"),
        pytest.param(lambda one: len(set(one.sequences)) < len(one.sequences), id="the same text twice"),
        pytest.param(lambda one: not {*SPELT}.isdisjoint(one.sequences), id="a special token alone"),
        pytest.param(lambda one: len(one.sequences) % one.batch_size == 1, id="a last batch of one"),
        pytest.param(lambda one: any("\x00" in text for text in one.sequences), id="NUL"),
        pytest.param(lambda one: any("\u200d" in text for text in one.sequences), id="a joined emoji"),
        pytest.param(
            lambda one: (
                len(one.sequences) > 3 and sorted(len(text.split()) > PADDING for text in one.sequences)[-2:] == [0, 1]
            ),
            id="one long and many short",
        ),
    ],
)
def test_what_set_ups_get_wrong_is_among_them(shown: Callable[[Trial], bool]) -> None:
    """Each kind comes up within 300 data sets."""
    quick = settings(max_examples=300, database=None, derandomize=True, phases=[Phase.generate])
    assert shown(find(MADE, shown, settings=quick))


# Live tiny models


@pytest.fixture(scope="module", params=["bert", "roberta", "gpt2", "t5"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A tiny model with random weights, its tokenizer, loop and collator."""
    one = case({"architecture": request.param, "size": "tiny"})
    loaded = Shelf().take(one.path, one.settings)
    return Bench(loaded, workload.prepare(loaded, one.settings, find_device("cpu")), explored)


LIVE = settings(max_examples=12)


@LIVE
@given(st.data())
def test_any_text_keeps_the_laws_on_live_models(bench: Bench, data: st.DataObject) -> None:
    """Random texts, lengths and batches: the mask, the tokens and the labels are right, and padding changes nothing."""
    known = tuple(sorted({word for text in SEQUENCES for word in text.split()}))
    trial = data.draw(trials(bench.work.tokenizer, known, bench.work.max_length))
    before = bench.held["padding_mask_correct"]
    assert bench.attempt(trial) is None
    words = bench.work.tokenizer
    ids = {token for text in trial.sequences for token in words(text)["input_ids"]}
    spoken = ids - {*words.all_special_ids} | ids & {words.unk_token_id}
    assert bench.held["padding_mask_correct"] == before + bool(spoken)  # of texts that say nothing none is fed


def test_a_text_of_the_greatest_length_can_be_padded_no_further(checkpoint: Path) -> None:
    """Where a text fills the table of positions, no padding is added to it, and the law still judges the rest."""
    data = {"sequences": ["bread " * 100, "bread"], "labels": [1, 0]}
    one = case(checkpoint, data=data, train={"steps": 2}, probes=["padding"])
    record = run(one, shelf=Shelf(), root=one.path.parent)
    (said,) = judge(record, [law for law in LAWS if law.name == "padding_changes_nothing"])
    assert said.outcome == "held"
    assert "2 examples of 3 to 64 tokens" in said.message
