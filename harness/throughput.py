"""Rates of a record's timed steps, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from harness.account import (
    PHASES,
    joules_per_kilotoken,
    mistakes,
    phases,
    queued_share,
    quiet_seconds,
    roofline,
    utilisation,
)
from harness.errors import count
from harness.record import Record
from harness.steadiness import first_steady

MINIMUM = 3
"""Timed steps below which a median and its range say nothing."""


AFTER_COMPILING = 3
"""Steps of a warm-up that begins anew: the one that compiles, and two in which a CUDA graph is warmed and captured."""


@dataclass(frozen=True)
class Rate:
    """Something per second: median, lowest and highest of the timed steps."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Throughput:
    """What the timed steps of a case show. Steps of the warm-up are left out; they stay in the record."""

    seconds: tuple[float, ...]
    """Of each timed step."""
    samples_per_second: Rate
    tokens_per_second: Rate
    """Real tokens: padding is not work done."""
    padding: float
    """Share of the batches' tokens that are padding, 0 to 1."""
    warmup_steps: int
    """Steps before the first timed one."""
    data_wait: float | None = None
    """Share of a step in which the loop waits for its batch, 0 to 1: the median; none where it was not measured."""
    padded_tokens_per_second: Rate | None = None
    """Real tokens and padding."""
    phases: dict[str, float] = field(default_factory=dict)
    """Share of a step that each phase takes, 0 to 1: of the sum over all timed steps; empty where not measured."""
    utilisation: float | None = None
    """Share of the measured ceiling of the device that the model's operations reach (MFU); none where not known."""
    roofline: dict[str, float] = field(default_factory=dict)
    """Share of a step that arithmetic alone, and reading and writing alone would need; empty where not known."""
    queued: float | None = None
    """Share of the time in which the loop waited for a processor that others had; none where that is not known."""
    joules_per_kilotoken: float | None = None
    """Energy of a thousand real tokens; none where nobody counts it."""


@dataclass(frozen=True)
class NotMeasured:
    """There is no figure. This is neither good nor bad."""

    reason: str


def timed_steps(record: Record) -> tuple[int, ...]:
    """The timed steps, counted from 0: those after the warm-up, which begins anew with each step that compiles.

    What is compiled is tuned, or captured as a CUDA graph, in the runs after that. Where no warm-up is declared it ends
    when steps are steady, by the clock that other processes have least to do with.
    """
    warmup, timed = record.settings.get("benchmark.warmup_steps"), record.settings.get("benchmark.timed_steps")
    again = AFTER_COMPILING if warmup is None else max(1, warmup)
    first, places = warmup or 0, list[int]()
    for place in range(len(record.steps.seconds)):
        if any(record.steps.compile_seconds[place : place + 1]):
            first = max(first, place + again)
        if place >= first:
            places.append(place)
    if warmup is None:
        quiet = quiet_seconds(record)
        places = places[first_steady([quiet[place] for place in places]) :]
    return tuple(places[:timed])


def throughput(record: Record) -> Throughput | NotMeasured:
    """Rates of the timed steps of a record.

    Each rate is the median over steps of what the step did divided by its seconds; seconds run from the end of one
    step to the end of the next with the device waited for, so data loading is inside.
    """
    if not record.finished:
        return NotMeasured(record.reason or record.outcome)
    steps, places = record.steps, timed_steps(record)
    declared = record.settings.get("benchmark.warmup_steps")
    warmup = places[0] if places else len(steps.seconds) if declared is None else declared
    seconds = tuple(steps.seconds[place] for place in places)
    compiling = sum(second > 0 for second in steps.compile_seconds)
    if len(seconds) < MINIMUM:
        return NotMeasured(
            f"{count(len(seconds), 'timed step')} after {warmup} of warm-up"
            + (f", which begin anew with each of {compiling} steps that compile" if compiling else "")
            + f": at least {MINIMUM} are needed; {_remedy(record, warmup)}"
            + (", or let batches be of one shape (train.padding, train.drop_last)" if compiling else "")
        )
    wrong = next(mistakes(record, places), None)
    if wrong is not None:
        return NotMeasured(wrong)
    samples, real, padded = (
        tuple(column[place] for place in places) for column in (steps.samples, steps.real_tokens, steps.padded_tokens)
    )
    waits = [steps.data_seconds[place] / steps.seconds[place] for place in places if place < len(steps.data_seconds)]
    return Throughput(
        seconds=seconds,
        samples_per_second=_rate(samples, seconds),
        tokens_per_second=_rate(real, seconds),
        padding=1 - sum(real) / sum(padded) if sum(padded) else 0.0,
        warmup_steps=warmup,
        data_wait=median(waits) if waits else None,
        padded_tokens_per_second=_rate(padded, seconds),
        phases=_shares([phases(steps, place) for place in places]),
        utilisation=utilisation(record, places),
        roofline=roofline(record, places),
        queued=queued_share(record, places),
        joules_per_kilotoken=joules_per_kilotoken(record, places),
    )


def _shares(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """What part each phase has of all."""
    sums = {phase: math.fsum(step.get(phase, 0.0) for step in steps) for phase in PHASES}
    whole = math.fsum(sums.values())
    return {phase: seconds / whole for phase, seconds in sums.items()} if whole else {}


def _remedy(record: Record, warmup: int) -> str:
    """Which key would give more timed steps."""
    declared = record.settings.get("benchmark.timed_steps")
    if declared is not None and declared < MINIMUM:
        return "raise benchmark.timed_steps"
    return "raise train.steps" + (" or lower benchmark.warmup_steps" if warmup else "")


def _rate(amounts: tuple[int, ...], seconds: tuple[float, ...]) -> Rate:
    rates = [amount / second for amount, second in zip(amounts, seconds, strict=True)]
    return Rate(median(rates), min(rates), max(rates))
