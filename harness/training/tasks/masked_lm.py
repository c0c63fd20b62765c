"""Hidden tokens of a text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from harness import experiment
from harness.errors import CheckpointError
from harness.training.tasks.task import (
    IGNORED,
    Answer,
    Collator,
    Features,
    Task,
    Tensors,
    counted,
    cross_entropy,
    predicted,
    supervised,
)


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
        drawn_never = special(tokenizer)
        return {**encoded, "labels": [IGNORED if token in drawn_never else token for token in encoded["input_ids"]]}

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

    def drawable(self, tokenizer: Any) -> Callable[[Features], int]:
        """All but special tokens."""
        drawn_never = special(tokenizer)
        return lambda features: sum(token not in drawn_never for token in features["input_ids"])

    def encode_to_evaluate(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """The text with tokens hidden once and for all, so that every evaluation asks the same.

        They are drawn from the seed and the text alone. A text of which none is drawn has its middle token hidden:
        it would ask nothing.
        """
        found = []
        for features in self.encode(rows, tokenizer, max_length):
            hide = DataCollatorForLanguageModeling(
                tokenizer, mlm_probability=self.masked, seed=_seed(self.seed, features)
            )
            hidden = {name: values[0].tolist() for name, values in hide([dict(features)]).items()}
            if all(label == IGNORED for label in hidden["labels"]):
                ordinary = [
                    place for place, token in enumerate(features["input_ids"]) if token not in special(tokenizer)
                ]
                if ordinary:
                    place = ordinary[len(ordinary) // 2]
                    hidden["labels"][place] = features["input_ids"][place]
                    hidden["input_ids"][place] = tokenizer.mask_token_id
            found.append({**features, **hidden})
        return found

    def evaluation_collator(self, tokenizer: Any, model: Any) -> Collator:
        """Pads labels with -100."""
        return DataCollatorForTokenClassification(tokenizer)

    def kept(self, outputs: Sequence[torch.Tensor], labels: Tensors) -> tuple[torch.Tensor, ...]:
        """Each label beside the logits at its own place."""
        return predicted(outputs[0], labels["labels"])

    def answers(
        self, kept: Sequence[torch.Tensor], labels: Tensors, features: Sequence[Features], tokenizer: Any
    ) -> Iterator[Answer]:
        """Tokens right, tokens to predict, and their loss."""
        return counted(kept)


def special(tokenizer: Any) -> frozenset[int]:
    """Ids that stand for no text."""
    return frozenset(tokenizer.all_special_ids)


def _seed(seed: int, features: Features) -> int:
    """A seed for one text."""
    ids = repr((seed, features["input_ids"])).encode()
    return int.from_bytes(hashlib.blake2b(ids, digest_size=4).digest(), "big")
