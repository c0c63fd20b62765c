"""Hidden tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling, DataCollatorWithPadding

from harness import experiment
from harness.errors import CheckpointError
from harness.training.tasks.task import IGNORED, Collator, Features, Task, Tensors, cross_entropy, supervised


class MaskedLM(Task):
    """`text`: of its tokens a share is drawn anew for each batch, hidden, and learnt (Devlin et al. 2019, section 3.1).

    The draws come from the seed alone, so that all loops hide the same tokens.
    """

    auto = AutoModelForMaskedLM
    per = "token"
    brings_head = True

    def __init__(self, settings: experiment.Settings) -> None:
        super().__init__(settings)
        self.masked = self.data.mask_probability

    def encode(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """The text with nothing hidden."""
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)
        return [{name: column[number] for name, column in encoded.items()} for number in range(len(rows))]

    def expected(self, row: experiment.Row, tokenizer: Any, max_length: int) -> Features:
        """The text, and the label that each of its tokens has where it is drawn: special tokens are not."""
        encoded = tokenizer(row["text"], truncation=True, max_length=max_length)
        special = set(tokenizer.all_special_ids)
        return {**encoded, "labels": [IGNORED if token in special else token for token in encoded["input_ids"]]}

    def collator(self, tokenizer: Any, model: Any) -> Collator:
        """Hides tokens."""
        if tokenizer.mask_token is None:
            raise CheckpointError("the tokenizer has no mask token: it is not one of a masked language model")
        return DataCollatorForLanguageModeling(tokenizer, mlm_probability=self.masked, seed=self.seed)

    def plain_collator(self, tokenizer: Any, model: Any) -> Collator:
        """Hides nothing."""
        return DataCollatorWithPadding(tokenizer)

    def loss(self, logits: Sequence[torch.Tensor], labels: Tensors) -> torch.Tensor:
        """Cross-entropy over the drawn tokens."""
        return cross_entropy(logits[0], labels["labels"], self.smoothing)

    def terms(self, labels: Tensors) -> int:
        """Drawn tokens."""
        return supervised(labels["labels"])
