"""Padding and encoding of the batches that reached the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from harness.errors import count
from harness.laws.data import IGNORED, by_argument
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable
from harness.record import Batch, Example, Record


@dataclass(frozen=True)
class Row:
    """One row of a batch beside the example it should hold."""

    place: str
    example: Example
    ids: tuple[int, ...]
    mask: tuple[Any, ...] | None
    pad: int | None
    left: bool
    """Whether the tokenizer pads on the left."""
    columns: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """What else the model got for each token, of that which the tokenizer gives."""

    @property
    def padding(self) -> int:
        """How many positions the row is longer than its example."""
        return len(self.ids) - len(self.example.input_ids)

    @property
    def start(self) -> int:
        """Where the example's tokens should begin."""
        return max(self.padding, 0) if self.left else 0

    @property
    def found(self) -> tuple[int, ...]:
        """What stands where the example's tokens should be."""
        return self.ids[self.start : self.start + len(self.example.input_ids)]

    @property
    def other_side(self) -> bool:
        """Whether the example's tokens are all there, but padded on the side that is not the tokenizer's."""
        tokens, padding = self.example.input_ids, (self.pad,) * self.padding
        return self.found != tokens and self.ids == (tokens + padding if self.left else padding + tokens)

    @property
    def extra(self) -> tuple[int, ...]:
        """Positions of tokens that the model sees and the example does not have."""
        outside = (place for place in range(len(self.ids)) if not 0 <= place - self.start < len(self.found))
        return tuple(p for p in outside if self.ids[p] != self.pad and (self.mask is None or self.mask[p] == 1))

    @property
    def holds_its_text(self) -> bool:
        """Whether the model gets the example's tokens and no others."""
        return self.other_side or (self.found == self.example.input_ids and not self.extra)


def _unfolded(record: Record) -> tuple[Record, int]:
    """The record with one text to a row, and how many rows an example has: one for each choice, where it has any."""
    choices = max((len(example.choices) for example in record.examples), default=0)
    if not choices:
        return record, 1
    examples = [
        choice.model_copy(update={"index": example.index * choices + number})
        for example in record.examples
        for number, choice in enumerate(example.choices)
    ]
    batches = [
        batch.model_copy(
            update={
                "examples": tuple(index * choices + number for index in batch.examples for number in range(choices)),
                "tensors": {
                    name: tuple(text for row in value for text in row) if _dimensions(value) == 3 else value
                    for name, value in batch.tensors.items()
                },
            }
        )
        for batch in record.batches
    ]
    return record.model_copy(update={"examples": tuple(examples), "batches": tuple(batches)}), choices


def _named(example: Example, choices: int) -> str:
    if choices == 1:
        return f"example {example.index}: {example.text!r}"
    return f"example {example.index // choices}, choice {example.index % choices}: {example.text!r}"


def _rows(record: Record, choices: int) -> Iterator[Row]:
    """Every row of the kept batches, with its example; ids that a mask token hides are put back."""
    assert record.tokenizer is not None
    examples = {example.index: example for example in record.examples}
    for batch in record.batches:
        masks = batch.tensors.get("attention_mask") if _judge_shape(batch) is None else None
        hidden = batch.tensors.get("labels") if record.masking is not None else None
        for number, (index, ids) in enumerate(zip(batch.examples, batch.tensors["input_ids"], strict=True)):
            yield Row(
                place=f"step {batch.step + 1}, row {number} ({_named(examples[index], choices)})",
                example=examples[index],
                ids=tuple(ids) if hidden is None else _restored(ids, hidden[number]),
                mask=None if masks is None else tuple(masks[number]),
                pad=record.tokenizer.pad_token_id,
                left=record.tokenizer.padding_side == "left",
                columns={
                    name: tuple(batch.tensors[name][number])
                    for name in examples[index].columns
                    if name in batch.tensors and _dimensions(batch.tensors[name]) == 2
                },
            )


def _restored(ids: Any, labels: Any) -> tuple[int, ...]:
    """The ids of a masked language model's row before any was hidden: its labels say which."""
    if not isinstance(labels, list | tuple) or len(labels) != len(ids):
        return tuple(ids)
    return tuple(token if label == IGNORED else label for token, label in zip(ids, labels, strict=True))


def _missing(record: Record) -> str | None:
    """What is missing from the evidence, if anything is."""
    if record.tokenizer is None or not any(batch.examples for batch in record.batches):
        return "no batch was kept"
    known = {example.index for example in record.examples}
    for batch in record.batches:
        if "input_ids" not in batch.tensors:
            arguments = ", ".join(batch.tensors) or "none"
            return f"step {batch.step + 1}: no input_ids among the model's arguments ({arguments})"
        if (dimensions := _dimensions(batch.tensors["input_ids"])) != 2:
            return f"step {batch.step + 1}: input_ids has {dimensions} dimensions, 2 can be judged"
        if unknown := set(batch.examples) - known:
            return f"step {batch.step + 1}: example {min(unknown)} is missing from the evidence"
    return None


def _wrong_count(record: Record) -> str | None:
    """The first batch that has not a row for each of its examples."""
    for batch in record.batches:
        rows, drawn = len(batch.tensors["input_ids"]), len(batch.examples)
        if rows != drawn:
            return f"step {batch.step + 1}: {rows} rows reached the model, the loader drew {drawn} examples"
    return None


@law()
def padding_mask_correct(record: Record) -> Verdict:
    """attention_mask is 1 exactly on real tokens and 0 on padding, on the tokenizer's side, over pad ids.

    Which tokens are real comes from the tokenizer's encoding of each sequence alone, never from ``ids != pad_id``,
    because the pad token may also occur in a text. Exact. Rows that do not hold their text are left to
    tokens_match_tokenizer.
    """
    record, choices = _unfolded(record)
    if (missing := _missing(record)) is not None:
        return invalid(missing)
    if (miscounted := _wrong_count(record)) is not None:
        return not_applicable(f"{miscounted}: see tokens_match_tokenizer")
    for batch in record.batches:
        if (verdict := _judge_shape(batch)) is not None:
            return verdict
    rows = tuple(_rows(record, choices))
    whole = [row for row in rows if row.holds_its_text]
    if not whole:
        return not_applicable("no row holds its text: see tokens_match_tokenizer")
    for row in whole:
        if (verdict := _judge_row(row)) is not None:
            return verdict
    padded = sum(row.padding > 0 for row in whole)
    side = "left" if whole[0].left else "right"
    note = "" if padded else "; all are of one length, so no padding was seen"
    note += f"; {len(rows) - len(whole)} do not hold their text: see tokens_match_tokenizer" * (len(whole) < len(rows))
    return held(f"{len(whole)} rows of {len(record.batches)} batches, {padded} padded on the {side}{note}")


def _judge_shape(batch: Batch) -> Verdict | None:
    masks = batch.tensors.get("attention_mask")
    if masks is None:
        return broken(
            f"step {batch.step + 1}: no attention_mask among the model's arguments ({', '.join(batch.tensors)})",
            cause="the collator or tokenizer drops it; the model then attends to padding",
        )
    ids = batch.tensors["input_ids"]
    if (dimensions := _dimensions(masks)) != 2:
        return invalid(f"step {batch.step + 1}: attention_mask has {dimensions} dimensions, 2 can be judged")
    if [len(row) for row in masks] != [len(row) for row in ids]:
        return broken(
            f"step {batch.step + 1}: attention_mask is {_shape(masks)}, input_ids {_shape(ids)}",
            cause="they were padded apart, or cut apart",
        )
    return None


def _dimensions(values: Any) -> int:
    if not isinstance(values, list | tuple):
        return 0
    return 1 + (_dimensions(values[0]) if values else 0)


def _shape(rows: tuple[Any, ...]) -> str:
    return f"{len(rows)} x {len(rows[0]) if rows else 0}"


def _judge_row(row: Row) -> Verdict | None:
    assert row.mask is not None
    real, padding = len(row.example.input_ids), row.padding
    expected = (0,) * row.start + (1,) * real + (0,) * (padding - row.start)
    if row.mask != expected:
        return broken(
            f"{row.place}: attention_mask is {_runs(row.mask)}, expected {_runs(expected)}",
            cause=_mask_cause(row, row.mask, expected),
        )
    wrong = [place for place, bit in enumerate(expected) if bit == 0 and row.ids[place] != row.pad]
    if wrong:
        return broken(
            f"{row.place}: input_ids[{wrong[0]}] is {row.ids[wrong[0]]} under a mask of 0, "
            f"expected the pad token {row.pad}",
            cause="the collator pads with another id than the tokenizer's pad token",
        )
    return None


def _mask_cause(row: Row, mask: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if row.other_side:
        return "padding is on the other side than the tokenizer's padding_side"
    if mask == tuple(1 - bit for bit in expected):
        return "the polarity is inverted: 1 must stand for a real token"
    if all(bit == 1 for bit in mask):
        return "the mask is all ones: it was made without looking at padding"
    if all(bit == 0 for bit in mask):
        return "the mask is all zeros"
    if sum(mask) < sum(expected):
        return "real tokens are masked, so the model cannot see them"
    return "padding is attended to, so a result depends on the batch it is computed in"


def _runs(mask: tuple[int, ...]) -> str:
    """``1x7 0x9`` for seven ones and nine zeros."""
    runs: list[tuple[int, int]] = []
    for bit in mask:
        if runs and runs[-1][0] == bit:
            runs[-1] = (bit, runs[-1][1] + 1)
        else:
            runs.append((bit, 1))
    shown = " ".join(f"{bit}x{length}" for bit, length in runs[:6])
    return (shown or "empty") + (" ..." if len(runs) > 6 else "")


@law()
def tokens_match_tokenizer(record: Record) -> Verdict:
    """Every row of a batch is the tokenizer's own encoding of that sequence alone, then padding.

    Compared token by token with the sequence encoded outside of any batch, as is every other column that the
    tokenizer returns, such as token_type_ids. Exact. The side of the padding, and what it consists of, are left to
    padding_mask_correct.

    The model gets nothing else of the text, such as position_ids that count from another place than it does itself.
    If it tells two texts apart by token_type_ids, a pair has two kinds of them: since transformers 5 the tokenizers of
    ALBERT and RemBERT return none, and both texts are read as the first.

    Where another tokenizer is declared than the one that came with the checkpoint, the ids of the first 100 texts stand
    for the same tokens in both; what is added, or takes an id kept free for it, is no difference.

    Texts do not all begin with the begin token twice, as they do where a chat template has written it into them and the
    tokenizer adds another.
    """
    if record.tokenizer is not None and (foreign := record.tokenizer.foreign):
        return broken(
            f"{foreign[0]} ({count(len(foreign), 'such id')} in the first texts)",
            cause="the tokenizer belongs to another checkpoint: the model reads other words than were written",
        )
    if _begins_twice(record):
        return broken(
            f"all {len(record.examples)} texts begin with the begin token twice",
            cause="it is written in the texts, as a chat template writes it, and the tokenizer adds another: give rows "
            "of messages, or leave it out of the texts",
        )
    record, choices = _unfolded(record)
    if (missing := _missing(record)) is not None:
        return invalid(missing)
    if (miscounted := _wrong_count(record)) is not None:
        return broken(miscounted, cause="the collator drops or repeats rows")
    rows = tuple(_rows(record, choices))
    wrong = next((row for row in rows if not row.holds_its_text), None)
    if wrong is not None:
        return _wrong_tokens(wrong)
    different = next(filter(None, map(_wrong_column, rows)), None)
    if different is not None:
        return broken(different, cause="the collator drops it, or makes another one itself")
    if (added := _added(record)) is not None:
        return broken(added, cause="the collator makes it itself, or another tokenizer does")
    if (alike := _alike(record)) is not None:
        return broken(
            alike,
            cause="the tokenizer leaves token_type_ids out of its model_input_names, and the model takes 0 for all",
        )
    return held(f"{len(rows)} rows of {len(record.batches)} batches")


def _begins_twice(record: Record) -> bool:
    begin = None if record.tokenizer is None else record.tokenizer.begin_token_id
    ids = [example.input_ids for example in record.examples]
    return begin is not None and bool(ids) and all(each[:2] == (begin, begin) for each in ids)


def _wrong_column(row: Row) -> str | None:
    """What is wrong with the columns beside the ids, such as token_type_ids, over the example's tokens."""
    for name, expected in row.example.columns.items():
        found = row.columns.get(name)
        if found is None:
            return f"{row.place}: no {name} among the model's arguments"
        start = row.padding - row.start if row.other_side else row.start
        if found[start : start + len(expected)] != expected:
            return f"{row.place}: {name} is {_runs(found)}, the tokenizer gives {_runs(expected)}"
    return None


def _added(record: Record) -> str | None:
    """The first of the model's arguments that neither the tokenizer nor the task gives."""
    given = {name for one in record.examples for name in (*one.columns, *by_argument(one))}
    given |= {"input_ids", "attention_mask", "decoder_input_ids"}
    for batch in record.batches:
        if added := sorted(batch.tensors.keys() - given):
            return f"step {batch.step + 1}: {added[0]} reached the model, which the tokenizer does not give"
    return None


def _alike(record: Record) -> str | None:
    """The first pair whose two texts are one to a model that can tell them apart."""
    if record.tokenizer is None or not record.tokenizer.token_types:
        return None
    for example in record.examples:
        types = example.columns.get("token_type_ids", ())
        if example.pair and len(set(types)) < 2:
            found = f"has token_type_ids of {types[0]} only" if types else "has no token_type_ids"
            return f"example {example.index} ({example.text!r}) is a pair and {found}"
    return None


def _wrong_tokens(row: Row) -> Verdict:
    expected = row.example.input_ids
    if row.padding < 0:
        return broken(
            f"{row.place}: {len(row.ids)} tokens reached the model, the tokenizer gives {len(expected)}",
            cause="the row is truncated; see train.max_length",
        )
    different = [place for place, token in enumerate(expected) if row.found[place] != token]
    if different:
        place = row.start + different[0]
        return broken(
            f"{row.place}: input_ids[{place}] is {row.ids[place]}, the tokenizer gives {expected[different[0]]}",
            cause="text and row do not belong together, or another tokenizer or normaliser was used",
        )
    return broken(
        f"{row.place}: input_ids[{row.extra[0]}] is {row.ids[row.extra[0]]} and not masked, "
        f"beyond the {len(expected)} tokens that the tokenizer gives",
        cause="a token is added to the text, such as a second end token, or another tokenizer was used",
    )
