"""The case's own loop on the twin, with every step done once more, independently, beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from operator import mul
from typing import Any

import torch
from torch.utils.data import Subset

from harness.schedule import declared_share, warmup
from harness.selection import rate_and_decay
from harness.training import packing
from harness.training.checkpoint import Loaded
from harness.training.data import Ahead, Drawn
from harness.training.devices import find
from harness.training.optimizer import freeze, kinds
from harness.training.probes.formula import ELEMENTWISE, FORMULAS
from harness.training.tasks import Task
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload

STEPS = 3
"""The second shows gradients that were not cleared, the third a warm-up that began at 0."""
AMPLIFIED = 4096.0
"""By this much the logits' gradient is multiplied in the last step, exactly: a limit on the norm shows, however small
the gradients are. Where a limit is declared, it is divided by as much in the second: there it must do nothing."""
ROWS = 4
"""Sequences in a batch, and micro-batches in a step, at most."""
NOISE = 1e-5
"""Elements whose gradient is below this share of the largest are left out of an update: AdamW divides their rounding
noise by itself, and what it then moves them by is arbitrary."""
VANISHED = 1e-3
"""A gradient by the logits below this norm is compared as if it had it, and that by the weights likewise: where the
loss is all but 0, as after a step at a rate far too high, a softmax in fp32 leaves 6e-8 of it, or nothing."""
COMPARED = 2**14
"""Elements of a tensor whose update is compared, at most, evenly spaced among those that count: an optimizer treats all
elements of a tensor alike. Gradients, which may be wrong for a few of them, are compared as a whole."""

Tensors = dict[str, torch.Tensor]


def steps(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """For each of the first steps: loss, its gradient by the logits, the gradient before the optimizer's step and the
    update, each beside what an independent formula gives from the same batch, weights and optimizer state.

    Where micro-batches accumulate, they are of unequal size, unless each is one row or all that are short are left out.
    """
    from harness.training.loops import LOOPS  # the loops tell a watch, and this is one

    model = twin(work.model)
    model.load_state_dict(loaded.model.state_dict())
    if work.train.packing:  # a packed decoder's loss is of fewer logits than those that it gives
        packing.undone(model)
    small = replace(_small(work), model=model, device=find("cpu"), precision="fp32", drawn=Drawn(), split=None)
    reference = twin(loaded.model)
    freeze(reference, work.train.freeze)
    oracle = Oracle(small, model, reference)
    try:
        LOOPS[small.train.loop](small, oracle)
    finally:
        oracle.close()
    return {"steps": oracle.found, "formula": work.task.formula, "optimizer": work.train.optimizer in FORMULAS}


def _small(work: Workload) -> Workload:
    """The workload of a few short steps."""
    declared = work.train
    micro, rows = min(ROWS, declared.gradient_accumulation), min(ROWS, declared.batch_size)
    said = {"steps": STEPS, "epochs": None, "batch_size": rows, "gradient_accumulation": micro, "compile": False}
    small = replace(work, train=declared.model_copy(update=said))
    if micro == 1 or rows == 1 or declared.drop_last or isinstance(work.examples, Ahead):
        return small
    size = min(len(work.examples), rows * micro)
    size -= size % rows == 0 and size > rows
    part: Any = Subset(work.examples, range(size))  # its last batch lacks a row
    part.lengths = work.examples.lengths[:size]
    return replace(small, examples=part)


@dataclass(frozen=True)
class Micro:
    """A micro-batch as the model saw it."""

    arguments: dict[str, Any]
    labels: Tensors
    logits: tuple[torch.Tensor, ...]
    random: torch.Tensor
    """State of the generator before the forward pass."""


class Oracle:
    """Stands where the watch stands, and computes what each step should have done.

    Args:
        work: what the loop trains.
        model: the twin that it trains.
        reference: a twin of the model as it was loaded, on which nobody has hung anything; frozen as declared.
    """

    def __init__(self, work: Workload, model: Any, reference: Any) -> None:
        self.found: list[dict[str, Any]] = []
        self._task: Task = work.task
        self._drawn = work.drawn
        self._model = model
        self._other = reference
        self._train = work.train
        self._kinds = kinds(reference)
        self._learnable = [name for name, parameter in reference.named_parameters() if parameter.requires_grad]
        self._hooks = ExitStack()
        self._micro: list[Micro] = []
        self._random = torch.get_rng_state()
        self._step: dict[str, Any] = {}
        self._expected: Tensors = {}
        self._before: Tensors = {}
        self._counted: Tensors = {}

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """Watch the model's forward and the optimizer's step."""
        actual = getattr(optimizer, "optimizer", optimizer)
        for handle in (
            self._model.register_forward_pre_hook(self._before_forward),
            self._model.register_forward_hook(self._on_forward, with_kwargs=True),
            actual.register_step_pre_hook(self._on_step),
        ):
            self._hooks.callback(handle.remove)

    def kept(self) -> None:
        """No checkpoint is written."""

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """Compare what the step did with what it should have."""
        self._step |= {"loss": float(loss.detach()), "stepped": bool(self._step)}
        if norm is not None:
            self._step["norm_before"] = float(norm)
        now = dict(self._model.named_parameters())
        self._step |= _compare_updates(now, self._before, self._expected, self._counted)
        self.found.append(self._step)
        self._step, self._expected, self._before, self._counted, self._micro = {}, {}, {}, {}, []

    def evaluate(self, evaluation: Callable[[], Any]) -> None:
        """Nothing: it has no split."""

    def close(self) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def _before_forward(self, module: Any, args: Any) -> None:
        if torch.is_grad_enabled():
            self._random = torch.get_rng_state()

    def _on_forward(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        drawing = self._drawn.queue.popleft() if self._drawn.queue else None
        kept = {} if drawing is None or drawing.labels is None else {"labels": drawing.labels}
        labels = {name: kwargs.get(name, kept.get(name)) for name in self._task.labels}
        logits = self._outputs(output)
        self._micro.append(Micro(kwargs, labels, logits, self._random))
        for each in logits:
            each.register_hook(partial(mul, self._factor))  # nothing of the oracle's: it would never be let go
            each.retain_grad()

    def _outputs(self, output: Any) -> tuple[torch.Tensor, ...]:
        return tuple(getattr(output, name) for name in self._task.outputs)

    @property
    def _factor(self) -> float:
        if len(self.found) == STEPS - 1:
            return AMPLIFIED
        return 1 / AMPLIFIED if len(self.found) == 1 and self._train.max_grad_norm is not None else 1.0

    def _on_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """The gradients are final and nothing has moved yet."""
        parameters = dict(self._model.named_parameters())
        reference = self._reference(parameters)
        self._step |= reference.pop("step")
        if self._task.masked is not None:
            self._step["drawn"] = sum(self._task.terms(micro.labels) for micro in self._micro)
        found = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        before = _norm(reference["gradients"].values())
        expected = self._clipped(reference["gradients"], before)
        self._step |= _compare_gradients(found, expected, self._step["logits_norm"])
        self._step |= {"reference_norm_before": before}
        rate, declared = self._rates(optimizer)
        self._step |= {
            "rate": rate,
            "declared_rate": declared,
            "amplified": self._factor,
            "limit": self._train.max_grad_norm,
            "state_of_step": self._steps_taken(optimizer),
            "unreached": self._unreached(reference["gradients"]) if not self.found else [],
        }
        largest = max((_largest(gradient) for gradient in found.values()), default=0.0)
        for name, gradient in found.items():
            self._expect(name, parameters[name], gradient, optimizer.state.get(parameters[name], {}), largest)

    def _expect(self, name: str, weights: Any, gradient: torch.Tensor, state: dict[str, Any], largest: float) -> None:
        """What the step makes of a parameter, at the elements that count."""
        train = self._train
        if train.optimizer not in FORMULAS:
            return
        rate, decay = rate_and_decay(train.model_dump(), name, self._kinds[name])
        formula, rate = FORMULAS[train.optimizer], rate * self._share()
        counted = self._counted[name] = _counting(gradient, NOISE * largest)
        start = self._before[name] = _at(weights.detach(), counted)
        if train.optimizer in ELEMENTWISE:
            # What does not count is not computed either.
            kept = {
                key: _at(value, counted).double() if _like(value, weights) else value for key, value in state.items()
            }
            self._expected[name] = formula(start.double(), _at(gradient, counted).double(), kept, rate, decay, train)
        else:
            kept = {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
            whole = formula(weights.detach().double(), gradient.double(), kept, rate, decay, train)
            self._expected[name] = _at(whole, counted)

    def _share(self) -> float:
        """The share of the highest rate that is declared for this step."""
        train = self._train
        rising = warmup(train.steps, train.warmup_steps, train.warmup_ratio)
        return declared_share(train.schedule, train.steps, rising, len(self.found))

    def _rates(self, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """The rate of a parameter group, and the declared one: of the first in which they differ."""
        names = {id(parameter): name for name, parameter in self._model.named_parameters()}
        said, pairs = self._train.model_dump(), []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if (name := names.get(id(parameter))) in self._kinds:
                    declared = rate_and_decay(said, str(name), self._kinds[str(name)])[0] * self._share()
                    pairs.append((float(group["lr"]), declared))
        different = (pair for pair in pairs if abs(pair[0] - pair[1]) > 1e-12)
        return next(different, pairs[0] if pairs else (math.nan, math.nan))

    def _steps_taken(self, optimizer: torch.optim.Optimizer) -> int:
        """As the optimizer's state counts them; of a state that counts nothing, whether it is there."""
        states = list(optimizer.state.values())
        if self._train.optimizer == "sgd":
            there = any(state.get("momentum_buffer") is not None for state in states)
            return len(self.found) if there or not self._train.momentum else 0
        return int(max((float(state.get("step", 0)) for state in states), default=0.0))

    def _clipped(self, gradients: Tensors, norm: float) -> Tensors:
        """Scaled down to the declared limit (Pascanu et al. 2013, algorithm 1)."""
        limit = self._train.max_grad_norm
        if limit is None or norm <= limit:
            return gradients
        return {name: gradient * (limit / norm) for name, gradient in gradients.items()}

    def _reference(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Loss and gradients of the same batch at the same weights, by a formula written out here."""
        with torch.no_grad():
            for name, parameter in self._other.named_parameters():
                parameter.copy_(parameters.get(name, parameter))
        self._other.train()
        for parameter in self._other.parameters():
            parameter.grad = None
        loss = 0.0
        for share, micro in zip(self._shares(), self._micro, strict=True):
            if share == 0:
                continue
            logits = self._logits_again(micro)
            for each in logits:
                each.register_hook(partial(mul, self._factor))
            part = self._task.loss(logits, micro.labels) * share
            part.backward()  # not autograd.grad: Reformer's layers leave the gradients of their weights on them
            loss += float(part.detach())
        return {
            "gradients": {n: p.grad for n, p in self._other.named_parameters() if p.grad is not None},
            "step": {"reference_loss": loss, **self._by_logits()},
        }

    def _shares(self) -> list[float]:
        """The part of the step's loss that each micro-batch has: of all terms that it is a mean over."""
        terms = [self._task.terms(micro.labels) for micro in self._micro]
        whole = sum(terms)
        return [own / whole if whole else 1.0 for own in terms]

    def _unreached(self, gradients: Tensors) -> list[str]:
        """Parameters that get no gradient although the logits depend on them: frozen, or detached on the way.

        They are moved, and the logits looked at: first all at once, for most that get none have no part in the forward
        pass, such as those that see an image; then one after the other.
        """
        parameters = dict(self._other.named_parameters())
        names = [name for name in self._learnable if name in parameters and name not in gradients]
        with torch.no_grad():
            right = self._logits_again(self._micro[0])

            def matter(names: list[str]) -> bool:
                kept = [parameters[name].clone() for name in names]
                for name in names:
                    value = parameters[name]
                    value.copy_(value * 1.5 + 0.1 * torch.arange(value.numel()).cos().view_as(value))
                moved = not all(map(torch.equal, self._logits_again(self._micro[0]), right))
                for name, value in zip(names, kept, strict=True):
                    parameters[name].copy_(value)
                return moved

            return [name for name in names if matter([name])] if names and matter(names) else []

    def _logits_again(self, micro: Micro) -> tuple[torch.Tensor, ...]:
        """What the copy gives for the tensors that the model got, but for the labels, with the same random draws."""
        tensors = ((k, v) for k, v in micro.arguments.items() if isinstance(v, torch.Tensor) and v.dim())
        with same_draws(micro.random):
            return self._outputs(self._other(**{k: v for k, v in tensors if k not in self._task.labels}))

    def _by_logits(self) -> dict[str, Any]:
        """The gradient of the loss by the logits, as it was and as the formula has it."""
        expected, found, probabilities = [], [], True
        for share, micro in zip(self._shares(), self._micro, strict=True):
            if share == 0:
                continue
            mine = [logits.detach().double().requires_grad_() for logits in micro.logits]
            expected += torch.autograd.grad(self._task.loss(mine, micro.labels) * share, mine)
            found += [logits.grad for logits in micro.logits]
            probabilities = probabilities and all(map(_are_probabilities, mine))
        whole = torch.cat([gradient.flatten() for gradient in expected])
        lost = any(gradient is None for gradient in found)
        mine_all = None if lost else torch.cat([gradient.flatten().double() for gradient in found]) / self._factor
        return {
            "logits_gradient": math.nan if mine_all is None else _relative(mine_all, whole),
            "logits_gradient_scale": math.nan if mine_all is None else _scale(mine_all, whole),
            "logits_norm": float(whole.norm()),
            "logits_are_probabilities": probabilities,
        }


def _like(value: Any, weights: torch.Tensor) -> bool:
    """Whether a part of an optimizer's state has a number for each element."""
    return isinstance(value, torch.Tensor) and value.shape == weights.shape and value.dim() > 0


def _norm(tensors: Any) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in tensors))


def _are_probabilities(logits: torch.Tensor) -> bool:
    """Of several things each, none negative, with a sum of 1."""
    if logits.shape[-1] == 1:
        return False
    return bool((logits >= 0).all()) and bool((logits.sum(-1) - 1).abs().max() < 1e-4)


def _largest(tensor: torch.Tensor) -> float:
    """The largest absolute value; NaN if any is. Torch's norm of that order takes fifteen times as long."""
    return max(map(abs, map(float, torch.aminmax(tensor)))) if tensor.numel() else 0.0


def _counting(gradient: torch.Tensor, noise: float) -> torch.Tensor:
    """Places, in the flattened tensor, of elements beyond the noise, evenly spaced over the rows that have any: most
    rows are of words that the batch lacks.
    """
    rows = (
        gradient.reshape(gradient.shape[0], -1) if gradient.dim() > 1 and gradient.numel() else gradient.reshape(1, -1)
    )
    live = torch.nonzero(torch.linalg.vector_norm(rows, dim=1) > noise).flatten()
    width, size = rows.shape[1], len(live) * rows.shape[1]
    stride = max(1, size // COMPARED)
    while stride > 1 and math.gcd(stride, width) > 1:
        stride += 1  # else it would be the same columns of each row
    spaced = torch.arange(0, size, stride)
    places = live[spaced // width] * width + spaced % width
    return places[_at(gradient, places).abs() > noise]


def _at(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return tensor.flatten()[places]


def _compare_gradients(found: Tensors, expected: Tensors, by_logits: float) -> dict[str, Any]:
    """The distance as a share of the norm: of what that would be if the one by the logits were at least `VANISHED`.

    Args:
        found: by parameter.
        expected: likewise.
        by_logits: norm of the gradient by the logits.
    """
    missing = [name for name in expected if name not in found and _largest(expected[name]) > 0]
    zero = torch.zeros(())
    distances = {name: float((found.get(name, zero) - tensor).norm()) for name, tensor in expected.items()}
    whole = math.hypot(*(float(tensor.norm()) for tensor in expected.values()))
    norm = math.hypot(*(float(tensor.norm()) for tensor in found.values())) if found else 0.0
    tiny = torch.finfo(torch.float64).tiny
    return {
        "gradient": math.hypot(*distances.values()) / max(whole * max(1.0, VANISHED / max(by_logits, tiny)), tiny),
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
    return float((found - expected).norm() / expected.norm().clamp_min(VANISHED))


def _scale(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The factor that brings `expected` nearest to `found`."""
    return float((found * expected).sum() / expected.square().sum().clamp_min(torch.finfo(torch.float64).tiny))
