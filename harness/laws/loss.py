"""The loss curve, from the raw loss of every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from harness.laws.declared import rising_steps
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable
from harness.record import Record

FEWEST = 12
"""Steps of which the loss may be said not to fall: in 4 to 8 steps of `tiny.yaml` it rose for three seeds of eight."""
SURE = 3.0
"""Standard errors by which a loss that falls must stay above the limit."""


@law()
def loss_finite(record: Record) -> Verdict:
    """The raw loss of every step is a finite number.

    Judged on the loss that the forward pass returned. The Trainer's log cannot serve: with
    ``logging_nan_inf_filter`` (its default) a NaN is logged as the average of the steps around it, or as 0.0.
    """
    losses = record.steps.loss
    if not losses:
        return invalid("no loss was seen: the model's forward returned none")
    step = record.steps.first_not_finite
    if step is None:
        return held(f"{len(losses)} losses, all finite")
    before = ", ".join(f"{loss:.4g}" for loss in losses[max(0, step - 3) : step])
    examples = ", ".join(map(str, record.steps.examples[step])) if step < len(record.steps.examples) else "unknown"
    if step == 0:
        cause = "the first forward pass gives it already: the weights or this batch, not an update"
    else:
        rate = record.steps.learning_rate[step - 1] if step <= len(record.steps.learning_rate) else math.nan
        cause = f"the update of step {step} (learning rate {rate:.3g}), a precision that overflows, or this batch"
    return broken(
        f"loss is {losses[step]} at step {step + 1} of {len(losses)}"
        + (f", after {before}" if before else "")
        + f"; examples of that batch: {examples}",
        cause=cause,
    )


@law()
def loss_decreases(
    record: Record,
    *,
    window: Annotated[
        int | None, Field(ge=1, description="Steps averaged at each end; by default a quarter of all.")
    ] = None,
    by: Annotated[float, Field(gt=0, lt=1, description="The share of the first window's mean it must fall by.")] = 0.1,
) -> Verdict:
    """The mean loss of the last window of steps is at least 10 % below that of the first.

    Windows, not the last loss below the first: with dropout and small batches single losses scatter. On
    `sentiment.yaml` the two window means (15 steps each) differed by at most 0.3 % in six trainings whose learning
    rate was as good as 0, and by 95 % when it trained; 10 % tells the two apart for data that is far noisier.

    Invalid where that is too little to tell: the loss varies, and has not fallen in fewer than 12 steps or before the
    warm-up is over; or it falls, and stays above the limit by less than 3 standard errors of the difference of the two
    means. Their scatter is that of successive losses (von Neumann 1941), which leaves the slope out. Of 16 seeds of
    `tiny.yaml` the slowest two fell by 7 % and missed the limit by 1.0 and 2.6 such errors; with a rate of 0, the
    least was 6.1.
    """
    losses = record.steps.loss
    width = window or max(1, len(losses) // 4)
    if len(losses) < 2 * width or len(losses) < 4:
        return invalid(f"{len(losses)} steps are too few for two windows of {max(width, 2)}")
    step = record.steps.first_not_finite
    if step is not None:
        return not_applicable(f"the loss is {losses[step]} at step {step + 1}: see loss_finite")
    first, last = _mean(losses[:width]), _mean(losses[-width:])
    found = f"mean loss of the first {width} steps {first:.4f}, of the last {width} {last:.4f}"
    most = first - by * abs(first)
    if last <= most and last < first:  # a loss of exactly 0 from the start does not fall
        return held(found)
    if (rising := rising_steps(record)) >= len(losses):
        return invalid(f"{found}: the warm-up of {rising} steps is not over after {len(losses)}")
    open_to_chance = SURE * _standard_error(losses, width)
    if last < first and last - most < open_to_chance:
        return invalid(f"{found}: expected at most {most:.4f}, and what they scatter leaves {open_to_chance:.4f} open")
    if len(losses) < FEWEST and open_to_chance > 0:
        return invalid(
            f"{found}: expected at most {most:.4f}, but {len(losses)} steps are too few to say that it stays"
        )
    return broken(f"{found}: expected at most {most:.4f}", cause=_why_flat(record))


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(loss / len(losses) for loss in losses)


def _standard_error(losses: Sequence[float], width: int) -> float:
    """Of the difference of two windows' means, from the differences of successive losses."""
    steps = [after - before for before, after in pairwise(losses)]
    return math.hypot(*steps) / math.sqrt(2 * len(steps)) * math.sqrt(2 / width)


def _why_flat(record: Record) -> str:
    if not any(record.steps.loss):
        return "the loss is exactly 0 at every step: there is nothing to tell apart, such as one class only"
    if record.steps.learning_rate and max(record.steps.learning_rate) == 0:
        return "the learning rate is 0 at every step"
    moved = [parameter for parameter in record.parameters if parameter.change > 0]
    if record.parameters and not moved:
        return "no parameter moved: the optimizer never steps, or holds other tensors than the model's"
    if record.steps.loss[-1] > record.steps.loss[0]:
        return "it rises: the learning rate is too high, or the labels do not belong to these texts"
    return "too few steps or too small a learning rate for this data, or labels that do not belong to these texts"
