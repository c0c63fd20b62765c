"""Cases run in this process."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import Unavailable
from harness.plan import Case
from harness.record import Record

if TYPE_CHECKING:
    from harness.progress import ProgressLine
    from harness.training.checkpoint import Shelf
    from harness.training.watch import Pace


class Inline:
    """Runs each case here; torch and transformers are imported with the first one.

    Args:
        root: a folder of the repository that holds the experiments, for its commit.
        progress: told of each step, with the case it belongs to, and cleared after each case.
        pace: asked after each step when to go on.
    """

    def __init__(self, root: Path, progress: ProgressLine | None = None, pace: Pace | None = None) -> None:
        self._root = root
        self._progress = progress
        self._pace = pace
        self._shelf: Shelf | None = None

    def submit(self, case: Case) -> Record:
        """Run a case to its end. Never raises."""
        started = datetime.now(UTC)
        try:
            from harness.training import fresh

            if case.probes & fresh.USERS:
                fresh.warm_up()
            from harness.training.checkpoint import Shelf
            from harness.training.run import run

            if self._shelf is None:
                self._shelf = Shelf()
                gc.freeze()  # each Trainer looks for garbage when it is done: libraries are none
            return run(case, shelf=self._shelf, root=self._root, progress=self._told_of(case), pace=self._pace)
        except BaseException as error:  # what `run` cannot record: an import that fails, Ctrl-C while torch is imported
            stopped = isinstance(error, KeyboardInterrupt)
            return Record(
                **case.declared(),
                outcome="interrupted" if stopped else "crashed",
                reason="stopped by Ctrl-C" if stopped else f"{type(error).__name__}: {error}",
                traceback="" if stopped else traceback.format_exc(),
                started=started,
                seconds=0.0,
            )
        finally:
            if self._progress is not None:
                self._progress.clear()  # a case that stops halfway leaves its line

    def unavailable(self, device: str) -> str | None:
        """Why this machine cannot run cases on that device; none where it can."""
        from harness.training import devices

        try:
            devices.find(device)
        except Unavailable as error:
            return str(error)
        return None

    def close(self) -> None:
        """Let go of the weights."""
        if self._shelf is not None:
            self._shelf.clear()

    def _told_of(self, case: Case) -> Callable[[int, int, float, float], None] | None:
        progress = self._progress
        if progress is None:
            return None
        return lambda step, steps, loss, rate: progress(case, step, steps, loss, rate)
