"""The case's own model, beside the same model that computes in the plain way: without recomputing, in eager attention,
not compiled.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from harness.training import attention as kernels
from harness.training import compilation as compiling
from harness.training import packing as packed
from harness.training.checkpoint import Loaded
from harness.training.probes.padding import more_padding
from harness.training.probes.result import chosen, features, logits, rows_of_tokens
from harness.training.tasks import IGNORED
from harness.training.twin import silence
from harness.training.workload import Workload, checkpoint_layers, keep_layers

Batch = dict[str, torch.Tensor]

DOUBTFUL = 1e-5
"""A distance in fp32 above which it is looked whether rounding explains it: right ways stay below 1e-6."""
NUDGE = 4 * torch.finfo(torch.float32).eps
"""By how much of itself a weight is moved for that: a few times its last bit, as a sum in another order is."""

DRAWS = 100
"""At most: of a text of one token, 15 % of which are drawn, none is in a hundred with a chance of 1e-7."""


def checkpointing(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Relative distance of loss and gradient to those without checkpointing, with dropout on, from the same random
    state; and how many modules ran once more for it. Nothing where checkpointing is not declared.
    """
    if not work.train.gradient_checkpointing:
        return {}
    batch = _batch(work)
    plain, recomputing = _copied(work), _copied(work)
    checkpoint_layers(recomputing, work.checkpointing)
    with _counting(plain) as once:
        expected = _way(work, plain.train(), batch)
    with _counting(recomputing) as twice:
        found = _way(work, recomputing.train(), batch)
    distances = found.distances(expected)
    return {name: distances[name] for name in ("loss", "gradient")} | {"recomputed": len(twice) - len(once)}


def attention(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Logits and gradient in the implementation in use beside those of eager attention, with dropout at 0, of a batch
    with more padding than it needs, and where tokens have logits of their own, of the same with its columns turned.

    Whether all numbers are finite, if they are in eager attention, is looked at for both, and in fp32 for a batch with
    a row that is nothing but padding. There, and where heads read a text's first place, now padding, kernels need not
    agree. A head that takes the mean of a text's tokens, as EuroBERT's does, divides by 0 in either of them.
    """
    used = kernels.chosen(work.model)
    if used in ("", "eager"):
        return {"used": used}
    own, eager = _silent(work), _silent(work)
    try:
        kernels.switch(eager, "eager")
    except (ValueError, ImportError) as error:
        return {"used": used, "no_eager": f"{error}"}
    batch = more_padding(own, work, _batch(work))
    turned = _turned(work, batch)
    ways = {"more padding": batch, **({"padding on the other side": turned} if work.task.per == "token" else {})}
    finite = {"padding on the other side": turned}
    if work.precision in ("fp32", "tf32"):  # in bf16 torch's own kernels for CUDA give NaN for such a row
        finite["a row that is nothing but padding"] = _with_an_empty_row(batch)
    return {
        "used": used,
        "batches": _compared(work, own, eager, ways),
        "finite": {
            name: _way(work, own, each).finite or not _way(work, eager, each).finite for name, each in finite.items()
        },
    }


def compilation(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Logits and gradient of the compiled model beside those of the same model that is not, with dropout at 0: of a
    batch, and of one of another length where lengths vary. Nothing where no compiling is declared.
    """
    if not work.train.compile:
        return {}
    own, eager = _silent(work).train(), _silent(work).train()
    ways = {"a batch": _batch(work)}
    if work.train.padding == "longest" and work.fixed_length is None:
        ways["a longer batch"] = more_padding(own, work, ways["a batch"])
    with compiling.afresh(work.train.compile):
        batches = _compared(work, work.compiled(own), eager, ways)
        return {"batches": batches, "graphs": compiling.graphs()}


def packing(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Logits and gradient of the packed model beside those of the same model on padded rows, with dropout at 0: of a
    batch, and of the same with more padding; and how many of them were packed. Nothing where no packing is declared.
    """
    if not work.train.packing:
        return {}
    own, padded = _silent(work).train(), packed.undone(_silent(work).train())
    batch = _batch(work)
    ways = {"a batch": batch, "more padding": more_padding(own, work, batch)}
    rows: list[bool] = []
    packed.layers_of(own).register_forward_pre_hook(
        lambda layers, args, kwargs: rows.append("lengths" in kwargs), with_kwargs=True
    )
    batches = _compared(work, own, padded, ways)
    return {"used": kernels.chosen(work.model), "packed": sum(rows), "batches": batches}


@dataclass(frozen=True)
class _Way:
    """What a forward and a backward pass gave."""

    loss: torch.Tensor
    logits: torch.Tensor
    gradient: dict[str, torch.Tensor]

    @property
    def finite(self) -> bool:
        """Every number of it is."""
        tensors = (one for one in (self.loss, self.logits, *self.gradient.values()) if one.numel())
        return all(math.isfinite(float(end)) for one in tensors for end in torch.aminmax(one))  # NaN where any is

    def distances(self, other: _Way, real: torch.Tensor | None = None) -> dict[str, float]:
        """Relative to the largest logit, to a loss above 1, and to the norm of the whole gradient.

        Args:
            other: what it is compared with.
            real: the places whose logits count, texts x places; by default all.
        """
        mine, others = (one.logits if real is None else one.logits[real] for one in (self, other))
        largest = others.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        zero = torch.zeros((), device=mine.device)
        names = self.gradient.keys() | other.gradient.keys()
        apart = [self.gradient.get(name, zero) - other.gradient.get(name, zero) for name in names]
        whole = math.hypot(*(float(one.norm()) for one in other.gradient.values()))
        return {
            "loss": float((self.loss - other.loss).abs() / other.loss.abs().clamp_min(1)),
            "logits": float((mine - others).abs().max() / largest),
            "gradient": math.hypot(*(float(one.norm()) for one in apart)) / whole if whole else math.nan,
        }


def _compared(work: Workload, own: Any, eager: Any, batches: dict[str, Batch]) -> list[dict[str, Any]]:
    """Distances to the plain model in fp32, by batch; below fp32 also those that the plain model itself has there, and
    in fp32, if they are large, those that it has when its weights are nudged.
    """
    plain = eager if work.precision == "fp32" else copy.deepcopy(eager).float()
    found = []
    for name, batch in batches.items():
        real = _real(work, batch)
        reference = _way(work, plain, batch, exact=True)
        distances = _way(work, own, batch).distances(reference, real)
        entry: dict[str, Any] = {"batch": name, "own": distances}
        if work.precision != "fp32":
            entry["plain"] = _way(work, eager, batch).distances(reference, real)
        elif any(not distance <= DOUBTFUL for distance in distances.values()):  # NaN is doubtful
            entry["plain"] = _way(work, _nudged(plain), batch, exact=True).distances(reference, real)
            entry["loss"] = float(reference.loss)
        found.append(entry)
    return found


def _nudged(model: Any) -> Any:
    """A copy whose weights are moved by `NUDGE`, up or down by chance."""
    other, chance = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            signs = torch.randint(2, parameter.shape, generator=chance) * 2 - 1
            parameter.mul_(1 + NUDGE * signs.to(parameter.device))
    return other


def _way(work: Workload, model: Any, batch: Batch, *, exact: bool = False) -> _Way:
    """A forward and a backward pass, in the case's precision or in fp32; random numbers are the same each time."""
    device = work.device.torch
    for parameter in model.parameters():
        parameter.grad = None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        if exact:
            output = model(**batch)
        else:
            with work.autocast(), work.products():
                output = model(**batch)
        loss = work.loss(output, batch)
        loss.backward()

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        # A CUDA graph writes over it when it runs again; else it is the model's no more when gradients are let go.
        return tensor.detach().to(torch.float32, copy=bool(work.train.compile))

    named = ((name.removeprefix("_orig_mod."), one.grad) for name, one in model.named_parameters())
    gradient = {name: kept(grad) for name, grad in named if grad is not None}
    return _Way(kept(loss), kept(logits(work.task, output)), gradient)


def _batch(work: Workload) -> Batch:
    """Examples of lengths as different as there are, on the device; drawn again if nothing is to be learnt."""
    collate, rows = work.collator(), [features(work, index) for index in chosen(work.examples.lengths)]
    draws = (collate(rows) for _ in range(DRAWS))
    made = next((batch for batch in draws if work.terms(batch)), None) or collate(rows)
    return {name: value.to(work.device.torch) for name, value in made.items()}


def _turned(work: Workload, batch: Batch) -> Batch:
    """The batch from right to left: what was padded on the right is padded on the left. No text, but a batch."""
    names = ["input_ids", "attention_mask", "token_type_ids", *(work.task.labels if work.task.per == "token" else ())]
    turned = {name: value.flip(-1) if name in names and value.dim() > 1 else value for name, value in batch.items()}
    if work.task.causal:  # what padding says of the token behind it is no business of a loss
        turned["labels"][:, 1:].masked_fill_(turned["attention_mask"][:, :-1] == 0, IGNORED)
    return turned


def _with_an_empty_row(batch: Batch) -> Batch:
    mask = rows_of_tokens(batch["attention_mask"]).clone()
    mask[-1] = 0
    return {**batch, "attention_mask": mask.view(batch["attention_mask"].shape)}


def _real(work: Workload, batch: Batch) -> torch.Tensor | None:
    """Where logits are those of a token that is not padding; none where there are no logits by token."""
    return rows_of_tokens(batch["attention_mask"]).bool() if work.task.per == "token" else None


def _copied(work: Workload) -> Any:
    """The model that was trained, as it was before anything was done to how it computes."""
    model = copy.deepcopy(work.model)
    if work.train.gradient_checkpointing:
        keep_layers(model)
    return model


def _silent(work: Workload) -> Any:
    model = _copied(work).eval()
    silence(model)
    return model


@contextmanager
def _counting(model: Any) -> Iterator[list[None]]:
    """A list that gets an entry each time a module without parts runs."""
    runs: list[None] = []
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    handles = [leaf.register_forward_pre_hook(lambda *args: runs.append(None)) for leaf in leaves]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()
