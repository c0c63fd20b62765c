"""Takes evidence while a loop trains: what reached the model, what the optimizer did, how long it took.

The loops call `begin` and `step_done`, everything else is seen by hooks. Evidence is taken between steps, with the
clock stopped; inside a step the hooks only keep references.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import torch

from harness.record import Batch, Parameter, Steps
from harness.training.timing import StepClock

BATCH_TOKENS = 16_384
"""Distinct batches are kept in a record until they hold this many tokens; digests are kept of all."""

Progress = Callable[[int, int, float, float], None]
"""Called after each step with step, steps, loss and samples per second."""


class Watch:
    """The evidence of one training.

    Args:
        model: the model that will be trained, on its device.
        start: the same weights on the CPU, which nobody changes.
        head: names of the parameters whose way is followed step by step.
        lengths: real tokens of each example.
        drawn: the examples of each batch, in the order the loader made them.
        steps: how many steps are declared.
        clock: of the device.
        progress: told of each step.
    """

    def __init__(
        self,
        *,
        model: Any,
        start: Any,
        head: Iterable[str],
        lengths: tuple[int, ...],
        drawn: deque[tuple[int, ...]],
        steps: int,
        clock: StepClock,
        progress: Progress | None = None,
    ) -> None:
        self._model = model
        self._start = dict(start.named_parameters())
        self._device_start = {name: self._start[name].to(model.device, copy=True) for name in head}
        self._lengths = lengths
        self._drawn = drawn
        self._declared = steps
        self._clock = clock
        self._progress = progress
        self._hooks = ExitStack()
        self._arguments: dict[str, Any] = {}
        self._rate = math.nan
        self._gradients: dict[str, float] = {}
        self._furthest = dict.fromkeys(self._device_start, 0.0)
        self._columns: dict[str, list[Any]] = {name: [] for name in Steps.model_fields}
        self._batches: dict[str, Batch] = {}
        self._kept = 0

    # What a loop calls

    def begin(self, optimizer: Any) -> None:
        """The loop is about to fetch its first batch."""
        actual = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        self._hook(self._model.register_forward_pre_hook(self._on_forward, with_kwargs=True))
        self._hook(actual.register_step_pre_hook(self._on_optimizer_step))
        self._clock.start()

    def step_done(self, loss: torch.Tensor) -> None:
        """A step is over: forward, backward, optimizer, schedule, gradients cleared.

        Args:
            loss: what was back-propagated, a scalar on any device.
        """
        seconds = self._clock.stop()
        watching = perf_counter()
        self._note(seconds, loss.detach().float().item())
        self._columns["watching_seconds"].append(perf_counter() - watching)
        self._clock.start()

    def close(self) -> None:
        """Take the hooks off the model and the optimizer."""
        self._hooks.close()

    # What a record gets

    def steps(self) -> Steps:
        """Everything seen so far, a column each."""
        return Steps(**{name: tuple(column) for name, column in self._columns.items()})

    def batches(self) -> tuple[Batch, ...]:
        """The kept batches, in order of their first step."""
        return tuple(self._batches.values())

    def parameters(self, head: Iterable[str]) -> tuple[Parameter, ...]:
        """How far each parameter is from its start now."""
        head = set(head)
        return tuple(self._parameter(name, parameter, head) for name, parameter in self._model.named_parameters())

    # Hooks

    def _hook(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def _on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and torch.is_grad_enabled():
            self._arguments = kwargs

    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._rate = float(optimizer.param_groups[0]["lr"])
        if not self._gradients:
            self._gradients = {
                name: _rms(parameter.grad)
                for name, parameter in self._model.named_parameters()
                if parameter.grad is not None
            }

    # Between steps

    def _note(self, seconds: float, loss: float) -> None:
        step = len(self._columns["loss"])
        # The Trainer also hands over scalars, which belong to the loss and not to the batch.
        tensors = {
            name: value.cpu()
            for name, value in self._arguments.items()
            if isinstance(value, torch.Tensor) and value.dim() > 0
        }
        examples = self._drawn.popleft() if self._drawn else ()
        lengths = [self._lengths[index] for index in examples]
        digests = {name: _digest(tensor) for name, tensor in sorted(tensors.items())}
        ids = tensors.get("input_ids")
        row = {
            "loss": loss,
            "learning_rate": self._rate,
            "seconds": seconds,
            "samples": len(examples),
            "real_tokens": sum(lengths),
            "padded_tokens": ids.numel() if ids is not None else len(lengths) * max(lengths, default=0),
            "digest": digests,
            "examples": examples,
        }
        for name, value in row.items():
            self._columns[name].append(value)
        self._keep(step, examples, tensors, digests)
        self._follow_head()
        self._arguments, self._rate = {}, math.nan
        if self._progress is not None:
            self._progress(step + 1, self._declared, loss, len(examples) / seconds if seconds else math.nan)

    def _keep(
        self, step: int, examples: tuple[int, ...], tensors: dict[str, torch.Tensor], digests: dict[str, str]
    ) -> None:
        key = repr((examples, digests))
        size = max((tensor.numel() for tensor in tensors.values()), default=0)
        if key in self._batches or self._kept + size > BATCH_TOKENS:
            return
        self._kept += size
        lists = {name: tuple(tensor.tolist()) for name, tensor in tensors.items()}
        self._batches[key] = Batch(step=step, examples=examples, tensors=lists)

    def _follow_head(self) -> None:
        now = dict(self._model.named_parameters())
        for name, start in self._device_start.items():
            distance = _rms(now[name].detach() - start)
            if not distance <= self._furthest[name]:  # written so that NaN is kept
                self._furthest[name] = distance

    def _parameter(self, name: str, parameter: torch.Tensor, head: set[str]) -> Parameter:
        start = self._start[name].detach()
        return Parameter(
            name=name,
            shape=tuple(parameter.shape),
            head=name in head,
            trainable=parameter.requires_grad,
            start=_rms(start),
            change=_rms(parameter.detach().cpu() - start),
            furthest=self._furthest.get(name),
            gradient=self._gradients.get(name),
        )


def _rms(tensor: torch.Tensor) -> float:
    """Root mean square of all elements."""
    return float(torch.linalg.vector_norm(tensor.float()).item()) / max(tensor.numel(), 1) ** 0.5


def _digest(tensor: torch.Tensor) -> str:
    hash = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    hash.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return hash.hexdigest()[:16]
