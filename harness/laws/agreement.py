"""Cases of one experiment that must agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field

from harness.laws.law import Verdict, broken, held, law, not_applicable
from harness.laws.loss import first_not_finite
from harness.record import Record

LOOP_TOLERANCE = {("cpu", "fp32"): 1e-5, ("cpu", "bf16"): 1.5e-2, ("cuda", "fp32"): 1e-3, ("cuda", "bf16"): 1.5e-2}
"""Largest difference of two loops' losses, relative to a loss above 1, absolute below, by device and precision.

The loops run the same operators on the same numbers: on CPU their fp32 losses are bitwise equal (measured: 60 steps
of `sentiment.yaml`, dropout on). On CUDA atomic additions change the order of sums; 1e-3 over 50 steps in fp32 and
1.5e-2 in bf16 are the limits of TRL's own invariant suite.
"""

DEVICE_TOLERANCE = {"fp32": 1e-3, "bf16": 1.5e-2}
"""Largest difference of two devices' losses in the dropout-free replay of the first steps; source as above."""

Tolerance = Annotated[
    float | None,
    Field(gt=0, description="Largest difference of two losses, relative above 1; by default from the precision."),
]


@law(axis="train.loop")
def loops_agree(records: Sequence[Record], *, tolerance: Tolerance = None) -> Verdict:
    """Loops of one experiment start from the same weights, see the same batches, and have the same losses.

    Compared in the order of cause: weights, then at each step the batch, the learning rate, the loss. The first
    difference is named.
    """

    def compare(base: Record, other: Record) -> str | None:
        limit = tolerance or _loop_tolerance(base)
        return (
            _different_start(base, other)
            or _different_batches(base, other)
            or _first_difference("learning rate", base.steps.learning_rate, other.steps.learning_rate, 1e-12)
            or _first_difference("loss", base.steps.loss, other.steps.loss, limit)
        )

    return _agree(records, "train.loop", compare)


@law(axis="device", probes=("replay",))
def devices_agree(records: Sequence[Record], *, tolerance: Tolerance = None) -> Verdict:
    """Devices of one experiment start from the same weights, see the same batches, and have the same losses.

    Dropout draws other numbers on other devices, so losses are compared in a replay of the first steps without
    dropout. The first difference is named.
    """

    def compare(base: Record, other: Record) -> str | None:
        limit = tolerance or DEVICE_TOLERANCE.get(base.settings["precision"], 1e-3)
        different = _different_start(base, other) or _different_batches(base, other)
        if different:
            return different
        losses = [record.probes.get("replay", {}).get("loss", ()) for record in (base, other)]
        if not all(losses):
            return "a replay of the first steps is missing from the evidence"
        return _first_difference("loss without dropout", losses[0], losses[1], limit)

    return _agree(records, "device", compare)


def _agree(records: Sequence[Record], axis: str, compare: Callable[[Record, Record], str | None]) -> Verdict:
    """Compare, within each group of cases that differ in `axis` only, every case with the first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        rest = {key: value for key, value in sorted(record.settings.items()) if key != axis}
        groups.setdefault(repr(rest), []).append(record)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        return not_applicable(f"no two cases differ in {axis} alone")
    agreed = 0
    missing: list[str] = []
    for group in several:
        reasons = {record.case: _not_comparable(record) for record in group}
        finished = [record for record in group if not reasons[record.case]]
        missing += [f"{case}: {reason}" for case, reason in reasons.items() if reason]
        for other in finished[1:]:
            if (difference := compare(finished[0], other)) is not None:
                return broken(f"{finished[0].case} and {other.case}: {difference}", cause=_cause(difference))
            agreed += 1
    if not agreed:
        return not_applicable("fewer than two such cases finished: " + "; ".join(missing))
    return held(f"{agreed} pair{'s' * (agreed > 1)} agree" + (f"; left out: {'; '.join(missing)}" if missing else ""))


def _not_comparable(record: Record) -> str:
    """Why a record has nothing to compare; empty where it has."""
    if not record.finished:
        return record.reason or record.outcome
    step = first_not_finite(record)
    return "" if step is None else f"loss is {record.steps.loss[step]} at step {step + 1}, see loss_finite"


def _different_start(base: Record, other: Record) -> str | None:
    if base.checkpoint is None or other.checkpoint is None:
        return "the digest of the initial weights is missing from the evidence"
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


def _list(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")


def _first_difference(what: str, one: Sequence[Any], two: Sequence[Any], limit: float) -> str | None:
    if len(one) != len(two):
        return f"{what}: {len(one)} and {len(two)} steps"
    for step, (a, b) in enumerate(zip(one, two, strict=True)):
        a, b = float(a), float(b)
        if a == b or (math.isnan(a) and math.isnan(b)):
            continue
        if not abs(a - b) <= limit * max(1.0, abs(a)):  # written so that NaN against a number is a difference
            return f"{what} differs first at step {step + 1}: {a:.8g} and {b:.8g}, allowed {limit:g}"
    return None


def _cause(difference: str) -> str:
    if difference.startswith("initial weights"):
        return "the head is initialised before the seed is set, or the weights changed before the first step"
    if difference.startswith("batches"):
        return "another order, collator, or labels that do not travel with their example"
    if difference.startswith("learning rate"):
        return "the schedule is stepped another number of times, or is another one"
    if difference.startswith("steps"):
        return "one of the loops stops early or goes on too long"
    return "the same batch from the same weights: loss normalisation, precision, dropout, or the optimizer's settings"


def _loop_tolerance(record: Record) -> float:
    kind = "cpu" if record.settings["device"] == "cpu" else "cuda"
    return LOOP_TOLERANCE.get((kind, record.settings["precision"]), 1e-3)
