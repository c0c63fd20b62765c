"""What each step did with its gradients: accumulated, clipped, scaled, lost, or kept from what is frozen."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from harness.errors import count
from harness.laws.declared import all_left_out, is_beside_adapters, is_frozen, train
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable, probed, vacuous
from harness.record import Record

CLIP_TOLERANCE = {"bf16-pure": 2e-2}
"""Largest relative difference of a norm from the limit: 1e-3, and in bf16, whose numbers have 8 bits, 2e-2."""


@law(probes=("accumulation",))
def accumulation_equivalent(
    record: Record,
    *,
    tolerance: Annotated[float, Field(gt=0, description="Largest relative difference of the gradients.")] = 1e-3,
) -> Verdict:
    """A step over several micro-batches has the loss and the gradient of the same rows in one batch.

    The case's own loop takes one step on the fp32 twin with the declared number of micro-batches, of unequal size, and
    one with all their rows in a single batch. A mean of means, which libraries computed until 2024, gives short
    micro-batches more weight (transformers PR 34191). Gradients within 1e-3 of their norm, the loss within
    1e-4 (measured on right trainings: below 1e-6). Not applicable if tokens are masked at random, since two batches are
    then never the same.
    """
    if train(record)["gradient_accumulation"] == 1:
        return not_applicable("each step has one batch")
    found = probed(record, "accumulation")
    if isinstance(found, Verdict):
        return found
    if found.get("reason"):
        return not_applicable(found["reason"])
    terms, (parts, whole) = found["terms"], map(float, found["loss"])
    distance, scale = float(found["gradient"]), float(found["scale"])
    if len(terms) < 2:
        return vacuous("the data fills no second micro-batch")
    if distance <= tolerance and abs(parts - whole) <= 1e-4 * max(1.0, abs(whole)):
        return held(f"{' + '.join(map(str, terms))} terms; gradients differ by {distance:.1g}")
    return broken(
        f"micro-batches of {' + '.join(map(str, terms))} terms: loss {parts:.6g}, in one batch {whole:.6g}; gradients "
        f"differ by {distance:.3g} of their norm, allowed {tolerance:g}",
        cause=_why_not_equivalent(parts / whole if whole else scale, scale, len(terms)),
    )


def _why_not_equivalent(losses: float, scale: float, micro_batches: int) -> str:
    if any(abs(factor - micro_batches) < 0.2 * micro_batches for factor in (losses, scale)):
        return f"the losses of {micro_batches} micro-batches are added up: nobody divides by their number"
    if any(abs(factor * micro_batches - 1) < 0.2 for factor in (losses, scale)):
        return "the gradient is divided by the number of micro-batches twice, or only the last one counts"
    return "a mean of the micro-batches' means, whatever each has to learn"


@law()
def clipping_bounds(record: Record) -> Verdict:
    """Gradients whose norm is above the declared limit are scaled down to it, and all others are left as they are.

    The norm before is what the clipping function returned, the norm after is that of the gradients that the optimizer
    steps with (Pascanu et al. 2013, algorithm 1). Within 1e-3, in bf16-pure within 2e-2, where a number has 8 bits.
    Clipping while the loss scale is still in the gradients makes them smaller by that scale. If no limit is declared, a
    loop that reports the norm must step with that same norm.
    """
    limit, steps = train(record)["max_grad_norm"], record.steps
    if len(steps.gradient_norm) != len(steps.loss) or len(steps.gradient_norm_before) != len(steps.loss):
        return invalid("the norm of the gradients was not recorded")
    pairs = list(enumerate(zip(steps.gradient_norm_before, steps.gradient_norm, strict=True), start=1))
    if limit is None and all(before is None for _, (before, _) in pairs):
        return not_applicable("no limit is declared, and nothing is clipped")
    tolerance, bites = CLIP_TOLERANCE.get(record.settings["precision"], 1e-3), 0
    for step, (before, after) in pairs:
        if after is None or (limit is None and before is None):
            continue  # the step was left out, or nothing was clipped
        if before is None:
            return broken(f"step {step}: the gradients were not clipped", cause="the loop has no limit, or loses it")
        expected = before if limit is None else min(before, limit)
        if not abs(after - expected) <= tolerance * max(expected, 1e-12):
            return broken(
                f"step {step}: the gradients had a norm of {before:.4g} before clipping, and of {after:.4g} when the "
                f"optimizer stepped, expected {expected:.4g}",
                cause=_why_not_clipped(before, after, limit),
            )
        bites += limit is not None and before > limit
    if limit is None:
        return not_applicable("no limit is declared, and none is put on")
    return held(f"{bites} of {len(pairs)} steps reached the limit") if bites else vacuous(f"no step reached {limit:g}")


def _why_not_clipped(before: float, after: float, limit: float | None) -> str:
    if not math.isfinite(before) or not math.isfinite(after):
        return "a gradient is not finite: see loss_finite"
    if limit is None:
        return "something clips, which nobody declared"
    if after > limit:
        return "the limit is not kept: they are clipped before they are complete, or changed afterwards"
    return "they are clipped while a loss scale is in them (no unscale_), a second time, or changed afterwards"


@law(probes=("steps",))
def scaler_used_right(record: Record) -> Verdict:
    """In fp16 the loss is scaled, the gradients are unscaled again, and a step is skipped if one of them overflows.

    The gradient at the model's loss is the scale (Micikevicius et al. 2018, section 3.2), divided over the
    micro-batches. Gradients that the optimizer gets are finite, and their norm is at most that on the fp32 twin times
    four times the square root of the scale, which gradients that are still scaled exceed. The scale falls when a step
    is skipped, and never otherwise. It begins at 65536, so the first steps may all be skipped: where a run has no
    others, the law is invalid.
    """
    if record.settings["precision"] != "fp16":
        return not_applicable(f"no loss is scaled in {record.settings['precision']}")
    steps = record.steps
    if len(steps.loss_scale) != len(steps.loss) or len(steps.gradient_norm) != len(steps.loss):
        return invalid("the scale of the loss was not recorded")
    if all_left_out(record):
        return invalid(
            f"all {len(steps.loss)} steps were left out, and the scale still falls: {steps.loss_scale[-1]:g}; more "
            "steps would tell"
        )
    if all(norm is None for norm in steps.gradient_norm):
        return broken(f"all {len(steps.loss)} steps were left out", cause="every gradient overflows")
    for step, (scale, norm) in enumerate(zip(steps.loss_scale, steps.gradient_norm, strict=True)):
        if (wrong := _wrong_scale(record, step, scale, norm)) is not None:
            return wrong
    left_out = sum(norm is None for norm in steps.gradient_norm)
    return held(f"{count(len(steps.loss), 'step')}, {left_out} left out; last scale {steps.loss_scale[-1]:g}")


def _wrong_scale(record: Record, step: int, scale: float | None, norm: float | None) -> Verdict | None:
    """What is wrong with the scaling of a step, if anything is."""
    steps, where = record.steps, f"step {step + 1}"
    if scale is None:
        return broken(f"{where}: the loss has no scale", cause="small gradients become 0 in fp16 without one")
    weights = steps.loss_weights[step] if step < len(steps.loss_weights) else ()
    if weights and not math.fsum(weights) >= scale / 2:
        return broken(
            f"{where}: the gradient at the loss is {math.fsum(weights):.4g}, the scale {scale:g}",
            cause="the loss is not scaled before the backward pass",
        )
    if norm is not None and not math.isfinite(norm):
        return broken(
            f"{where}: the optimizer stepped with a norm of {norm}", cause="the scaler does not guard the step"
        )
    usual = max(
        (float(one["reference_norm"]) for one in record.probes.get("steps", {}).get("steps", [])[:1]), default=0
    )
    if norm is not None and usual and norm > usual * math.sqrt(scale) * 4:
        return broken(
            f"{where}: the gradients have a norm of {norm:.4g}, on the twin {usual:.4g}",
            cause="the optimizer gets them scaled: its step does not go through the scaler",
        )
    after = steps.loss_scale[step + 1] if step + 1 < len(steps.loss_scale) else None
    if after is not None and (after < scale) != (norm is None):
        found = "the step was left out" if norm is None else "the optimizer stepped"
        return broken(
            f"{where}: {found}, and the scale went from {scale:g} to {after:g}",
            cause="scaler.update() is missing or comes at another time, or steps are left out for another reason",
        )
    return None


@law()
def updates_not_lost(
    record: Record,
    *,
    share: Annotated[float, Field(gt=0, lt=1, description="Largest share of the gradient that moves nothing.")] = 0.25,
) -> Verdict:
    """In bf16-pure, at most a quarter of the gradient moves nothing because the update rounds to nothing.

    A weight has 8 bits in bf16: an update below a 256th of it, as most are at the usual rates, is lost entirely. Judged
    is the part of the gradient (by absolute value, over a sample of the weights) whose weights a step did not move, as
    the median over steps with a learning rate above 0. Measured on MiniLM with AdamW: 95 % of the elements at 2e-5,
    76 % at 5e-5, 6 % at 1e-3, and 0.0 % in fp32.
    """
    if record.settings["precision"] != "bf16-pure":
        return not_applicable(f"weights are kept in fp32 in {record.settings['precision']}")
    steps = record.steps
    if len(steps.unmoved) != len(steps.loss):
        return invalid("it was not recorded what the steps moved")
    lost = sorted(
        part for part, rate in zip(steps.unmoved, steps.learning_rate, strict=True) if part is not None and rate > 0
    )
    if not lost:
        return invalid("no step with a learning rate above 0 had a gradient")
    median = lost[len(lost) // 2]
    if median <= share:
        return held(f"{median:.1%} of the gradient moves nothing")
    return broken(
        f"{median:.0%} of the gradient moves nothing, allowed {share:.0%}",
        cause="updates are smaller than what bf16 can add to the weights: keep those in fp32 (precision: bf16), or "
        "raise the learning rate",
    )


@law()
def frozen_stay(record: Record) -> Verdict:
    """What is declared frozen gets no gradient, is not in the optimizer, and ends bit for bit as it began.

    With adapters that is everything else, except the modules that are trained in full. Running statistics of frozen
    modules count, too: in train mode they drift without any gradient.
    """
    declared = [one for one in record.parameters if is_frozen(record, one) or is_beside_adapters(record, one)]
    if not train(record)["freeze"] and record.adapters is None:
        return not_applicable("nothing is declared frozen")
    if not declared:
        return broken("no parameter is what is declared frozen", cause="the patterns of train.freeze mean none")
    for parameter in declared:
        if parameter.change != 0 or (parameter.furthest or 0) != 0:
            return broken(
                f"{parameter.name} is declared frozen, and moved by {parameter.change:.3g}",
                cause="it is trained: requires_grad is on"
                if parameter.trainable
                else "something writes into it: weight decay, an average of weights, or an optimizer that holds it",
            )
        if parameter.trainable or parameter.gradient is not None:
            return broken(f"{parameter.name} is declared frozen, and gets a gradient", cause="requires_grad is on")
    if record.optimizer is not None and record.optimizer.frozen:
        return broken(f"the optimizer holds what is frozen: {', '.join(record.optimizer.frozen[:4])}")
    modules = {parameter.name.rpartition(".")[0] for parameter in declared}
    drifted = [name for name in (record.modes.drifted if record.modes else ()) if name.rpartition(".")[0] in modules]
    if drifted:
        return broken(f"buffers of frozen modules changed: {', '.join(drifted[:4])}", cause="they are in train mode")
    return held(f"{len(declared)} of {len(record.parameters)} parameters stay")
