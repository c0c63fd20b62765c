"""What an item does: judge its record by a law, replay its timing, or compare it with a baseline.

Functions of pytest, which read the records of the item that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

import pytest

from harness.plugin.stash import BASELINES

if TYPE_CHECKING:
    from harness.experiment import Train
    from harness.laws import Law, Verdict
    from harness.throughput import Throughput


@cache
def law_function(law: Law) -> Callable[..., None]:
    """The pytest function of a law: it judges the records of its item."""

    def check(request: pytest.FixtureRequest) -> None:
        from harness.laws import judge, judge_together

        records = request.node.records
        (verdict,) = judge(records[0], [law]) if law.axis is None else judge_together(records, [law])
        _settle(verdict)

    check.__doc__ = law.statement
    check.__signature__ = signature(check)  # type: ignore[attr-defined]  # which pytest asks for with every item
    return pytest.mark.invariant(check)


def _settle(verdict: Verdict) -> None:
    """Let a verdict be the outcome of the running item."""
    if verdict.error is not None:
        raise verdict.error  # of a case that was just trained
    if verdict.outcome == "broken":
        pytest.fail(verdict.message + (f"\nlikely cause: {verdict.cause}" if verdict.cause else ""), pytrace=False)
    if verdict.outcome == "expected":
        pytest.xfail(f"{verdict.cause}: {verdict.message}")
    if verdict.outcome != "held":
        prefix = f"{verdict.outcome}: " if verdict.outcome in ("vacuous", "invalid") else ""
        pytest.skip(prefix + verdict.message)


class Replay:
    """A clock for pytest-benchmark that returns the recorded samples.

    pytest-benchmark reads its timer before and after each round: each pair of readings is one sample apart.
    """

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, seconds: Iterable[float]) -> None:
        """The samples of the next rounds, in seconds."""
        self._readings = (reading for second in seconds for reading in (0.0, second))

    def __call__(self) -> float:
        return next(self._readings)


def step_throughput(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """The measured steps, replayed into pytest-benchmark: its table, JSON and comparisons show these very samples."""
    speed = _speed(request)
    clock: Replay = request.node.get_closest_marker("benchmark").kwargs["timer"]
    clock.load(speed.seconds)
    benchmark.name = request.node.cases[0].id  # the table shows names; `fullname` stays the node id
    benchmark.extra_info.update(
        samples_per_second=speed.samples_per_second.median,
        tokens_per_second=speed.tokens_per_second.median,
        padding=speed.padding,
        warmup_steps=speed.warmup_steps,
    )
    benchmark.pedantic(lambda: None, rounds=len(speed.seconds))


def step_throughput_alone(request: pytest.FixtureRequest) -> None:
    """Without pytest-benchmark the figures are in the harness's own report."""
    _speed(request)


def no_regression(request: pytest.FixtureRequest) -> None:
    """The case is not slower than its baseline, and its loss goes where the baseline's does."""
    from harness.compare import NotComparable
    from harness.compare.baseline import against
    from harness.compare.identity import key, machine
    from harness.laws import not_finished
    from harness.report import comparison_lines

    (record,) = request.node.records
    if not record.finished:
        pytest.skip(not_finished(record))
    baselines = request.config.stash[BASELINES]
    baseline = baselines.of(record)
    if baseline is None:
        others = " and on ".join(baselines.elsewhere(record))
        pytest.skip(f"no baseline on {machine(key(record))}" + (f", there is one on {others}" if others else ""))
    among = sum(item.name == "no_regression" for item in request.session.items)
    try:
        pair = against(baseline, record, among=among)
    except NotComparable as error:
        if {one.field for one in error.differences} <= _chosen(request.node.cases[0].settings.train):
            pytest.skip(f"auto has chosen otherwise than for the baseline\n{error.listed}")
        pytest.fail(f"{error.listed}\nrenew it with harness baseline accept", pytrace=False)
    said = "\n".join([f"{pair.verdict}, baseline of {baseline.accepted:%Y-%m-%d}", *comparison_lines(pair)])
    if pair.fails:
        pytest.fail(said, pytrace=False)
    if pair.verdict == "undecided":
        pytest.skip(said)


def _chosen(train: Train) -> set[str]:
    """Fields of a record's identity that a measurement decides, which may say something else each time."""
    from harness.compare.identity import waive
    from harness.experiment import CHOSEN

    return waive(f"train.{name}" for name in CHOSEN if getattr(train, name) == "auto")


def _speed(request: pytest.FixtureRequest) -> Throughput:
    from harness.laws import not_finished
    from harness.throughput import NotMeasured, throughput

    (record,) = request.node.records
    if not record.finished:
        pytest.skip(not_finished(record))
    speed = throughput(record)
    if isinstance(speed, NotMeasured):
        pytest.skip(f"invalid: {speed.reason}")
    return speed
