"""What the adapters are, and what they add, beside the formula."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from harness.training import adapters
from harness.training.checkpoint import Loaded
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload

ROWS = 3
NAME = "default"
"""What peft calls an adapter that was given no name."""


def adapted(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Rank, scale and dropout of every adapter, and how far what it adds to its layer's output is from
    ``alpha / rank * B A x``, relative to that, for random x and B.

    On the twin; of layers whose two matrices are no matrices, as in convolutions, nothing is computed.
    """
    if loaded.adapters is None:
        return {"layers": [], "formula": {}}
    found = Counter((_rank(layer), layer.scaling[NAME], _dropout(layer)) for layer in _layers(work.model).values())
    scale = loaded.adapters.alpha / loaded.adapters.rank
    with torch.no_grad(), same_draws():
        distances = {name: _distance(layer, scale) for name, layer in _layers(twin(work.model)).items()}
    return {
        "layers": [
            {"rank": rank, "scale": scaling, "dropout": dropout, "modules": modules}
            for (rank, scaling, dropout), modules in found.items()
        ],
        "formula": {name: distance for name, distance in distances.items() if distance is not None},
    }


def _layers(model: Any) -> dict[str, Any]:
    return adapters.adapted(model)


def _rank(layer: Any) -> int:
    """Of the matrices, not what the layer says."""
    down, _ = _matrices(layer)
    return int(down.shape[0])


def _dropout(layer: Any) -> float:
    return float(getattr(layer.lora_dropout[NAME], "p", 0.0))


def _matrices(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Down to the rank, and up again."""
    if NAME in layer.lora_A:
        return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    return layer.lora_embedding_A[NAME], layer.lora_embedding_B[NAME]


def _distance(layer: Any, scale: float) -> float | None:
    down, up = _matrices(layer)
    if down.dim() != 2:
        return None
    for matrix in (down, up):  # one of them may be 0
        matrix.normal_()
    if NAME in layer.lora_A:
        given: torch.Tensor = torch.randn(ROWS, down.shape[1])
        read = given
    else:
        given = torch.randint(down.shape[1], (ROWS,))
        read = torch.nn.functional.one_hot(given, down.shape[1]).to(down.dtype)
    expected = scale * (read.double() @ down.double().T @ up.double().T)
    added = (layer(given) - layer.get_base_layer()(given)).double()
    return float((added - expected).norm() / expected.norm())
