"""Logits of the same examples, alone and padded in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.training.checkpoint import Loaded
from harness.training.data import longest
from harness.training.twin import logits, twin
from harness.training.workload import Workload

EXAMPLES = 4
EXTRA = 5
"""Columns of padding beyond the longest row, as far as tokenizer and model have room for them."""


def padding(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """How far the logits of each example move from those it has alone, relative to the largest of them.

    On the twin, in eval mode: in a batch as the collator makes it, with more padding than needed, in another
    company; and, as the control of power, with a mask that hides nothing. With the trained weights and with those that
    they started from, and of both figures the larger is kept: a model that has learnt a few examples by heart hardly
    moves, whatever it reads.
    """
    model = twin(work.model)
    indices = chosen(work.examples.lengths)
    end = moves(model, work, indices)
    model.load_state_dict(loaded.model.state_dict())
    start = moves(model, work, indices)
    ways = ("batch", "more_padding", "other_company", "nothing_masked")
    return {**end, **{way: [max(pair) for pair in zip(end[way], start[way], strict=True)] for way in ways}}


def moves(model: Any, work: Workload, indices: list[int]) -> dict[str, Any]:
    """The evidence of `padding`, for these examples of a workload and a model in eval mode with its present weights."""
    collate = work.collator()
    rows = [features(work, index) for index in indices]
    batch = collate(rows)
    others = collate(rows[: max(2, len(rows) // 2)])
    most = min(work.max_length, longest(None, work.tokenizer, model))  # there may be no positions beyond
    extra = max(0, min(EXTRA, most - batch["input_ids"].shape[1]))
    with torch.no_grad():
        alone = [logits(model, collate([row]))[0] for row in rows]
    return {
        "examples": indices,
        "lengths": [work.examples.lengths[index] for index in indices],
        "batch": _distances(alone, model, batch),
        "more_padding": _distances(alone, model, _padded(batch, extra, work.tokenizer)),
        "other_company": _distances(alone, model, others),
        "nothing_masked": _distances(alone, model, _unmasked(batch)),
    }


def chosen(lengths: Sequence[int], most: int = EXAMPLES) -> list[int]:
    """Examples of lengths as different as there are, shortest and longest among them."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    count = min(most, len(order))
    if count < 2:
        return order
    return [order[place * (len(order) - 1) // (count - 1)] for place in range(count)]


def features(work: Workload, index: int) -> dict[str, Any]:
    """An example as the loop's collator takes it."""
    return {name: value for name, value in work.examples[index].items() if name != "index"}


def _distances(alone: list[torch.Tensor], model: Any, batch: Any) -> list[float]:
    with torch.no_grad():
        together = logits(model, batch)
    return [
        float((one - row).abs().max() / one.abs().max().clamp_min(torch.finfo(one.dtype).tiny))
        for one, row in zip(alone, together, strict=False)  # company may hold fewer of them
    ]


def _padded(batch: Any, columns: int, tokenizer: Any) -> dict[str, torch.Tensor]:
    """The batch with columns of padding more, on the tokenizer's side."""
    values = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    sides = (columns, 0) if tokenizer.padding_side == "left" else (0, columns)
    return {
        name: torch.nn.functional.pad(value, sides, value=values.get(name, 0)) if value.dim() == 2 else value
        for name, value in batch.items()
    }


def _unmasked(batch: Any) -> dict[str, torch.Tensor]:
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
