"""One step of each optimizer by its published algorithm, in fp64, from the optimizer's own state before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from harness import experiment

State = dict[str, Any]
Formula = Callable[[torch.Tensor, torch.Tensor, State, float, float, experiment.Train], torch.Tensor]
"""Makes new weights of weights, gradient, state, learning rate, weight decay, and what else is declared."""


def adamw(
    weights: torch.Tensor, gradient: torch.Tensor, state: State, rate: float, decay: float, train: experiment.Train
) -> torch.Tensor:
    """Loshchilov and Hutter 2019, algorithm 2."""
    return weights * (1 - rate * decay) - rate * _adam_direction(gradient, state, train)


def adam(
    weights: torch.Tensor, gradient: torch.Tensor, state: State, rate: float, decay: float, train: experiment.Train
) -> torch.Tensor:
    """Kingma and Ba 2015, algorithm 1, with the decay in the gradient as torch has it."""
    return weights - rate * _adam_direction(gradient + decay * weights, state, train)


def sgd(
    weights: torch.Tensor, gradient: torch.Tensor, state: State, rate: float, decay: float, train: experiment.Train
) -> torch.Tensor:
    """With momentum as in Sutskever et al. 2013, and the rate outside of it, as torch has it."""
    direction = gradient + decay * weights
    before = state.get("momentum_buffer")
    return weights - rate * (direction if before is None else train.momentum * before + direction)


def adafactor(
    weights: torch.Tensor, gradient: torch.Tensor, state: State, rate: float, decay: float, train: experiment.Train
) -> torch.Tensor:
    """Shazeer and Stern 2018, algorithms 4 and 5, at a declared rate: factored where there are rows and columns."""
    step = float(state.get("step", 0)) + 1
    keep = 1 - step**-0.8
    square = gradient.square() + 1e-30
    if weights.dim() >= 2:
        rows = _mixed(state, "exp_avg_sq_row", square.mean(-1), keep)
        columns = _mixed(state, "exp_avg_sq_col", square.mean(-2), keep)
        second = rows.unsqueeze(-1) * columns.unsqueeze(-2) / rows.mean(-1, keepdim=True).unsqueeze(-1)
    else:
        second = _mixed(state, "exp_avg_sq", square, keep)
    update = gradient / second.sqrt()
    update = update / max(1.0, float(update.square().mean().sqrt()))
    return weights * (1 - rate * decay) - rate * update


FORMULAS: dict[str, Formula] = {"adamw": adamw, "adam": adam, "sgd": sgd, "adafactor": adafactor}
"""By the name of the optimizer; what keeps its state in 8 bits has none."""

ELEMENTWISE = ("adamw", "adam", "sgd")
"""Optimizers that treat each element by itself."""


def _adam_direction(gradient: torch.Tensor, state: State, train: experiment.Train) -> torch.Tensor:
    (first, second), step = train.betas, float(state.get("step", 0)) + 1
    zero = torch.zeros_like(gradient)
    mean = first * state.get("exp_avg", zero) + (1 - first) * gradient
    square = second * state.get("exp_avg_sq", zero) + (1 - second) * gradient.square()
    return (mean / (1 - first**step)) / ((square / (1 - second**step)).sqrt() + train.eps)


def _mixed(state: State, name: str, value: torch.Tensor, keep: float) -> torch.Tensor:
    return value * (1 - keep) + state[name] * keep if name in state else value * (1 - keep)
