"""Loss, gradient and update of the case's own loop, beside independent formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from harness.errors import count
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable, probed, vacuous
from harness.record import Record

Step = Mapping[str, Any]


def _steps(record: Record) -> list[Step] | Verdict:
    evidence = probed(record, "steps")
    if isinstance(evidence, Verdict):
        return evidence
    steps = list(evidence["steps"])
    for number, step in enumerate(steps, start=1):
        if not step.get("stepped", True):
            return broken(
                f"step {number} on the twin: the optimizer did not step",
                cause="optimizer.step() is not called in each step",
            )
    return steps or invalid("the loop took no step on the twin")


def _learnt(steps: list[Step]) -> list[tuple[int, Step]]:
    """The steps that have something to learn, by number: where none of the tokens is drawn by chance, the loss is the
    mean of nothing, and there is no gradient.
    """
    return [
        (number, step)
        for number, step in enumerate(steps, start=1)
        if step.get("drawn") != 0 or math.isfinite(_number(step["loss"])) or step["gradient_norm"] != 0
    ]


@law(probes=("steps",))
def loss_is_the_declared_one(
    record: Record,
    *,
    tolerance: Annotated[float, Field(gt=0, description="Largest relative difference of the gradients.")] = 1e-4,
) -> Verdict:
    """The loss, and its gradient by the logits, equal an independent formula.

    The task's loss (cross-entropy, except for several classes at once and for numbers), written out in fp64 over the
    logits of the forward pass, on the fp32 twin. The gradient is the stronger check: it shows mistakes in shift, scale,
    sign, ignore index and broadcasting at once, even if the values happen to agree. Loss within 1e-5, gradient within
    1e-4 (measured on right trainings: below 1e-7).
    """
    steps = _steps(record)
    if isinstance(steps, Verdict):
        return steps
    formula = record.probes["steps"].get("formula", "cross-entropy")
    if not (learnt := _learnt(steps)):
        return vacuous(f"no token was drawn in any of {len(steps)} steps on the twin")
    for number, step in learnt:
        loss, reference, gradient = step["loss"], step["reference_loss"], _number(step["logits_gradient"])
        if not (abs(loss - reference) <= 1e-5 * max(1.0, abs(reference)) and gradient <= tolerance):
            return broken(
                f"step {number} on the twin: loss {loss:.6g}, {formula} of the same logits {reference:.6g}; "
                f"their gradients by the logits differ by {gradient:.3g}, allowed {tolerance:g}",
                cause=_loss_cause(step, formula),
            )
        if step["logits_are_probabilities"]:
            return broken(
                f"step {number} on the twin: the logits are probabilities already (none negative, rows sum to 1)",
                cause="a softmax before the loss: cross-entropy takes another one, and its floor stays above 0",
            )
    return held(f"{len(learnt)} steps; gradients differ by at most {max(s['logits_gradient'] for _, s in learnt):.1g}")


def _loss_cause(step: Step, formula: str) -> str:
    scale = _number(step["logits_gradient_scale"])
    if step["logits_are_probabilities"]:
        return "a softmax before the loss"
    if math.isnan(step["loss"]) and step.get("drawn"):
        return "no token was drawn in one of its micro-batches, whose mean is NaN and makes that of the step NaN"
    if scale < 0:
        return "the sign is wrong: the loss is maximised"
    if math.isfinite(scale) and abs(scale - 1) > 1e-3 and _number(step["logits_gradient"]) < 2 * abs(scale - 1):
        return f"the loss is scaled by {scale:.3g}"
    return f"another loss than {formula} over the declared labels: problem_type, label type, smoothing or weights"


@law(probes=("steps",))
def gradient_is_the_declared_one(
    record: Record,
    *,
    tolerance: Annotated[float, Field(gt=0, description="Largest relative difference.")] = 1e-3,
) -> Verdict:
    """Just before each optimizer step the gradient is that of the declared loss on that step's batch.

    The case's own loop trains the twin; with the same weights and on the same batch, the gradient is computed once
    more. Relative distance over all parameters at most 1e-3 (measured on right trainings: below 1e-6). This shows
    gradients that were not cleared, or that were wrongly scaled, clipped, detached or taken from another batch, all of
    which AdamW's loss curve hides. With gradient accumulation the loss is a mean over all terms of the step, and the
    micro-batches are made unequal if possible. In the last step all gradients are made 4096 times larger, so that an
    undeclared limit on their norm shows even if they are small. If a limit is declared, they are made 4096 times
    smaller in the second step, where it must do nothing, and the norm that was clipped is compared, too.
    """
    steps = _steps(record)
    if isinstance(steps, Verdict):
        return steps
    if not (learnt := _learnt(steps)):
        return vacuous(f"no token was drawn in any of {len(steps)} steps on the twin")
    for number, step in learnt:
        if unreached := step.get("unreached"):
            return broken(
                f"step {number} on the twin: {count(len(unreached), 'parameter')} without a gradient, on which "
                f"the logits depend: {', '.join(unreached[:3])}",
                cause="they are frozen, or detached from the loss",
            )
        distance = _number(step["gradient"])
        if distance <= tolerance and not step["gradient_missing"]:
            if (wrong := _clipped_another(step, tolerance)) is not None:
                return broken(f"step {number} on the twin: {wrong}", cause="gradients are clipped too early or scaled")
            continue
        missing = f"; none at all: {', '.join(step['gradient_missing'][:3])}" if step["gradient_missing"] else ""
        factor = step.get("amplified", 1.0)
        larger = f" (all made {factor:g} times larger)" if factor > 1 else ""
        larger = f" (all made {1 / factor:g} times smaller)" if factor < 1 else larger
        return broken(
            f"step {number} on the twin{larger}: gradients differ by {distance:.3g} of their norm, "
            f"allowed {tolerance:g}, most in {step['gradient_worst']}; norm {step['gradient_norm']:.4g}, expected "
            f"{step['reference_norm']:.4g}{missing}",
            cause=_gradient_cause(number, step),
        )
    return held(f"{len(learnt)} steps; they differ by at most {max(step['gradient'] for _, step in learnt):.1g}")


def _clipped_another(step: Step, tolerance: float) -> str | None:
    """Gradients of another norm were clipped, although what came out is right."""
    found, expected = step.get("norm_before"), step.get("reference_norm_before")
    if found is None or expected is None or step.get("limit") is None:
        return None
    if abs(_number(found) - expected) <= tolerance * max(expected, _number(step["limit"]) * 1e-3):
        return None
    return f"gradients of a norm of {_number(found):.4g} were clipped, expected {expected:.4g}"


def _gradient_cause(number: int, step: Step) -> str:
    limit = step.get("limit")
    ratio = step["gradient_norm"] / step["reference_norm"] if step["reference_norm"] else math.nan
    if step["gradient_missing"]:
        return "those parameters are frozen, or detached from the loss"
    if limit is not None and ratio > 1.01 and step["gradient_norm"] > 1.01 * limit:
        return f"the declared limit of {limit:g} does not bite: gradients are not clipped, or before they are complete"
    if step.get("amplified", 1.0) > 1 and ratio < 1 and limit is None:
        return f"gradients are clipped to a norm of {step['gradient_norm']:.3g}, which is not declared"
    if math.isfinite(ratio) and abs(_number(step["gradient"]) - abs(ratio - 1)) < 1e-3:
        return f"every gradient is scaled by {ratio:.3g}: loss normalisation, or clipping that is not declared"
    if number > 1:
        return "the gradients of the step before were not cleared (zero_grad), or belong to another batch"
    return "the loss that was back-propagated is not the one of this batch"


@law(probes=("steps",))
def update_is_the_declared_one(
    record: Record,
    *,
    tolerance: Annotated[float, Field(gt=0, description="Largest relative difference of the displacement.")] = 1e-4,
) -> Verdict:
    """One optimizer step from the same state moves the weights as declared.

    AdamW, Adam, SGD or Adafactor by its published algorithm, in fp64, from the optimizer's own state before the step,
    with the learning rate and weight decay that are declared for each parameter; compared over elements whose gradient
    is not rounding noise (of large tensors over 16,384 of them, evenly spaced). Within 1e-4 of the displacement, or of
    what fp32 can represent (measured on right trainings: 1e-6 to 5e-5). Each step starts from the optimizer's state, so
    errors do not add up.
    """
    steps = _steps(record)
    if isinstance(steps, Verdict):
        return steps
    if not record.probes["steps"].get("optimizer", True):
        return not_applicable("the optimizer keeps its state in 8 bits: no formula gives its steps to 1e-4")
    for number, step in enumerate(steps, start=1):
        if step.get("state_of_step", number - 1) != number - 1:
            return broken(
                f"step {number} on the twin: the optimizer's state is that after {step['state_of_step']} steps",
                cause="the optimizer is made anew, or its state is lost, during the training",
            )
        distance, expected = _number(step["update"]), step["update_expected"]
        if not distance <= tolerance * expected + step["update_rounding"]:
            return broken(
                f"step {number} on the twin: the update differs by {distance / expected if expected else math.inf:.3g} "
                f"of its size, allowed {tolerance:g}, most in {step['update_worst']}; learning rate used "
                f"{step['rate']:.4g}, declared {step['declared_rate']:.4g}",
                cause=_update_cause(step),
            )
    return held(f"{len(steps)} steps of {record.optimizer.name if record.optimizer else 'AdamW'}")


def _update_cause(step: Step) -> str:
    if abs(step["rate"] - step["declared_rate"]) > 1e-12:
        return "the learning rate is not the declared one"
    if step["update_expected"] and abs(_number(step["update"]) / step["update_expected"] - 1) < 1e-3:
        return "the weights did not move: the step was skipped, or the optimizer holds other tensors"
    return "another optimizer, or other betas, eps or weight decay than declared"


def _number(value: object) -> float:
    """Evidence spells NaN as text when it comes back from JSON."""
    return float(value)  # type: ignore[arg-type]
