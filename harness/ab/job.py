"""Two sides of the user's project on one machine in one job: trained as declared, judged, then timed in turns."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from harness.ab.process import Live, Side, SideFailed
from harness.ab.turns import Steps, Turns, alternate
from harness.compare import MARGIN, Comparison, Measure, NotComparable, Pair, check_axes
from harness.compare.comparison import LEFT_OUT, refuse
from harness.compare.loss import between
from harness.compare.measure import TIMES, TimeName, judged_together, measures
from harness.compare.statistic import CONFIDENCE, TURNS, in_processes, paired, turns_for
from harness.compare.triage import libraries, other_versions
from harness.errors import HarnessError, count
from harness.experiment import CHOSEN
from harness.laws import judge
from harness.record import Record
from harness.report.comparison import interval

LIBRARIES = "libraries"
"""The axis that stands for all versions of libraries, and what follows from them."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What is to be compared, and how long it may take."""

    experiments: tuple[str, ...]
    """Paths, relative to the folder in which pytest is started."""
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

    A case that cannot be compared is named in `refused`, and does not take the others with it.

    Raises:
        HarnessError: a side cannot be run, there is no case, or none can be compared (`NotComparable`).
    """
    found, chance = list[Pair | str | HarnessError](), random.Random(job.seed)
    first, second = chance.sample((base, new), 2)  # who comes first finds another machine
    with _start(first, job) as one, _start(second, job) as two:
        sides = (one, two) if first is base else (two, one)
        common, notes = _common(sides, job)
        for name in common:
            try:
                if found and isinstance(found[-1], SideFailed):
                    _anew(sides, chance)
                found.append(_case(name, sides, job, len(common), chance, told))
            except (SideFailed, NotComparable) as error:
                found.append(error)
    pairs = tuple(each for each in found if isinstance(each, Pair))
    notes += [each for each in found if isinstance(each, str)]
    errors = {name: each for name, each in zip(common, found, strict=True) if isinstance(each, HarnessError)}
    if not pairs:
        raise next(iter(errors.values()), HarnessError("no case can be compared: " + "; ".join(notes)))
    refused = tuple(f"not compared: {name}: {error}" for name, error in errors.items())
    notes = [f"base is {base.name}, new is {new.name}", *notes]
    return Comparison(pairs, sides=(base.name, new.name), notes=tuple(notes), refused=refused)


def _start(side: Side, job: Job) -> Live:
    return Live(side, [*job.options, *job.experiments])


def _common(sides: tuple[Live, Live], job: Job) -> tuple[list[str], list[str]]:
    """Names of the cases that both sides have, and a line for each other one.

    Raises:
        HarnessError: there is none, or a side cannot be run.
    """
    one, two = map(_collected, sides)
    notes = [f"only in base: {name}" for name in one if name not in two]
    notes += [f"only in new: {name}" for name in two if name not in one]
    if common := [name for name in one if name in two]:
        return common, notes
    none = f"pytest collects none of {' '.join([*job.experiments, *job.options])}"
    raise HarnessError("no case is on both sides: " + ("; ".join(notes) or none))


def _collected(live: Live) -> list[str]:
    """Names of the cases."""
    found = live.hear()
    if found["errors"]:
        errors = [each.replace(f"{live.side.folder}{os.sep}", "") for each in found["errors"]]
        raise SideFailed("\n".join([f"{live.side.name}: experiments that are not valid:", *errors]))
    return list(found["cases"])


def _case(name: str, sides: tuple[Live, Live], job: Job, cases: int, chance: random.Random, told: Told) -> Pair | str:
    """A case of both sides; a sentence where it says nothing."""
    told(f"{name}: trained as declared")
    one = _trained(sides[0], name)
    two = _trained(sides[1], name, settled(one))
    for live, record in zip(sides, (one, two), strict=True):
        if record.outcome in LEFT_OUT:
            return f"left out: {name}: {live.side.name}: {record.outcome}: {record.reason}"
    check_axes([axis for axis in job.across if axis != LIBRARIES], (one, two))
    refuse([(one, two)], _axes(job.across, one, two))
    pair = trained_pair(one, two)
    return pair if pair.fails or not one.finished else _in_turns(sides, Timed(pair, job, cases), chance, told)


def settled(record: Record) -> dict[str, Any]:
    """What `auto` has chosen in a training: it measures, and might choose otherwise the next time."""
    return {name: chosen for name in CHOSEN if (chosen := record.settings.get(f"train.{name}", "auto")) != "auto"}


def _trained(live: Live, name: str, chosen: Mapping[str, Any] | None = None) -> Record:
    answer = live.ask(train=name, chosen=chosen or {})
    live.side.check(answer["modules"])
    return Record.from_json(answer["record"])


def _in_turns(sides: tuple[Live, Live], judging: Timed, chance: random.Random, told: Told) -> Pair:
    """The case with its times: looked at until it is clear, or the budget is spent."""
    pair, budget, begun = judging.pair, judging.job.budget, list[_Timing]()
    chosen = settled(pair.base[0])

    def begin() -> tuple[_Timing, _Timing]:
        """Both in the processes that trained as declared, and after that in others."""
        if begun:
            _anew(sides, chance)
        timings = {live: _Timing(live, pair.case, chosen) for live in chance.sample(sides, 2)}
        begun[:] = [timings[live] for live in sides]
        return begun[0], begun[1]

    for turns, spent in alternate(begin, budget, chance):
        told(f"{pair.case}: {len(turns.pairs)} turns, {turns.seconds:.0f} of {budget:.0f} seconds")
        pair = judging.judged(turns, spent)
        if judging.decides(pair):
            break
    for timing in begun:
        timing.end()
    return pair


def _anew(sides: Sequence[Live], chance: random.Random) -> None:
    for live in chance.sample(sides, 2):
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
    evidence = tuple(other_versions(base.environment, new.environment))
    if base.finished and new.finished:
        before = {verdict.law for verdict in judge(base) if verdict.outcome == "broken"}
        now = [verdict for verdict in judge(new) if verdict.outcome == "broken"]
        broken = tuple(f"{one.law}: {one.message}" for one in now if one.law not in before)
        evidence += tuple(f"broken on both sides: {one.law}" for one in now if one.law in before)
        figures = tuple(one for one in measures((base,), (new,)) if one.name not in TIMES)
    return Pair(new.name, (base,), (new,), figures, between((base,), (new,)), broken, evidence)


class _Timing:
    """A side's training without an end, until it is told to."""

    def __init__(self, live: Live, name: str, chosen: Mapping[str, Any]) -> None:
        self._live = live
        self._name = name
        self._heard(live.ask(time=name, chosen=chosen))  # it answers with its first step, and waits

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
        times, alike = self._times(turns, 1 - (1 - CONFIDENCE) * spent), turns.calibration()
        steps = len(turns.steps(0, "seconds"))
        note = f"{len(turns.pairs)} turns of each side, {steps} steps, {turns.seconds:.0f} seconds"
        if len(alike) >= TURNS:
            itself = paired(alike)
            note = f"base against itself in the same job: {interval(itself)}; {note}"
            if itself.probability <= 1 - CONFIDENCE:
                why = "the base differs from itself in the same job: this machine's times are no measurement now"
                times = [replace(one, outcome="undecided", reason=why) for one in times]
        return replace(self.pair, measures=(*times, *self.pair.measures), evidence=(*self.pair.evidence, note))

    def _times(self, turns: Turns, confidence: float) -> list[Measure]:
        """By each clock, judged together; fewer turns than the exact test needs say nothing, however alike they are."""
        least, number = turns_for(1, confidence), len(turns.pairs)
        if number < least:
            why = f"{count(number, 'turn')} of each side, at least {least} are needed: a longer --budget"
            return [Measure("step time", "undecided", reason=why)]
        found = [one for name in TIMES if (one := self._time(name, turns, confidence)) is not None]
        times = list(judged_together(found, self.job.margin, self.cases))
        return [one if one.outcome != "undecided" else replace(one, reason=_advice(one)) for one in times]

    def decides(self, pair: Pair) -> bool:
        """No more turns are needed: another clock than the wall's may only say that something is slower."""
        wall = pair.measure("step time")
        return pair.speed == "slower" or (wall is not None and wall.outcome != "undecided")

    def _time(self, name: TimeName, turns: Turns, confidence: float) -> Measure | None:
        """By one clock; none where it is too coarse, or says nothing of the device."""
        column, base = TIMES[name], self.pair.base[0]
        differences = turns.differences(column)
        if differences is None or (name == "processor time" and base.settings.get("device") != "cpu"):
            return None
        work = median(base.steps.real_tokens) or median(base.steps.samples) or 1
        one, two = (median(turns.steps(side, column)) / work for side in (0, 1))
        return Measure(name, "undecided", one, two, in_processes(turns.by_process(differences), confidence))


def _advice(measure: Measure) -> str:
    """What the turns could not show, and how far more of them would help."""
    assert measure.shift is not None
    why = f"less than {measure.shift.smallest:.1%} would not have shown in {measure.shift.turns} turns"
    return f"{why}; a longer --budget shows smaller ones, but none below {measure.shift.least:.1%}"
