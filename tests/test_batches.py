"""Batches of any text on tokenizers of every kind: padding and masks, order, and every example once."""

import math
import threading
import time
from collections.abc import Iterator
from functools import cache
from itertools import count, islice, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, PreTrainedTokenizerFast
from trial import SEQUENCES, case, train

from harness.errors import DataError
from harness.experiment import Train
from harness.laws import judge
from harness.training import tokenizer
from harness.training.data import Ahead, Drawn, Examples, ahead
from harness.training.devices import find
from harness.training.encoding import encoder
from harness.training.order import EpochOrder, by_length, shuffled
from harness.training.rows import Labels, Table
from harness.training.tasks import task_of
from harness.training.workload import Workload

TASK = task_of(case().settings)
CORPUS = [*SEQUENCES, "Grüße aus Köln", "日本語のテキスト", "emoji 🙂🙃", "naïve café, résumé!"]
LONGEST = 12


@cache
def words(kind: str) -> Any:
    """A small tokenizer of that kind, trained on a few texts."""
    match kind:
        case "WordPiece":
            return tokenizer.train(CORPUS)
        case "byte-level BPE":
            made = Tokenizer(models.BPE())
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            names = ["<s>", "</s>", "<pad>"]
            trainer = trainers.BpeTrainer(
                vocab_size=400, initial_alphabet=alphabet, special_tokens=names, show_progress=False
            )
            made.train_from_iterator(CORPUS, trainer)
            made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
            return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
        case "byte-level BPE, padded left with its end token":
            made = words("byte-level BPE").backend_tokenizer
            return PreTrainedTokenizerFast(
                tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>", padding_side="left"
            )
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=names, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


KINDS = ("WordPiece", "byte-level BPE", "byte-level BPE, padded left with its end token", "Unigram")

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=1, max_size=12)
TRAINS = st.builds(
    Train,
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    shuffle=st.booleans(),
    batching=st.sampled_from(["in_order", "grouped"]),
    drop_last=st.booleans(),
    padding=st.sampled_from(["longest", "max_length"]),
    pad_to_multiple_of=st.sampled_from([None, 1, 3, 8]),
)


def table(texts: list[str], **said: Any) -> Table:
    """Rows with these texts, labelled by their place."""
    return Table("texts", Labels(len(texts)), rows=[{"text": text, "label": n} for n, text in enumerate(texts)], **said)


def speaking(kind: str, texts: list[str]) -> list[str]:
    """Those that are some token to the tokenizer."""
    encode = encoder(TASK, words(kind), LONGEST)
    rows = [{"text": text, "label": 0} for text in texts if text.strip()]
    return (
        [
            row["text"]
            for row, features in zip(rows, encode(rows), strict=True)
            if not encode.says_nothing(row, features)
        ]
        if rows
        else []
    )


def workload(kind: str, examples: Any, said: Train) -> Workload:
    """What batches need of a workload."""
    nothing: Any = None
    model = SimpleNamespace(config=BertConfig())
    return Workload(model, TASK, words(kind), examples, LONGEST, nothing, said, "fp32", find("cpu"), Drawn())


def epoch(work: Workload, epochs: int = 1) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
    """Indices and batch, until as many epochs are over."""
    size = len(work.examples.lengths)
    whole = size - size % work.train.batch_size if work.train.drop_last and size >= work.train.batch_size else size
    steps = epochs * math.ceil(whole / work.train.batch_size)
    object.__setattr__(work, "train", work.train.model_copy(update={"steps": steps}))
    for batch in work.batches():
        yield work.drawn.queue.popleft().indices, batch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("large", [False, True])
@given(texts=TEXTS, said=TRAINS)
@settings(max_examples=40)
def test_batches_hold_their_texts_and_padding(kind: str, large: bool, texts: list[str], said: Train) -> None:
    """Each row is its text's own encoding, then padding under a mask of 0, as wide as declared, with its own label.

    Every example comes once, but for those that fill no batch where they are declared away.
    """
    texts, own = speaking(kind, texts), words(kind)
    if not texts:
        return
    encode = encoder(TASK, own, LONGEST)
    work = workload(kind, Ahead(table(texts), encode, said, 4) if large else Examples(table(texts), encode), said)
    seen: list[int] = []
    for indices, batch in epoch(work):
        seen += indices
        alone = [own(texts[index], truncation=True, max_length=LONGEST)["input_ids"] for index in indices]
        longest = LONGEST if said.padding == "max_length" else max(map(len, alone))
        width = math.ceil(longest / (said.pad_to_multiple_of or 1)) * (said.pad_to_multiple_of or 1)
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(indices), width)
        assert batch["labels"].tolist() == list(indices)
        for ids, mask, expected in zip(
            batch["input_ids"].tolist(), batch["attention_mask"].tolist(), alone, strict=True
        ):
            padding = width - len(expected)
            rest, hidden = [own.pad_token_id] * padding, [0] * padding
            left = own.padding_side == "left"
            assert ids == (rest + expected if left else expected + rest)
            assert mask == (hidden + [1] * len(expected) if left else [1] * len(expected) + hidden)
    missing = len(texts) % said.batch_size if said.drop_last and len(texts) >= said.batch_size else 0
    assert len(seen) == len(set(seen)) == len(texts) - missing
    if not said.shuffle and said.batching == "in_order":
        assert seen == list(range(len(texts) - missing))


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, pairs=TEXTS)
@settings(max_examples=30)
def test_pairs_are_encoded_together(kind: str, texts: list[str], pairs: list[str]) -> None:
    """A row of two texts is the tokenizer's encoding of the pair, cut where it is too long, and that is counted."""
    own = words(kind)
    rows = [{"text": one, "text_pair": two, "label": 0} for one, two in zip(texts, pairs, strict=False)]
    found = encoder(TASK, own, LONGEST)(rows)
    for row, features in zip(rows, found, strict=True):
        whole = own(row["text"], row["text_pair"])["input_ids"]
        assert (
            features["input_ids"]
            == own(row["text"], row["text_pair"], truncation=True, max_length=LONGEST)["input_ids"]
        )
        assert features["cut"] == max(0, len(whole) - LONGEST)


@given(lengths=st.lists(st.integers(1, 50), max_size=60), size=st.integers(1, 7), seed=st.integers(0, 2**32))
def test_groups_are_of_like_length(lengths: list[int], size: int, seed: int) -> None:
    """Every place once, in batches between whose lengths no other example's lies; the order hangs on the seed alone."""
    order = by_length(lengths, size, torch.Generator().manual_seed(seed))
    assert sorted(order) == list(range(len(lengths)))
    assert order == by_length(lengths, size, torch.Generator().manual_seed(seed))
    batches = [[lengths[place] for place in order[start : start + size]] for start in range(0, len(order), size)]
    ranges = sorted((min(batch), max(batch)) for batch in batches)
    assert all(one[1] <= two[0] or one == two for one, two in pairwise(ranges))


def test_grouping_pads_less() -> None:
    """Texts of mixed lengths need less padding in groups, and batches still come in another order each epoch."""
    texts = [" ".join(["soup"] * (1 + 7 * number % 31)) for number in range(64)]
    padded = {}
    for batching in ("in_order", "grouped"):
        said = Train(batch_size=4, batching=batching)
        own = words("WordPiece")
        work = workload("WordPiece", Examples(table(texts), encoder(TASK, own, 40)), said)
        found = list(epoch(work, epochs=2))
        padded[batching] = sum(batch["input_ids"].numel() for _, batch in found)
        assert [indices for indices, _ in found[:16]] != [indices for indices, _ in found[16:]]
        assert sorted(index for indices, _ in found[:16] for index in indices) == list(range(64))
    assert padded["grouped"] < 0.7 * padded["in_order"]


@given(size=st.integers(0, 200), buffer=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_shuffle_in_a_buffer(size: int, buffer: int, seed: int) -> None:
    """Every item once, none earlier than the buffer lets it, in an order that hangs on the seed alone."""
    found = list(shuffled(iter(range(size)), buffer, seed))
    assert sorted(found) == list(range(size))
    assert found == list(shuffled(iter(range(size)), buffer, seed))
    assert all(item < place + buffer for place, item in enumerate(found))


@given(size=st.integers(1, 60), batch_size=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_dropping_the_rest_keeps_the_order(size: int, batch_size: int, seed: int) -> None:
    """The same permutation, without what fills no batch; a set smaller than a batch is kept."""
    order = list(EpochOrder(size, seed, shuffle=True))
    dropped = EpochOrder(size, seed, shuffle=True, batch_size=batch_size, drop_last=True)
    assert list(dropped) == order[: len(dropped)]
    assert len(dropped) == (size - size % batch_size if size >= batch_size else size)


def test_padding_to_a_fixed_length_changes_nothing() -> None:
    """The law compares batches as they are declared with texts that have no padding at all."""
    said = {"steps": 2, "batch_size": 2, "padding": "max_length", "max_length": 100}
    record = train(case(train=said, probes=["padding"]))
    (verdict,) = (one for one in judge(record) if one.law == "padding_changes_nothing")
    assert verdict.outcome == "held", verdict


# Ahead of the step


def test_items_are_made_ahead_and_not_without_bound() -> None:
    """A thread makes a few items before they are asked for, and stops with whoever asks."""
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in count():
            made.append(number)
            yield number

    threads = threading.active_count()
    waiting = ahead(items(), 3)
    assert list(islice(waiting, 2)) == [0, 1]
    end = time.monotonic() + 10
    while len(made) < 6 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 6  # two were given, three wait, one is in hand
    waiting.close()
    assert threading.active_count() == threads


def test_what_goes_wrong_ahead_is_raised_where_it_is_asked_for() -> None:
    """Items made before the mistake are given first."""

    def items() -> Iterator[int]:
        yield 1
        raise DataError("row 7: no text")

    waiting = ahead(items(), 3)
    assert next(waiting) == 1
    with pytest.raises(DataError, match="row 7: no text"):
        next(waiting)


def test_no_thread_is_left_by_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loops end the thread of their data, although they stop within an epoch."""
    monkeypatch.setattr("harness.training.data.WHOLE", 2)
    threads = threading.active_count()
    for loop in ("custom", "trainer"):
        record = train(case(train={"loop": loop, "steps": 3, "batch_size": 2}))
        assert len(record.steps.data_seconds) == 3
        assert all(
            0 < waited < whole for waited, whole in zip(record.steps.data_seconds, record.steps.seconds, strict=True)
        )
    assert not [thread for thread in threading.enumerate() if thread.name == "harness-ahead"]
    assert threading.active_count() <= threads + 1


# Declared padding and batching, in trainings


@pytest.mark.parametrize(
    "said",
    [
        {"padding": "max_length", "max_length": 16},
        {"pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 13, "pad_to_multiple_of": 8},
        {"batching": "grouped"},
        {"drop_last": True},
    ],
    ids=str,
)
def test_loops_make_the_declared_batches(said: dict[str, Any]) -> None:
    """Both loops see the same batches, padded and grouped as declared, and have the same losses."""
    one, two = (
        train(case(train={"loop": loop, "steps": 6, "batch_size": 2, **said})) for loop in ("custom", "trainer")
    )
    assert one.steps.examples == two.steps.examples
    assert one.steps.digest == two.steps.digest
    assert one.steps.loss == two.steps.loss
    widths = {len(row) for batch in one.batches for row in batch.tensors["input_ids"]}
    if said.get("pad_to_multiple_of"):
        assert all(width % 8 == 0 for width in widths)
    if said.get("padding"):
        assert len(widths) == 1
    if said.get("drop_last"):
        assert {len(batch) for batch in one.steps.examples} == {2}
