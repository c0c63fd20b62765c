"""The optimizer that an experiment declares, over the parameters that it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Adafactor

from harness import experiment
from harness.errors import CheckpointError, Unavailable, meant
from harness.experiment import OPTIMIZERS_OF
from harness.selection import Kind, frozen, rate_and_decay, selected
from harness.training.checkpoint import head_names

FUSED = OPTIMIZERS_OF["fused"]
"""Optimizers whose step torch can do in one kernel."""


def kinds(model: Any) -> dict[str, Kind]:
    """Every parameter of a model by name, and what it is."""
    head = set(head_names(model))
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return {
        name: Kind(parameter.dim(), head=name in head, embedding=id(parameter) in tables)
        for name, parameter in model.named_parameters()
    }


def freeze(model: Any, patterns: Sequence[str] | None) -> None:
    """Let nothing train what the experiment declares frozen.

    Raises:
        CheckpointError: a pattern means no parameter, or all of them together mean every one.
    """
    if not patterns:
        return
    known = kinds(model)
    _require("freeze", patterns, known)
    parameters = dict(model.named_parameters())
    for name, kind in known.items():
        if frozen(patterns, name, kind):
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise CheckpointError("train.freeze: nothing is left to be trained")


def groups(model: Any, train: experiment.Train) -> list[dict[str, Any]]:
    """Trainable parameters, those together that are declared to have the same rate and decay.

    Raises:
        CheckpointError: a pattern means no parameter.
    """
    known, said = kinds(model), train.model_dump()
    for number, group in enumerate(train.groups):
        _require(f"groups[{number}]", group.parameters, known)
    together: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            together.setdefault(rate_and_decay(said, name, known[name]), []).append(parameter)
    return [{"params": each, "lr": rate, "weight_decay": decay} for (rate, decay), each in together.items()]


def _require(key: str, patterns: Sequence[str], known: dict[str, Kind]) -> None:
    for pattern in patterns:
        if not any(selected(pattern, name, kind) for name, kind in known.items()):
            hint = meant(pattern, known, most=3)
            raise CheckpointError(
                f"train.{key}: {pattern!r} means no parameter of the model" + (f"; {hint}" if hint else "")
            )


def make(train: experiment.Train, precision: str, parameters: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The declared optimizer over these groups.

    Raises:
        Unavailable: bitsandbytes is not installed, or has no such optimizer for the device.
    """
    kind, said = _kind(train)
    if train.optimizer in FUSED:
        said["fused"], _ = fuses(train, precision, parameters)
    first, *others = parameters
    if not others:
        return kind(first["params"], lr=first["lr"], weight_decay=first["weight_decay"], **said)
    return kind(parameters, lr=train.learning_rate, **said)


def _kind(train: experiment.Train) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    """The declared class, and what is declared for all groups alike."""
    adam: dict[str, Any] = {"betas": train.betas, "eps": train.eps}
    match train.optimizer:
        case "adamw":
            return torch.optim.AdamW, adam
        case "adam":
            return torch.optim.Adam, adam
        case "sgd":
            return torch.optim.SGD, {"momentum": train.momentum}
        case "adafactor":
            # At the declared rate, as the Trainer's `optim: adafactor` has it, and not at one of its own making.
            return Adafactor, {"scale_parameter": False, "relative_step": False}
    return _eight_bit(), adam


def fuses(train: experiment.Train, precision: str, parameters: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether one kernel does the optimizer's whole step, and why.

    Raises:
        Unavailable: it is asked for, and torch cannot.
    """
    if train.fused is False:
        return False, "not fused, as declared"
    if train.optimizer not in FUSED:
        return False, f"not fused: torch has no kernel for {train.optimizer}"
    if precision == "fp16":
        return False, "not fused: with a loss scaler, Accelerate cannot see that a fused step was left out"
    kind, said = _kind(train)
    try:
        kind([parameter for group in parameters for parameter in group["params"]], **said, fused=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if train.fused:
            raise Unavailable(f"train.fused: {reason}") from error
        return False, f"not fused: {reason}"
    return True, "fused, as declared" if train.fused else f"fused: torch {torch.__version__} has a kernel for it"


def _eight_bit() -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise Unavailable("adamw_8bit: bitsandbytes is not installed") from error
    return AdamW8bit
