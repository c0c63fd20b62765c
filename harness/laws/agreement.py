"""Cases of one experiment that must agree."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from harness.laws.declared import train
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable
from harness.record import Record

LOOP_TOLERANCE = {
    ("cpu", "fp32"): 1e-5,
    ("cpu", "bf16"): 1.5e-2,
    ("cpu", "fp16"): 1.5e-2,
    ("cpu", "bf16-pure"): 1.5e-2,
    ("cuda", "fp32"): 1e-3,
    ("cuda", "tf32"): 1.5e-2,
    ("cuda", "bf16"): 1.5e-2,
    ("cuda", "fp16"): 1.5e-2,
    ("cuda", "bf16-pure"): 5e-2,
}
"""Largest difference of two loops' losses, relative to a loss above 1, absolute below, by device and precision.

The loops run the same operators on the same numbers: on CPU their losses are bitwise equal in fp32, bf16 and bf16-pure
(measured: 60 steps of `sentiment.yaml`, dropout on), or differ by rounding (some tiny decoders, from the ninth step on,
by 3e-8 to 2.5e-6 over 40 steps), which a training that is not steady makes larger. On CUDA atomic additions change the
order of sums; 1e-3 over 50 steps in fp32 and 1.5e-2 in bf16 are the limits of TRL's own invariant suite. fp16 and TF32
round less than bf16 (11 bits, not 8) and get its limit; in bf16-pure a weight is rounded at every step, too: a last bit
is 0.4 % of it.
"""

ADDED_UP = 1e-4
"""The same where a step adds up micro-batches, at least: each loop divides them at a place of its own, and what that
leaves of a gradient near 0 is a step of full size to an adaptive optimizer (measured: 1.1e-5 at the third step of
Adafactor, on a processor with AVX-512)."""

NORM_TOLERANCE = {"fp32": 1e-2}
"""Largest relative difference of two loops' gradient norms and updates at one step; 0.1 in other precisions. They show
what a loss curve under AdamW hides, such as gradients that are all twice as large. TRL's suite allows 0.1."""

DEVICE_TOLERANCE = {"fp32": 1e-3, "tf32": 1.5e-2, "bf16": 1.5e-2, "fp16": 1.5e-2, "bf16-pure": 5e-2}
"""Largest difference of two devices' losses in the dropout-free replay of the first steps; source as above."""

Tolerance = Annotated[
    float | None,
    Field(gt=0, description="Largest difference of two losses, relative above 1; by default from the precision."),
]


@law(axis="train.loop")
def loops_agree(records: Sequence[Record], *, tolerance: Tolerance = None) -> Verdict:
    """Loops of one experiment start from the same weights, see the same batches, and have the same losses.

    Compared from cause to effect: weights, then at each step the batch, the learning rate, the loss, the norm of the
    gradients that the optimizer gets, and how far it moves the weights. The first difference is named, and also its
    first trace: what differs earliest by more than rounding tells you where to look.
    """

    def compare(base: Record, other: Record) -> str | None:
        added = ADDED_UP if train(base)["gradient_accumulation"] > 1 else 0.0
        limit = tolerance or max(loop_tolerance(base), added)
        return (
            _different_start(base, other)
            or _different_batches(base, other)
            or first_difference("learning rate", _rates(base), _rates(other), 1e-12)
            or _traced(first_difference("loss", *_pair(base, other, _losses), limit), base, other)
            or _traced(_different_gradients(base, other), base, other)
        )

    return _agree(records, "train.loop", compare)


@law(axis="device", probes=("replay",))
def devices_agree(records: Sequence[Record], *, tolerance: Tolerance = None) -> Verdict:
    """Devices of one experiment start from the same weights, see the same batches, and have the same losses.

    Dropout draws different numbers on different devices, so losses are compared in a replay of the first steps without
    dropout. The first difference is named.
    """

    def compare(base: Record, other: Record) -> str | None:
        limit = tolerance or DEVICE_TOLERANCE.get(base.settings["precision"], 1e-3)
        return (
            _different_start(base, other)
            or _different_batches(base, other)
            or first_difference("loss without dropout", *_pair(base, other, _replay), limit)
        )

    def lacks(record: Record) -> str:
        replay = record.probes.get("replay", {})
        if "error" in replay:
            return f"the replay of the first steps failed: {replay['error']}"
        return "" if _replay(record) else "a replay of the first steps is missing from the evidence"

    return _agree(records, "device", compare, lacks)


def _agree(
    records: Sequence[Record],
    axis: str,
    compare: Callable[[Record, Record], str | None],
    lacks: Callable[[Record], str] = lambda record: "",
) -> Verdict:
    """Compare, within each group of cases that differ in `axis` only, every case with the first.

    Args:
        records: of one experiment file; those of several devices are compared on each, unless that is the axis.
        axis: the dotted key.
        compare: says how two records differ, if they do.
        lacks: says which evidence is missing, beyond that of the start and of each step.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        rest = {key: value for key, value in sorted(record.settings.items()) if key != axis}
        where = () if axis == "device" else (record.environment.device, record.environment.processor)
        groups.setdefault(repr((rest, where)), []).append(record)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return not_applicable(f"no two cases differ in {axis} alone")
    agreed = 0
    unfinished: list[str] = []
    missing: list[str] = []
    for group in several:
        comparable = []
        unfinished += [f"{record.case}: {reason}" for record in group if (reason := _no_losses(record))]
        trained = [record for record in group if not _no_losses(record)]
        for record in trained if len(trained) > 1 else ():
            if reason := _lacks(record) or lacks(record):
                missing.append(f"{record.case}: {reason}")
            else:
                comparable.append(record)
        for other in comparable[1:]:
            first = comparable[0]
            if (difference := compare(first, other)) is not None:
                message = f"{first.case} and {other.case}: {difference}"
                cause = _cause(difference, train(first)["gradient_accumulation"])
                return broken(message, cause=cause, between=(first.name, other.name))
            agreed += 1
    left_out = "; ".join([*missing, *unfinished])
    if not agreed:
        return invalid(left_out) if missing else not_applicable(f"fewer than two such cases finished: {left_out}")
    pairs = "1 pair agrees" if agreed == 1 else f"{agreed} pairs agree"
    return held(pairs + (f"; left out: {left_out}" if left_out else ""))


def _no_losses(record: Record) -> str:
    """Why the case came to no losses that can be compared; empty where it did."""
    if not record.finished:
        return record.reason or record.outcome
    step = record.steps.first_not_finite
    return "" if step is None else f"loss is {record.steps.loss[step]} at step {step + 1}, see loss_finite"


def _lacks(record: Record) -> str:
    """Which evidence of the start or of a step is missing; empty where none is."""
    if record.checkpoint is None or not record.checkpoint.digest:
        return "the digest of the initial weights is missing from the evidence"
    steps = record.steps
    if not steps.loss:
        return "no loss was seen"
    for name, column in (("learning rate", steps.learning_rate), ("examples", steps.examples)):
        if len(column) != len(steps.loss):
            return f"the {name} of {len(steps.loss)} steps is known for {len(column)}"
    digests = sum(map(bool, steps.digest))
    return f"the batch of {len(steps.loss)} steps is known for {digests}" if digests != len(steps.loss) else ""


def _replay(record: Record) -> Sequence[float]:
    losses: Sequence[float] = record.probes.get("replay", {}).get("loss", ())
    return losses


def _losses(record: Record) -> Sequence[float]:
    return record.steps.loss


def _pair(
    base: Record, other: Record, column: Callable[[Record], Sequence[float]]
) -> tuple[Sequence[float], Sequence[float]]:
    """A column of losses of both, with 0 at the steps where one of them learnt from nothing, and has no loss."""
    empty = base.steps.empty | other.steps.empty
    one, two = (
        [0.0 if step in empty else loss for step, loss in enumerate(column(record))] for record in (base, other)
    )
    return one, two


def _different_start(base: Record, other: Record) -> str | None:
    assert base.checkpoint is not None
    assert other.checkpoint is not None
    if base.checkpoint.digest != other.checkpoint.digest:
        return f"initial weights differ: digest {base.checkpoint.digest[:12]} and {other.checkpoint.digest[:12]}"
    return None


def _different_batches(base: Record, other: Record) -> str | None:
    if len(base.steps.digest) != len(other.steps.digest):
        return f"steps differ: {len(base.steps.digest)} and {len(other.steps.digest)}"
    for step, (one, two) in enumerate(zip(base.steps.digest, other.steps.digest, strict=True)):
        if one == two:
            continue
        tensors = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
        rows = [record.steps.examples[step] for record in (base, other)]
        order = f" (examples {_list(rows[0])} and {_list(rows[1])})" if rows[0] != rows[1] else ""
        return f"batches differ first at step {step + 1}, in {', '.join(tensors)}{order}"
    return None


def _rates(record: Record) -> tuple[float, ...]:
    """The learning rate of each step; 0 where the optimizer did not step."""
    return tuple(0.0 if math.isnan(rate) else rate for rate in record.steps.learning_rate)


def _list(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")


def first_difference(what: str, one: Sequence[float], two: Sequence[float], limit: float) -> str | None:
    """The first step, and both numbers, that are further apart than `limit` (relative above 1); None if none is."""
    if len(one) != len(two):
        return f"{what}: {len(one)} and {len(two)} steps"
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        if not abs(a - b) <= limit * max(1.0, abs(a)):  # written so that NaN against a number is a difference
            return f"{what} differs first at step {step + 1}: {a:.8g} and {b:.8g}, allowed {limit:g}"
    return None


def _different_gradients(base: Record, other: Record) -> str | None:
    """The first step whose gradients or update are of another size, where both records know it."""
    allowed = NORM_TOLERANCE.get(base.settings["precision"], 0.1)
    for step in range(len(base.steps.loss)):
        for what, one, two in _sizes(base, other, step):
            if not abs(one - two) <= allowed * max(abs(one), abs(two)):
                return f"{what} differs first at step {step + 1}: {one:.4g} and {two:.4g}, allowed {allowed:g}"
    return None


def _sizes(base: Record, other: Record, step: int) -> list[tuple[str, float, float]]:
    """Norm of the gradients before and after clipping, and the update, in that order, as far as both are known."""
    found = []
    for what, column in (
        ("gradient norm before clipping", "gradient_norm_before"),
        ("gradient norm", "gradient_norm"),
        ("update", "update"),
    ):
        one, two = (getattr(record.steps, column)[step : step + 1] or (None,) for record in (base, other))
        if one[0] is not None and two[0] is not None:
            found.append((what, float(one[0]), float(two[0])))
    return found


def _traced(difference: str | None, base: Record, other: Record) -> str | None:
    """The difference, with what was the first to differ by more than rounding."""
    if difference is None:
        return None
    rounding = 1e-6 if base.settings["precision"] == "fp32" else 1e-2
    for step, (a, b) in enumerate(zip(*_pair(base, other, _losses), strict=False)):
        for what, one, two in [("loss", a, b), *_sizes(base, other, step)]:
            if not abs(one - two) <= rounding * max(abs(one), abs(two)):
                ratio = f", {two / one:.3g} times" if one else ""
                return f"{difference}; first trace: {what} at step {step + 1}, {one:.6g} and {two:.6g}{ratio}"
    return difference


def _cause(difference: str, micro_batches: int = 1) -> str:
    if difference.startswith("initial weights"):
        return "the head is initialised before the seed is set, or the weights changed before the first step"
    if difference.startswith("batches"):
        return "another order, collator, or labels that do not travel with their example"
    if difference.startswith("learning rate"):
        return "the schedule is another one or is stepped another number of times, or the optimizer does not step (0)"
    if difference.startswith("steps"):
        return "one of the loops stops early or goes on too long"
    trace = re.search(
        r"first trace: (loss|gradient norm before clipping|gradient norm|update) at .*?(?:, (\S+) times)?$", difference
    )
    if trace is None:
        return _TRACES["loss"]
    if (
        micro_batches > 1
        and trace[2]
        and any(abs(float(trace[2]) / factor - 1) < 0.1 for factor in (micro_batches, 1 / micro_batches))
    ):
        return f"loss normalisation: one is divided by the number of micro-batches, {micro_batches}, and the other not"
    return _TRACES[trace[1]]


_TRACES = {
    "loss": "the same batch from the same weights: loss normalisation, precision or dropout of the forward pass",
    "gradient norm before clipping": "the same loss gives other gradients: they are not cleared, scaled, or "
    "accumulated in another way",
    "gradient norm": "the gradients are clipped, scaled or changed in one of them before the optimizer steps",
    "update": "the same gradients move the weights otherwise: the optimizer, its settings, or what it holds",
}
"""The likely cause of a difference, by what was the first to differ."""


def loop_tolerance(record: Record) -> float:
    """How far losses of the same training may be apart on the record's device, in its precision."""
    kind = "cpu" if record.settings["device"] == "cpu" else "cuda"
    return LOOP_TOLERANCE.get((kind, record.settings["precision"]), 1e-3)
