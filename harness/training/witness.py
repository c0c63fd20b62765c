"""Sees what evaluations do: what reaches the model, in which mode it is, and what is other afterwards than before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import numpy as np
import torch

from harness import record
from harness.training import compilation, reference
from harness.training.checkpoint import Loaded
from harness.training.leakage import Leakage
from harness.training.metrics import LOWER_IS_BETTER, interval
from harness.training.split import Reported, Split
from harness.training.tasks import Answer
from harness.training.twin import is_stochastic
from harness.training.workload import Workload

BATCH_TOKENS = 16_384
"""Distinct batches are kept in a record until they hold this many tokens; digests are kept of all."""
KEPT_ANSWERS = 20_000
"""Answers are kept in a record where they hold at most so many values."""


class Witness:
    """The evidence of the evaluations of one case.

    Args:
        loaded: the checkpoint's own tokenizer tells what should have reached the model.
        work: its model is watched.
        split: what it is evaluated on.
    """

    def __init__(self, loaded: Loaded, work: Workload, split: Split) -> None:
        self._loaded, self._work, self._split = loaded, work, split
        said = work.settings.evaluation
        assert said is not None
        self._declared = said
        self._scores: list[record.Score] = []
        self._answers: list[tuple[Answer, ...]] = []
        self._batches: tuple[record.Batch, ...] = ()
        self._drawn: tuple[int, ...] = ()
        self._stochastic = {name: module for name, module in work.model.named_modules() if is_stochastic(module)}
        self._pass = _Pass()
        self.leakage = Leakage(split.examples)
        """Looks at what is trained on."""

    def take(self, step: int, evaluation: Callable[[], Reported]) -> None:
        """Evaluate after so many steps, and note what is seen."""
        model = self._work.model
        modes = {name: module.training for name, module in model.named_modules()}
        before, self._pass = self._state(), _Pass()
        with ExitStack() as hooks:
            for handle in (
                model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
                model.register_forward_hook(self._after_forward),
            ):
                hooks.callback(handle.remove)
            started = perf_counter()
            with compilation.beside(self._work.train.compile):
                reported = evaluation()
            seconds = perf_counter() - started
        after = self._state()
        if not self._scores:
            self._keep()
        self._answers.append(reported.answers)
        self._scores.append(
            record.Score(
                step=step,
                seconds=seconds,
                figures=reported.figures,
                intervals={name: self._interval(name, reported.answers) for name in self._split.metrics},
                answers=_columns(reported.answers),
                answered=len(reported.answers),
                stochastic=len(self._stochastic),
                training=tuple(self._pass.training),
                drew=self._pass.drew,
                modes=tuple(name for name, module in model.named_modules() if module.training != modes.get(name)),
                changed=tuple(name for name, value in after.items() if before.get(name) != value),
            )
        )

    def found(self) -> record.Evaluation:
        """All that was seen."""
        split, rows = self._split, self._split.examples.rows
        indices = sorted({index for batch in self._batches for index in batch.examples})
        return record.Evaluation(
            source=rows.name,
            revision=rows.revision,
            rows=len(split.examples),
            dropped=rows.dropped.number,
            dropped_rows=tuple(record.Row(row=row, text=text, note=note) for row, text, note in rows.dropped.first),
            metrics=split.metrics,
            lower_is_better=tuple(name for name in split.metrics if name in LOWER_IS_BETTER),
            resamples=self._declared.resamples,
            confidence=self._declared.confidence,
            scores=tuple(self._scores),
            improvements=self._improvements(),
            label_names=rows.labels.names or (),
            config_label_names=tuple(self._work.model.config.id2label.values()),
            examples=tuple(
                reference.example(self._loaded, self._work.task, index, rows.get([index])[0], self._work.max_length)
                for index in indices
            ),
            batches=self._batches,
            drawn=self._drawn,
            **self.leakage.found(),
        )

    def _interval(self, name: str, *runs: tuple[Answer, ...]) -> record.Interval:
        return interval(
            name,
            runs,
            self._split.label_names,
            resamples=self._declared.resamples,
            confidence=self._declared.confidence,
            seed=self._work.train.seed,
        )

    def _improvements(self) -> dict[str, record.Interval]:
        """From the first evaluation to the last, of the same examples."""
        if len(self._answers) < 2 or len(self._answers[0]) != len(self._answers[-1]):
            return {}
        found = {name: self._interval(name, self._answers[0], self._answers[-1]) for name in self._split.metrics}
        return {name: _turned(one) if name in LOWER_IS_BETTER else one for name, one in found.items()}

    def _state(self) -> dict[str, Any]:
        """A fingerprint of every tensor of the model, of gradients if there are any, and of every random generator."""
        model = self._work.model
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        found: dict[str, Any] = {name: _fingerprint(tensor.detach()) for name, tensor in tensors.items()}
        grads = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        found |= {f"the gradient of {name}": _fingerprint(grad) for name, grad in grads.items()}
        found["the random state of torch"] = _digest(torch.get_rng_state())
        found["the random state of python"] = random.getstate()
        found["the random state of numpy"] = repr(np.random.get_state(legacy=False))
        if model.device.type == "cuda":
            found["the random state of the device"] = _digest(torch.cuda.get_rng_state(model.device))
        return found

    def _before_forward(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._pass.training |= {name: None for name, part in self._stochastic.items() if part.training}
        self._pass.random = _digest(torch.get_rng_state())
        tensors = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor) and value.dim() > 0}
        size = max((tensor.numel() for tensor in tensors.values()), default=0)
        self._pass.kept += size  # also of what is not kept: a smaller batch after it would stand in its place
        if not self._scores and self._pass.kept <= BATCH_TOKENS:
            self._pass.tensors.append({name: tuple(tensor.tolist()) for name, tensor in tensors.items()})

    def _after_forward(self, module: Any, args: Any, output: Any) -> None:
        self._pass.drew |= _digest(torch.get_rng_state()) != self._pass.random

    def _keep(self) -> None:
        """What reached the model, beside the examples that it is of."""
        drawings = list(self._split.drawn.queue)
        self._drawn = tuple(index for drawing in drawings for index in drawing.indices)
        self._batches = tuple(
            record.Batch(step=number, examples=drawing.indices, tensors=tensors)
            for number, (drawing, tensors) in enumerate(zip(drawings, self._pass.tensors, strict=False))
        )


class _Pass:
    """What is seen in the forward passes of one evaluation."""

    def __init__(self) -> None:
        self.training: dict[str, None] = {}
        self.drew = False
        self.random = b""
        self.kept = 0
        self.tensors: list[dict[str, tuple[Any, ...]]] = []


def _fingerprint(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Changes with any bit of it."""
    return tensor.dtype, tuple(tensor.shape), _digest(tensor)


def _digest(tensor: torch.Tensor) -> bytes:
    flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(flat.numpy(), digest_size=16).digest()


def _turned(one: record.Interval) -> record.Interval:
    """The same, where less is better."""
    return record.Interval(value=-one.value, low=-one.high, high=-one.low)


def _columns(answers: tuple[Answer, ...]) -> record.Answers | None:
    """A column for each field; none where they are too many."""
    size = sum(len(answer.meant) if isinstance(answer.meant, list | tuple) else 1 for answer in answers)
    if size > KEPT_ANSWERS:
        return None
    losses = tuple(answer.loss for answer in answers)
    return record.Answers(
        said=tuple(answer.said for answer in answers),
        meant=tuple(answer.meant for answer in answers),
        loss=losses if any(loss == loss for loss in losses) else (),
    )
