"""The gradient of one batch, computed in ways that must not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from harness.training.checkpoint import Loaded
from harness.training.probes.result import chosen, features
from harness.training.twin import twin
from harness.training.workload import Workload


def equivalence(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Relative distance of the gradient to the plain one: in two micro-batches, with gradient checkpointing, with each
    attention implementation. On the twin; a way that the model does not have says why.
    """
    indices = chosen(work.examples.lengths)
    batch = work.collator()([features(work, index) for index in indices])
    plain = _gradient(work, twin(work.model), [batch])
    ways: dict[str, Callable[[Any], Any]] = {
        "gradient_checkpointing": _checkpointed,
        **{f"attention_{kind}": _with_attention(kind) for kind in ("eager", "sdpa")},
    }
    found: dict[str, Any] = {}
    halves = [_rows(batch, slice(None, 1)), _rows(batch, slice(1, None))] if len(indices) > 1 else [batch]
    found["two_micro_batches"] = _distance(_gradient(work, twin(work.model), halves), plain)
    for name, change in ways.items():
        try:
            found[name] = _distance(_gradient(work, change(twin(work.model)), [batch]), plain)
        except (ValueError, NotImplementedError, ImportError) as error:
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return found


def _checkpointed(model: Any) -> Any:
    model.gradient_checkpointing_enable()
    return model.train()  # the twin has no dropout left; checkpointing works in train mode only


def _with_attention(kind: str) -> Callable[[Any], Any]:
    def change(model: Any) -> Any:
        model.set_attn_implementation(kind)
        return model

    return change


def _rows(batch: Any, rows: slice) -> dict[str, torch.Tensor]:
    return {name: value[rows] for name, value in batch.items()}


def _gradient(work: Workload, model: Any, micro_batches: list[Any]) -> dict[str, torch.Tensor]:
    """Of the mean loss over all rows, or over all labels where the loss is a mean over those, accumulated."""
    terms = [work.task.terms(batch) for batch in micro_batches]
    for batch, count in zip(micro_batches, terms, strict=True):
        if count:  # the mean over nothing is no number
            (model(**batch).loss * count / sum(terms)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _distance(one: dict[str, torch.Tensor], plain: dict[str, torch.Tensor]) -> float:
    zero = torch.zeros(())
    norm = math.hypot(*(float(tensor.norm()) for tensor in plain.values()))
    away = math.hypot(*(float((one.get(name, zero) - plain.get(name, zero)).norm()) for name in one.keys() | plain))
    return away / norm if norm else math.nan
