"""The table of evaluations: each metric before and after training, with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable

from harness.record import Evaluation, Interval
from harness.report.summary import Row

SCORE_HEADERS = ("case", "metric", "before", "after", "better by", "rows")


def score_cells(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """A line for each metric of each case that was evaluated."""
    return [(row.name, *line) for row in rows if row.evaluation is not None for line in _lines(row.evaluation)]


def how(rows: Iterable[Row]) -> str:
    """What the intervals are, once for all that are alike."""
    said = dict.fromkeys(
        f"{row.evaluation.confidence:.0%} bootstrap intervals over {row.evaluation.resamples} resamples of the rows"
        for row in rows
        if row.evaluation is not None
    )
    return "; ".join(said)


def _lines(evaluation: Evaluation) -> Iterable[tuple[str, ...]]:
    before, *_, after = evaluation.scores if len(evaluation.scores) > 1 else (*evaluation.scores, *evaluation.scores)
    for name in evaluation.metrics:
        ends = (_figure(score.intervals.get(name)) for score in (before, after))
        yield (name, *ends, _figure(evaluation.improvements.get(name), sign=True), str(evaluation.rows))


def _figure(one: Interval | None, *, sign: bool = False) -> str:
    """``0.75 (0.5 to 1)``; the value alone where it has no interval, a dash where it is not defined."""
    if one is None or not math.isfinite(one.value):
        return "-"
    value = f"{one.value:+.3g}" if sign else f"{one.value:.3g}"
    if not (math.isfinite(one.low) and math.isfinite(one.high)):
        return value
    return f"{value} ({one.low:.3g} to {one.high:.3g})"
