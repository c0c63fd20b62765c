"""The first steps once more, without dropout, so that devices can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from harness.training import optimizer
from harness.training.checkpoint import Loaded
from harness.training.data import Drawn
from harness.training.twin import silence
from harness.training.workload import Workload, start

STEPS = 4
"""Enough for a wrong gradient or update to show in the loss, few enough not to amplify rounding."""


def replay(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Loss of each of the first steps from the untouched weights, on the device, in the case's precision.

    In the custom loop, whatever the case's own, with every dropout at 0, also those that are not modules.
    """
    from harness.training.loops import LOOPS  # the loops tell a watch, and this has one

    model = start(loaded.model, work.precision).to(work.device.torch)
    optimizer.freeze(model, work.train.freeze)
    silence(model)
    train = work.train.model_copy(update={"steps": min(STEPS, work.train.steps)})
    losses = _Losses()
    with work.products():
        LOOPS["custom"](replace(work, model=model, train=train, drawn=Drawn(), split=None), losses)
    return {"loss": losses.found}


class _Losses:
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """Nothing."""

    def kept(self) -> None:
        """No checkpoint is written."""

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """Keep it."""
        self.found.append(loss.item())

    def evaluate(self, evaluation: Callable[[], Any]) -> None:
        """Nothing: it has no split."""
