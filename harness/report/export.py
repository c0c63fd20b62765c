"""Figures of records in the formats of others: github-action-benchmark, and the Bencher Metric Format.

- https://github.com/benchmark-action/github-action-benchmark (`src/extract.ts`): an array of
  ``{name, unit, value, range?, extra?}``, in a file for figures of which more is better, or for those of which less is.
- https://bencher.dev/docs/reference/bencher-metric-format: ``{benchmark: {measure: {value, lower_value?,
  upper_value?}}}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from harness.compare.identity import Key, key, told_apart
from harness.record import Record
from harness.throughput import NotMeasured, Rate, Throughput, throughput

Better = Literal["bigger", "smaller"]


@dataclass(frozen=True)
class Figure:
    """One figure of a case."""

    case: str
    measure: str
    """As Bencher has it: `latency` is one of its own, in nanoseconds."""
    unit: str
    better: Better
    value: float
    low: float | None = None
    """Of the timed steps the slowest or the fastest, over all runs; none where there is one number."""
    high: float | None = None


@dataclass(frozen=True)
class Export:
    """Figures, and a sentence for each that is not among them."""

    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


def export(records: Iterable[Record]) -> Export:
    """The figures of records that finished. Several records of a case on one hardware are several runs of it."""
    groups: dict[Key, list[Record]] = {}
    notes: list[str] = []
    for record in records:
        if record.finished:
            groups.setdefault(key(record), []).append(record)
        else:
            notes.append(f"{record.name}: {record.outcome}: {record.reason}".rstrip(": "))
    figures: list[Figure] = []
    first = [runs[0] for runs in groups.values()]
    for title, runs in zip(told_apart([one.name for one in first], first), groups.values(), strict=True):
        found, missing = _of_case(title, runs)
        figures += found
        notes += [f"{title}: {why}" for why in missing]
    return Export(tuple(figures), tuple(dict.fromkeys(notes)))


def github_action_benchmark(figures: Iterable[Figure]) -> str:
    """For its tools customBiggerIsBetter and customSmallerIsBetter; a file should have figures of one direction."""
    return _json([_entry(figure) for figure in figures])


def bencher(figures: Iterable[Figure]) -> str:
    """For `bencher run --adapter json`."""
    cases: dict[str, dict[str, dict[str, float]]] = {}
    for figure in figures:
        metric = {"value": figure.value}
        if figure.low is not None and figure.high is not None:
            metric |= {"lower_value": figure.low, "upper_value": figure.high}
        cases.setdefault(figure.case, {})[figure.measure] = metric
    return _json(cases)


def _entry(figure: Figure) -> dict[str, object]:
    entry = {"name": f"{figure.case} {figure.measure}", "unit": figure.unit, "value": figure.value}
    if figure.low is not None and figure.high is not None:
        entry["range"] = f"{figure.low:.6g} to {figure.high:.6g}"
    return entry


def _of_case(case: str, runs: Sequence[Record]) -> tuple[list[Figure], list[str]]:
    notes: list[str] = []
    speeds: list[Throughput] = []
    for run in runs:
        speed = throughput(run)
        if isinstance(speed, NotMeasured):
            notes.append(f"throughput is invalid: {speed.reason}")
        else:
            speeds.append(speed)
    figures = list(_speeds(case, speeds)) if speeds else []
    peaks = [float(run.memory.peak_bytes) for run in runs if run.memory.peak_bytes is not None]
    losses = [run.steps.losses[-1] for run in runs if run.steps.losses]
    if finite := [loss for loss in losses if math.isfinite(loss)]:
        figures.append(_figure(case, "last-loss", "loss", "smaller", finite))
    if len(finite) < len(losses):
        notes.append("the last loss is not finite, and no number in JSON")
    if peaks:
        figures.append(_figure(case, "peak-memory", "bytes", "smaller", peaks))
    return figures, notes


def _speeds(case: str, speeds: Sequence[Throughput]) -> Iterator[Figure]:
    for name in ("samples", "tokens"):
        rates: list[Rate] = [getattr(speed, f"{name}_per_second") for speed in speeds]
        if any(rate.median for rate in rates):
            low, high = min(rate.low for rate in rates), max(rate.high for rate in rates)
            value = median(rate.median for rate in rates)
            yield Figure(case, f"{name}-per-second", f"{name}/s", "bigger", value, low, high)
    steps = [second * 1e9 for speed in speeds for second in speed.seconds]
    value = median(median(speed.seconds) for speed in speeds) * 1e9
    yield Figure(case, "latency", "ns", "smaller", value, min(steps), max(steps))


def _figure(case: str, measure: str, unit: str, better: Better, values: Sequence[float]) -> Figure:
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Figure(case, measure, unit, better, median(values), low, high)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
