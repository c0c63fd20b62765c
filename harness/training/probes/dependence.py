"""Who may influence whom, by gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.training.checkpoint import Loaded
from harness.training.probes.result import chosen, features, inputs, logits, rows_of_tokens, texts
from harness.training.twin import twin
from harness.training.workload import Workload


def dependence(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Gradient of each example's squared logits with respect to every embedded token of its batch.

    The embedding's output is caught before any other hook sees it, on the twin in eval mode. Figures are the largest
    absolute values: on tokens of other examples, on padding, and the tokens of each example whose gradient is
    exactly 0; where tokens are predicted one by one, also that of the first half's logits on the tokens behind it.
    """
    model = twin(work.model)
    indices = chosen(work.examples.lengths)
    rows = [features(work, index) for index in indices]
    batch, whole = work.plain_collator()(rows), texts(work, indices, rows)
    width = batch["input_ids"].shape[-1]
    tables, results = _forward(model, work, batch)
    found: dict[str, Any] = {"own": [], "others": 0.0, "padding": 0.0, "dead": []}
    for row in range(len(whole.lengths)):
        gradients = torch.autograd.grad(
            results[row, whole.read(row, results.shape[1])].square().sum(),
            [table.embedded for table in tables],
            retain_graph=True,
            allow_unused=True,
        )
        sizes = [_size(table, gradient) for table, gradient in zip(tables, gradients, strict=True)]
        found["others"] = max([found["others"], *(_most(size, row) for size in sizes)])
        # Where ids are shifted on the way in, as decoders of encoder-decoders do, columns are no places of the text.
        mine = sum(size[row] for size, table in zip(sizes, tables, strict=True) if table.unshifted)
        real = torch.zeros(width, dtype=torch.bool)
        real[whole.real(row, width)] = True
        found["padding"] = max([found["padding"], *map(float, mine[~real])])
        found["own"].append(float(mine.max()))
        dead = torch.nonzero((mine == 0) & real).flatten()
        found["dead"].append([int(place) - whole.real(row, width).start for place in dead])
    if work.task.causal:
        found["future"] = [_future(tables, results, row, whole.read(row, width)) for row in range(len(whole.lengths))]
    return {"examples": list(whole.examples), "lengths": list(whole.lengths), **found}


def _future(tables: list[_Table], results: torch.Tensor, row: int, real: slice) -> float:
    """Largest gradient of the logits of a text's first half on the tokens of its second."""
    middle = (real.start + real.stop + 1) // 2
    embedded = [table.embedded for table in tables if table.unshifted]
    said = results[row, real.start : middle].square().sum()
    gradients = torch.autograd.grad(said, embedded, retain_graph=True, allow_unused=True)
    behind = [gradient[row, middle : real.stop] for gradient in gradients if gradient is not None]
    return max((float(gradient.abs().max()) for gradient in behind if gradient.numel()), default=0.0)


@dataclass(frozen=True)
class _Table:
    """What one embedding of token ids gave, as a leaf of the graph."""

    embedded: torch.Tensor
    unshifted: bool
    """It was given the batch's own ids."""


def _forward(model: Any, work: Workload, batch: Any) -> tuple[list[_Table], torch.Tensor]:
    """Every embedding of a number for each token in a forward pass, and the logits that come of them."""
    ids, caught = rows_of_tokens(batch["input_ids"]), []

    def catch(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not args or args[0].dim() != 2 or len(args[0]) != len(ids):
            return None
        if len(output) != len(ids):  # one row of positions for all: it belongs to no example
            return None
        embedded = output.detach().requires_grad_()
        caught.append(_Table(embedded, args[0].shape == ids.shape and bool((args[0] == ids).all())))
        return embedded.clone()  # some models scale it in place, which a leaf does not allow

    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    handles = [table.register_forward_hook(catch, prepend=True) for table in tables]
    try:
        results = logits(work, model(**inputs(work, batch)))
    finally:
        for handle in handles:
            handle.remove()
    if not any(table.unshifted for table in caught):
        raise RuntimeError("no embedding of the model was given the batch's input_ids")
    return caught, results


def _size(table: _Table, gradient: torch.Tensor | None) -> torch.Tensor:
    """Largest absolute gradient of each token; 0 where the logits do not depend on the table at all."""
    return table.embedded.new_zeros(table.embedded.shape[:2]) if gradient is None else gradient.abs().amax(dim=-1)


def _most(size: torch.Tensor, row: int) -> float:
    """Largest entry outside a row."""
    rest = [float(size[other].max()) for other in range(len(size)) if other != row]
    return max(rest, default=0.0)
