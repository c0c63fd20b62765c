"""A class for each word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from harness import experiment
from harness.errors import CheckpointError
from harness.training.tasks.task import IGNORED, Answer, Collator, Features, Task, Tensors, cross_entropy, supervised


class TokenClassification(Task):
    """`labels` of `words`: the first token of a word has its label, the rest of the word and special tokens none."""

    auto = AutoModelForTokenClassification
    per = "token"

    def encode(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """All words of a text, and a label for each token."""
        found = []
        for row in rows:
            encoded = split_words(row["words"], tokenizer, max_length)
            words = encoded.word_ids()
            labels = [
                IGNORED if word is None or (place and words[place - 1] == word) else row["labels"][word]
                for place, word in enumerate(words)
            ]
            found.append({**encoded, "labels": labels})
        return found

    def expected(self, row: experiment.Row, tokenizer: Any, max_length: int) -> Features:
        """The other way round: from each word to its first token."""
        encoded = split_words(row["words"], tokenizer, max_length)
        labels = [IGNORED] * len(encoded["input_ids"])
        for word, label in enumerate(row["labels"]):
            span = encoded.word_to_tokens(word)
            if span is not None:
                labels[span.start] = label
        return {**encoded, "labels": labels}

    def collator(self, tokenizer: Any, model: Any) -> Collator:
        """Pads labels with -100."""
        return DataCollatorForTokenClassification(tokenizer)

    def loss(self, logits: Sequence[torch.Tensor], labels: Tensors) -> torch.Tensor:
        """Cross-entropy over all tokens that have a label."""
        return cross_entropy(logits[0], labels["labels"], self.smoothing)

    def terms(self, labels: Tensors) -> int:
        """Tokens that have a label."""
        return supervised(labels["labels"])

    def kept(self, outputs: Sequence[torch.Tensor], labels: Tensors) -> tuple[torch.Tensor, ...]:
        """The class of each token."""
        return (outputs[0].argmax(-1),)

    def answers(
        self, kept: Sequence[torch.Tensor], labels: Tensors, features: Sequence[Features], tokenizer: Any
    ) -> Iterator[Answer]:
        """The class of each word that has a token."""
        for classes, meant in zip(kept[0], labels["labels"], strict=True):
            there = meant != IGNORED
            yield Answer(classes[there].tolist(), meant[there].tolist())

    def configuration(self) -> dict[str, Any]:
        """The number of classes."""
        return {"num_labels": self.data.resolved_num_labels}

    def loses(self, row: experiment.Row, features: Features, tokenizer: Any) -> bool:
        """Whether a word has no token."""
        return sum(label != IGNORED for label in features["labels"]) < len(row["words"])


def split_words(words: Sequence[str], tokenizer: Any, max_length: int) -> Any:
    """The encoding of a text that is split into words already.

    Raises:
        CheckpointError: the tokenizer cannot say which token is of which word, or has to be set up for it.
    """
    try:
        encoded = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=max_length)
        encoded.word_ids()
    except (AssertionError, ValueError) as error:
        raise CheckpointError(f"the tokenizer takes no text that is split into words: {error}") from error
    return encoded
