"""One clock for the steps of every loop on every device, and for the phases of a step.

Inside a step nothing is waited for. Where a device works behind the host's back, each phase leaves a mark in the
device's own queue, and the marks are read when the step is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Literal, Protocol
from unittest import mock

import torch
from transformers import BatchEncoding

from harness.training.data import Drawn
from harness.training.machine import Meter

Phase = Literal["data", "transfer", "forward", "backward", "optimizer", "other"]
PHASES: tuple[Phase, ...] = ("data", "transfer", "forward", "backward", "optimizer", "other")

_BEFORE_BACKWARD: tuple[Phase, ...] = ("data", "transfer", "forward")

SCHEDULER = Path("/proc/thread-self/schedstat")
"""What the kernel has given this thread: nanoseconds on a processor, nanoseconds in which it waited for one, turns
(Linux, Documentation/scheduler/sched-stats.rst)."""


@dataclass(frozen=True)
class Lap:
    """One step by the clock. All times are in seconds."""

    seconds: float
    processor_seconds: float
    """Processor time that all threads of this process took."""
    queued_seconds: float | None
    """In which the thread of the loop waited for a processor that others had; none where the kernel does not say."""
    compile_seconds: float
    stopped: float
    """When it ended, by the clock."""
    began: float
    """By the second clock."""
    ended: float
    phases: dict[Phase, float]
    joules: float | None = None
    """That the device took."""
    slowed: str | None = None
    """Why it is slower than it is made for; empty where it is not, none where nobody says."""


class Marks(Protocol):
    """What is left at the beginning of a phase, to be read later."""

    def make(self) -> Any:
        """A mark behind everything that was done or queued until now."""

    def between(self, first: Any, last: Any) -> float:
        """Seconds from one mark to another that was made after it."""


@dataclass(frozen=True)
class HostMarks:
    """Of a processor: work is done when the call returns."""

    now: Callable[[], float] = perf_counter

    def make(self) -> float:
        """Read the clock."""
        return self.now()

    def between(self, first: float, last: float) -> float:
        """Their difference."""
        return last - first


@dataclass(frozen=True)
class DeviceMarks:
    """Events in the queue of a CUDA or MPS device, with the time at which it came to them."""

    device: torch.device

    def make(self) -> Any:
        """Put an event behind what is queued; nothing is waited for."""
        if self.device.type == "mps":
            event = torch.mps.Event(enable_timing=True)
            event.record()
        else:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, first: Any, last: Any) -> float:
        """By the device's clock, once it has come to the second event."""
        last.synchronize()
        return first.elapsed_time(last) / 1000


def marks_of(device: torch.device) -> Marks | None:
    """Those of the device's own clock; none where the host's will do."""
    return DeviceMarks(device) if device.type in ("cuda", "mps") else None


def second_clock() -> float:
    """Seconds by a clock that does not know of the first: the counter of the hardware, which nobody steers, if there
    is one.
    """
    with suppress(AttributeError, OSError):
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
    return time.monotonic()


def queued() -> float | None:
    """Seconds in which this thread has waited for a processor until now; none where the kernel does not say."""
    try:
        return int(SCHEDULER.read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


class StepClock:
    """Seconds between `start` and `stop`, with the device waited for on both sides and nowhere between.

    A clock that reads the time without waiting measures how fast work is queued, not how fast it is done.

    Args:
        wait: returns when the device has done everything it was given.
        now: a monotonic clock in seconds.
        second: another one, which the account of a record is closed with.
        marks: for the phases; by default those of a processor.
        compiling: the seconds that were spent on compiling until now.
        meter: of the device, read outside of the step.
    """

    def __init__(
        self,
        wait: Callable[[], None],
        now: Callable[[], float] = perf_counter,
        *,
        second: Callable[[], float] = second_clock,
        marks: Marks | None = None,
        compiling: Callable[[], float] = lambda: 0.0,
        meter: Meter | None = None,
    ) -> None:
        self._meter = meter
        self._joules: float | None = None
        self._wait = wait
        self.now = now
        self._second = second
        self._marks = HostMarks(now) if marks is None else marks
        self._compiling = compiling
        self._made: list[tuple[Phase, Any]] = []
        self._before: tuple[float, float | None, float] = (0.0, None, 0.0)
        self._began = 0.0
        self.starting_seconds = 0.0
        """What the last start took: the kernel may give the processor to others there."""
        self._started: float | None = None

    def start(self) -> None:
        """Begin a step, or begin it anew."""
        asked = self.now()
        self._wait()
        self._joules = self._meter.joules() if self._meter else None
        waited, compiling = queued(), self._compiling()
        self._before = process_time(), waited, compiling
        self._began = self._second()
        self._started = self.now()
        self.starting_seconds = self._started - asked
        self._made = [("other", self._marks.make())]

    def stop(self) -> Lap:
        """End the step that was begun.

        Raises:
            RuntimeError: no step was begun.
        """
        if self._started is None:
            raise RuntimeError("stop() without start()")
        last = self._marks.make()
        self._wait()
        stopped, ended, spent = self.now(), self._second(), process_time()
        seconds, self._started = stopped - self._started, None
        processor, waited, compiling = self._before
        more = queued()
        taken = self._meter.joules() if self._meter else None
        return Lap(
            seconds=seconds,
            processor_seconds=spent - processor,
            queued_seconds=None if more is None or waited is None else more - waited,
            compile_seconds=self._compiling() - compiling,
            stopped=stopped,
            began=self._began,
            ended=ended,
            phases=self._phases(last),
            joules=None if taken is None or self._joules is None else taken - self._joules,
            slowed=self._meter.slowed() if self._meter else None,
        )

    def enter(self, phase: Phase) -> None:
        """From here on the step is in this phase; between steps it is in none.

        The optimizer's begins where a backward pass ends: before its step gradients are unscaled and clipped. Where
        another micro-batch follows instead, it was not the optimizer's yet.
        """
        if self._started is None:
            return
        if phase in _BEFORE_BACKWARD and self._made[-1][0] == "optimizer":
            self._made[-1] = "other", self._made[-1][1]
        self._made.append((phase, self._marks.make()))

    @contextmanager
    def inside(self, phase: Phase) -> Iterator[None]:
        """A phase that interrupts another."""
        self.enter(phase)
        outer: Phase = self._made[-2][0] if self._started is not None else "other"
        try:
            yield
        finally:
            self.enter(outer)

    def _phases(self, last: Any) -> dict[Phase, float]:
        found = dict.fromkeys(PHASES, 0.0)
        marks = [*(mark for _, mark in self._made), last]
        for (phase, first), second in zip(self._made, marks[1:], strict=True):
            found[phase] += self._marks.between(first, second)
        return found


class Follower(Protocol):
    """Whoever is told of the phases of a step."""

    def enter(self, phase: Phase) -> None:
        """From here on the step is in this phase."""

    def inside(self, phase: Phase) -> AbstractContextManager[None]:
        """A phase that interrupts another."""


@contextmanager
def followed(clock: Follower, drawn: Drawn, optimizer: Any) -> Iterator[None]:
    """Let the clock know of the phases of a training, whatever the loop.

    Every loop waits for what is drawn, moves it with `BatchEncoding.to`, calls the model, back-propagates with
    `Tensor.backward` and steps the optimizer. That the forward pass begins the caller says, who has a hook there; it
    lasts until the backward pass begins: the loss belongs to it.

    Args:
        clock: to be told.
        drawn: what is waited for.
        optimizer: perhaps as Accelerate wraps it.
    """
    move, backward, waiting = BatchEncoding.to, torch.Tensor.backward, drawn.waiting

    def moved(batch: Any, *args: Any, **kwargs: Any) -> Any:
        with clock.inside("transfer"):
            return move(batch, *args, **kwargs)

    def back_propagated(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        clock.enter("backward")
        backward(loss, *args, **kwargs)
        clock.enter("optimizer")

    drawn.waiting = partial(clock.inside, "data")
    stepped = getattr(optimizer, "optimizer", optimizer).register_step_post_hook(lambda *_: clock.enter("other"))
    with mock.patch.object(BatchEncoding, "to", moved), mock.patch.object(torch.Tensor, "backward", back_propagated):
        try:
            yield
        finally:
            stepped.remove()
            drawn.waiting = waiting
