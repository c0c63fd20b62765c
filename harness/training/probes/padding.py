"""Logits of the same examples, alone and padded in several ways."""

from __future__ import annotations

import math
from typing import Any

import torch

from harness.training.checkpoint import Loaded
from harness.training.encoding import longest
from harness.training.probes.result import Texts, chosen, features, inputs, logits, texts
from harness.training.tasks import IGNORED, Features
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload

EXTRA = 5
"""Columns of padding beyond the longest row, as far as tokenizer and model have room for them."""


def padding(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """How far the logits of each text move from those it has alone, relative to the largest of them.

    On the twin, in eval mode: in a batch as the collator makes it, with more padding than needed, in another
    company; and, as the control of power, with a mask that hides nothing. Logits of padded positions are left out. With
    the trained weights and with those that they started from, and of both figures the larger is kept: a model that has
    learnt a few examples by heart hardly moves, whatever it reads.
    """
    model = twin(work.model)
    indices = chosen(work.examples.lengths)
    end = moves(model, work, indices)
    model.load_state_dict(loaded.model.state_dict())
    start = moves(model, work, indices)
    ways = ("batch", "more_padding", "other_company", "nothing_masked")
    return {**end, **{way: [*map(larger, end[way], start[way])] for way in ways}}


def moves(model: Any, work: Workload, indices: list[int]) -> dict[str, Any]:
    """The evidence of `padding`, for these examples of a workload and a model in eval mode with its present weights."""
    collate = work.plain_collator(longest=True)  # alone is without any padding
    rows = [features(work, index) for index in indices]
    alone = [
        one
        for index, row in zip(indices, rows, strict=True)
        for one in _results(model, work, texts(work, [index], [row]), inputs(work, collate([row])))
    ]

    def distances(batch: dict[str, torch.Tensor], company: list[Features]) -> list[float]:
        together = _results(model, work, texts(work, indices[: len(company)], company), batch)
        return [_distance(one, other) for one, other in zip(alone, together, strict=False)]

    batch = inputs(work, collate(rows))
    others = rows[: max(2, len(rows) // 2)]
    whole = texts(work, indices, rows)
    return {
        "examples": list(whole.examples),
        "lengths": list(whole.lengths),
        "batch": distances(inputs(work, work.plain_collator()(rows)), rows),
        "more_padding": distances(more_padding(model, work, batch), rows),
        "other_company": distances(inputs(work, collate(others)), others),
        "nothing_masked": distances({**batch, "attention_mask": torch.ones_like(batch["input_ids"])}, rows),
    }


def larger(one: float, two: float) -> float:
    """The larger of two figures; NaN if either is."""
    return one if math.isnan(one) or one >= two else two


def _results(model: Any, work: Workload, whole: Texts, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The logits of each text, at the places that are its own."""
    with torch.no_grad(), same_draws():
        found = logits(work.task, model(**batch))
    return [found[row, whole.read(row, found.shape[1])] for row in range(len(whole.lengths))]


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max().clamp_min(torch.finfo(one.dtype).tiny))


def more_padding(model: Any, work: Workload, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch with `EXTRA` columns of padding more, on the tokenizer's side; what a decoder gets stays as it is.

    There are fewer, down to none, where tokenizer or model have no room for them.
    """
    shape = batch["input_ids"].shape
    most = min(work.max_length, longest(None, work.tokenizer, model))
    columns = max(0, min(EXTRA, most - shape[-1]))
    values = {"input_ids": work.tokenizer.pad_token_id, "token_type_ids": work.tokenizer.pad_token_type_id}
    values |= dict.fromkeys(work.task.labels, IGNORED)
    ours = {name for name in batch if not name.startswith("decoder_")}
    if work.task.per != "token":
        ours -= {*work.task.labels}
    sides = (columns, 0) if work.tokenizer.padding_side == "left" else (0, columns)
    return {
        name: torch.nn.functional.pad(value, sides, value=values.get(name, 0))
        if name in ours and value.shape == shape
        else value
        for name, value in batch.items()
    }
