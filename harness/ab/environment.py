"""Virtual environments made from requirements files, and kept for the next time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from harness.ab.stopping import end
from harness.errors import HarnessError

TAIL = 2_000
"""Characters of pip's errors that are shown."""


def cache() -> Path:
    """Where environments are kept: below ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pytest-finetune" / "environments"


@dataclass(frozen=True)
class Environments:
    """Environments by what they were made from. Nothing of the one that runs is seen in them."""

    folder: Path = field(default_factory=cache)

    def python(self, requirements: Path, more: str = "") -> Path:
        """The interpreter of an environment that holds these requirements; made by pip where there is none yet.

        Args:
            requirements: a file for pip. Files that it names in turn are not looked into: what they say counts as it
                was when the environment was made.
            more: requirements beside those of the file.

        Raises:
            HarnessError: the file cannot be read, or pip cannot install what it says.
        """
        try:
            text = requirements.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HarnessError(f"{requirements}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        said = "\n".join([sys.version, str(requirements.resolve().parent), text, more])
        place = self.folder / hashlib.sha256(said.encode()).hexdigest()[:16]
        if not place.exists():
            self._make(place, requirements, more)
        return _python(place)

    def _make(self, place: Path, requirements: Path, more: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=self.folder))
        try:
            made, folder = unfinished / "environment", requirements.resolve().parent
            venv = [sys.executable, "-m", "venv", str(made)]
            _call(venv, f"{requirements}: no environment for it", folder, unfinished)
            wanted = ["-r", str(requirements.resolve()), *more.split()]
            pip = [str(_python(made)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
            _call(pip, f"{requirements}: pip cannot install it", folder, unfinished)
            if not place.exists():  # another job may have been quicker
                made.rename(place)  # only what is whole is found the next time
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def releases(package: str, wanted: str = "") -> list[str]:
    """Releases of a package, the oldest first.

    Args:
        package: as pip knows it.
        wanted: ``5.20,5.21,5.22`` are these; ``5.20..5.22`` are all from one to the other that pip's index has, and
            nothing is all that it has.

    Raises:
        HarnessError: there are fewer than two, or the index has none.
    """
    first, between, last = wanted.partition("..")
    if wanted and not between:
        found = [each.strip() for each in wanted.split(",") if each.strip()]
    else:
        found = _of_index(package)
        for end in filter(None, (first, last)):
            if end not in found:
                raise HarnessError(f"{package} {end}: found no such release, expected one of {', '.join(found)}")
        found = found[found.index(first) if first else 0 : found.index(last) + 1 if last else None]
    if len(found) < 2:
        raise HarnessError(f"{package}: found {', '.join(found) or 'no release'}, expected two releases or more")
    return found


def _of_index(package: str) -> list[str]:
    command = [sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", package]
    said = _call(command, f"{package}: pip knows no releases of it")
    line = next((line for line in said.splitlines() if line.startswith("Available versions:")), "")
    return [each.strip() for each in line.partition(":")[2].split(",") if each.strip()][::-1]


def _python(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _apart(scratch: Path) -> dict[str, str]:
    """Variables for who makes an environment: on this process's path may be what pip would then take for installed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return {**kept, "TMPDIR": str(scratch)}


def _call(command: list[str], what: str, folder: Path | None = None, scratch: Path | None = None) -> str:
    """What a command prints; it ends, with all that it has started, when this is stopped. Callers put `scratch` away.

    Raises:
        HarnessError: it fails; with the end of what it says.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env=_apart(scratch) if scratch else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, error = process.communicate()
        finally:
            end(process)
    if process.returncode:
        raise HarnessError(f"{what}:\n{(error or out).strip()[-TAIL:]}")
    return out
