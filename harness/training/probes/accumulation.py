"""One step over several micro-batches, and one over the same rows in a single batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Subset

from harness.training.checkpoint import Loaded
from harness.training.data import Drawn
from harness.training.devices import find
from harness.training.encoding import tokens_of
from harness.training.twin import twin
from harness.training.workload import Workload

MICRO_BATCHES = 4
ROWS = 3
"""Rows of a micro-batch, at most; the last has one less."""

Tensors = dict[str, torch.Tensor]


def accumulation(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Loss and gradient of a step of the case's own loop: in unequal micro-batches, and in one batch; on the twin.

    Returns:
        ``terms`` of each micro-batch, the two values of ``loss``, the relative distance of the two gradients, and the
        ``scale`` by which the first is larger; or a ``reason`` why the two batches cannot be the same.
    """
    micro, rows = min(MICRO_BATCHES, work.train.gradient_accumulation), min(ROWS, work.train.batch_size)
    if micro == 1:
        return {"reason": "each step has one batch"}
    if work.task.masked is not None:
        return {"reason": "tokens are hidden anew for each batch: two batches are never the same"}
    size = min(len(work.examples.lengths), rows * micro)
    size -= size % rows == 0 and size > rows > 1
    part: Any = Subset(work.examples, range(size))  # of a stream, its first
    part.lengths = work.examples.lengths[:size]
    small = replace(work, examples=part, split=None, max_length=_longest(part), device=find("cpu"), precision="fp32")
    parts, whole = _step(loaded, small, rows, micro), _step(loaded, small, size, 1)
    return {
        "terms": parts.terms,
        "loss": [parts.loss, whole.loss],
        "gradient": _distance(parts.gradients, whole.gradients),
        "scale": _scale(parts.gradients, whole.gradients),
    }


def _longest(examples: Any) -> int:
    """Tokens of the longest text, or of what is to be learnt of it."""
    rows = [examples[index] for index in range(len(examples))]
    labels = [row["labels"] for row in rows if isinstance(row.get("labels"), list)]
    return max(map(len, [*(ids for row in rows for ids in tokens_of(row)), *labels]))


def _step(loaded: Loaded, work: Workload, rows: int, micro: int) -> _Once:
    """The first step of the case's own loop, with batches of so many rows, of which so many make a step."""
    from harness.training.loops import LOOPS  # the loops tell a watch, and this is one

    model = twin(work.model)
    model.load_state_dict(loaded.model.state_dict())
    said: dict[str, Any] = {"steps": 1, "epochs": None, "batch_size": rows, "gradient_accumulation": micro}
    said |= {"compile": False}  # the twin is on the CPU, where there may be no compiler
    said |= {"shuffle": False, "batching": "in_order", "drop_last": False, "max_grad_norm": None}
    said |= {"padding": "max_length"}  # all alike: a question's answer is sought in the padding, too
    once = _Once(model, work)
    small = replace(work, model=model, train=work.train.model_copy(update=said), drawn=once.drawn)
    try:
        LOOPS[small.train.loop](small, once)
    finally:
        once.hooks.close()
    return once


class _Once:
    """Keeps the gradient that the optimizer steps with, and the loss."""

    def __init__(self, model: Any, work: Workload) -> None:
        self.drawn = Drawn()
        self.loss = math.nan
        self.gradients: Tensors = {}
        self.terms: list[int] = []
        self.hooks = ExitStack()
        self._model = model
        self._task = work.task

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """Watch the forward passes, and the step."""
        actual = getattr(optimizer, "optimizer", optimizer)
        self.hooks.callback(self._model.register_forward_hook(self._on_forward, with_kwargs=True).remove)
        self.hooks.callback(actual.register_step_pre_hook(self._on_step).remove)

    def kept(self) -> None:
        """No checkpoint is written."""

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """Keep the loss."""
        self.loss = float(loss.detach())

    def evaluate(self, evaluation: Callable[[], Any]) -> None:
        """Nothing: it has no split."""

    def _on_forward(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        drawing = self.drawn.queue.popleft() if self.drawn.queue else None
        kept = {} if drawing is None or drawing.labels is None else {"labels": drawing.labels}
        self.terms.append(self._task.terms({**kept, **kwargs}))

    def _on_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        named = self._model.named_parameters()
        self.gradients = {name: one.grad.clone() for name, one in named if one.grad is not None}


def _distance(one: Tensors, other: Tensors) -> float:
    zero = torch.zeros(())
    norm = math.hypot(*(float(tensor.norm()) for tensor in other.values()))
    away = math.hypot(*(float((one.get(name, zero) - other.get(name, zero)).norm()) for name in one.keys() | other))
    return away / norm if norm else math.nan


def _scale(one: Tensors, other: Tensors) -> float:
    """The factor that brings the second nearest to the first."""
    products = math.fsum(float((one[name] * other[name]).sum()) for name in one.keys() & other)
    squares = math.fsum(float(tensor.square().sum()) for tensor in other.values())
    return products / squares if squares else math.nan
