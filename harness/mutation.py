"""Mutation: mistakes are made in a case on purpose, one at a time. Which do the laws catch?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from harness.experiment import Settings
from harness.laws import Law, Verdict, judge
from harness.plan import Case
from harness.record import Record

Outcome = Literal["caught", "survived", "equivalent"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

ROUNDING = 1e-4
"""Relative difference of numbers that count as equal: measured 1e-5 where only the order of fp32 sums differs."""
TRAINED = 1e-3
"""The same of an evaluation of the trained model. The loss of an example that is learned is as far off, of itself, as
its logits are: measured 1.8e-4 where a router of experts has grown what rounding did in 30 steps."""
SHORT = 6
"""Steps of the training that is tried first."""


class Described(Protocol):
    """What is asked of a fault here; the rest is for whoever trains with it."""

    @property
    def name(self) -> str:
        """Of the fault."""

    @property
    def description(self) -> str:
        """One sentence."""

    @property
    def source(self) -> str:
        """Where it happened."""

    @property
    def loops(self) -> frozenset[str]:
        """Where it can happen."""

    @property
    def tasks(self) -> frozenset[str]:
        """Of which it is a mistake; empty: of every one."""

    @property
    def evaluates(self) -> bool:
        """Whether it is one of an evaluation."""

    @property
    def when(self) -> Callable[[Settings], bool]:
        """Whether it can happen under what is declared."""


Fault = TypeVar("Fault", bound=Described)


@dataclass(frozen=True)
class Mutant:
    """A case with a fault made in it, and what became of it."""

    case: Case
    fault: Described
    outcome: Outcome
    """`equivalent`: everything that the run left is what the healthy run left, up to rounding."""
    broken: tuple[Verdict, ...] = ()
    """The verdicts that caught it."""


@dataclass(frozen=True)
class Mutation:
    """What became of every fault in every case."""

    mutants: tuple[Mutant, ...]

    @property
    def survivors(self) -> tuple[Mutant, ...]:
        """The gaps."""
        return tuple(mutant for mutant in self.mutants if mutant.outcome == "survived")

    @property
    def score(self) -> str:
        """``caught 60 of 61 (4 equivalent)``: there is nothing to catch in what is equivalent."""
        caught, survived, equivalent = self.counts
        return f"caught {caught} of {caught + survived} ({equivalent} equivalent)"

    @property
    def counts(self) -> tuple[int, ...]:
        """Mutants of each outcome, in the order of `OUTCOMES`."""
        return tuple(sum(one.outcome == outcome for one in self.mutants) for outcome in OUTCOMES)

    @property
    def by_case(self) -> dict[str, Mutation]:
        """The same, case by case, by the name of the case."""
        names = dict.fromkeys(mutant.case.name for mutant in self.mutants)
        return {name: Mutation(tuple(one for one in self.mutants if one.case.name == name)) for name in names}


class Subject(Generic[Fault]):
    """A case in which faults are made.

    What costs little is tried first: most faults show in the first steps, to laws that only read the record. The next
    ask for evidence of their own, then the declared number of steps is trained; and laws that train again, which look
    at other trainings than this one, are asked only where all others see nothing. A short training is judged by the
    laws that it keeps where nothing is wrong.

    Args:
        case: what is trained.
        laws: which judge it; those that compare cases are left out.
        runs: trains it, with a fault or without.
    """

    def __init__(self, case: Case, laws: Iterable[Law], runs: Callable[[Case, Fault | None], Record]) -> None:
        self.case = case
        laws = [law for law in laws if law.axis is None and case.settings.invariants.get(law.name) is not False]
        self._quick = [law for law in laws if not law.slow]
        self._slow = [law for law in laws if law.slow]
        self._runs = runs

    @cached_property
    def healthy(self) -> Record:
        """The run without a fault, with the evidence of the laws that do not train again."""
        return self._runs(_probed(self.case, self._quick), None)

    @property
    def alarms(self) -> tuple[str, ...]:
        """What is wrong with it without a fault: there must be nothing, or no fault can be told from it."""
        if self.healthy.outcome == "skipped":
            return (f"{self.case.name}: skipped: {self.healthy.reason}",)
        slow = self._runs(_probed(self._short, self._slow), None) if self._slow else self.healthy
        verdicts = _broken(self.healthy, self._quick) + _broken(slow, self._slow)
        return tuple(f"{one.about}::{one.law}: {one.message}" for one in verdicts)

    def suits(self, fault: Described) -> bool:
        """Whether the fault can happen in its loop, is one of its task, and has what it needs of what is declared."""
        settings = self.case.settings
        if (fault.evaluates and settings.evaluation is None) or not fault.when(settings):
            return False
        return settings.train.loop in fault.loops and (not fault.tasks or settings.task in fault.tasks)

    def with_fault(self, fault: Fault) -> Mutant:
        """Make a mistake in it, and see which laws notice."""
        for case, laws in self._stages:
            record = self._runs(_probed(case, laws), fault)
            if broken := _broken(record, laws):
                return Mutant(self.case, fault, "caught", broken)
            if laws is self._quick:
                whole = record
        return Mutant(self.case, fault, "equivalent" if alike(whole, self.healthy) else "survived")

    @property
    def _short(self) -> Case:
        settings = self.case.settings
        if settings.train.steps <= SHORT:
            return self.case
        train = settings.train.model_copy(update={"steps": SHORT})
        return replace(self.case, settings=settings.model_copy(update={"train": train}))

    @cached_property
    def _stages(self) -> list[tuple[Case, list[Law]]]:
        """Each is a training and the laws that judge it."""
        short, stages = self._short, [(self.case, self._quick)]
        if short is not self.case:
            alarms = {one.law for one in _broken(self._runs(_probed(short, self._quick), None), self._quick)}
            sure = [law for law in self._quick if law.name not in alarms]
            stages = [(short, [law for law in sure if not law.probes]), (short, sure), *stages]
        return [*stages, (short, self._slow)] if self._slow else stages


class Notes(Protocol):
    """Where mutants are written down that were made before."""

    def find(self, case: Case, fault: Described) -> Mutant | None:
        """What became of a fault in a case; none if it was not made yet."""

    def add(self, mutant: Mutant) -> None:
        """Write a mutant down."""


def mutants(
    subjects: Iterable[Subject[Fault]], faults: Sequence[Fault], notes: Notes | None = None
) -> Iterator[Mutant]:
    """Each fault in each case that it can happen in, made now unless it stands in the notes; case by case, so that a
    checkpoint is read once.
    """
    for subject in subjects:
        for fault in filter(subject.suits, faults):
            found = notes.find(subject.case, fault) if notes is not None else None
            if found is None:
                found = subject.with_fault(fault)
                if notes is not None:
                    notes.add(found)
            yield found


def alike(one: Record, other: Record) -> bool:
    """Whether two runs left the same, time, place and memory apart: numbers up to the rounding of fp32.

    Rounding alone changes with the rows that share a matrix product, as those that an expert of a mixture gets.
    """
    return _alike(evidence(one), evidence(other))


def evidence(record: Record) -> dict[str, Any]:
    """All that a run left but for time, place and memory, in which any two runs differ, and for where a generator of
    random numbers stood: whoever drew from it got other numbers, and left others.
    """
    whole: dict[str, Any] = {
        "started": True, "environment": True, "memory": True, "machine": True, "steps": {"random"},
        "efficiency": True, "counters": True,  # which are not taken where a fault is seeded
    }  # fmt: skip
    timeless: dict[str, Any] = _timeless(record.model_dump(mode="json", exclude=whole))
    return timeless


def _timeless(left: Any) -> Any:
    """Without what a clock said, and without which of many distances is the largest: where all are rounding, any is."""
    if isinstance(left, dict):
        return {
            name: _timeless(value)
            for name, value in left.items()
            if not name.endswith(("seconds", "_worst")) and name not in ("began", "ended", "joules", "slowed")
        }
    return [_timeless(value) for value in left] if isinstance(left, list) else left


def _alike(one: Any, other: Any, near: float = ROUNDING, near_zero: float = ROUNDING / 100) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=near, abs_tol=near_zero) or (one != one and other != other)
    if isinstance(one, dict) and isinstance(other, dict):
        # What an update leaves unmoved is a matter of its last bit, and there are a few such weights or none.
        limits = {"unmoved": (near, ROUNDING), "after": (TRAINED, near_zero)}
        return one.keys() == other.keys() and all(
            _alike(value, other[name], *limits.get(name, (near, near_zero))) for name, value in one.items()
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_alike(*both, near, near_zero) for both in zip(one, other, strict=True))
    return bool(one == other)


def _probed(case: Case, laws: Iterable[Law]) -> Case:
    return replace(case, timed=False, probes=frozenset(probe for law in laws for probe in law.probes))


def _broken(record: Record, laws: Iterable[Law]) -> tuple[Verdict, ...]:
    return tuple(verdict for verdict in judge(record, laws) if verdict.outcome == "broken")
