"""Whether the loss of the new runs goes where that of the base ones goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal, get_args

from harness.compare.statistic import BLOCKS, TURNS, signed_rank
from harness.record import Record

LossOutcome = Literal["broken", "worse", "undecided", "equivalent", "better", "same"]
LOSS_OUTCOMES: tuple[LossOutcome, ...] = get_args(LossOutcome)
"""From the worst on."""

ROUNDING = {"fp32": 1e-5, "bf16": 1.5e-2}
"""Largest difference of two losses that is rounding, relative to a loss above 1 and absolute below: what `loops_agree`
allows on a CPU. Other precisions are taken for bf16."""

MARGIN = 0.1
"""Share of the base's fall of the loss by which the end may be higher: dropout that draws other numbers on another
device, or after an upgrade, moves the loss of a step by more, and its level by less."""


@dataclass(frozen=True)
class Losses:
    """How the trajectory of the loss compares."""

    outcome: LossOutcome
    message: str

    @property
    def holds(self) -> bool:
        """A figure of the new run is worth what one of the base is."""
        return self.outcome in ("same", "equivalent", "better")


def between(base: Sequence[Record], new: Sequence[Record]) -> Losses:
    """Of several runs of a side: each new one against the first of the base, and the worst of what is found."""
    if not base[0].finished:
        return Losses("undecided", f"the base run did not finish: {_why(base[0])}")
    if lost := [run for run in new if not run.finished]:
        which = "the new run" if len(new) == 1 else f"{len(lost)} of {len(new)} new runs"
        return Losses("broken", f"{which} did not finish: {_why(lost[0])}")
    return min((losses(base[0], run) for run in new), key=lambda one: LOSS_OUTCOMES.index(one.outcome))


def _why(run: Record) -> str:
    return f"{run.outcome}: {run.reason}" if run.reason else run.outcome


def losses(base: Record, new: Record) -> Losses:
    """Compare the loss step by step, then the level of the second half.

    Equal up to rounding is `same`. Otherwise the differences of the second half, in blocks, go through the signed-rank
    test: `worse` is a level that is higher beyond chance and by more than `MARGIN` of what the base's loss fell by.
    """
    if (void := _not_finite(base, new)) is not None:
        return void
    empty = base.steps.empty | new.steps.empty
    both = enumerate(zip(base.steps.loss, new.steps.loss, strict=False))
    pairs = {step: pair for step, pair in both if step not in empty}
    if not pairs:
        return Losses("undecided", "no losses")
    allowed = ROUNDING.get(str(base.settings.get("precision")), ROUNDING["bf16"])
    apart = (step for step, (one, two) in pairs.items() if abs(two - one) > allowed * max(1, abs(one)))
    first = next(apart, None)
    if first is None:
        return Losses("same", f"{len(pairs)} steps equal up to {allowed:g}")
    one, two = pairs[first]
    begins = f"differs first at step {first + 1}: {one:.6g} and {two:.6g}"
    outcome, level = _level(list(pairs.values()), allowed)
    return Losses(outcome, f"{begins}; {level}")


def _not_finite(base: Record, new: Record) -> Losses | None:
    one, two = base.steps.first_not_finite, new.steps.first_not_finite
    if one is not None:
        also = "" if two is None else f", the new one {new.steps.loss[two]} at step {two + 1}"
        return Losses("undecided", f"the base's loss is {base.steps.loss[one]} at step {one + 1}{also}")
    if two is not None:
        return Losses("broken", f"the new loss is {new.steps.loss[two]} at step {two + 1}, the base's is finite")
    return None


def _level(pairs: Sequence[tuple[float, float]], allowed: float) -> tuple[LossOutcome, str]:
    half = pairs[len(pairs) // 2 :] if len(pairs) >= 2 * TURNS else pairs
    if len(half) < TURNS:
        return "undecided", f"{len(pairs)} steps are too few to tell where it goes, at least {TURNS} are needed"
    count = min(BLOCKS, len(half))
    blocks = [half[len(half) * place // count : len(half) * (place + 1) // count] for place in range(count)]
    centre, low, high, _ = signed_rank([fmean(two - one for one, two in block) for block in blocks])
    quarter = max(len(pairs) // 4, 1)
    fall = median(one for one, _ in pairs[:quarter]) - median(one for one, _ in pairs[-quarter:])
    margin = max(MARGIN * fall, allowed * max(1.0, abs(pairs[-1][0])))
    level = f"at the end {centre:+.4g} ({low:+.4g} to {high:+.4g}), where {margin:.4g} is allowed"
    if low > 0 and centre > margin:
        return "worse", level
    if high < 0 and centre < -margin:
        return "better", level
    return ("equivalent" if -margin <= low <= high <= margin else "undecided"), level
