"""One small batch, trained until it is known by heart."""

from __future__ import annotations

from typing import Any

import torch

from harness.training.checkpoint import Loaded
from harness.training.probes.padding import features
from harness.training.twin import twin
from harness.training.workload import Workload

ROWS = 4
STEPS = 150
RATES = {True: 1e-4, False: 3e-3}
"""Adam's learning rate for pretrained and for random weights."""
ENOUGH = 0.05
"""Share of the first loss at which it stops early."""


def overfit(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """The loss of a few examples with different labels, all cut to one length, under the harness's own Adam.

    One length, because a model that ignores its input can still tell examples apart by their length. On the twin,
    from the untouched weights, with the model's own loss.
    """
    model = twin(work.model)
    model.load_state_dict(loaded.model.state_dict())
    indices = _different_labels(work)
    batch = _one_length([features(work, index) for index in indices], work)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATES[loaded.pretrained])
    losses: list[float] = []
    for _ in range(STEPS):
        loss = model(**batch).loss
        losses.append(float(loss.detach()))
        if losses[-1] <= ENOUGH * losses[0]:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"examples": indices, "labels": batch["labels"].tolist(), "loss": losses}


def _different_labels(work: Workload) -> list[int]:
    """Indices that go round the labels, so that no label is in the majority for want of another."""
    by_label: dict[int, list[int]] = {}
    for index in range(len(work.examples)):
        by_label.setdefault(work.examples[index]["label"], []).append(index)
    return [group[place] for place in range(ROWS) for group in by_label.values() if place < len(group)][
        : max(ROWS, len(by_label))
    ]


def _one_length(rows: list[dict[str, Any]], work: Workload) -> Any:
    """A batch in which every row is cut to the shortest, the closing special token kept."""
    shortest = min(len(row["input_ids"]) for row in rows)
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list):
                row[name] = value[: shortest - 1] + value[-1:]
    return work.collator()(rows)
