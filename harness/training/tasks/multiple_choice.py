"""Which of several texts goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForMultipleChoice, BatchEncoding, DataCollatorForMultipleChoice

from harness import experiment
from harness.errors import DataError
from harness.training.tasks.task import Collator, Features, Task, Tensors, cross_entropy


class _Movable(DataCollatorForMultipleChoice):
    """The library's collator, whose batches go to a device as those of the others do."""

    def torch_call(self, examples: list[Features]) -> BatchEncoding:
        if len(numbers := {len(example["input_ids"]) for example in examples}) > 1:
            listed = " and of ".join(map(str, sorted(numbers)))
            raise DataError(f"rows of {listed} choices in one batch, expected as many choices in each row")
        # Copies: transformers 5.17 takes the labels out of the examples that it is given.
        return BatchEncoding(super().torch_call([dict(example) for example in examples]))


class MultipleChoice(Task):
    """`label` is the number of the choice that goes on after `text`; each is read as a pair with the text."""

    auto = AutoModelForMultipleChoice
    scores_choices = True

    def encode(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """A pair for each choice, in their order."""
        found = []
        for row in rows:
            texts = [row["text"]] * len(row["choices"])
            encoded = tokenizer(texts, list(row["choices"]), truncation=True, max_length=max_length)
            found.append({**encoded, "label": row["label"]})
        return found

    def expected(self, row: experiment.Row, tokenizer: Any, max_length: int) -> Features:
        """Each pair alone."""
        pairs = [
            dict(tokenizer(row["text"], choice, truncation=True, max_length=max_length)) for choice in row["choices"]
        ]
        return {"choices": pairs, "labels": row["label"]}

    def collator(self, tokenizer: Any, model: Any) -> Collator:
        """Pads all choices to one length: examples x choices x tokens."""
        return _Movable(tokenizer)

    def loss(self, logits: Sequence[torch.Tensor], labels: Tensors) -> torch.Tensor:
        """Cross-entropy over the choices."""
        return cross_entropy(logits[0], labels["labels"], self.smoothing)
