"""Faults of the learning rate over time."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from harness.training.fault import NO_REPORT, Patch, fault
from harness.training.faults.seam import altered
from harness.training.workload import Workload


def _stepping(work: Workload, step: Callable[[Any, Callable[[], None]], None]) -> Workload:
    """The workload whose schedule runs ``step(schedule, right)`` where it should run ``right()``."""

    def schedule(self: Workload, optimizer: Any) -> Any:
        made = Workload.schedule(self, optimizer)
        right = made.step
        made.step = MethodType(lambda self: step(self, right), made)
        return made

    return altered(work, schedule=schedule)


@fault("accelerate#662, burn#5695")
def schedule_stepped_twice(work: Workload, patch: Patch) -> Workload:
    """The schedule goes two steps on in each step, as with two processes or micro-batches."""

    def twice(schedule: Any, right: Callable[[], None]) -> None:
        right()
        right()

    return _stepping(work, twice)


@fault("DeepCrime: change learning rate")
def schedule_never_stepped(work: Workload, patch: Patch) -> Workload:
    """``schedule.step()`` is forgotten."""
    return _stepping(work, lambda schedule, right: None)


@fault("pytorch 1.1 release notes: lr_scheduler.step() before optimizer.step()")
def schedule_a_step_ahead(work: Workload, patch: Patch) -> Workload:
    """The schedule is one step ahead, as where it is stepped before the optimizer."""

    def schedule(self: Workload, optimizer: Any) -> Any:
        made = Workload.schedule(self, optimizer)
        made.step()
        return made

    return altered(work, schedule=schedule)


@fault("torchtitan#1261, libai#37")
def warmup_never_ends(work: Workload, patch: Patch) -> Workload:
    """The warm-up is as long as a far longer training."""
    return altered(work, schedule=lambda self, optimizer: LambdaLR(optimizer, lambda step: step / 1e9))


@fault("torchtitan#1261")
def warmup_too_long(work: Workload, patch: Patch) -> Workload:
    """The warm-up takes two steps more than declared."""
    return altered(
        work,
        schedule=lambda self, optimizer: get_constant_schedule_with_warmup(optimizer, self.train.warmup_steps + 2),
    )


@fault("transformers: the Trainer's default lr_scheduler_type is linear")
def rate_decays(work: Workload, patch: Patch) -> Workload:
    """The learning rate falls linearly to 0, where a constant one is declared."""
    return altered(
        work,
        schedule=lambda self, optimizer: get_linear_schedule_with_warmup(
            optimizer, self.train.warmup_steps, self.settings.train.steps
        ),
    )


@fault(NO_REPORT)
def rate_falls_at_the_end(work: Workload, patch: Patch) -> Workload:
    """The learning rate falls at the very end of the training only."""
    last = work.settings.train.steps - 1

    def schedule(self: Workload, optimizer: Any) -> Any:
        warmup = self.train.warmup_steps
        return LambdaLR(optimizer, lambda step: 0.1 if step >= last else min(1.0, step / warmup) if warmup else 1.0)

    return altered(work, schedule=schedule)


FAULTS = (
    schedule_stepped_twice,
    schedule_never_stepped,
    schedule_a_step_ahead,
    warmup_never_ends,
    warmup_too_long,
    rate_decays,
    rate_falls_at_the_end,
)
