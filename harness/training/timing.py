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
    """

    def __init__(self, wait: Callable[[], None], now: Callable[[], float] = perf_counter) -> None:
        self._wait = wait
        self._now = now
        self._started: float | None = None
        self._processor_started = 0.0
        self.processor_seconds = 0.0
        """Processor time that all threads of this process took in the step that ended last."""

    def start(self) -> None:
        """Begin a step."""
        self._wait()
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
        self._started = None
        return seconds
