"""The figures of a case: times and memory of both sides, each with what is to be said of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from typing import Literal

from harness.account import queued_seconds
from harness.compare.statistic import Run, Shift, holm, shift, turns_for
from harness.record import Record
from harness.throughput import NotMeasured, throughput, timed_steps

TimeName = Literal["step time", "processor time"]
TIMES: dict[TimeName, str] = {"step time": "seconds", "processor time": "processor_seconds"}
"""The column of each clock."""

Outcome = Literal["slower", "faster", "more", "less", "equivalent", "undecided"]

Unit = Literal["tokens", "step"]
"""What a time is divided by: the real tokens of its step (samples, where there are no tokens), or nothing."""

MARGIN = 0.03
"""Within which a ratio is called equivalent, if its whole interval is."""

EXACT = 0.01
"""Share by which peak memory may differ: torch's allocator counts every byte, and rounds sizes up to blocks."""

COUNTS: dict[str, str] = {
    "operators": "operators",
    "floating-point operations": "flops",
    "bytes moved": "moved_bytes",
    "bytes saved for backward": "saved_bytes",
    "host waits": "host_waits",
    "kernels": "kernels",
    "bytes allocated": "peak_bytes",
}
"""The field of each thing that is counted in a step."""

APART = 0.1
"""Share by which figures must differ, whichever of their runs are taken, that are measured but not clocked step by
step: compiling takes that much longer or shorter by chance, and the ceiling of a machine comes out that much different.
"""

RESIDENT = 0.1
"""The same of a process, which also holds what the allocator of the system and other cases have not given back; and of
what torch's allocator takes from a device, many MiB at a time."""


@dataclass(frozen=True)
class Measure:
    """One figure of a case on both sides."""

    name: str
    """The clock on the wall; the time that the process had a processor, which others cannot take from it."""
    outcome: Outcome
    base: float | None = None
    """Seconds for a real token (a sample where no tokens are known), bytes, or what else it is: the median over the
    runs."""
    new: float | None = None
    shift: Shift | None = None
    """Ratio and interval; none of memory, which is one number a run."""
    reason: str = ""
    """Why it is undecided, and what would decide it."""
    exact: bool = False
    """It is counted, and the same in each run: any difference is one of the code."""


def measures(base: Sequence[Record], new: Sequence[Record]) -> tuple[Measure, ...]:
    """Every figure that both sides have; of times there is no outcome until they are `judged_together`."""
    times = (duration(base, new, name) for name in TIMES)
    found: Iterator[Measure | None] = chain(times, _memory(base, new), _others(base, new))
    return tuple(measure for measure in found if measure is not None)


def _others(base: Sequence[Record], new: Sequence[Record]) -> Iterator[Measure | None]:
    """What is counted in a step, what compiling took, and how much of the device is used."""
    for name, field in COUNTS.items():
        yield _count(name, *([getattr(run.counters, field) for run in side] for side in (base, new)))
    yield _count("graph breaks", *([_breaks(run) for run in side] for side in (base, new)))
    yield _apart("compile time", *([_compile_seconds(run) for run in side] for side in (base, new)))
    yield _apart("MFU", *([_utilisation(run) for run in side] for side in (base, new)))


def _count(name: str, base: Sequence[int | None], new: Sequence[int | None]) -> Measure | None:
    """Both numbers, to the last one. Runs of one side that do not agree have not counted the same thing."""
    if None in base or None in new:
        return None
    one, two = ({float(each) for each in side if each is not None} for side in (base, new))
    if len(one) > 1 or len(two) > 1:
        varying = sorted(one if len(one) > 1 else two)
        reason = f"it is another number in each run, {varying[0]:.0f} to {varying[-1]:.0f}"
        return Measure(name, "undecided", reason=reason, exact=True)
    (first,), (second,) = one, two
    outcome: Outcome = "equivalent" if first == second else "more" if second > first else "less"
    return Measure(name, outcome, first, second, exact=True)


def _apart(name: str, base: Sequence[float | None], new: Sequence[float | None]) -> Measure | None:
    """More or less where every run of one side is by `APART` beyond every run of the other."""
    one, two = ([each for each in side if each] for side in (base, new))
    if len(one) < len(base) or len(two) < len(new):
        return None
    first, second = median(one), median(two)
    if min(two) > max(one) * (1 + APART):
        return Measure(name, "more", first, second)
    if min(one) > max(two) * (1 + APART):
        return Measure(name, "less", first, second)
    if max(*one, *two) <= min(*one, *two) * (1 + APART):
        return Measure(name, "equivalent", first, second)
    return Measure(name, "undecided", first, second, reason="runs of both sides are as far apart as the sides are")


def _breaks(run: Record) -> int | None:
    return sum(run.compilation.breaks.values()) if run.compilation and run.compilation.backend else None


def _compile_seconds(run: Record) -> float:
    return math.fsum(run.steps.compile_seconds)


def _utilisation(run: Record) -> float | None:
    speed = throughput(run)
    return None if isinstance(speed, NotMeasured) else speed.utilisation


def judged_together(found: Iterable[Measure], margin: float, among: int = 1) -> Iterator[Measure]:
    """All of them with their outcomes: no more false alarms among all than one alone would give.

    Args:
        found: figures; those without a shift stay as they are.
        margin: what is called equivalent.
        among: how many comparisons are made that do not know each other: each is as careful as the first of them would
            be (Bonferroni).
    """
    found = tuple(found)
    known = [one.shift.probability for one in found if one.shift]
    adjusted = iter(holm(known))
    for one in found:
        yield judged(one, min(1.0, among * next(adjusted)), margin, among * len(known)) if one.shift else one


def judged(measure: Measure, probability: float, margin: float, together: int = 1) -> Measure:
    """The measure with its outcome, and where there is none what would bring one.

    Args:
        measure: with a shift.
        probability: of the shift, adjusted for the others it is judged with.
        margin: what is called equivalent.
        together: how many shifts are judged, this one included.
    """
    found = measure.shift
    assert found is not None
    if 1 / (1 + margin) <= found.low and found.high <= 1 + margin:
        return replace(measure, outcome="equivalent", reason="")
    if probability <= 1 - found.confidence:
        return replace(measure, outcome="slower" if found.ratio > 1 else "faster", reason="")
    return replace(measure, outcome="undecided", reason=_advice(found, margin, together))


def _advice(found: Shift, margin: float, together: int) -> str:
    """What these samples could not show, and how many would."""
    least = turns_for(together)
    seen = f"less than {found.smallest:.1%} would not have shown"
    if not found.turns:
        return f"{seen}; run base and new in turns, {least} times each or more, so that drift is in both"
    if found.turns < least:
        return f"{least} turns are needed to be certain of any of {together} figures together; there are {found.turns}"
    needed = math.ceil(found.turns * max(1.0, found.smallest / margin) ** 2)
    return f"{seen} in {found.turns} turns; about {max(needed, found.turns + 1)} would show {margin:.0%}"


def duration(base: Sequence[Record], new: Sequence[Record], name: TimeName) -> Measure | None:
    """What a step takes by one of the clocks; none where it was not read."""
    sides: list[list[Run]] = []
    for side in (base, new):
        runs = [timed(record, TIMES[name], among=(*base, *new)) for record in side]
        if any(run is None for run in runs):
            return None
        void = next((run for run in runs if isinstance(run, str)), None)
        if void is not None:
            return Measure(name, "undecided", reason=void)
        sides.append([run for run in runs if isinstance(run, Run)])
    one, two = (math.exp(median(median(run.logs) for run in side)) for side in sides)
    measure = Measure(name, "undecided", one, two)
    found = shift(sides[0], sides[1], alike=base[0].steps.digest == new[0].steps.digest)
    return replace(measure, reason=found) if isinstance(found, str) else replace(measure, shift=found)


def timed(record: Record, column: str, *, by: Unit = "tokens", among: Sequence[Record] = ()) -> Run | str | None:
    """The timed steps by one clock, for a unit of work; a sentence where they are no measurement, none where that clock
    was not read or says nothing of the device.

    Args:
        record: of one run.
        column: of the clock.
        by: the unit.
        among: other runs: only steps that are timed in all of them, so that like is compared with like.
    """
    speed = throughput(record)
    if isinstance(speed, NotMeasured):
        return speed.reason
    shared = [set(timed_steps(other)) for other in among]
    places = [place for place in timed_steps(record) if all(place in steps for steps in shared)]
    clock = getattr(record.steps, column)
    elsewhere = column == "processor_seconds" and record.settings.get("device") != "cpu"
    if elsewhere or len(clock) < len(record.steps.seconds):
        return None
    if not places:
        return "no step is timed in every run"
    seconds = tuple(clock[place] for place in places)
    if not all(second > 0 for second in seconds):
        return "a step took no time: the clock is too coarse, or wrong"
    work = tuple(record.steps.real_tokens[place] for place in places) if by == "tokens" else (1,) * len(seconds)
    if not all(work):
        work = tuple(record.steps.samples[place] for place in places)
    logs = tuple(math.log(second / (amount or 1)) for second, amount in zip(seconds, work, strict=True))
    return Run(record.started.timestamp(), logs, _share_of_processor(record, places))


def _share_of_processor(record: Record, places: Sequence[int]) -> float | None:
    """In which others did not keep the process from a processor, of a median step: by what the kernel says, which does
    not count what the process waited for of its own will; where it says nothing, by the two clocks.
    """
    steps = record.steps
    if record.settings.get("device") != "cpu":
        return None  # there the processor waits for the device as long as it likes
    shares = []
    for place in places:
        wall = steps.seconds[place]
        queued = queued_seconds(record, place)
        if queued is not None:
            shares.append(max(0.0, 1 - queued / wall))
        elif place < len(steps.processor_seconds):
            shares.append(steps.processor_seconds[place] / wall)
    return median(shares) if shares else None


def _memory(base: Sequence[Record], new: Sequence[Record]) -> Iterator[Measure]:
    """The most that was held at once; and of a device the most that was taken from it, which others cannot have."""
    kinds = {record.memory.kind for record in (*base, *new)}
    if len(kinds) > 1:
        return
    exact = EXACT if kinds != {"resident in the process"} else RESIDENT
    for name, field, limit in (("peak memory", "peak_bytes", exact), ("reserved memory", "reserved_bytes", RESIDENT)):
        one, two = (_median([getattr(run.memory, field) for run in side]) for side in (base, new))
        if one and two:
            more, less = two > one * (1 + limit), one > two * (1 + limit)
            yield Measure(name, "more" if more else "less" if less else "equivalent", one, two)


def _median(bytes: Sequence[int | None]) -> float | None:
    known = [each for each in bytes if each is not None]
    return float(median(known)) if known else None
