"""The case's own loop on the twin, with every step done once more, independently, beside it."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from operator import mul
from typing import Any

import torch

from harness import experiment
from harness.schedule import declared_rate
from harness.training.checkpoint import Loaded
from harness.training.data import Drawn
from harness.training.devices import find
from harness.training.tasks import Task
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload

STEPS = 3
"""The second shows gradients that were not cleared, the third a warm-up that began at 0."""
AMPLIFIED = 4096.0
"""By this much the logits' gradient is multiplied in the last step, exactly: a limit on the norm shows, however small
the gradients are. AdamW's update does not depend on their scale."""
ROWS = 4
"""Sequences in a batch, at most."""
NOISE = 1e-5
"""Elements whose gradient is below this share of the largest are left out of an update: AdamW divides their rounding
noise by itself, and what it then moves them by is arbitrary."""
COMPARED = 2**14
"""Elements of a tensor whose update is compared, at most, evenly spaced among those that count: an optimizer treats all
elements of a tensor alike. Gradients, which may be wrong for a few of them, are compared as a whole."""

Tensors = dict[str, torch.Tensor]


def steps(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """For each of the first steps: loss, its gradient by the logits, the gradient before the optimizer's step and the
    update, each beside what an independent formula gives from the same batch, weights and optimizer state.
    """
    from harness.training.loops import LOOPS  # the loops tell a watch, and this is one

    model = twin(work.model)
    model.load_state_dict(loaded.model.state_dict())
    train = work.train.model_copy(update={"steps": STEPS, "batch_size": min(ROWS, work.train.batch_size)})
    small = replace(work, model=model, device=find("cpu"), precision="fp32", train=train, drawn=Drawn())
    oracle = Oracle(work.task, model, twin(loaded.model), train)
    try:
        LOOPS[train.loop](small, oracle)
    finally:
        oracle.close()
    return {"steps": oracle.found, "formula": work.task.formula}


class Oracle:
    """Stands where the watch stands, and computes what each step should have done.

    Args:
        task: says what the loss is.
        model: the twin that the loop trains.
        reference: a twin of the model as it was loaded, on which nobody has hung or frozen anything.
        train: what is declared.
    """

    def __init__(self, task: Task, model: Any, reference: Any, train: experiment.Train) -> None:
        self.found: list[dict[str, Any]] = []
        self._task = task
        self._model = model
        self._other = reference
        self._train = train
        self._learnable = [name for name, parameter in reference.named_parameters() if parameter.requires_grad]
        self._hooks = ExitStack()
        self._arguments: dict[str, Any] = {}
        self._logits: tuple[torch.Tensor, ...] = ()
        self._random = torch.get_rng_state()
        self._step: dict[str, Any] = {}
        self._expected: Tensors = {}
        self._before: Tensors = {}
        self._counted: Tensors = {}

    def begin(self, optimizer: Any) -> None:
        """Watch the model's forward and the optimizer's step."""
        actual = getattr(optimizer, "optimizer", optimizer)
        for handle in (
            self._model.register_forward_pre_hook(self._before_forward),
            self._model.register_forward_hook(self._on_forward, with_kwargs=True),
            actual.register_step_pre_hook(self._on_step),
        ):
            self._hooks.callback(handle.remove)

    def step_done(self, loss: torch.Tensor) -> None:
        """Compare what the step did with what it should have."""
        self._step |= {"loss": float(loss.detach()), "stepped": bool(self._step)}
        now = dict(self._model.named_parameters())
        self._step |= _compare_updates(now, self._before, self._expected, self._counted)
        self.found.append(self._step)
        self._step, self._expected, self._before, self._counted = {}, {}, {}, {}

    def close(self) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def _before_forward(self, module: Any, args: Any) -> None:
        if torch.is_grad_enabled():
            self._random = torch.get_rng_state()

    def _on_forward(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled():
            self._arguments, self._logits = kwargs, self._outputs(output)
            for logits in self._logits:
                logits.register_hook(partial(mul, self._factor))  # nothing of the oracle's: it would never be let go
                logits.retain_grad()

    def _outputs(self, output: Any) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(output, name) for name in self._task.outputs)

    @property
    def _factor(self) -> float:
        return AMPLIFIED if len(self.found) == STEPS - 1 else 1.0

    def _on_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """The gradients are final and nothing has moved yet."""
        parameters = dict(self._model.named_parameters())
        reference = self._reference(parameters)
        self._step |= reference.pop("step")
        found = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        self._step |= _compare_gradients(found, reference["gradients"])
        rate = declared_rate(self._train.learning_rate, self._train.warmup_steps, len(self.found))
        taken = max((float(state.get("step", 0)) for state in optimizer.state.values()), default=0.0)
        self._step |= {
            "rate": float(optimizer.param_groups[0]["lr"]),
            "declared_rate": rate,
            "amplified": self._factor,
            "state_of_step": int(taken),
            "unreached": self._unreached(reference["gradients"]) if not self.found else [],
        }
        largest = max((_largest(gradient) for gradient in found.values()), default=0.0)
        for name, gradient in found.items():
            counted = self._counted[name] = _counting(gradient, NOISE * largest)
            kept = optimizer.state.get(parameters[name], {})
            state = {k: _at(v, counted) if k in ("exp_avg", "exp_avg_sq") else v for k, v in kept.items()}
            start = self._before[name] = _at(parameters[name].detach(), counted)
            self._expected[name] = adamw(start, _at(gradient, counted), state, rate, self._train)

    def _reference(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Loss and gradients of the same batch at the same weights, by a formula written out here."""
        with torch.no_grad():
            for name, parameter in self._other.named_parameters():
                parameter.copy_(parameters.get(name, parameter))
        self._other.train()
        labels = {name: self._arguments[name] for name in self._task.labels}
        logits = self._logits_again()
        for each in logits:
            each.register_hook(partial(mul, self._factor))
        loss = self._task.loss(logits, labels)
        for parameter in self._other.parameters():
            parameter.grad = None
        loss.backward()  # not autograd.grad: Reformer's layers leave the gradients of their weights on them
        return {
            "gradients": {n: p.grad for n, p in self._other.named_parameters() if p.grad is not None},
            "step": {"reference_loss": float(loss.detach()), **self._by_logits(labels)},
        }

    def _unreached(self, gradients: Tensors) -> list[str]:
        """Parameters that get no gradient although the logits depend on them: frozen, or detached on the way.

        They are moved, and the logits looked at: first all at once, for most that get none have no part in the forward
        pass, such as those that see an image; then one after the other.
        """
        parameters = dict(self._other.named_parameters())
        names = [name for name in self._learnable if name in parameters and name not in gradients]
        with torch.no_grad():
            right = self._logits_again()

            def matter(names: list[str]) -> bool:
                kept = [parameters[name].clone() for name in names]
                for name in names:
                    value = parameters[name]
                    value.copy_(value * 1.5 + 0.1 * torch.arange(value.numel()).cos().view_as(value))
                moved = not all(map(torch.equal, self._logits_again(), right))
                for name, value in zip(names, kept, strict=True):
                    parameters[name].copy_(value)
                return moved

            return [name for name in names if matter([name])] if names and matter(names) else []

    def _logits_again(self) -> tuple[torch.Tensor, ...]:
        """What the copy gives for the tensors that the model got, but for the labels, with the same random draws."""
        tensors = ((k, v) for k, v in self._arguments.items() if isinstance(v, torch.Tensor) and v.dim())
        with same_draws(self._random):
            return self._outputs(self._other(**{k: v for k, v in tensors if k not in self._task.labels}))

    def _by_logits(self, labels: Tensors) -> dict[str, Any]:
        """The gradient of the loss by the logits, as it was and as the formula has it."""
        mine = [logits.detach().double().requires_grad_() for logits in self._logits]
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(self._task.loss(mine, labels), mine)])
        grads = [logits.grad for logits in self._logits]
        found = None if any(g is None for g in grads) else torch.cat([g.flatten() for g in grads]) / self._factor
        return {
            "logits_gradient": math.nan if found is None else _relative(found.double(), expected),
            "logits_gradient_scale": math.nan if found is None else _scale(found.double(), expected),
            "logits_are_probabilities": all(map(_are_probabilities, mine)),
        }


def _are_probabilities(logits: torch.Tensor) -> bool:
    """Of several things each, none negative, with a sum of 1."""
    if logits.shape[-1] == 1:
        return False
    return bool((logits >= 0).all()) and bool((logits.sum(-1) - 1).abs().max() < 1e-4)


def adamw(
    parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], rate: float, train: experiment.Train
) -> torch.Tensor:
    """One AdamW step from the optimizer's state (Loshchilov and Hutter 2019, algorithm 2), in fp64."""
    (first, second), step = train.betas, float(state.get("step", 0)) + 1
    zero = torch.zeros_like(gradient)
    mean = first * state.get("exp_avg", zero).double() + (1 - first) * gradient.double()
    square = second * state.get("exp_avg_sq", zero).double() + (1 - second) * gradient.double().square()
    direction = (mean / (1 - first**step)) / ((square / (1 - second**step)).sqrt() + train.eps)
    return parameter.double() * (1 - rate * train.weight_decay) - rate * direction


def _largest(tensor: torch.Tensor) -> float:
    """The largest absolute value."""
    return float(torch.linalg.vector_norm(tensor, ord=math.inf)) if tensor.numel() else 0.0


def _counting(gradient: torch.Tensor, noise: float) -> torch.Tensor:
    """Places, in the flattened tensor, of elements beyond the noise; most are rows of words that the batch lacks."""
    places = torch.nonzero(gradient.abs().flatten() > noise).flatten()
    return places[:: -(-len(places) // COMPARED) or 1]


def _at(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return tensor.flatten()[places]


def _compare_gradients(found: Tensors, expected: Tensors) -> dict[str, Any]:
    missing = [name for name in expected if name not in found and _largest(expected[name]) > 0]
    zero = torch.zeros(())
    distances = {name: float((found.get(name, zero) - tensor).norm()) for name, tensor in expected.items()}
    whole = math.hypot(*(float(tensor.norm()) for tensor in expected.values()))
    norm = math.hypot(*(float(tensor.norm()) for tensor in found.values())) if found else 0.0
    return {
        "gradient": math.hypot(*distances.values()) / whole if whole else math.nan,
        "gradient_worst": max(distances, key=lambda name: distances[name]),
        "gradient_missing": missing,
        "gradient_norm": norm,
        "reference_norm": whole,
    }


def _compare_updates(now: dict[str, Any], before: Tensors, expected: Tensors, counted: Tensors) -> dict[str, Any]:
    """Distance of the update from the expected one, over the elements that count, and what rounding allows."""
    distances: dict[str, float] = {}
    moves = rounding = 0.0
    for name, target in expected.items():
        start = before[name].double()
        distances[name] = float((_at(now[name].detach(), counted[name]).double() - target).norm())
        moves = math.hypot(moves, float((target - start).norm()))
        rounding = math.hypot(rounding, float(torch.finfo(now[name].dtype).eps * start.norm()))
    return {
        "update": math.hypot(*distances.values()) if distances else math.nan,
        "update_expected": moves,
        "update_rounding": rounding,
        "update_worst": max(distances, key=lambda name: distances[name]) if distances else "",
    }


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float64).tiny))


def _scale(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The factor that brings `expected` nearest to `found`."""
    return float((found * expected).sum() / expected.square().sum().clamp_min(torch.finfo(torch.float64).tiny))
