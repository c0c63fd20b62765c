"""Where a case runs. Whoever asks for a record does not know."""

from __future__ import annotations

from typing import Protocol

from harness.plan import Case
from harness.record import Record


class Engine(Protocol):
    """Turns cases into records, in this process or anywhere else."""

    def submit(self, case: Case) -> Record:
        """Run a case to its end. Never raises: a crash is a record that says so."""

    def unavailable(self, device: str) -> str | None:
        """Why cases cannot run on that device; none where they can."""

    def close(self) -> None:
        """Let go of weights, workers and files."""
