"""The head ledger, and what moved."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from harness.errors import count
from harness.laws.declared import all_left_out, highest_share, is_frozen, settings_of, train
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable
from harness.record import Parameter, Record

HEAD_REACH = 0.1
"""Share of one optimizer step that every new parameter must get away from its start."""

GRADIENT_NOISE = 1e-6
"""A gradient below this share of the largest one is rounding noise, such as that of the key biases of attention."""


def _names(names: Iterable[str], most: int = 4) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@law()
def head_is_new(
    record: Record,
    *,
    parameters: Annotated[
        tuple[str, ...] | None,
        Field(strict=False, description="Patterns of the parameters expected to be new; by default the task's head."),
    ] = None,
) -> Verdict:
    """Exactly the head of the task is newly initialised; every backbone weight comes from the checkpoint.

    A wrong prefix in a checkpoint raises no error: there is only a warning, the backbone stays random, and the loss
    still falls. Expected to be new by default: every parameter outside the model's ``base_model_prefix``. The head of a
    language model comes with the checkpoint, or is tied to the embeddings; it may be new, but only as a whole. Tensors
    that the files hold under the model's names must have the files' values, and nothing may change between loading and
    the first step: everything is compared bit for bit.
    """
    checkpoint = record.checkpoint
    if checkpoint is None:
        return invalid("no checkpoint was recorded")
    if checkpoint.altered:
        return broken(
            f"{count(len(checkpoint.altered), 'tensor')} changed between loading and the first step: "
            f"{_names(checkpoint.altered)}",
            cause="drawn anew, resized, converted or overwritten",
        )
    if not checkpoint.pretrained:
        return not_applicable("every weight is random: there is no checkpoint to compare with")
    if checkpoint.differing:
        return broken(
            f"{len(checkpoint.differing)} of {checkpoint.compared} tensors are other than in the checkpoint's files: "
            f"{_names(checkpoint.differing)}",
            cause="initialised again after they were loaded",
        )
    new = {*checkpoint.missing, *checkpoint.mismatched}
    if parameters is None:
        expected = set(checkpoint.head)
        if checkpoint.brings_head:
            expected = expected if expected & new else set()
        elif not expected:
            return invalid("the model has no parameter outside its backbone; list what is new under parameters")
    else:
        names = {parameter.name for parameter in record.parameters} | new
        unmatched = [pattern for pattern in parameters if not any(fnmatchcase(name, pattern) for name in names)]
        if unmatched:
            return broken(f"no parameter of the model matches {_names(unmatched)}")
        expected = {name for name in names if any(fnmatchcase(name, pattern) for pattern in parameters)}
    if lost := new - expected:
        return broken(
            f"{len(lost)} parameters that the checkpoint should hold are newly initialised: {_names(lost)}",
            cause=_why_missing(record, lost),
        )
    if loaded := expected - new:
        return broken(
            f"{_names(loaded)} should be new, but came from the checkpoint",
            cause="the checkpoint holds only a part of the language model's head"
            if checkpoint.brings_head
            else "the checkpoint was already fine-tuned for such a task; if that is meant, list what is new under "
            "invariants: head_is_new: parameters",
        )
    as_stored = f"; {count(checkpoint.compared, 'tensor')} as stored" if checkpoint.compared else ""
    unused = f"; unused: {_names(checkpoint.unused)}" if checkpoint.unused else ""
    return held(f"new: {_names(new) or 'nothing'}{as_stored}{unused}")


def _why_missing(record: Record, lost: set[str]) -> str:
    assert record.checkpoint is not None
    if wrong_shape := lost & set(record.checkpoint.mismatched):
        return f"the checkpoint holds {_names(wrong_shape, 2)} in another shape"
    if record.checkpoint.unused:
        return f"the checkpoint's names differ from the model's: it also holds {_names(record.checkpoint.unused, 2)}"
    return "the checkpoint was saved without them"


@law()
def head_changes(record: Record) -> Verdict:
    """Every new parameter moves: at some step it is at least a tenth of an optimizer step away from its start.

    AdamW's first update moves every element that has a gradient by the learning rate, whatever the gradient's size
    (both moments are bias corrected, so their ratio is +-1: Kingma and Ba 2015, algorithm 1); weight decay alone moves
    it by learning rate x decay x value, a thousand times less. So the largest root mean square distance from the start
    is compared with 0.1 x the highest rate that is declared for the parameter; for SGD, whose update is proportional to
    the gradient, with 0.01 x that rate x the first gradient. The largest one, because a small bias may later come back
    to its start. New parameters of the backbone whose gradient is zero by construction are left out, as in
    backbone_changes, and so are those that are declared frozen.
    """
    new = [
        parameter
        for parameter in record.parameters
        if parameter.furthest is not None
        and not parameter.adapter
        and (parameter.head or _has_gradient(parameter, record.parameters))
    ]
    if new and all(is_frozen(record, parameter) for parameter in new):
        return not_applicable("all that is newly initialised is frozen, as declared: see frozen_stay")
    new = [parameter for parameter in new if not is_frozen(record, parameter)]
    if not new:
        return not_applicable("nothing is newly initialised")
    if (verdict := _cannot_move(record)) is not None:
        return verdict
    for parameter in new:
        assert parameter.furthest is not None
        expected = expected_reach(record, parameter)
        if not math.isfinite(parameter.furthest):
            return broken(f"{parameter.name} is {parameter.furthest} away from its start")
        if parameter.furthest < expected or parameter.furthest == 0:
            return broken(
                f"{parameter.name} moved by {parameter.furthest:.3g} (its own scale: {parameter.start:.3g}), "
                f"expected at least {expected:.3g}",
                cause=_why_still(record, parameter),
            )
    slowest = min(new, key=lambda parameter: parameter.furthest or 0)
    share = f", {slowest.furthest / slowest.start:.2g} of its own scale" if slowest.start and slowest.furthest else ""
    return held(f"{len(new)} new parameters moved; least: {slowest.name} by {slowest.furthest:.3g}{share}")


@law()
def backbone_changes(record: Record) -> Verdict:
    """Every trainable backbone parameter that gets a gradient moves.

    Parameters that are declared frozen are left out, and so are those whose gradient is zero by construction (the key
    biases of attention, which cancel in the softmax, and unused position rows): those with a gradient below 1e-6 of the
    largest one in the first step. So are those to which the declared rate adds nothing, as 1e-8 to the weights of a
    norm, which are 1: less than half a unit in the last place (2^-24 of a weight in fp32, 2^-9 in bf16) is lost. If
    most weights are lost, that rate is too low, and the law is broken.
    """
    if record.adapters is not None:
        return not_applicable("adapters are trained in its place: see adapters_change")
    backbone = [parameter for parameter in record.parameters if not parameter.head]
    if not backbone:
        return not_applicable("the model has no backbone apart from its head")
    backbone = [parameter for parameter in backbone if not is_frozen(record, parameter)]
    if not backbone:
        return not_applicable("the backbone is frozen, as declared: see frozen_stay")
    if (verdict := _cannot_move(record)) is not None:
        return verdict
    trainable = [parameter for parameter in backbone if parameter.trainable]
    if not trainable:
        return broken(f"all {len(backbone)} backbone parameters are frozen", cause="requires_grad is False on them")
    bad = [parameter for parameter in backbone if not math.isfinite(parameter.change)]
    if bad:
        return broken(f"{bad[0].name} is not finite at the end of the training")
    unmoved = [parameter for parameter in trainable if parameter.change == 0 and _has_gradient(parameter, trainable)]
    lost = [parameter for parameter in unmoved if _rounds_away(record, parameter)]
    still = [parameter for parameter in unmoved if not _rounds_away(record, parameter)]
    moved = [parameter for parameter in trainable if parameter.change > 0]
    if not moved:
        cause = _why_still(record, next((p for p in trainable if p.gradient), trainable[0]))
        return broken(f"none of {len(trainable)} backbone parameters moved", cause=cause)
    if still:
        return broken(
            f"{len(still)} of {len(trainable)} backbone parameters did not move: {_names(p.name for p in still)}",
            cause=_why_still(record, still[0]),
        )
    if sum(map(_size, lost)) > sum(map(_size, moved)):
        return broken(
            f"of {len(lost)} of {len(trainable)} backbone parameters the update is lost by rounding: most weights",
            cause="the declared learning rate is too low",
        )
    rounded = f"; of {len(lost)} the update is lost by rounding" if lost else ""
    return held(f"{len(moved)} of {len(trainable)} backbone parameters moved{rounded}")


def _cannot_move(record: Record) -> Verdict | None:
    if not record.steps.loss:
        return invalid("no loss was seen")
    step = record.steps.first_not_finite
    if step is not None:
        return not_applicable(f"the loss is {record.steps.loss[step]} at step {step + 1}: see loss_finite")
    if len(record.steps.empty) == len(record.steps.loss):
        return not_applicable("no step has anything to learn: see loss_finite")
    if all_left_out(record):
        return not_applicable("every step is left out while the scale of the loss falls: see scaler_used_right")
    if highest_share(record) == 0:
        return not_applicable("the learning rate is 0 in every step, as where a warm-up has only one")
    return None


def expected_reach(record: Record, parameter: Parameter) -> float:
    """How far a new parameter must get from its start."""
    rate = settings_of(record, parameter)[0] * highest_share(record)
    if train(record)["optimizer"] == "sgd":
        return 0.1 * HEAD_REACH * rate * (parameter.gradient or 0.0)
    return HEAD_REACH * rate


def _has_gradient(parameter: Parameter, among: Iterable[Parameter]) -> bool:
    largest = max((other.gradient or 0 for other in among), default=0)
    return parameter.gradient is not None and parameter.gradient > GRADIENT_NOISE * largest


def _size(parameter: Parameter) -> int:
    return math.prod(parameter.shape)


def _rounds_away(record: Record, parameter: Parameter) -> bool:
    """Whether adding an update at the declared rate to a weight of this size changes nothing: of AdamW it is as large
    as the rate, of SGD as that times the gradient.
    """
    half = 2**-9 if record.settings["precision"] == "bf16-pure" else 2**-24
    rate, decay = settings_of(record, parameter)
    size = 1.0
    if (said := train(record))["optimizer"] == "sgd":
        size = ((parameter.gradient or 0.0) + decay * parameter.start) / (1 - said["momentum"])
    return rate * highest_share(record) * size < half * parameter.start


def _why_still(record: Record, parameter: Parameter) -> str:
    if not parameter.trainable:
        return f"{parameter.name} is frozen (requires_grad is False)"
    if all(map(math.isnan, record.steps.learning_rate)):
        return "the optimizer never steps"
    if parameter.gradient is None:
        return f"{parameter.name} gets no gradient: it takes no part in the loss"
    if parameter.gradient == 0:
        return f"the gradient of {parameter.name} is exactly 0"
    return (
        f"{parameter.name} has a gradient ({parameter.gradient:.3g}): the optimizer does not hold it or never steps, "
        "or its learning rate is 0 or far below the declared one"
    )
