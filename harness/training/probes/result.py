"""What a model says of a batch, lined up with what it says it of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.training.encoding import bare, tokens_of
from harness.training.tasks import Features, Task
from harness.training.workload import Workload


def chosen(lengths: Sequence[int], most: int = 4) -> list[int]:
    """Examples of lengths as different as there are, shortest and longest among them."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    count = min(most, len(order))
    if count < 2:
        return order
    return [order[place * (len(order) - 1) // (count - 1)] for place in range(count)]


def features(work: Workload, index: int) -> Features:
    """An example as the loop's collator takes it."""
    return bare(work.examples[index])


def inputs(work: Workload, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What the model computes logits from: all but the labels."""
    return {name: value for name, value in batch.items() if name not in work.task.labels}


def rows_of_tokens(ids: torch.Tensor) -> torch.Tensor:
    """One row for each text: those of the choices of an example stand one after the other."""
    return ids.flatten(0, -2)


@dataclass(frozen=True)
class Texts:
    """The texts in a batch, one to a row of tokens, and where each is real.

    An example with choices has a text for each, and each is judged by itself.
    """

    examples: tuple[int, ...]
    """The example that a text belongs to."""
    lengths: tuple[int, ...]
    """Tokens of each text."""
    results: tuple[int, ...]
    """Rows of logits of each text."""
    left: bool
    """Padding is on the left."""

    def real(self, row: int, width: int) -> slice:
        """Where the tokens of a text are in a row of that width."""
        return _end(self.lengths[row], width, self.left)

    def read(self, row: int, width: int) -> slice:
        """Where the logits of a text are."""
        return _end(self.results[row], width, self.left)


def texts(work: Workload, indices: Iterable[int], rows: Iterable[Features]) -> Texts:
    """The texts of these examples."""
    found = [
        (index, len(ids), {"example": 1, "token": len(ids), "target": len(row.get("labels", ()) or ())}[work.task.per])
        for index, row in zip(indices, rows, strict=True)
        for ids in tokens_of(row)
    ]
    examples, lengths, results = zip(*found, strict=True)
    return Texts(examples, lengths, results, work.tokenizer.padding_side == "left")


def logits(task: Task, output: Any) -> torch.Tensor:
    """A model's logits as texts x places x values."""
    found = [getattr(output, name) for name in task.outputs]
    if task.per != "example":
        return found[0] if len(found) == 1 else torch.stack(found, dim=-1)
    return found[0].reshape(-1, 1, 1) if task.scores_choices else found[0].unsqueeze(1)


def _end(length: int, width: int, left: bool) -> slice:
    return slice(width - length, width) if left else slice(0, length)
