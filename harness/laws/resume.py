"""Going on from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from harness.errors import count
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable, probed
from harness.record import Record

ELSEWHERE = 1e-3
"""Largest difference of losses on other devices than a CPU, where sums are added up in any order: the limit of
`loops_agree` there, from TRL's own invariant suite."""

_RESTORED = {
    "weights": ("weights", "they are not in the checkpoint, or not loaded from it"),
    "moments": ("optimizer moments", "the optimizer's state is not saved, or not loaded"),
    "scaler": ("scaler", "the state of the loss scaler is not saved, or not loaded"),
}
"""Parts of the state that are compared when the training goes on, as they are called, and what loses them."""

Difference = tuple[str, str, str]
"""Which state, what was found, what is likely to have lost it."""


@law(probes=("resumed",))
def resume_equivalent(
    record: Record,
    *,
    tolerance: Annotated[
        float | None, Field(gt=0, description="Largest difference of losses, relative above 1; by default by device.")
    ] = None,
) -> Verdict:
    """A training that resumes from its checkpoint in another process takes the same steps as without interruption.

    After `train.resume_at` steps the loop writes a checkpoint in its own way; a fresh process loads it and takes the
    remaining steps. Compared are weights, optimizer moments and scaler when it resumes, then each step's batch,
    learning rate, random numbers and loss, then the weights at the end. Exact on a CPU, including dropout (measured in
    every loop: bitwise equal); elsewhere losses within 1e-3. Everything that differs is named.
    """
    evidence = probed(record, "resumed")
    if isinstance(evidence, Verdict):
        return evidence
    if reason := evidence.get("reason"):
        return not_applicable(reason)
    if refused := evidence.get("refused"):
        return broken(refused, cause="the files were changed, cut off or mixed up after they were written")
    if failed := evidence.get("failed"):
        return broken(f"it does not go on: {failed}", cause="the checkpoint lacks what the loop needs")
    steps, at = len(record.steps.loss), evidence["at"]
    again = len(evidence["steps"]["loss"])
    exact = str(record.settings["device"]).partition(":")[0] == "cpu"
    limit = tolerance or (0.0 if exact else ELSEWHERE)
    found = [*_restored(evidence), *_steps(record, at, evidence["steps"], limit)]
    if again != steps - at:
        cause = "the number of steps that are done is not restored"
        found.append(("number of steps", f"{again} after the checkpoint, expected {steps - at}", cause))
    if exact and not found and evidence["ended"]:
        found.append(("weights at the end", _named(evidence["ended"]), "something draws or adds up in another order"))
    if found:
        return broken(
            f"after step {at} of {steps} another state goes on: " + "; ".join(f"{what}: {it}" for what, it, _ in found),
            cause=found[0][2],
        )
    if not steps - at:
        return invalid(f"no step is left after the checkpoint of step {at}")
    return held(f"{count(steps - at, 'step')} after step {at}" + (", and all weights at the end" if exact else ""))


def _restored(evidence: Mapping[str, Any]) -> Iterator[Difference]:
    """What is not as it was when the checkpoint was written."""
    for name, (what, cause) in _RESTORED.items():
        if names := evidence[name]:
            yield what, _named(names), cause


def _steps(record: Record, at: int, again: Mapping[str, Any], limit: float) -> Iterator[Difference]:
    """The first step, in each column, that is not the one of the training that went through."""
    columns = record.steps
    for what, one, two, cause in (
        (
            "data position",
            columns.digest,
            again["digest"],
            "the order of the data begins anew, or steps are not skipped",
        ),
        ("schedule", columns.learning_rate, again["learning_rate"], "the schedule begins anew"),
        ("random state", columns.random, again["random"], "the state of the generators is not saved, or not restored"),
    ):
        if what == "random state" and record.modes is not None and record.modes.stochastic == 0:
            continue  # nothing draws
        place = next((place for place, (a, b) in enumerate(zip(one[at:], two, strict=False)) if not _same(a, b)), None)
        if place is not None:
            yield what, _said(at + place, one[at + place], two[place]), cause
    for place, (loss, other) in enumerate(zip(columns.loss[at:], again["loss"], strict=False)):
        if math.isnan(loss) and math.isnan(float(other)) and at + place in columns.empty:
            continue
        if not abs(float(other) - loss) <= limit * max(1.0, abs(loss)):
            yield "loss", _said(at + place, loss, float(other)), "a part of the state that is compared nowhere else"
            return


def _same(one: object, other: object) -> bool:
    return one == other or (one != one and (other == "NaN" or other != other))


def _said(step: int, one: object, other: object) -> str:
    if isinstance(one, float) and isinstance(other, float):
        return f"{other:.9g} in step {step + 1}, {one:.9g} without a stop"
    return f"another one in step {step + 1}"


def _named(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
