"""Text to examples to batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from harness import experiment
from harness.errors import CheckpointError

Features = dict[str, Any]
Collator = Callable[[list[Features]], Any]


class Examples(Dataset[Features]):
    """Every sequence tokenized once, without padding, beside its label and its index.

    Args:
        data: sequences and labels.
        tokenizer: of the checkpoint.
        max_length: longest encoding in tokens; longer text is cut.

    Raises:
        CheckpointError: the tokenizer cannot cut a text to that length.
    """

    def __init__(self, data: experiment.Data, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self._encoded = tokenizer(list(data.sequences), truncation=True, max_length=max_length)
        self._labels = data.labels
        self.lengths = tuple(len(ids) for ids in self._encoded["input_ids"])
        if max(self.lengths) > max_length:  # tokenizers leave a text whole, silently, where special tokens find no room
            special = f"it adds {tokenizer.num_special_tokens_to_add()} special ones"
            raise CheckpointError(
                f"max_length {max_length}: the tokenizer leaves {max(self.lengths)} tokens, for {special}"
            )

    def like(self, data: experiment.Data) -> Examples:
        """Other texts, encoded in the same way."""
        return Examples(data, self._tokenizer, self._max_length)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Features:
        row = {name: column[index] for name, column in self._encoded.items()}
        return {**row, "label": self._labels[index], "index": index}


class EpochOrder(Sampler[int]):
    """The order of one epoch: a permutation drawn from seed and epoch alone, or the order of the file.

    It has a generator of its own, so that neither dropout nor a worker can change which examples meet in a batch.
    """

    def __init__(self, size: int, seed: int, shuffle: bool) -> None:
        self._size = size
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; the Trainer calls this at the start of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        if not self._shuffle:
            return iter(range(self._size))
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(torch.randperm(self._size, generator=generator).tolist())


class Drawn:
    """The examples of each batch, in the order the loader made the batches.

    Models do not take an example's index, so a noting collator leaves it here before it hands the features on; the
    step that uses the batch takes it from `queue`.
    """

    def __init__(self) -> None:
        self.queue: deque[tuple[int, ...]] = deque()

    def noting(self, collator: Collator) -> Collator:
        """The same collator, for features that carry an index."""

        def collate(features: list[Features]) -> Any:
            rows = [dict(row) for row in features]
            self.queue.append(tuple(row.pop("index") for row in rows))
            return collator(rows)

        return collate


def longest(declared: int | None, tokenizer: Any, model: Any) -> int:
    """The longest encoding in tokens: as declared, else what both tokenizer and model can take."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000]
    if declared is not None:
        return declared
    return min(known) if known else 512
