"""Which example comes when."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Sampler

from harness.training.rows import WHOLE

GROUP = 50
"""Batches whose examples are sorted by length among themselves, as `transformers` groups them."""
LOT = 64
"""Places of a large permutation that are turned into numbers at once."""


def shuffled(items: Iterator[Any], size: int, seed: int) -> Iterator[Any]:
    """The items in another order: each is drawn from the next so many that are left."""
    chance = random.Random(seed)
    buffer = list(islice(items, size))
    for item in items:
        place = chance.randrange(len(buffer))
        buffer[place], item = item, buffer[place]
        yield item
    chance.shuffle(buffer)
    yield from buffer


def by_length(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[int]:
    """An order of places in which each batch holds neighbours in length; batches are shuffled, a rest comes last."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rest = batches.pop() if batches and len(batches[-1]) < batch_size else []
    turns = torch.randperm(len(batches), generator=generator).tolist()
    return [*(place for turn in turns for place in batches[turn]), *rest]


class EpochOrder(Sampler[int]):
    """The order of one epoch: a permutation drawn from seed and epoch alone, or the order of the file.

    It has a generator of its own, so that neither dropout nor a worker can change which examples meet in a batch.

    Args:
        size: number of examples.
        seed: of the permutations.
        shuffle: whether there are any.
        batch_size: of the batches that `lengths` and `drop_last` mean.
        lengths: where batches are grouped by length, of each example.
        drop_last: whether examples that fill no batch are left out.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        shuffle: bool,
        *,
        batch_size: int = 1,
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ) -> None:
        self._size = size
        self._seed = seed
        self._shuffle = shuffle
        self._batch_size = batch_size
        self._lengths = lengths
        self._epoch = 0
        self._taken = size - size % batch_size if drop_last and size >= batch_size else size

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; the Trainer calls this at the start of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._taken

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = self._permutation(generator)
        return islice(order if self._lengths is None else self._grouped(order, self._lengths), self._taken)

    def _permutation(self, generator: torch.Generator) -> Iterator[int]:
        if not self._shuffle:
            return iter(range(self._size))
        if self._size <= WHOLE:
            return iter(torch.randperm(self._size, generator=generator).tolist())
        # A million numbers are a few MB as a tensor, and ten times as much as a list.
        places = torch.randperm(
            self._size, generator=generator, dtype=torch.int32 if self._size < 2**31 else torch.int64
        )
        return (place for start in range(0, self._size, LOT) for place in places[start : start + LOT].tolist())

    def _grouped(self, order: Iterator[int], lengths: Sequence[int]) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        while lot := list(islice(order, GROUP * self._batch_size)):
            places = by_length([lengths[index] for index in lot], self._batch_size, generator)
            yield from (lot[place] for place in places)
