"""Further steps of a case's loop, on a copy of its model: for whoever would be in the way of timed ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from harness.training.data import Drawn
from harness.training.resume import NOWHERE
from harness.training.twin import copied
from harness.training.workload import Watching, Workload, keep_layers


def further(work: Workload, steps: int) -> Workload:
    """The same over the same batches from the first on, with a copy of the model, and nothing beside the steps."""
    model = copied(work.model)
    keep_layers(model)  # the loop itself lets them be computed again
    model.zero_grad()
    train = work.train.model_copy(update={"steps": steps, "epochs": None})
    return replace(work, model=model, train=train, split=None, drawn=Drawn(), keeping=NOWHERE)


def take(work: Workload, watch: Watching) -> None:
    """Train it as it was trained, and leave random generators as they are."""
    from harness.training.loops import LOOPS  # which tell a watch of their steps

    devices = [work.device.torch] if work.device.torch.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), work.products(), work.memory():
        LOOPS[work.train.loop](work, watch)


class Onlooker:
    """Is told of a loop's steps, and does nothing."""

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """The loop is about to fetch its first batch."""

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """A step is over."""

    def kept(self) -> None:
        """No checkpoint is written."""

    def evaluate(self, evaluation: Callable[[], Any]) -> None:
        """Evaluations are no part of a step."""
