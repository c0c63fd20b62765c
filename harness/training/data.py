"""Text to examples to batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from harness import experiment
from harness.errors import CheckpointError
from harness.training.tasks import Collator, Features, Task


class Examples(Dataset[Features]):
    """Every row encoded once, without padding, beside its label and its index.

    Args:
        task: encodes them.
        rows: what to train on.
        tokenizer: of the checkpoint.
        max_length: longest encoding in tokens; longer text is cut.

    Raises:
        CheckpointError: the tokenizer cannot cut a text to that length.
    """

    def __init__(self, task: Task, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> None:
        self._features = task.encode(rows, tokenizer, max_length)
        parts = [tokens_of(features) for features in self._features]
        self.lengths = tuple(sum(map(len, texts)) for texts in parts)
        self.lost = tuple(index for index, row in enumerate(rows) if task.loses(row, self._features[index], tokenizer))
        """Indices of the examples that have lost something to be learnt, as in what is cut off."""
        longest = max(len(ids) for texts in parts for ids in texts)
        if longest > max_length:  # tokenizers leave a text whole, silently, where special tokens find no room
            special = f"it adds {tokenizer.num_special_tokens_to_add()} special ones"
            raise CheckpointError(f"max_length {max_length}: the tokenizer leaves {longest} tokens, for {special}")

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> Features:
        return {**self._features[index], "index": index}


def tokens_of(features: Features) -> list[list[int]]:
    """The ids of each text of an example: one, or one for each choice."""
    ids = features["input_ids"]
    return ids if ids and isinstance(ids[0], list) else [ids]


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
