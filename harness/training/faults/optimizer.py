"""Faults of the optimizer: what it holds, and how it is set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from harness.training import checkpoint
from harness.training.fault import NO_REPORT, Patch, fault
from harness.training.faults.seam import altered
from harness.training.workload import Workload


def _holding(work: Workload, choose: Callable[[Any], list[Any]], **said: Any) -> Workload:
    """The workload with an AdamW over other parameters, or over groups, or with other settings."""

    def optimizer(self: Workload) -> torch.optim.Optimizer:
        return torch.optim.AdamW(choose(self.model), **{**_declared(self), **said})

    return altered(work, optimizer=optimizer)


def _declared(work: Workload) -> dict[str, Any]:
    train = work.train
    return {"lr": train.learning_rate, "betas": train.betas, "eps": train.eps, "weight_decay": train.weight_decay}


def _all(model: Any) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _named(model: Any, keep: Callable[[str], bool]) -> list[Any]:
    return [parameter for name, parameter in model.named_parameters() if parameter.requires_grad and keep(name)]


@fault("adapter-hub/adapters#260")
def head_not_in_the_optimizer(work: Workload, patch: Patch) -> Workload:
    """The optimizer was made before the head was put on, and does not hold it."""

    def choose(model: Any) -> list[Any]:
        head = set(checkpoint.head_names(model))
        return _named(model, lambda name: name not in head)

    return _holding(work, choose)


@fault("adapter-hub/adapters#260, unsloth#2188")
def embeddings_not_in_the_optimizer(work: Workload, patch: Patch) -> Workload:
    """The optimizer does not hold the embedding."""

    def choose(model: Any) -> list[Any]:
        table = model.get_input_embeddings().weight
        return [parameter for parameter in _all(model) if parameter is not table]

    return _holding(work, choose)


@fault("adapter-hub/adapters#260")
def biases_not_in_the_optimizer(work: Workload, patch: Patch) -> Workload:
    """A pattern for parameter groups does not match biases and norms: no group holds them."""
    return _holding(work, lambda model: [p for p in _all(model) if p.dim() > 1])


@fault("microsoft/nni#4521")
def optimizer_holds_a_copy(work: Workload, patch: Patch) -> Workload:
    """The optimizer was made of another copy of the model."""
    return _holding(work, lambda model: _all(copy.deepcopy(model)))


@fault("microsoft/nni#4521")
def optimizer_holds_an_old_embedding(work: Workload, patch: Patch) -> Workload:
    """The embedding was replaced, as by a resize, after the optimizer was made."""

    def choose(model: Any) -> list[Any]:
        table = model.get_input_embeddings().weight
        return [p.detach().clone().requires_grad_() if p is table else p for p in _all(model)]

    return _holding(work, choose)


@fault(NO_REPORT)
def head_in_the_optimizer_twice(work: Workload, patch: Patch) -> Workload:
    """The head's parameters are in the list twice, and are stepped twice."""

    def choose(model: Any) -> list[Any]:
        head = set(checkpoint.head_names(model))
        return _all(model) + _named(model, lambda name: name in head)

    return _holding(work, choose)


@fault("stanza#1320")
def head_at_a_rate_of_zero(work: Workload, patch: Patch) -> Workload:
    """The head's parameter group has a learning rate of 0."""

    def choose(model: Any) -> list[Any]:
        head = set(checkpoint.head_names(model))
        return [
            {"params": _named(model, lambda name: name not in head)},
            {"params": _named(model, lambda name: name in head), "lr": 0.0},
        ]

    return _holding(work, choose)


@fault("stanza#1320")
def head_at_ten_times_the_rate(work: Workload, patch: Patch) -> Workload:
    """The head's parameter group has ten times the declared learning rate."""

    def choose(model: Any) -> list[Any]:
        head = set(checkpoint.head_names(model))
        return [
            {"params": _named(model, lambda name: name not in head)},
            {"params": _named(model, lambda name: name in head), "lr": 10 * work.train.learning_rate},
        ]

    return _holding(work, choose)


@fault("DeepCrime: change learning rate")
def rate_times_ten(work: Workload, patch: Patch) -> Workload:
    """The learning rate is ten times the declared one."""
    return _holding(work, _all, lr=10 * work.train.learning_rate)


@fault("DeepCrime: change optimisation function")
def other_betas(work: Workload, patch: Patch) -> Workload:
    """The second beta is 0.95, a default of another recipe."""
    return _holding(work, _all, betas=(work.train.betas[0], 0.95))


@fault("DeepCrime: change optimisation function")
def other_eps(work: Workload, patch: Patch) -> Workload:
    """Eps is 1e-3."""
    return _holding(work, _all, eps=1e-3)


@fault("DeepCrime: add weights regularisation")
def no_weight_decay(work: Workload, patch: Patch) -> Workload:
    """Weight decay is not handed on."""
    return _holding(work, _all, weight_decay=0.0)


@fault("DeepCrime: add weights regularisation")
def decay_left_out_for_biases(work: Workload, patch: Patch) -> Workload:
    """Biases and norms are not decayed, a rule of another recipe."""

    def choose(model: Any) -> list[Any]:
        return [
            {"params": [p for p in _all(model) if p.dim() > 1]},
            {"params": [p for p in _all(model) if p.dim() <= 1], "weight_decay": 0.0},
        ]

    return _holding(work, choose)


@fault("Loshchilov and Hutter, Decoupled Weight Decay Regularization (ICLR 2019)")
def decay_coupled(work: Workload, patch: Patch) -> Workload:
    """``torch.optim.Adam`` in place of AdamW: the decay goes into the gradient."""
    return altered(work, optimizer=lambda self: torch.optim.Adam(_all(self.model), **_declared(self)))


@fault("DeepCrime: change optimisation function")
def plain_gradient_descent(work: Workload, patch: Patch) -> Workload:
    """SGD in place of AdamW."""
    return altered(work, optimizer=lambda self: torch.optim.SGD(_all(self.model), lr=self.train.learning_rate))


@fault("DeepCrime: change optimisation function")
def another_adam(work: Workload, patch: Patch) -> Workload:
    """AdamW with ``amsgrad``."""
    return _holding(work, _all, amsgrad=True)


@fault("DeepCrime: change optimisation function")
def climbs_the_loss(work: Workload, patch: Patch) -> Workload:
    """AdamW with ``maximize``."""
    return _holding(work, _all, maximize=True)


FAULTS = (
    head_not_in_the_optimizer,
    embeddings_not_in_the_optimizer,
    biases_not_in_the_optimizer,
    optimizer_holds_a_copy,
    optimizer_holds_an_old_embedding,
    head_in_the_optimizer_twice,
    head_at_a_rate_of_zero,
    head_at_ten_times_the_rate,
    rate_times_ten,
    other_betas,
    other_eps,
    no_weight_decay,
    decay_left_out_for_biases,
    decay_coupled,
    plain_gradient_descent,
    another_adam,
    climbs_the_loss,
)
