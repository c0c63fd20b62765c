"""What the benchmarks share: taking turns, and what is said of two rows of numbers."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import ClassVar, TypeVar

Measured = TypeVar("Measured")


def rotate(
    measures: Mapping[str, Callable[[], Measured]], rounds: int, *, budget: float = math.inf, fewest: int = 1
) -> dict[str, tuple[Measured, ...]]:
    """Measure each in turn, round after round, and let another be first each time. A measure does it once, and says how
    long it took.

    Whatever else the machine does then slows all of them alike.

    Args:
        measures: by name.
        rounds: at most.
        budget: seconds after which no further round begins.
        fewest: rounds, however long they take.
    """
    began = perf_counter()
    seconds: dict[str, list[Measured]] = {name: [] for name in measures}
    names = list(measures)
    for done in range(1, rounds + 1):
        for name in names:
            gc.collect()  # what another has left behind is not collected in this one's time
            seconds[name].append(measures[name]())
        names.append(names.pop(0))
        if done >= fewest and perf_counter() - began > budget:
            break
    return {name: tuple(each) for name, each in seconds.items()}


def adopt_orphans() -> None:
    """Become the parent of what children leave behind (Linux: PR_SET_CHILD_SUBREAPER), so that its time counts."""
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def wait_for_orphans() -> None:
    """Until there is no child any more, such as a server of forks that goes a moment after who asked it."""
    with suppress(ChildProcessError):
        while True:
            os.wait()


def processor_seconds() -> float:
    """Of all children that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def compiled() -> Iterator[dict[str, str]]:
    """An environment in which processes find their bytecode, as those of a user do, away from the sources."""
    with tempfile.TemporaryDirectory(prefix="harness-bytecode-") as folder:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        yield {**inherited, "PYTHONPYCACHEPREFIX": folder}


@dataclass(frozen=True)
class Comparison:
    """Seconds of one thing and of what it is held against, round by round."""

    HEADERS: ClassVar[tuple[str, ...]] = ("", "harness", "plain", "ratio", "lowest", "highest", "bar", "")

    ours: Sequence[float]
    plain: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """One a round: the two of a round were measured side by side."""
        return [ours / plain for ours, plain in zip(self.ours, self.plain, strict=True)]

    def row(self, name: str, bar: float | None) -> list[str]:
        """A line of the table: medians in seconds, the median ratio and its range, and whether it keeps the bar."""
        ratio = median(self.ratios)
        return [
            name,
            f"{median(self.ours):.4g} s",
            f"{median(self.plain):.4g} s",
            f"{ratio:.3f}",
            f"{min(self.ratios):.3f}",
            f"{max(self.ratios):.3f}",
            f"{bar:.2f}" if bar else "",
            ("kept" if ratio <= bar else "missed") if bar else "",
        ]


def environment() -> str:
    """When and where: processor, load, versions, commit."""
    names = ("pytest", "torch", "transformers", "pydantic", "pytest-benchmark")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}\n"
        f"{processor()}, {os.cpu_count()} processors, load {load}\n"
        f"{platform.platform()}, Python {platform.python_version()}, {versions}"
    )


def processor() -> str:
    """Its name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Of this repository, with a plus sign where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
