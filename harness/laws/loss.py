"""The loss curve, from the raw loss of every step."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from harness.errors import count
from harness.laws.declared import rising_steps, share, train
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable
from harness.record import Record

FEWEST = 12
"""Steps of which the loss may be said not to fall: in 4 to 8 steps of `tiny.yaml` it rose for three seeds of eight."""
CHANCE = 4.5
"""Standard deviations above its mean that a count of draws may be, as in masking_is_random."""
ONCE = 7e-6
"""The chance of being further off than that."""
SURE = 3.0
"""Standard errors by which a loss must stay above the limit, or rise, before it is said to."""
RISES = "it rises: the learning rate is too high, or the labels do not belong to these texts"
FLAT = "too few steps or too small a learning rate for this data, or labels that do not belong to these texts"
LONGEST = 1_000_000
"""Steps of a window that anybody may be told to take."""


@law()
def loss_finite(record: Record) -> Verdict:
    """The raw loss of every step that has something to learn is a finite number.

    Judged on the loss that the forward pass returned. The Trainer's log is no substitute: with
    ``logging_nan_inf_filter`` (its default) a NaN is logged as the average of the steps around it, or as 0.0.

    Where the tokens to be predicted are drawn at random, a batch of a few short texts may get none. Its loss is then
    the mean of nothing, NaN, and its gradient is 0: such a step trains nothing and does no harm (measured in every
    loop, with and without label smoothing, accumulation and clipping). It is accepted if its gradient is finite and
    such micro-batches are no more frequent than chance makes them: of n tokens none is drawn with a probability of
    (1 - p)^n. The law is broken if their number is more than 4.5 standard deviations above its mean, or if one of them
    is as unlikely as that.
    """
    losses = record.steps.loss
    if not losses:
        return invalid("no loss was seen: the model's forward returned none")
    step = record.steps.first_not_finite
    if step is None:
        return _finite_but_for(record, record.steps.empty)
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


def _finite_but_for(record: Record, empty: frozenset[int]) -> Verdict:
    """All losses are finite, but where nothing was drawn that was to be learnt; there it must be by chance."""
    steps, whole = record.steps, len(record.steps.loss)
    if not empty:
        return held(f"{whole} losses, all finite")
    if record.masking is None:
        message = f"loss is nan at step {min(empty) + 1} of {whole}, and no token is declared to be drawn"
        return broken(message, cause="labels are drawn, or lost, where none should be")
    drawn = [
        (step, terms, (1 - record.masking.probability) ** drawable)
        for step, columns in enumerate(zip(steps.terms, steps.drawable, strict=False))
        for terms, drawable in zip(*columns, strict=False)
    ]
    found, expected = sum(terms == 0 for _, terms, _ in drawn), math.fsum(chance for *_, chance in drawn)
    deviation = math.sqrt(math.fsum(chance * (1 - chance) for *_, chance in drawn))
    said = f"in {found} of {len(drawn)} micro-batches no token was drawn, expected {expected:.3g}"
    unlikely = [(step, chance) for step, terms, chance in drawn if terms == 0 and chance * len(drawn) < ONCE]
    if unlikely or found > expected + CHANCE * deviation + 1:  # one more: a count is a whole number
        step, chance = unlikely[0] if unlikely else (min(empty), math.nan)
        one = f"; in step {step + 1} that has a chance of {chance:.2g}" if unlikely else ""
        return broken(
            f"loss is nan at step {min(empty) + 1} of {whole}: {said}{one}",
            cause="labels are lost between the drawing and the loss, or the masking probability is another one",
        )
    if len(empty) == whole:
        return invalid(f"{said}: no step has a loss, as the texts are too few and too short")
    return held(f"{whole - len(empty)} losses, all finite; {len(empty)} steps have none: {said}")


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

    Windows are compared, not single losses, because with dropout and small batches single losses scatter. On
    `sentiment.yaml` the two window means (15 steps each) differed by at most 0.3 % in six trainings whose learning
    rate was practically 0, and by 95 % when it trained; 10 % tells the two apart even for far noisier data.

    The law is broken if what the losses scatter cannot hide such a fall: the last mean stays above the limit by at
    least 3 standard errors of the difference of the two. Their scatter is estimated from successive losses (von Neumann
    1941), which leaves out the slope. Of 16 seeds of `tiny.yaml` the slowest two fell by 7 % and missed the limit by
    1.0 and 2.6 such errors; with a rate of 0, the least was 6.1. A loss that explodes scatters as widely as it rises:
    one that rises in rank from step to step by 3 standard deviations of what an order by chance has (Mann 1945) is
    broken, too. It is broken in any case if no weight moves, the rate is always 0, or the loss is.

    Between these the steps are too few to tell: the law is invalid, and says how long windows would have to be. So it
    is where a loss that varies has not fallen in fewer than 12 steps, or before the warm-up is over.

    It is also invalid if the declared learning rate is too low for it. An optimizer such as Adam moves a weight by at
    most the rate, so to first order n weights lower the loss by no more than the sum over steps of the rate times
    sqrt(n) times the gradient's norm (Cauchy-Schwarz); plain gradient descent lowers it by the rate times the norm
    squared. If no parameter is new, as in a language model that goes on learning, the loss is low from the start, and
    nobody can say how far it should fall. Then the law also holds if it falls by more than 3 standard errors, is broken
    only if it rises by as much, and is invalid in between, as long as the weights move.
    """
    losses = record.steps.losses
    width = window or max(1, len(losses) // 4)
    if len(losses) < 2 * width or len(losses) < 4:
        return invalid(f"{count(len(losses), 'step')} cannot fill two windows of {max(width, 2)}")
    step = record.steps.first_not_finite
    if step is not None:
        return not_applicable(f"the loss is {record.steps.loss[step]} at step {step + 1}: see loss_finite")
    first, last = _mean(losses[:width]), _mean(losses[-width:])
    ends = f"mean loss of the first {width} steps" if width > 1 else "loss of the first step"
    found = f"{ends} {first:.4f}, of the last{f' {width}' if width > 1 else ''} {last:.4f}"
    most = first - by * abs(first)
    if last <= most and last < first:  # a loss of exactly 0 from the start does not fall
        return held(found)
    if (rising := rising_steps(record)) >= len(losses):
        return invalid(f"{found}: the warm-up of {rising} steps is not over after {len(losses)}")
    short = f"{found}: expected at most {most:.4f}"
    if why := _cannot_fall(record):
        return broken(short, cause=why)
    open_to_chance = SURE * _standard_error(losses, width)
    rises = last - first > open_to_chance or _rank_trend(losses) > SURE
    if _weights_move(record):
        if _nothing_is_new(record) and open_to_chance > 0:
            return _of_trained(found, first - last, open_to_chance, rises)
        if 0 < (reach := _reach(record)) < by * abs(first):
            return invalid(f"{found}: {len(losses)} steps at the declared rate can lower it by {reach:.2g} at most")
    if last - most < open_to_chance and not rises:
        wider = _wider(width, open_to_chance, last - most)
        return invalid(f"{short}, and what they scatter leaves {open_to_chance:.4f} open{wider}")
    if len(losses) < FEWEST and open_to_chance > 0:
        return invalid(f"{short}, but {len(losses)} steps are too few to say that it stays")
    return broken(short, cause=RISES if rises else FLAT)


def _of_trained(found: str, fallen: float, open_to_chance: float, rises: bool) -> Verdict:
    """The verdict on a model whose weights all came from the checkpoint, which has not fallen by the share asked."""
    if fallen > open_to_chance:
        return held(f"{found}: below it beyond scatter ({open_to_chance:.4f}); no weight was new")
    if rises:
        return broken(f"{found}: it rises beyond scatter ({open_to_chance:.4f})", cause=RISES)
    return invalid(f"{found}: no weight was new, and what they scatter leaves {open_to_chance:.4f} open")


def _nothing_is_new(record: Record) -> bool:
    start = record.checkpoint
    return start is not None and start.pretrained and not start.missing and not start.mismatched


def _weights_move(record: Record) -> bool:
    """Whether the training does something at all: most trainable weights are other at its end."""
    trainable = [parameter for parameter in record.parameters if parameter.trainable]
    return sum(parameter.change > 0 for parameter in trainable) > len(trainable) / 2


def _reach(record: Record) -> float:
    """How far, to first order, the declared rates can lower the loss along the gradients that there were; infinite
    where that is not known.
    """
    said, steps = train(record), record.steps
    rate = said.get("learning_rate")
    if rate is None or len(steps.gradient_norm) != len(steps.loss) or not record.parameters:
        return math.inf
    groups = [rate, *(group.get("learning_rate") or 0.0 for group in said["groups"])]
    root = math.sqrt(sum(math.prod(one.shape) for one in record.parameters if one.trainable))
    whole = 0.0
    for step, (after, before) in enumerate(zip(steps.gradient_norm, _norms_before(record), strict=True)):
        if (norm := after if before is None else before) is None:
            return math.inf
        length = norm / (1 - said["momentum"]) if said["optimizer"] == "sgd" else root
        whole += max(groups) * share(record, step) * length * norm
    return whole if math.isfinite(whole) else math.inf


def _norms_before(record: Record) -> Sequence[float | None]:
    """Of the gradients before clipping, step by step."""
    known = record.steps.gradient_norm_before
    return known if len(known) == len(record.steps.loss) else (None,) * len(record.steps.loss)


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(loss / len(losses) for loss in losses)


def _standard_error(losses: Sequence[float], width: int) -> float:
    """Of the difference of two windows' means, from the differences of successive losses."""
    steps = [after - before for before, after in pairwise(losses)]
    return math.hypot(*steps) / math.sqrt(2 * len(steps)) * math.sqrt(2 / width)


def _rank_trend(losses: Sequence[float]) -> float:
    """How many standard deviations more pairs of steps rise than fall, of what an order by chance has (Mann 1945)."""
    seen: list[float] = []
    rise = 0
    for loss in losses:
        rise += bisect_left(seen, loss) - (len(seen) - bisect_right(seen, loss))
        insort(seen, loss)
    size = len(losses)
    return rise / math.sqrt(size * (size - 1) * (2 * size + 5) / 18)


def _wider(width: int, open_to_chance: float, off: float) -> str:
    """How long windows would tell that the loss is off the limit by so much: a mean's error falls with their root."""
    needed = width * (open_to_chance / off) * (open_to_chance / off) if off > 0 else math.inf
    return f"; windows of {math.ceil(needed)} steps would tell, if it stays" if needed < LONGEST else ""


def _cannot_fall(record: Record) -> str:
    """Why the loss cannot fall, however it scatters; empty where it can."""
    if not any(record.steps.losses):
        return "the loss is exactly 0 at every step: there is nothing to tell apart, such as one class only"
    if record.steps.learning_rate and max(record.steps.learning_rate) == 0:
        return "the learning rate is 0 at every step"
    if record.parameters and not any(parameter.change > 0 for parameter in record.parameters):
        return "no parameter moved: the optimizer never steps, or holds other tensors than the model's"
    return ""
