"""Many values of an axis side by side: a row a case, a column a device, or whatever the axis is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from harness.compare.comparison import cases, finished, left_out, refuse
from harness.compare.identity import NotComparable, told_apart, value
from harness.compare.loss import LOSS_OUTCOMES, Losses, between
from harness.compare.measure import MARGIN, Measure, duration, judged_together
from harness.record import Record
from harness.throughput import Throughput, throughput


@dataclass(frozen=True)
class Cell:
    """A case at one value of the axis."""

    tokens_per_second: float | None
    """Of real tokens: the median over steps and runs; none where it was not measured."""
    samples_per_second: float | None
    peak_bytes: int | None
    against_best: Measure | None
    """Step time against that of the fastest cell of the row; none for the fastest itself."""
    losses: Losses | None
    """Against those of the first cell of the row; none for the first itself."""
    runs: int = 1


@dataclass(frozen=True)
class Row:
    """A case at each value of the axis."""

    case: str
    cells: tuple[Cell | None, ...]

    @property
    def agrees(self) -> str:
        """What is to be said of its losses together: the worst of them."""
        outcomes = [cell.losses.outcome for cell in self.cells if cell is not None and cell.losses is not None]
        return min(outcomes, key=LOSS_OUTCOMES.index)


@dataclass(frozen=True)
class Table:
    """All cases at all values of the axis."""

    across: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """The losses of a case do not agree; that one device is slower than another is no regression."""
        return any(row.agrees in ("worse", "broken") for row in self.rows)

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self.fails else 0


def side_by_side(records: Iterable[Record], across: Sequence[str], *, margin: float = MARGIN) -> Table:
    """A table of records that differ along the axes, and in nothing else within a row.

    Raises:
        NotComparable: cases of a row differ in what was not asked about, or no row has two columns.
    """
    records = tuple(records)
    groups = {key: _by_value(runs, across) for key, runs in cases(records, across, every=True).items()}
    notes = left_out(records)
    alone = [one for one in groups.values() if len(one) < 2]
    notes += [f"only at {value}: {runs[0].name}" for one in alone for value, runs in one.items()]
    groups = {key: one for key, one in groups.items() if len(one) > 1}
    if not groups:
        why = "; ".join(notes) or "there are no records"
        raise NotComparable([], f"no case is at two values of {', '.join(across)}: {why}")
    for one in groups.values():
        refuse([(_first(one)[0], runs[0]) for runs in one.values()], across)
        refuse([(runs[0], run) for runs in one.values() for run in runs[1:]], ())
    there = {name for one in groups.values() for name in one}
    columns = tuple(dict.fromkeys(name for record in records if (name := value(record, across)) in there))
    rows = [_row(title, one, columns) for title, one in zip(_titles(groups.values()), groups.values(), strict=True)]
    return Table(tuple(across), columns, _together(rows, margin), tuple(notes))


Group = dict[str, tuple[Record, ...]]
"""The runs of a case, by value of the axis."""


def _by_value(runs: Iterable[Record], across: Sequence[str]) -> Group:
    found: dict[str, list[Record]] = {}
    for run in runs:
        found.setdefault(value(run, across), []).append(run)
    return {name: tuple(each) for name, each in found.items()}


def _first(group: Group) -> tuple[Record, ...]:
    """The runs that the others are held against: the first that finished."""
    return next((runs for runs in group.values() if runs[0].finished), next(iter(group.values())))


def _row(title: str, group: Group, columns: Sequence[str]) -> Row:
    first = _first(group)
    rates = {name: _rate(runs) for name, runs in group.items()}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    best = max(known, key=lambda name: known[name][0]) if known else None
    cells = [
        None if name not in group else _cell(group[name], first, rates[name], group[best] if best else None)
        for name in columns
    ]
    return Row(title, tuple(cells))


def _cell(
    runs: tuple[Record, ...],
    first: tuple[Record, ...],
    rate: tuple[float, float] | None,
    best: tuple[Record, ...] | None,
) -> Cell:
    peaks = [run.memory.peak_bytes for run in runs if run.memory.peak_bytes is not None]
    return Cell(
        tokens_per_second=rate[0] if rate else None,
        samples_per_second=rate[1] if rate else None,
        peak_bytes=round(median(peaks)) if peaks else None,
        against_best=None
        if rate is None or best is None or runs is best
        else duration(finished(best), finished(runs), "step time"),
        losses=None if runs is first else between(first, runs),
        runs=len(runs),
    )


def _rate(runs: Sequence[Record]) -> tuple[float, float] | None:
    """Tokens and samples a second: medians over the runs."""
    speeds = [speed for run in runs if isinstance(speed := throughput(run), Throughput)]
    if not speeds:
        return None
    rates = [(speed.tokens_per_second.median, speed.samples_per_second.median) for speed in speeds]
    return median(tokens for tokens, _ in rates), median(samples for _, samples in rates)


def _titles(groups: Iterable[Group]) -> list[str]:
    firsts = [[runs[0] for runs in group.values()] for group in groups]
    return told_apart(list(map(_title, firsts)), [first for first, *_ in firsts])


def _title(runs: Sequence[Record]) -> str:
    """The experiment, and what the ids of all its cases have in common."""
    first = runs[0]
    ids = [set(run.case.split("-")) for run in runs]
    common = "-".join(part for part in first.case.split("-") if all(part in parts for parts in ids))
    return f"{first.experiment}::{common}" if common else first.experiment


def _together(rows: Sequence[Row], margin: float) -> tuple[Row, ...]:
    known = (cell.against_best for row in rows for cell in row.cells if cell and cell.against_best)
    every = judged_together(known, margin)

    def judge(cell: Cell | None) -> Cell | None:
        return replace(cell, against_best=next(every)) if cell and cell.against_best else cell

    return tuple(replace(row, cells=tuple(map(judge, row.cells))) for row in rows)
