"""Padding and encoding of the batches that reached the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.laws.law import Verdict, broken, held, invalid, law
from harness.record import Batch, Example, Record


@dataclass(frozen=True)
class Row:
    """One row of a batch beside the example it should hold."""

    place: str
    step: int
    row: int
    example: Example
    ids: tuple[int, ...]
    mask: tuple[int, ...] | None

    @property
    def padding(self) -> int:
        """How many positions the row is longer than its example."""
        return len(self.ids) - len(self.example.input_ids)


def rows(record: Record) -> Iterator[Row]:
    """Every row of the kept batches, with its example."""
    examples = {example.index: example for example in record.examples}
    for batch in record.batches:
        masks: tuple[Any, ...] | None = batch.tensors.get("attention_mask")
        for number, (index, ids) in enumerate(zip(batch.examples, batch.tensors["input_ids"], strict=True)):
            yield Row(
                place=f"step {batch.step + 1}, row {number} (example {index}: {examples[index].text!r})",
                step=batch.step,
                row=number,
                example=examples[index],
                ids=tuple(ids),
                mask=None if masks is None else tuple(masks[number]),
            )


def _unreadable(record: Record) -> Verdict | None:
    """Why the kept batches cannot be judged, if they cannot."""
    if not record.batches or record.tokenizer is None:
        return invalid("no batch was kept")
    for batch in record.batches:
        if "input_ids" not in batch.tensors:
            return invalid(f"step {batch.step + 1}: no input_ids among {', '.join(batch.tensors)}")
        if len(batch.tensors["input_ids"]) != len(batch.examples):
            return broken(
                f"step {batch.step + 1}: {len(batch.tensors['input_ids'])} rows reached the model, "
                f"the loader drew {len(batch.examples)} examples",
                cause="the collator drops or repeats rows",
            )
    return None


@law()
def padding_mask_correct(record: Record) -> Verdict:
    """attention_mask is 1 exactly on real tokens and 0 on padding, on the tokenizer's side, over pad ids.

    What is real comes from the tokenizer's encoding of each sequence alone, never from ``ids != pad_id``: a pad
    token may also occur as a text token. Exact.
    """
    if (problem := _unreadable(record)) is not None:
        return problem
    assert record.tokenizer is not None
    without = next((batch for batch in record.batches if "attention_mask" not in batch.tensors), None)
    if without is not None:
        return _no_mask(record, without)
    side, pad = record.tokenizer.padding_side, record.tokenizer.pad_token_id
    count = padded = 0
    for row in rows(record):
        count += 1
        padded += row.padding > 0
        if row.padding < 0:
            continue  # a row that lost tokens is tokens_match_tokenizer's to name
        if (verdict := _judge_row(row, side, pad)) is not None:
            return verdict
    note = "" if padded else "; all are of one length, so no padding was seen"
    return held(f"{count} rows of {len(record.batches)} batches, {padded} padded on the {side}{note}")


def _no_mask(record: Record, batch: Batch) -> Verdict:
    return broken(
        f"step {batch.step + 1}: no attention_mask among the model's arguments ({', '.join(batch.tensors)})",
        cause="the collator or tokenizer drops it; the model then attends to padding",
    )


def _judge_row(row: Row, side: str, pad: int | None) -> Verdict | None:
    real, padding = len(row.example.input_ids), row.padding
    left = padding if side == "left" else 0
    expected = (0,) * left + (1,) * real + (0,) * (padding - left)
    if row.mask != expected:
        return broken(
            f"{row.place}: attention_mask is {_runs(row.mask)}, expected {_runs(expected)}",
            cause=_mask_cause(row.mask or (), expected),
        )
    wrong = [place for place, bit in enumerate(expected) if bit == 0 and row.ids[place] != pad]
    if wrong:
        return broken(
            f"{row.place}: input_ids[{wrong[0]}] is {row.ids[wrong[0]]} under a mask of 0, "
            f"expected the pad token {pad}",
            cause="the collator pads with another id than the tokenizer's pad token",
        )
    return None


def _mask_cause(mask: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if mask == tuple(1 - bit for bit in expected):
        return "the polarity is inverted: 1 must stand for a real token"
    if mask == expected[::-1]:
        return "padding is on the other side than the tokenizer's padding_side"
    if all(bit == 1 for bit in mask):
        return "the mask is all ones: it was made without looking at padding"
    if all(bit == 0 for bit in mask):
        return "the mask is all zeros"
    if sum(mask) < sum(expected):
        return "real tokens are masked, so the model cannot see them"
    return "padding is attended to, so a result depends on the batch it is computed in"


def _runs(mask: tuple[int, ...] | None) -> str:
    """``1x7 0x9`` for seven ones and nine zeros."""
    runs: list[tuple[int, int]] = []
    for bit in mask or ():
        if runs and runs[-1][0] == bit:
            runs[-1] = (bit, runs[-1][1] + 1)
        else:
            runs.append((bit, 1))
    shown = " ".join(f"{bit}x{length}" for bit, length in runs[:6])
    return (shown or "empty") + (" ..." if len(runs) > 6 else "")


@law()
def tokens_match_tokenizer(record: Record) -> Verdict:
    """Every row of a batch is the tokenizer's own encoding of that sequence alone, then padding.

    Compared token by token with the sequence encoded outside any batch. Exact.
    """
    if (problem := _unreadable(record)) is not None:
        return problem
    assert record.tokenizer is not None
    left = record.tokenizer.padding_side == "left"
    count = 0
    for row in rows(record):
        count += 1
        expected = row.example.input_ids
        start = max(row.padding, 0) if left else 0
        found = row.ids[start : start + len(expected)]
        if found != expected:
            return _wrong_tokens(row, found, start)
    return held(f"{count} rows of {len(record.batches)} batches")


def _wrong_tokens(row: Row, found: tuple[int, ...], start: int) -> Verdict:
    expected = row.example.input_ids
    if row.padding < 0:
        return broken(
            f"{row.place}: {len(row.ids)} tokens reached the model, the tokenizer gives {len(expected)}",
            cause="the row is truncated; see train.max_length",
        )
    place = next(place for place, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other)
    return broken(
        f"{row.place}: input_ids[{start + place}] is {found[place]}, the tokenizer gives {expected[place]}",
        cause="text and row do not belong together, or another tokenizer, normaliser or padding side was used",
    )
