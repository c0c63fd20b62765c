"""Two sides of the user's project on one machine in one job: trained as declared, judged, then timed in turns."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist, median

from harness.ab.process import Live, Side, SideFailed
from harness.ab.turns import LOOKS, PROCESSES, Steps, Turns, alternate
from harness.compare import MARGIN, Comparison, Measure, Pair
from harness.compare.comparison import LEFT_OUT, refuse
from harness.compare.loss import between
from harness.compare.measure import TIMES, TimeName, measures
from harness.compare.measure import judged as judged_alone
from harness.compare.statistic import CONFIDENCE, PROCESS, Shift, holm, paired
from harness.compare.triage import libraries
from harness.errors import HarnessError
from harness.laws import judge
from harness.record import Record

LIBRARIES = "libraries"
"""The axis that stands for all versions of libraries, and what follows from them."""

LEAST = math.expm1(
    (NormalDist().inv_cdf(1 - (1 - CONFIDENCE) * LOOKS[PROCESSES] / 2) + NormalDist().inv_cdf(0.8))
    * (PROCESS * math.sqrt(2 / PROCESSES))
)
"""The smallest difference that shows in four of five jobs however long they are: of what processes differ by."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What is to be compared, and how long it may take."""

    experiments: tuple[str, ...]
    """Paths, relative to `within`."""
    within: Path = Path()
    """The folder of the project in which pytest is to be started."""
    options: tuple[str, ...] = ()
    """For pytest's collection: devices, a selection."""
    across: tuple[str, ...] = ()
    """What may differ between the sides; `LIBRARIES` is one."""
    budget: float = 120.0
    """Seconds of a case that both sides train in turns, at most."""
    margin: float = MARGIN
    seed: int = 0
    """Of the coins."""


def compare_sides(base: Side, new: Side, job: Job, told: Told = lambda text: None) -> Comparison:
    """Compare all cases that both sides have, one after the other, each in two processes of its own.

    Raises:
        HarnessError: a side cannot be run, there is no case, or cases are not alike (`NotComparable`).
    """
    with _start(base, job) as one, _start(new, job) as two:
        names = [_collected(live) for live in (one, two)]
        common = [name for name in names[0] if name in names[1]]
        notes = [f"base is {base.name}, new is {new.name}"]
        notes += [f"only in base: {name}" for name in names[0] if name not in common]
        notes += [f"only in new: {name}" for name in names[1] if name not in common]
        if not common:
            raise HarnessError("no case is on both sides: " + ("; ".join(notes[1:]) or "pytest collects none"))
        chance = random.Random(job.seed)
        found = [_case(name, (one, two), job, len(common), chance, told) for name in common]
    pairs = tuple(each for each in found if isinstance(each, Pair))
    notes += [each for each in found if isinstance(each, str)]
    if not pairs:
        raise HarnessError("no case can be compared: " + "; ".join(notes[1:]))
    return Comparison(pairs, sides=(base.name, new.name), notes=tuple(notes))


def _start(side: Side, job: Job) -> Live:
    return Live(side, [*job.options, *job.experiments], job.within)


def _collected(live: Live) -> list[str]:
    """Names of the cases."""
    found = live.hear()
    if found["errors"]:
        raise SideFailed("\n".join([f"{live.side.name}: experiments that are not valid:", *found["errors"]]))
    return list(found["cases"])


def _case(name: str, sides: tuple[Live, Live], job: Job, cases: int, chance: random.Random, told: Told) -> Pair | str:
    """A case of both sides; a sentence where it says nothing."""
    told(f"{name}: trained as declared")
    one, two = (Record.from_json(live.ask(train=name)["record"]) for live in sides)
    for live, record in zip(sides, (one, two), strict=True):
        if record.outcome in LEFT_OUT:
            return f"left out: {name}: {live.side.name}: {record.outcome}: {record.reason}"
    refuse([(one, two)], _axes(job.across, one, two))
    pair = trained_pair(one, two)
    if pair.fails or not one.finished:
        return pair
    judging, begun = Timed(pair, job, cases), list[_Timing]()

    def begin() -> tuple[_Timing, _Timing]:
        """Both in the processes that trained as declared, and after that in others."""
        if begun:
            _anew(sides)
        begun[:] = [_Timing(live, name) for live in sides]
        return begun[0], begun[1]

    for turns, spent in alternate(begin, job.budget, chance):
        told(f"{name}: {len(turns.pairs)} turns, {turns.seconds:.0f} of {job.budget:.0f} seconds")
        pair = judging.judged(turns, spent)
        if judging.decides(pair):
            break
    for timing in begun:
        timing.end()
    return pair


def _anew(sides: Sequence[Live]) -> None:
    for live in sides:
        live.anew()
    for live in sides:  # both start before either is waited for
        _collected(live)


def _axes(across: Sequence[str], one: Record, two: Record) -> tuple[str, ...]:
    if LIBRARIES not in across:
        return tuple(across)
    return (*across, *libraries((one, two)))


def trained_pair(base: Record, new: Record) -> Pair:
    """What the trainings say: whether the losses agree, what laws are broken now, and figures that are no times."""
    broken: tuple[str, ...] = ()
    figures: tuple[Measure, ...] = ()
    evidence: tuple[str, ...] = ()
    if base.finished and new.finished:
        before = {verdict.law for verdict in judge(base) if verdict.outcome == "broken"}
        now = [verdict for verdict in judge(new) if verdict.outcome == "broken"]
        broken = tuple(f"{one.law}: {one.message}" for one in now if one.law not in before)
        evidence = tuple(f"broken on both sides: {one.law}" for one in now if one.law in before)
        figures = tuple(one for one in measures((base,), (new,), MARGIN) if one.name not in TIMES)
    return Pair(new.name, (base,), (new,), figures, between((base,), (new,)), broken, evidence)


class _Timing:
    """A side's training without an end, until it is told to."""

    def __init__(self, live: Live, name: str) -> None:
        self._live = live
        self._name = name
        self._heard(live.ask(time=name))  # it answers with its first step, and waits

    def end(self) -> None:
        """The process is free for another case."""
        self._live.ask(steps=0)

    def steps(self, number: int) -> Steps:
        """Train on."""
        return self._heard(self._live.ask(steps=number))

    def _heard(self, answer: Steps) -> Steps:
        if "ended" in answer:
            raise SideFailed(f"{self._live.side.name}: {self._name} ended while it was timed: {answer['ended']}")
        return answer


@dataclass(frozen=True)
class Timed:
    """Judges the turns of a case."""

    pair: Pair
    """As trained."""
    job: Job
    cases: int
    """How many cases the job has: each is as careful as their number asks for."""

    def judged(self, turns: Turns, spent: float) -> Pair:
        """The pair with its times, each look being as careful as the share it may spend asks for."""
        shifts = {name: _shift(turns, column, spent) for name, column in TIMES.items()}
        if self.pair.base[0].settings.get("device") != "cpu":
            shifts["processor time"] = None  # there it says nothing of the device
        found = {name: shift for name, shift in shifts.items() if shift is not None}
        adjusted = [min(1.0, self.cases * each) for each in holm([one.probability for one in found.values()])]
        times = [self._measure(*each, turns) for each in zip(found, found.values(), adjusted, strict=True)]
        itself = paired(turns.calibration())
        if itself.probability <= 1 - CONFIDENCE:
            why = "the base differs from itself in the same job: this machine's times are no measurement now"
            times = [replace(one, outcome="undecided", reason=why) for one in times]
        note = f"base against itself in the same job: {shown(itself)}; {_shown_turns(turns)}"
        return replace(self.pair, measures=(*times, *self.pair.measures), evidence=(*self.pair.evidence, note))

    def decides(self, pair: Pair) -> bool:
        """No more turns are needed: another clock than the wall's may only say that something is slower."""
        wall = pair.measure("step time")
        return pair.speed == "slower" or (wall is not None and wall.outcome != "undecided")

    def _measure(self, name: TimeName, found: Shift, probability: float, turns: Turns) -> Measure:
        column = TIMES[name]
        steps = self.pair.base[0].steps
        work = median(steps.real_tokens) or median(steps.samples) or 1
        base, new = (median(turns.steps(side, column)) / work for side in (0, 1))
        measure = judged_alone(Measure(name, "undecided", base, new, found), probability, self.job.margin)
        if measure.outcome != "undecided":
            return measure
        why = f"less than {found.smallest:.1%} would not have shown in {found.turns} turns"
        return replace(measure, reason=f"{why}; a longer --budget shows less, but nothing below {LEAST:.1%}")


def _shift(turns: Turns, column: str, spent: float) -> Shift | None:
    differences = turns.differences(column)
    if differences is None:
        return None
    between = PROCESS / math.sqrt(turns.processes(column))
    return paired(differences, confidence=1 - (1 - CONFIDENCE) * spent, between=between)


def shown(found: Shift) -> str:
    """``+5.2% (+3.1% to +7.4%)``."""
    return f"{found.ratio - 1:+.1%} ({found.low - 1:+.1%} to {found.high - 1:+.1%})"


def _shown_turns(turns: Turns) -> str:
    steps = len(turns.steps(0, "seconds"))
    return f"{len(turns.pairs)} turns of each side, {steps} steps, {turns.seconds:.0f} seconds"
