"""A handle on a live process of one side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harness.ab.stopping import end
from harness.errors import HarnessError

TAIL = 2_000
"""Characters of its standard error that are shown when it dies."""


class SideFailed(HarnessError):
    """A side cannot be run, or has died."""


@dataclass(frozen=True)
class Side:
    """Where a side's code and libraries are."""

    name: str
    """As it is shown: a revision, a requirements file."""
    folder: Path
    """The project, checked out."""
    python: Path
    """The interpreter whose libraries it uses."""
    within: Path = Path()
    """The folder of the project in which pytest is to be started."""
    instead_of: Path | None = None
    """The working tree of which it is another revision."""

    def environment(self) -> Mapping[str, str]:
        """The project's own packages come from its folder, also where another checkout of it is installed. What else
        is on the path of this process is not for another interpreter.
        """
        roots = dict.fromkeys((self.folder / self.within, self.folder))
        own = [str(path) for root in roots for path in (root, root / "src") if path.is_dir()]
        others = os.environ.get("PYTHONPATH", "") if self.python == Path(sys.executable) else ""
        kept = [path for path in others.split(os.pathsep) if path]
        return {**os.environ, "PYTHONPATH": os.pathsep.join([*own, *kept]), "PYTHONDONTWRITEBYTECODE": "1"}

    def check(self, modules: Iterable[str]) -> None:
        """The project's code is that of its revision: an installed checkout may have come first.

        Args:
            modules: files that were imported.

        Raises:
            HarnessError: one of them is of the working tree, and the revision has it, too.
        """
        if self.instead_of is None:
            return
        for path in map(Path, modules):
            if path.is_relative_to(self.instead_of) and (self.folder / path.relative_to(self.instead_of)).exists():
                raise HarnessError(
                    f"{self.name}: {path} was imported, which is the working tree's and not the revision's: "
                    "name its folder under `pythonpath` in pytest's configuration"
                )


class Live:
    """A live process of a side; ends with the `with` block, whatever happens in it.

    Args:
        side: what it runs.
        arguments: of `harness.ab.side`.
    """

    def __init__(self, side: Side, arguments: Sequence[str]) -> None:
        self.side = side
        self._command = [str(side.python), "-m", "harness.ab.side", *arguments]
        self._begin()

    def _begin(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        try:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.side.folder / self.side.within,
                env=self.side.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
                start_new_session=True,  # Ctrl-C is for who started it, and who ends it
            )
        except OSError as error:
            self._log.close()
            raise SideFailed(f"{self.side.name}: cannot be run: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def anew(self) -> None:
        """Go on in another process, which says its cases first."""
        self._end()
        self._begin()

    def _end(self) -> None:
        end(self._process)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with suppress(BrokenPipeError):  # what it was asked and did not live to hear
                    stream.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            SideFailed: the process has died; with the end of what it wrote.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """What it says.

        Raises:
            SideFailed: nothing any more, or that it cannot go on.
        """
        answer = self._answer()
        if "error" in answer:
            raise SideFailed(f"{self.side.name}: {answer['error']}\n{self._tail()}".rstrip())
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            with suppress(ValueError):  # printed by what Python starts with, before any of our code
                found = json.loads(line)
                if isinstance(found, dict):
                    return found
        raise self._died()

    def _died(self) -> SideFailed:
        with suppress(subprocess.TimeoutExpired):  # it is ending: by itself, then its status is its own
            self._process.wait(1)
        status = end(self._process)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return SideFailed(f"{self.side.name}: its process {how}\n{self._tail()}".rstrip())

    def _tail(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - TAIL))
        return self._log.read().decode(errors="replace").strip()
