"""Two sets of records to verdicts: paired by identity, judged together, refused where unlike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter

from harness.compare.identity import NotComparable, differences, hardware, place, told_apart, value, waive
from harness.compare.loss import Losses, between
from harness.compare.measure import MARGIN, Measure, Outcome, judged_together, measures
from harness.record import Record

LEFT_OUT = ("skipped", "interrupted")
"""Outcomes that say nothing of the case: the machine lacks something, or somebody stopped it."""


NOT_COMPARED = "not compared"
"""The verdict of a case of which there is none."""


@dataclass(frozen=True)
class Pair:
    """One case on both sides."""

    case: str
    """Its name, with the hardware where several of that name are compared."""
    base: tuple[Record, ...]
    new: tuple[Record, ...]
    measures: tuple[Measure, ...]
    losses: Losses
    broken: tuple[str, ...] = ()
    """What laws say of the new side that they do not say of the base, where they were judged."""
    evidence: tuple[str, ...] = ()
    """What else is to be known of how it was measured."""

    def measure(self, name: str) -> Measure | None:
        """The figure of that name; none where it was not measured."""
        return next((measure for measure in self.measures if measure.name == name), None)

    @property
    def speed(self) -> Outcome:
        """Slower or faster by the clock; where that cannot tell, slower also by what the processor did."""
        clock, processor = (self.measure(name) for name in ("step time", "processor time"))
        outcome = clock.outcome if clock else "undecided"
        if outcome == "undecided" and processor is not None and processor.outcome != "faster":
            return processor.outcome
        return outcome

    @property
    def verdict(self) -> str:
        """Of speed and loss together: a faster run counts only if its loss goes where the base's does; nothing can be
        said of a run whose base did not finish.
        """
        if not self.base[0].finished:
            return NOT_COMPARED
        if self.losses.outcome in ("worse", "broken"):
            return f"{self.losses.outcome} loss"
        if self.broken:
            return "broken law"
        if self.speed == "faster" and not self.losses.holds:
            return "undecided"
        return self.speed

    @property
    def fails(self) -> bool:
        """It is a regression."""
        return self.losses.outcome in ("worse", "broken") or bool(self.broken) or self.speed == "slower"


@dataclass(frozen=True)
class Comparison:
    """All cases of two sides."""

    pairs: tuple[Pair, ...]
    across: tuple[str, ...] = ()
    sides: tuple[str, str] = ("base", "new")
    """How the sides are called: by their values on the axes, where there are any."""
    notes: tuple[str, ...] = ()
    """What was left out, and lines of files that could not be used."""
    refused: tuple[str, ...] = ()
    """Cases of which there is no verdict, and why."""

    @property
    def fails(self) -> bool:
        """At least one case has regressed."""
        return any(pair.fails for pair in self.pairs)

    @property
    def incomplete(self) -> bool:
        """There is no verdict of at least one case."""
        return bool(self.refused) or any(pair.verdict == NOT_COMPARED for pair in self.pairs)

    @property
    def status(self) -> int:
        """The exit status: 1 if a case has regressed, 2 if one was not compared."""
        return 1 if self.fails else 2 if self.incomplete else 0


def compare(
    base: Iterable[Record],
    new: Iterable[Record],
    *,
    across: Sequence[str] = (),
    margin: float = MARGIN,
    among: int = 1,
) -> Comparison:
    """Pair cases, refuse unlike ones, judge the rest together.

    Args:
        base: records of one side; several of a case are several runs of it.
        new: of the other.
        across: axes in which the sides may differ: ``device``, ``torch``, ``loop``, or any field of their identity.
        margin: what is called equivalent.
        among: how many such comparisons are made that will be judged together, this one included.

    Raises:
        NotComparable: cases differ in what was not asked about, or none is on both sides.
    """
    base, new = tuple(base), tuple(new)
    one, two, notes = cases(base, across), cases(new, across, every=True), left_out((*base, *new))
    notes += [f"only in base: {_title(runs)}" for key, runs in one.items() if key not in two]
    notes += [f"only in new: {_title(runs)}" for key, runs in two.items() if key not in one]
    common = [key for key in one if key in two]
    together = [(one[key], two[key]) for key in common] or _same_names(one, two)
    if not together:
        raise NotComparable([], "no case is on both sides: " + ("; ".join(notes) or "there are no records"))
    refuse([(first[0], second[0]) for first, second in together], across)
    refuse([(runs[0], run) for pair in together for runs in pair for run in runs[1:]], ())
    names = tuple(value(runs[0], across) for runs in together[0]) if across else ("base", "new")
    first = [runs[0] for _, runs in together]
    titles = told_apart([record.name for record in first], first)
    pairs = [_pair(title, *sides) for title, sides in zip(titles, together, strict=True)]
    return Comparison(_together(pairs, margin, among), tuple(across), (names[0], names[1]), tuple(notes))


Key = tuple[str, ...]


def cases(records: Iterable[Record], across: Sequence[str], *, every: bool = False) -> dict[Key, tuple[Record, ...]]:
    """The runs of each case on each hardware; those that finished, where one has.

    Args:
        records: of any cases.
        across: the axes along which runs of one case may differ.
        every: those that did not finish as well, behind the others.
    """
    found: dict[Key, list[Record]] = {}
    for record in records:
        if record.outcome in LEFT_OUT:
            continue
        name = place(record, across) if across else record.name
        key = (name, *(each for field, each in hardware(record.environment).items() if field not in waive(across)))
        found.setdefault(key, []).append(record)
    ordered = {key: sorted(runs, key=lambda run: not run.finished) for key, runs in found.items()}
    return {key: tuple(runs) if every else finished(runs) or tuple(runs) for key, runs in ordered.items()}


def finished(runs: Iterable[Record]) -> tuple[Record, ...]:
    """Those that did."""
    return tuple(run for run in runs if run.finished)


def left_out(records: Iterable[Record]) -> list[str]:
    """A line for each record that says nothing of its case."""
    void = [record for record in records if record.outcome in LEFT_OUT]
    return [f"left out: {record.name}: {record.outcome}: {record.reason}" for record in void]


def refuse(pairs: Iterable[tuple[Record, Record]], across: Sequence[str]) -> None:
    """Raise if runs differ in what was not asked about; one that did not finish can only be asked why.

    Raises:
        NotComparable: with every difference.
    """
    both = [(one, two) for one, two in pairs if one.finished and two.finished]
    if found := [difference for one, two in both for difference in differences(one, two, across)]:
        raise NotComparable(found)


def _title(runs: Sequence[Record]) -> str:
    return f"{runs[0].name} on {runs[0].environment.device or 'an unknown device'}"


def _same_names(
    one: dict[Key, tuple[Record, ...]], two: dict[Key, tuple[Record, ...]]
) -> list[tuple[tuple[Record, ...], tuple[Record, ...]]]:
    """Cases of one name that differ in hardware, or of one experiment that differ in settings: to say in what."""
    for name in (attrgetter("name"), attrgetter("experiment")):
        others = {name(runs[0]): runs for runs in two.values()}
        if found := [(runs, others[name(runs[0])]) for runs in one.values() if name(runs[0]) in others]:
            return found
    return []


def _pair(case: str, base: tuple[Record, ...], new: tuple[Record, ...]) -> Pair:
    """The figures of a case, not judged yet; there are none of a run that did not finish."""
    figures = measures(base, new) if base[0].finished and all(run.finished for run in new) else ()
    return Pair(case, base, new, figures, between(base, new))


def _together(pairs: Sequence[Pair], margin: float, among: int) -> tuple[Pair, ...]:
    every = judged_together((one for pair in pairs for one in pair.measures), margin, among)
    return tuple(replace(pair, measures=tuple(islice(every, len(pair.measures)))) for pair in pairs)
