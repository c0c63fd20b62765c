"""One small batch, trained until it is known by heart."""

from __future__ import annotations

from typing import Any

import torch

from harness.training.checkpoint import Loaded
from harness.training.probes.result import features
from harness.training.twin import twin
from harness.training.workload import Workload

ROWS = 4
STEPS = 150
RATES = {True: 1e-4, False: 3e-3}
"""Adam's learning rate for pretrained and for random weights, of which adapters are."""
ENOUGH = 0.05
"""Share of the first loss at which it stops early."""

_LABELS = ("label", "labels", "start_positions", "end_positions")


def overfit(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """The loss of a few examples with different labels, all cut to one length, under the harness's own Adam.

    One length, because a model that ignores its input can still tell examples apart by their length; where labels
    belong to tokens, texts stay whole. On the twin, from the untouched weights, with the model's own loss.
    """
    model = twin(work.model)
    model.load_state_dict(loaded.model.state_dict())
    indices = _different_labels(work)
    rows = [features(work, index) for index in indices]
    whole = work.task.per != "example" or work.task.scores_choices
    batch = work.collator()(rows) if whole else _one_length(rows, work)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATES[loaded.pretrained and loaded.adapters is None])
    losses: list[float] = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        if losses[-1] <= ENOUGH * losses[0]:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"examples": indices, "labels": [_label(row) for row in rows], "loss": losses}


def _different_labels(work: Workload) -> list[int]:
    """Indices that go round the labels, the longest texts first: cut to one length, those differ the most."""
    by_label: dict[str, list[int]] = {}
    for index in sorted(range(len(work.examples.lengths)), key=lambda index: -work.examples.lengths[index]):
        by_label.setdefault(_label(work.examples[index]), []).append(index)
    rounds = range(max(map(len, by_label.values())))
    turns = [group[turn] for turn in rounds for group in by_label.values() if turn < len(group)]
    return turns[: min(max(ROWS, len(by_label)), 2 * ROWS)]


def _label(row: dict[str, Any]) -> str:
    """What is to be learnt of an example, as one value."""
    return repr({name: row[name] for name in _LABELS if name in row} or row["input_ids"])


def _one_length(rows: list[dict[str, Any]], work: Workload) -> Any:
    """A batch in which every row is cut to the shortest, the closing special token kept.

    Texts that differ in their ends alone would be the same text with two labels then: the shortest gives way.
    """
    while True:
        shortest = min(rows, key=lambda row: len(row["input_ids"]))
        cut = [_cut(row, len(shortest["input_ids"])) for row in rows]
        if len({tuple(row["input_ids"]) for row in cut}) == len(cut) or len(rows) == 2:
            return work.collator()(cut)
        rows = [row for row in rows if row is not shortest]


def _cut(row: dict[str, Any], length: int) -> dict[str, Any]:
    return {
        name: value[: length - 1] + value[-1:] if isinstance(value, list) and name not in _LABELS else value
        for name, value in row.items()
    }
