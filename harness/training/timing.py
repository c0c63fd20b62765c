"""One clock for the steps of every loop on every device."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, process_time


class StepClock:
    """Seconds between `start` and `stop`, with the device waited for on both sides.

    A clock that reads the time without waiting measures how fast work is queued, not how fast it is done.

    Args:
        wait: returns when the device has done everything it was given.
        now: a monotonic clock in seconds.
        compiling: the seconds that were spent on compiling until now.
    """

    def __init__(
        self,
        wait: Callable[[], None],
        now: Callable[[], float] = perf_counter,
        compiling: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._wait = wait
        self._now = now
        self._compiling = compiling
        self._compiling_started = 0.0
        self.compile_seconds = 0.0
        """Spent on compiling in the step that ended last."""
        self._started: float | None = None
        self._processor_started = 0.0
        self.processor_seconds = 0.0
        """Processor time that all threads of this process took in the step that ended last."""

    def start(self) -> None:
        """Begin a step."""
        self._wait()
        self._compiling_started = self._compiling()
        self._processor_started = process_time()
        self._started = self._now()

    def stop(self) -> float:
        """End the step that was begun; its seconds.

        Raises:
            RuntimeError: no step was begun.
        """
        if self._started is None:
            raise RuntimeError("stop() without start()")
        self._wait()
        seconds = self._now() - self._started
        self.processor_seconds = process_time() - self._processor_started
        self.compile_seconds = self._compiling() - self._compiling_started
        self._started = None
        return seconds
