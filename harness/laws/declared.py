"""What a record's settings declare of its training, for laws to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from harness.record import Parameter, Record
from harness.schedule import declared_share, warmup
from harness.selection import Kind, frozen, rate_and_decay

_USUAL: dict[str, Any] = {
    "optimizer": "adamw",
    "momentum": 0.0,
    "decay": "all",
    "groups": [],
    "freeze": None,
    "schedule": "constant",
    "warmup_ratio": None,
    "gradient_accumulation": 1,
    "max_grad_norm": None,
    "label_smoothing": 0.0,
    "compute_loss_func": False,
}
"""What older records do not say."""


def train(record: Record) -> Mapping[str, Any]:
    """The section `train`, by key."""
    said = {key.removeprefix("train."): value for key, value in record.settings.items() if key.startswith("train.")}
    return {**_USUAL, **said}


def rising_steps(record: Record) -> int:
    """Steps of the declared warm-up."""
    said = train(record)
    return warmup(said.get("steps", 0), said.get("warmup_steps", 0), said["warmup_ratio"])


def kind(parameter: Parameter) -> Kind:
    """What a parameter is."""
    return Kind(len(parameter.shape), head=parameter.head, embedding=parameter.embedding)


def is_frozen(record: Record, parameter: Parameter) -> bool:
    """Whether a parameter is declared to stay as it is."""
    return frozen(train(record)["freeze"], parameter.name, kind(parameter))


def settings_of(record: Record, parameter: Parameter) -> tuple[float, float]:
    """Highest learning rate and weight decay that are declared for a parameter."""
    return rate_and_decay(train(record), parameter.name, kind(parameter))


def share(record: Record, step: int) -> float:
    """The share of the highest rate that is declared for a step, counted from 0."""
    said = train(record)
    rising = rising_steps(record)
    return declared_share(said["schedule"], said["steps"], rising, step)


def highest_share(record: Record) -> float:
    """The largest such share of any step."""
    return max(share(record, step) for step in range(train(record)["steps"]))


def all_left_out(record: Record) -> bool:
    """Whether in fp16 every step was left out, and the scale of the loss still falls, as it does in the first steps."""
    steps = record.steps
    left_out = bool(steps.gradient_norm) and all(norm is None for norm in steps.gradient_norm)
    scales = [scale or 0.0 for scale in steps.loss_scale]
    falls = bool(scales) and scales[-1] > 1 and all(after < before for before, after in pairwise(scales))
    return record.settings["precision"] == "fp16" and left_out and falls


def is_beside_adapters(record: Record, parameter: Parameter) -> bool:
    """Whether adapters are trained in the place of a parameter, which is not trained whole either."""
    if record.adapters is None or parameter.adapter:
        return False
    whole = any(f".{module}." in f".{parameter.name}" for module in record.adapters.modules_to_save)
    return not whole or ".original_module." in parameter.name
