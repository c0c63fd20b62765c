"""Baselines: records kept for comparing, with who accepted them why, and what stood there before.

A baseline is a file with one line a case and hardware, so that one file serves a laptop, a CI runner and several kinds
of GPU. It is meant to be committed beside the experiments: a renewed line is a diff with a reason in it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.account import PHASES
from harness.compare.comparison import LEFT_OUT, Pair, compare
from harness.compare.identity import Key, differences, key, machine
from harness.compare.measure import MARGIN, Unit, timed
from harness.compare.statistic import Run, noise
from harness.errors import HarnessError
from harness.laws import judge, judge_together
from harness.record import FORMAT as RECORD_FORMAT
from harness.record import Environment, Part, Record
from harness.store import parsed
from harness.throughput import NotMeasured, throughput

FORMAT = 1
"""The number of the format of a baseline."""

NOISIEST = 1.0
"""A baseline that would not show a step that takes twice as long is none."""

CLOCKS = ("seconds", "processor_seconds")
UNITS: tuple[Unit, ...] = ("tokens", "step")
"""A run alone is held against itself, whose steps do not all do the same: of small models they take as long for any
batch, of large ones as long for any token."""


class Figures(Part):
    """What an earlier baseline of the case said, in short."""

    accepted: datetime
    reason: str
    commit: str | None
    environment: Environment
    tokens_per_second: float
    samples_per_second: float
    peak_bytes: int | None
    last_loss: float


class Baseline(Part):
    """A case on one hardware."""

    baseline: int = FORMAT
    accepted: datetime
    reason: str
    """Why these figures are right, in the words of who accepted them."""
    records: tuple[Record, ...] = Field(min_length=1)
    """The runs, without what comparing does not need; their environment is that of who measured them."""
    before: tuple[Figures, ...] = ()
    """What was accepted earlier, the oldest first."""

    @property
    def key(self) -> Key:
        """What it is the baseline of."""
        return key(self.records[0])

    @property
    def figures(self) -> Figures:
        """It in short."""
        speeds = [speed for record in self.records if not isinstance(speed := throughput(record), NotMeasured)]
        first = self.records[0]
        return Figures(
            accepted=self.accepted,
            reason=self.reason,
            commit=first.environment.commit,
            environment=first.environment,
            tokens_per_second=speeds[0].tokens_per_second.median if speeds else math.nan,
            samples_per_second=speeds[0].samples_per_second.median if speeds else math.nan,
            peak_bytes=first.memory.peak_bytes,
            last_loss=first.steps.losses[-1] if first.steps.losses else math.nan,
        )


@dataclass(frozen=True)
class Baselines:
    """All lines of a baseline file."""

    lines: dict[Key, Baseline] = field(default_factory=dict)
    written: dict[Key, str] = field(default_factory=dict, compare=False)
    """What stands in the file for each that is not renewed: it stays, with fields that a later version knows."""

    def of(self, record: Record) -> Baseline | None:
        """The baseline of a record's case on its hardware."""
        return self.lines.get(key(record))

    def elsewhere(self, record: Record) -> tuple[str, ...]:
        """Other hardware that has a baseline of the case."""
        return tuple(machine(one) for one in self.lines if one[0] == record.name)

    def to_text(self) -> str:
        """A line each, sorted by case and hardware."""
        lines = (self.written.get(one) or self.lines[one].model_dump_json() for one in sorted(self.lines))
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class Accepted:
    """What became of accepting."""

    baselines: Baselines
    names: tuple[str, ...]
    """Cases that have a new baseline."""
    refused: tuple[str, ...]
    """A sentence for each that was refused."""


def read(path: Path) -> Baselines:
    """Read a baseline file.

    Raises:
        HarnessError: it cannot be read, or a line is no baseline, or a second one of the same; says which.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HarnessError(f"{path}: cannot be read: {error.strerror or error}") from None
    found = Baselines()
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        baseline = parsed(line, Baseline, "baseline", FORMAT)
        if isinstance(baseline, str):
            if not isinstance(parsed(line, Record, "format", RECORD_FORMAT), str):
                baseline = "a record, expected a baseline: `harness baseline accept` makes one of it"
            raise HarnessError(f"{path}:{number}: {baseline}")
        if (one := baseline.key) in found.lines:
            raise HarnessError(f"{path}:{number}: a second baseline of {one[0]} on {one[1]}: keep one of the lines")
        found.lines[one], found.written[one] = baseline, line.decode()
    return found


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Others who renew baselines of that folder wait until the block is over: they would undo each other's work. Nobody
    waits where the system has no lock for it.
    """
    with ExitStack() as held:
        with suppress(ImportError, OSError):  # Windows, some network drives
            import fcntl

            folder = os.open(path.resolve().parent, os.O_RDONLY)
            held.callback(os.close, folder)  # and with it goes the lock
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def write(path: Path, baselines: Baselines) -> None:
    """Put a whole file in the place of the old one: whatever happens, one of the two is there.

    Raises:
        OSError: it cannot be written.
    """
    place = path.resolve()
    whole = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        with whole.open("w", encoding="utf-8") as file:
            file.write(baselines.to_text())
            file.flush()
            os.fsync(file.fileno())
        if place.exists():
            shutil.copymode(place, whole)
        whole.replace(place)
    finally:
        whole.unlink(missing_ok=True)


def accept(old: Baselines, records: Iterable[Record], reason: str, now: datetime | None = None) -> Accepted:
    """Baselines with those of the records in them; what was there before is kept in short.

    A case is refused that did not finish, breaks a law, has no valid times, or is too noisy to show anything.

    Args:
        old: the baselines so far.
        records: of one run, or of several, whose records of one case are kept together.
        reason: why these figures are right.
        now: when.
    """
    records = tuple(record for record in records if record.outcome not in LEFT_OUT)
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    disagreeing = dict(_disagreeing(records))
    lines, names, refused = dict(old.lines), [], []
    for (name, _, processor), runs in groups.items():
        reasons = (*map(_unfit, runs), _unlike(runs), disagreeing.get((name, processor), ""), _noisy(runs))
        if why := next(filter(None, reasons), ""):
            refused.append(f"{name}: {why}")
            continue
        before = old.of(runs[0])
        one = Baseline(
            accepted=now or datetime.now(UTC),
            reason=reason,
            records=tuple(map(_slim, runs)),
            before=(*before.before, before.figures) if before else (),
        )
        lines[one.key] = one
        names.append(name)
    written = {one: text for one, text in old.written.items() if lines[one] is old.lines[one]}
    return Accepted(Baselines(lines, written), tuple(names), tuple(refused))


def against(baseline: Baseline, record: Record, *, among: int = 1, margin: float = MARGIN) -> Pair:
    """Compare a record with the baseline of its case.

    Args:
        baseline: of the same case and hardware.
        record: what ran now.
        among: how many cases are compared with their baselines in this session.
        margin: what is called equivalent.

    Raises:
        NotComparable: something differs that makes runs alike.
    """
    (pair,) = compare(baseline.records, [record], margin=margin, among=among).pairs
    return pair


def _unfit(record: Record) -> str:
    """Why a record is no baseline; empty where it is one."""
    if not record.finished:
        return f"{record.outcome}: {record.reason}"
    for verdict in judge(record):
        if verdict.outcome in ("broken", "invalid"):
            return f"{verdict.law} is {verdict.outcome}: {verdict.message}"
    speed = throughput(record)
    return f"its times are invalid: {speed.reason}" if isinstance(speed, NotMeasured) else ""


def _unlike(runs: Sequence[Record]) -> str:
    """In what runs of one case differ that would be kept together; empty where they are alike."""
    found = [difference for run in runs[1:] for difference in differences(runs[0], run)]
    return f"its runs are not alike: {found[0].field}: {found[0].base} and {found[0].new}" if found else ""


def _disagreeing(records: Sequence[Record]) -> Iterator[tuple[tuple[str, str], str]]:
    """Cases that do not agree with another one on the same machine, by name and processor, and how."""
    for processor in dict.fromkeys(record.environment.processor for record in records):
        for one in judge_together([record for record in records if record.environment.processor == processor]):
            if one.outcome == "broken":
                yield from (((name, processor), f"{one.law} is broken: {one.message}") for name in one.between)


def _noisy(runs: Sequence[Record]) -> str:
    """Why nothing could be told from these runs by any clock; empty where something could."""
    seen = []
    for column, unit in product(CLOCKS, UNITS):
        timings = [timed(record, column, by=unit) for record in runs]
        if len(clear := [run for run in timings if isinstance(run, Run)]) == len(runs):
            seen.append(noise(clear))
    least = min(seen, default=math.inf)
    if least <= NOISIEST:
        return ""
    shown = "no difference" if math.isinf(least) else f"no difference below {least:.0%}"
    return f"too noisy: {shown} would show; take more steps, or a machine that does less beside it"


def _slim(record: Record) -> Record:
    """Without what comparing does not need: a baseline is kept for long, and for every machine."""
    columns = ("learning_rate", "examples", "graphs", "shapes", *(f"{phase}_seconds" for phase in PHASES))
    empty: dict[str, Any] = dict.fromkeys(("examples", "lost", "batches", "parameters"), ())
    empty |= {**dict.fromkeys(("data", "optimizer", "modes")), "probes": {}, "probe_seconds": {}}
    steps = record.steps.model_copy(update=dict.fromkeys(columns, ()))
    return record.model_copy(update={**empty, "steps": steps})
