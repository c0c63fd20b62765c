"""Takes evidence while a loop trains: what reached the model, what the optimizer did, how long it took.

The loops call `begin` and `step_done`, everything else is seen by hooks. Evidence is taken between steps, with the
clock stopped; inside a step the hooks only keep references, and note where the random numbers are.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from harness.record import Batch, Group, Modes, Optimizer, Parameter, Steps
from harness.training.adapters import is_adapter
from harness.training.checkpoint import digest
from harness.training.compilation import Compiling
from harness.training.data import Drawing, Drawn
from harness.training.optimizer import kinds
from harness.training.resume import states
from harness.training.rows import Row
from harness.training.split import Reported
from harness.training.stored import bits
from harness.training.survey import Survey
from harness.training.tasks import Features
from harness.training.timing import Lap, StepClock, followed
from harness.training.twin import dropouts, is_stochastic
from harness.training.witness import BATCH_TOKENS, Witness

SAMPLE = 65_536
"""Weights, spread evenly over all trainable ones, whose way is followed from step to step: at least so many, or all."""

VARIANTS = ("amsgrad", "maximize", "nesterov")
"""Switches of torch's optimizers that make another algorithm of them."""

Progress = Callable[[int, int, float, float], None]
"""Called after each step with step, steps, loss and samples per second."""

Pace = Callable[[Lap], None]
"""Called after each step with what the clock says of it. The training goes on when it returns, and no step's time holds
what it took; what it raises ends the training."""


class Watch:
    """The evidence of one training.

    Args:
        model: the model that will be trained, on its device.
        start: the same weights on the CPU, which nobody changes.
        head: names of the parameters whose way is followed step by step: new ones, and adapters.
        drawn: the examples of each batch, in the order the loader made them.
        labels_kept: the loop keeps labels from the model, and takes its loss from the logits.
        terms: counts what a batch gives to learn.
        drawable: counts the tokens of an example that may be drawn for it; none where nothing is drawn.
        survey: told of the examples of each step, where they were not looked at before.
        compiling: follows what is compiled.
        steps: how many steps are declared.
        clock: of the device.
        progress: told of each step.
        pace: asked after each step when to go on.
        witness: sees evaluations between steps.
    """

    def __init__(
        self,
        *,
        model: Any,
        start: Any,
        head: Iterable[str],
        drawn: Drawn,
        labels_kept: bool = False,
        terms: Callable[[Mapping[str, torch.Tensor]], int] | None = None,
        drawable: Callable[[Features], int] | None = None,
        survey: Survey | None = None,
        compiling: Compiling,
        steps: int,
        clock: StepClock,
        progress: Progress | None = None,
        pace: Pace | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._model = model
        self._start = dict(start.named_parameters())
        self._loaded = start
        self._device_start = {name: self._start[name].to(model.device, copy=True) for name in head}
        self._drawn = drawn
        self._labels_kept = labels_kept
        self._terms = terms
        self._drawable = drawable
        self._survey = survey
        self.rows: dict[int, Row] = {}
        """The rows of the kept batches, by index."""
        self._compiling = compiling
        self._declared = steps
        self._clock = clock
        self._progress = progress
        self._pace = pace
        self._witness = witness
        self.digest = ""
        """Of the weights before the first step; empty until the loop begins."""
        self.altered: tuple[str, ...] = ()
        """Parameters and buffers that are other than loaded when the loop begins."""
        self._hooks = ExitStack()
        self._arguments: list[dict[str, Any]] = []
        self._weights: list[torch.Tensor] = []
        self._rates: tuple[float, ...] = ()
        self._stepped_with: dict[str, torch.Tensor] | None = None
        self._scaler: Any = None
        self._scale: float | None = None
        self._trainable: list[tuple[str, torch.Tensor]] = []
        self._sample = torch.zeros(0)
        self._gradients: dict[str, float] = {}
        self._furthest = dict.fromkeys(self._device_start, 0.0)
        self._optimizer: Optimizer | None = None
        self._stochastic = {name: module for name, module in model.named_modules() if is_stochastic(module)}
        self._off: tuple[int, tuple[str, ...]] | None = None
        self._dropout_changed: tuple[str, ...] = ()
        self._versions: list[int] = []
        self._written: dict[str, None] = {}
        self._random = b""
        self._first_random = ""
        self._stepping: Any = None
        self.state: dict[str, Any] | None = None
        """Of the training when its checkpoint was written; none if none was."""
        self._drawn_from: set[bytes] = set()
        self._redrawn: int | None = None
        self._graphs: list[weakref.ref[_Token]] = []
        self._checkpointing: bool | None = None
        self.eager_passes = 0
        """Forward passes in training whose result came out of no compiled graph."""
        self._columns: dict[str, list[Any]] = {name: [] for name in Steps.model_fields}
        self._batches: dict[str, Batch] = {}
        self._kept = 0

    # What a loop calls

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """The loop is about to fetch its first batch: whatever it does to the weights before counts as their start.

        Args:
            optimizer: perhaps as Accelerate wraps it.
            scaler: of the loss, if there is one.
        """
        self.digest = digest(self._model.state_dict().items())
        self.altered = altered(self._loaded, self._model)
        self._dropout_changed = _changed_dropouts(self._loaded, self._model)
        self._trainable = [(name, one) for name, one in self._model.named_parameters() if one.requires_grad]
        self._versions = self._counted()
        self._sample = self._sampled(one for _, one in self._trainable)
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._scale = self._scaler.get_scale() if self._scaler is not None else None
        self._stepping = actual = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        before, after = map(self._compiling.outside, (self._on_forward, self._after_forward))
        self._hook(self._model.register_forward_pre_hook(before, with_kwargs=True))
        self._hook(self._model.register_forward_hook(after))
        self._hook(actual.register_step_pre_hook(self._on_optimizer_step))
        self._hooks.enter_context(followed(self._clock, self._drawn, actual))
        self._compiling.watch()
        self._hooks.callback(self._compiling.close)
        self._clock.start()

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """A step is over: forward and backward passes, optimizer, schedule, gradients cleared.

        Args:
            loss: what was back-propagated, a scalar on any device.
            norm: of the gradients before they were clipped, if they were.
        """
        lap = self._clock.stop()
        self._note(lap, loss.detach().float().item(), None if norm is None else float(norm))
        if self._pace is not None:
            self._pace(lap)
        watching = self._clock.now() - lap.stopped
        self._clock.start()
        self._columns["watching_seconds"].append(watching + self._clock.starting_seconds)
        self._columns["evaluating_seconds"].append(0.0)
        self._columns["saving_seconds"].append(0.0)

    def evaluate(self, evaluation: Callable[[], Reported]) -> None:
        """Evaluate between two steps, with the clock stopped."""
        if self._witness is None:
            return
        asked = self._clock.now()
        self._witness.take(len(self._columns["loss"]), evaluation)
        evaluating = self._clock.now() - asked
        self._clock.start()
        self._columns["evaluating_seconds"][-1] += evaluating + self._clock.starting_seconds

    def kept(self) -> None:
        """A checkpoint was written; that is no part of any step."""
        lap = self._clock.stop()
        self.state = states(self._model, self._stepping, self._scaler)
        saving = lap.seconds + self._clock.now() - lap.stopped
        self._clock.start()
        self._columns["saving_seconds"][-1] += saving + self._clock.starting_seconds

    def close(self) -> None:
        """Take the hooks off the model and the optimizer, and let go of that: it may fill half of a device."""
        self._hooks.close()
        self._stepping = None

    # What a record gets

    def steps(self) -> Steps:
        """Everything seen so far, a column each."""
        return Steps(**{name: tuple(column) for name, column in self._columns.items()})

    def batches(self) -> tuple[Batch, ...]:
        """The kept batches, in order of their first step."""
        return tuple(self._batches.values())

    def optimizer(self) -> Optimizer | None:
        """What the optimizer held at its first step; none if it never stepped."""
        begun, now = dict(self._trainable), {name for name, one in self._model.named_parameters() if one.requires_grad}
        toggled = tuple(sorted(begun.keys() ^ now))
        more = {"toggled": toggled, "written": tuple(self._written)}
        return None if self._optimizer is None else self._optimizer.model_copy(update=more)

    def modes(self) -> Modes:
        """Whether dropout was on whenever the loop trained."""
        step, off = self._off or (None, ())
        return Modes(
            stochastic=len(self._stochastic),
            step=step,
            off=off,
            changed=tuple(dict.fromkeys((*self._dropout_changed, *_changed_dropouts(self._loaded, self._model)))),
            redrawn=self._redrawn,
            drifted=self._drifted(),
            checkpointing=self._checkpointing,
        )

    def _drifted(self) -> tuple[str, ...]:
        now = dict(self._model.named_buffers())
        return tuple(name for name, start in self._loaded.named_buffers() if not _same(start, now.get(name)))

    def parameters(self, head: Iterable[str]) -> tuple[Parameter, ...]:
        """How far each parameter is from its start now."""
        known = kinds(self._model)
        head = set(head)
        return tuple(
            self._parameter(name, parameter, head).model_copy(update={"embedding": known[name].embedding})
            for name, parameter in self._model.named_parameters()
        )

    # Hooks

    def _hook(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def _on_forward(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return  # an evaluation
        self._random = self._random_state()
        if not self._arguments:
            self._first_random = self._random.hex()
        self._arguments.append(kwargs)
        if self._checkpointing is None:
            self._checkpointing = any(getattr(part, "gradient_checkpointing", False) for part in module.modules())
        off = tuple(name for name, module in self._stochastic.items() if not module.training)
        if off and self._off is None:
            self._off = len(self._columns["loss"]), off
        self._clock.enter("forward")

    def _random_state(self) -> bytes:
        """Where the generator stands that dropout draws from; torch keeps it on the CPU for every device."""
        device = self._model.device
        state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
        return hashlib.blake2b(state.numpy().tobytes(), digest_size=16).digest()

    def _after_forward(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        """Leave a token in the graph: while the token lives, the graph does."""
        if torch.is_grad_enabled() and self._random_state() != self._random:  # it drew something
            if self._random in self._drawn_from and self._redrawn is None:
                self._redrawn = len(self._columns["loss"])
            self._drawn_from.add(self._random)
        loss = getattr(output, "loss", None)
        nodes = [node for node in (getattr(one, "grad_fn", None) for one in _results(output)) if node is not None]
        if nodes:
            token = _Token()  # one for all: whoever keeps any of the results keeps the graph
            for node in nodes:
                node.metadata["harness"] = token
            self._graphs.append(weakref.ref(token))
            self.eager_passes += "CompiledFunction" not in type(nodes[0]).__name__
        if loss is not None and loss.requires_grad and not self._labels_kept:
            loss.register_hook(self._weights.append)  # the gradient at the loss: what the loop multiplied it with

    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Keep references; gradients that the loop clears next live on until they have been looked at."""
        if (now := self._counted()) != self._versions:
            pairs = zip(self._trainable, self._versions, now, strict=True)
            self._written |= {name: None for (name, _), before, count in pairs if count != before}
        self._rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
        self._stepped_with = {name: one.grad for name, one in self._trainable if one.grad is not None}
        if self._optimizer is None:
            self._optimizer = describe(optimizer, self._model)

    # Between steps

    def _note(self, lap: Lap, loss: float, norm: float | None) -> None:
        step = len(self._columns["loss"])
        drawings = [self._next_drawing() for _ in self._arguments] or [self._next_drawing()]
        tensors = [
            self._tensors(arguments, drawing) for arguments, drawing in zip(self._arguments, drawings, strict=False)
        ]
        digests = [{name: _digest(tensor) for name, tensor in sorted(each.items())} for each in tensors]
        examples = tuple(index for drawing in drawings for index in drawing.indices)
        row = {
            "loss": loss,
            "learning_rate": self._rates[0] if self._rates else math.nan,
            "group_rates": self._rates,
            "seconds": lap.seconds,
            "began": lap.began,
            "ended": lap.ended,
            "processor_seconds": lap.processor_seconds,
            "queued_seconds": lap.queued_seconds,
            "compile_seconds": lap.compile_seconds,
            "joules": lap.joules,
            "slowed": lap.slowed,
            **{f"{phase}_seconds": seconds for phase, seconds in lap.phases.items()},
            "samples": len(examples),
            "rows": sum(map(_rows, tensors)),
            "shapes": tuple(map(shape_of, tensors)),
            "real_tokens": sum(sum(drawing.lengths) for drawing in drawings),
            "padded_tokens": sum(map(_padded, tensors, drawings)),
            "digest": _joined(digests),
            "examples": examples,
            "micro_batches": tuple(len(drawing.indices) for drawing in drawings),
            "terms": tuple(map(self._terms, tensors)) if self._terms else (),
            "drawable": tuple(map(self._drawable_in, drawings)) if self._drawable else (),
            "random": self._first_random,
            "graphs": self._graphs_kept(),
            "loss_weights": tuple(float(weight) for weight in self._weights),
            "loss_scale": self._scale,
            "gradient_norm_before": norm,
            **self._movement(),
        }
        for name, value in row.items():
            self._columns[name].append(value)
        for drawing, each, their_digests in zip(drawings, tensors, digests, strict=False):
            self._keep(step, drawing, each, their_digests)
            if self._survey is not None:
                self._survey.look(drawing.features)
        self._follow_head()
        self._arguments, self._rates, self._stepped_with = [], (), None
        self._versions = self._counted()
        self._weights.clear()
        self._scale = self._scaler.get_scale() if self._scaler is not None else None
        if self._progress is not None:
            self._progress(step + 1, self._declared, loss, len(examples) / lap.seconds if lap.seconds else math.nan)

    def _graphs_kept(self) -> int:
        """Graphs of earlier passes that still live; the others are forgotten. The loop still holds the last."""
        self._graphs[:-1] = [token for token in self._graphs[:-1] if token() is not None]
        return len(self._graphs[:-1])

    def _drawable_in(self, drawing: Drawing) -> int:
        return sum(map(self._drawable, drawing.features)) if self._drawable else 0

    def _next_drawing(self) -> Drawing:
        return self._drawn.queue.popleft() if self._drawn.queue else Drawing((), (), ())

    def _tensors(self, arguments: dict[str, Any], drawing: Drawing) -> dict[str, torch.Tensor]:
        """What the model got; the Trainer also hands over scalars, which belong to the loss and not to the batch."""
        found = {
            name: value.cpu()
            for name, value in arguments.items()
            if isinstance(value, torch.Tensor) and value.dim() > 0
        }
        if self._labels_kept and drawing.labels is not None:
            found.setdefault("labels", drawing.labels)
        return found

    def _sampled(self, tensors: Iterable[torch.Tensor | None]) -> torch.Tensor:
        """The same places of each trainable parameter, one after the other; 0 where there is nothing."""
        stride = max(1, sum(one.numel() for _, one in self._trainable) // SAMPLE)
        pairs = zip(tensors, self._trainable, strict=True)
        return torch.cat(
            [
                (torch.zeros_like(one) if each is None else each).detach().reshape(-1)[::stride].float()
                for each, (_, one) in pairs
            ]
        )

    def _counted(self) -> list[int]:
        """How often each trainable parameter was written into, as autograd counts it."""
        return [one._version for _, one in self._trainable]

    def _movement(self) -> dict[str, Any]:
        """How large the gradients were, how far the step moved the weights, and how much of it moved nothing."""
        before, self._sample = self._sample, self._sampled(one for _, one in self._trainable)
        found: dict[str, Any] = {"update": _rms(self._sample - before), "gradient_norm": None, "unmoved": None}
        gradients, self._stepped_with = self._stepped_with, None
        if gradients is None:
            return found
        if not self._gradients:
            self._gradients = {name: _rms(gradient) for name, gradient in gradients.items()}
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients.values()]
        found["gradient_norm"] = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        sizes = self._sampled(gradients.get(name) for name, _ in self._trainable).abs()
        whole = float(sizes.sum())
        if whole > 0:
            found["unmoved"] = float(sizes[self._sample == before].sum()) / whole
        return found

    def _keep(self, step: int, drawing: Drawing, tensors: dict[str, torch.Tensor], digests: dict[str, str]) -> None:
        examples = drawing.indices
        key = repr((examples, digests))
        size = max((tensor.numel() for tensor in tensors.values()), default=0)
        if key in self._batches or self._kept + size > BATCH_TOKENS:
            return
        self._kept += size
        lists = {name: tuple(tensor.tolist()) for name, tensor in tensors.items()}
        self.rows |= {features["index"]: features["row"] for features in drawing.features if "row" in features}
        self._batches[key] = Batch(step=step, examples=examples, tensors=lists)

    def _follow_head(self) -> None:
        now = dict(self._model.named_parameters())
        for name, start in self._device_start.items():
            distance = _rms(now[name].detach() - start)
            if not distance <= self._furthest[name]:  # written so that NaN is kept
                self._furthest[name] = distance

    def _parameter(self, name: str, parameter: torch.Tensor, head: set[str]) -> Parameter:
        start = self._start[name].detach()
        return Parameter(
            name=name,
            shape=tuple(parameter.shape),
            head=name in head,
            adapter=is_adapter(name),
            trainable=parameter.requires_grad,
            start=_rms(start),
            change=_rms(parameter.detach().cpu() - start),
            furthest=self._furthest.get(name),
            gradient=self._gradients.get(name),
        )


def altered(start: Any, model: Any) -> tuple[str, ...]:
    """Names of parameters and buffers that differ in value, dtype or shape between two models, or that one lacks."""
    one = {**dict(start.named_parameters()), **dict(start.named_buffers())}
    two = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return tuple(sorted(name for name in one.keys() | two.keys() if not _same(one.get(name), two.get(name))))


def _changed_dropouts(start: Any, model: Any) -> tuple[str, ...]:
    """Names of modules whose dropout differs between two models."""
    now = {name: dropouts(module) for name, module in model.named_modules()}
    return tuple(name for name, module in start.named_modules() if now.get(name, {}) != dropouts(module))


def _same(one: torch.Tensor | None, two: torch.Tensor | None) -> bool:
    if one is None or two is None or one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(bits(one), bits(two))


def describe(optimizer: torch.optim.Optimizer, model: Any) -> Optimizer:
    """Which of the model's parameters an optimizer holds, compared by identity: a copy is a stranger."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    several = len(optimizer.param_groups) > 1
    held = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    return Optimizer(
        name=type(optimizer).__name__,
        fused=optimizer.defaults.get("fused"),
        groups=tuple(
            Group(
                parameters=len(group["params"]),
                names=tuple(names.get(id(one), "a stranger") for one in group["params"]) if several else (),
                learning_rate=float(group["lr"]),
                weight_decay=group.get("weight_decay"),
                betas=tuple(group.get("betas") or ()),
                eps=group["eps"] if isinstance(group.get("eps"), float) else None,  # Adafactor has two
                momentum=group.get("momentum"),
                variants=tuple(name for name in VARIANTS if group.get(name)),
            )
            for group in optimizer.param_groups
        ),
        outside=tuple(sorted(names[one] for one in trainable - held.keys())),
        twice=tuple(sorted(names.get(one, "a stranger") for one, count in held.items() if count > 1)),
        frozen=tuple(sorted(names[one] for one in held.keys() & names.keys() - trainable)),
        strangers=len(held.keys() - names.keys()),
    )


def shape_of(tensors: dict[str, torch.Tensor]) -> tuple[int, ...]:
    """Of what the model reads of a batch."""
    read = tensors.get("input_ids", next(iter(tensors.values()), torch.zeros(0)))
    return tuple(read.shape)


def _rows(tensors: dict[str, torch.Tensor]) -> int:
    """Examples of a micro-batch that the model got."""
    return max((tensor.shape[0] for tensor in tensors.values()), default=0)


def _padded(tensors: dict[str, torch.Tensor], drawing: Drawing) -> int:
    """Tokens that the model computed of a micro-batch."""
    ids = tensors.get("input_ids")
    return ids.numel() if ids is not None else len(drawing.lengths) * max(drawing.lengths, default=0)


def _joined(digests: list[dict[str, str]]) -> dict[str, str]:
    """One digest of each tensor, of those of all micro-batches."""
    if len(digests) == 1:
        return digests[0]
    names = sorted({name for each in digests for name in each})
    joined = {name: " ".join(each.get(name, "none") for each in digests) for name in names}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in joined.items()}


def _results(output: Any) -> tuple[Any, ...]:
    """What a forward pass gave: the loss first, where it gave one."""
    return tuple(output.values()) if isinstance(output, Mapping) else ()


class _Token:
    """Lives as long as the autograd node that carries it."""


def _rms(tensor: torch.Tensor) -> float:
    """Root mean square of all elements."""
    return float(torch.linalg.vector_norm(tensor.float()).item()) / max(tensor.numel(), 1) ** 0.5


def _digest(tensor: torch.Tensor) -> str:
    hash = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    hash.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return hash.hexdigest()[:16]
