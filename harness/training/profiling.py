"""A trace of some further steps by torch's profiler, and which operators cost most: asked for, for it costs a training.

Phases of a step are ranges in the trace that bear their names, inside one for each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from harness.record import Operator, Profile
from harness.training.further import Onlooker, further, take
from harness.training.timing import Phase, followed
from harness.training.workload import Workload

SETTLING = 3
"""Steps before the first that is profiled: the state of the optimizer is made, kernels are loaded, graphs captured."""

PROFILED = 3
"""Steps that are profiled."""

MOST = 10
"""Operators that are kept, those that cost most."""


def profiled(work: Workload, path: Path) -> Profile:
    """Profile further steps of the same loop over the same batches, on a copy of the model.

    What cannot be profiled has its reason in the place of figures.

    Args:
        work: that a case has trained.
        path: of the trace, in Chrome's format, compressed: ``*.json.gz``. Folders are made.
    """
    try:
        own = further(work, SETTLING + PROFILED)
        profiling = Profiling(own)
        try:
            take(own, profiling)
        finally:
            profiling.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        profiling.profiler.export_chrome_trace(str(path))
        found = operators(profiling.profiler.key_averages(), on_device=work.device.torch.type == "cuda")
        return Profile(
            trace="/".join(path.parts[-3:]),
            steps=PROFILED,
            seconds=profiling.seconds(),
            busy_seconds=sum(each.seconds for each in found),
            operators=found[:MOST],
        )
    except Exception as error:  # no memory for a copy, a full disk, another profiler: the training is not to blame
        return Profile(reason=f"{type(error).__name__}: {error}"[:500])


class Profiling(Onlooker):
    """Told of the steps of a loop, profiles the last of them."""

    def __init__(self, work: Workload) -> None:
        activities = [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CUDA] if work.device.torch.type == "cuda" else []
        self.profiler = profile(activities=activities)
        self._work = work
        self._ranges = Ranges()
        self._hooks = ExitStack()
        self._step = 0

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """Follow the phases, of which nothing is seen until the profiler is on."""
        hook = torch.compiler.disable(lambda *_: self._ranges.enter("forward"))
        self._hooks.callback(self._work.model.register_forward_pre_hook(hook).remove)
        self._hooks.enter_context(followed(self._ranges, self._work.drawn, optimizer))

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """End the step's range once the device is done, as a timed step ends, and begin the next one's."""
        self._work.device.wait()
        self._ranges.end()
        self._step += 1
        if self._step == SETTLING:
            self.profiler.start()
            self._hooks.callback(self.profiler.stop)
        if self._step == SETTLING + PROFILED:
            self.close()  # what a loop does behind its last step is in no step
        elif self._step >= SETTLING:
            self._ranges.begin(f"step {self._step}")

    def close(self) -> None:
        """Profile and follow no longer."""
        self._ranges.end()
        self._hooks.close()

    def seconds(self) -> float:
        """Of all profiled steps, by their ranges."""
        ranges = (event for event in self.profiler.events() or () if event.is_user_annotation)
        return sum(event.cpu_time_total for event in ranges if event.name.startswith("step ")) / 1e6


class Ranges:
    """What a profiler shows of a step and of its phases."""

    def __init__(self) -> None:
        self._step: Any = None
        self._phase: Any = None
        self._name: Phase = "other"

    def begin(self, name: str) -> None:
        """A step of that name."""
        self._step = record_function(name)
        self._step.__enter__()
        self.enter("other")

    def enter(self, phase: Phase) -> None:
        """From here on the step is in this phase; between steps it is in none."""
        if self._step is None:
            return
        self._leave()
        self._name, self._phase = phase, record_function(phase)
        self._phase.__enter__()

    @contextmanager
    def inside(self, phase: Phase) -> Iterator[None]:
        """A phase that interrupts another."""
        outer = self._name
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(outer)

    def end(self) -> None:
        """Of the step, if one has begun."""
        self._leave()
        if self._step is not None:
            self._step.__exit__(None, None, None)
        self._step = None

    def _leave(self) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
        self._phase = None


def operators(averages: Iterable[Any], *, on_device: bool) -> tuple[Operator, ...]:
    """Those that took time themselves, without those that they call, the dearest first.

    Args:
        averages: a profiler's, one a name.
        on_device: by the time of the kernels that they launch, not by that of the host.
    """
    found = [
        Operator(
            name=each.key,
            calls=each.count,
            seconds=(each.self_device_time_total if on_device else each.self_cpu_time_total) / 1e6,
        )
        for each in averages
        # a kernel has an event of its own on the device, beside that of its operator
        if each.device_type == torch.autograd.DeviceType.CPU and not each.is_user_annotation
    ]
    return tuple(sorted((each for each in found if each.seconds), key=lambda each: -each.seconds))
