"""A line with step, loss and rate while a case trains, which vanishes afterwards."""

from __future__ import annotations

import contextlib
from time import monotonic
from typing import TextIO

from harness.plan import Case

_SAVE, _RESTORE, _CLEAR_LINE = "\x1b7", "\x1b8", "\x1b[K"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"

INTERVAL = 0.1
"""Seconds between two writes at least: more than a person can read."""


class ProgressLine:
    """Written behind the cursor, on the terminal itself, and taken back: pytest's own output is not disturbed.

    pytest captures what is written to stdout during a test, so the line goes to ``/dev/tty``; where there is none,
    nothing is written.
    """

    def __init__(self, terminal: TextIO | None) -> None:
        self._terminal = terminal
        self._written = 0.0

    @classmethod
    def on_tty(cls) -> ProgressLine:
        """On this process's terminal, if it has one."""
        with contextlib.suppress(OSError):
            return cls(open("/dev/tty", "w", encoding="utf-8"))  # noqa: PTH123
        return cls(None)

    def __call__(self, case: Case, step: int, steps: int, loss: float, rate: float) -> None:
        """Show a step; the last one takes the line away."""
        if self._terminal is None:
            return
        if step == steps:
            self.clear()
        elif monotonic() - self._written >= INTERVAL:
            self._written = monotonic()
            text = f" {case.id}: step {step}/{steps}, loss {loss:.4f}, {rate:.0f} samples/s"
            self._write(f"{_SAVE}{_NO_WRAP}{text}{_CLEAR_LINE}{_WRAP}{_RESTORE}")

    def clear(self) -> None:
        """Take the line away."""
        self._write(_SAVE + _CLEAR_LINE + _RESTORE)

    def close(self) -> None:
        """Let go of the terminal."""
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None

    def _write(self, text: str) -> None:
        if self._terminal is not None:
            self._terminal.write(text)
            self._terminal.flush()
