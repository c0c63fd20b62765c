"""A class, several classes, or a number for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from harness import experiment
from harness.training.tasks.task import Answer, Features, Task, Tensors, cross_entropy

FORMULAS = {
    "single_label_classification": "cross-entropy",
    "multi_label_classification": "binary cross-entropy of each class",
    "regression": "squared error",
}


class SequenceClassification(Task):
    """`label` of `text` and `text_pair`: a class, a list of classes, or a number."""

    auto = AutoModelForSequenceClassification

    def __init__(self, settings: experiment.Settings) -> None:
        super().__init__(settings)
        labels = (row["label"] for row in self.data.given[:1])
        self.problem = experiment.problem_of(labels, self.data.problem_type)
        self.classes = self.data.resolved_num_labels
        self.formula = FORMULAS[self.problem]  # type: ignore[misc]  # of the problem, not of the class

    def encode(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Text, or pair, with special tokens; the label as the head takes it."""
        pairs = [row["text_pair"] for row in rows if row.get("text_pair") is not None]
        texts = [row["text"] for row in rows]
        encoded = tokenizer(texts, *([pairs] if pairs else []), truncation=True, max_length=max_length)
        return [
            {**{name: column[number] for name, column in encoded.items()}, "label": self._label(row["label"])}
            for number, row in enumerate(rows)
        ]

    def expected(self, row: experiment.Row, tokenizer: Any, max_length: int) -> Features:
        """The text alone."""
        both = [text for text in (row["text"], row.get("text_pair")) if text is not None]
        return {**tokenizer(*both, truncation=True, max_length=max_length), "labels": self._label(row["label"])}

    def _label(self, label: Any) -> Any:
        if self.problem == "regression":
            return float(label)
        if self.problem == "multi_label_classification":
            return [float(number in label) for number in range(self.classes or 0)]
        return label

    def loss(self, logits: Sequence[torch.Tensor], labels: Tensors) -> torch.Tensor:
        """Cross-entropy; or the mean of log(1 + exp(z)) - y z over all classes; or of (z - y)^2."""
        (z,), y = logits, labels["labels"]
        if self.problem == "regression":
            return (z.double().flatten() - y.double().flatten()).square().mean()
        if self.problem == "multi_label_classification":
            return (torch.logaddexp(z.double(), torch.zeros((), dtype=torch.float64)) - y.double() * z.double()).mean()
        return cross_entropy(z, y, self.smoothing)

    def torch_loss(self, outputs: Any, labels: torch.Tensor, reduction: str) -> torch.Tensor:
        """The problem's; each class of several is a term of its own."""
        z = outputs.logits.float()
        if self.problem == "regression":
            return functional.mse_loss(z.flatten(), labels.float().flatten(), reduction=reduction)
        if self.problem == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(z, labels.float(), reduction=reduction)
        return super().torch_loss(outputs, labels, reduction)

    def answers(
        self, kept: Sequence[torch.Tensor], labels: Tensors, features: Sequence[Features], tokenizer: Any
    ) -> Iterator[Answer]:
        """The class; the classes with a score above 0, which is a probability above a half; or the number."""
        if self.problem == "single_label_classification":
            yield from super().answers(kept, labels, features, tokenizer)
        elif self.problem == "regression":
            for number, meant in zip(kept[0].flatten().tolist(), labels["labels"].flatten().tolist(), strict=True):
                yield Answer(number, meant)
        else:
            for scores, label in zip(kept[0], labels["labels"], strict=True):
                yield Answer(tuple((scores > 0).long().tolist()), tuple(label.long().tolist()))

    def configuration(self) -> dict[str, Any]:
        """The number of classes; and the problem, unless transformers guesses it right from whole numbers."""
        said = {} if self.problem == "single_label_classification" else {"problem_type": self.problem}
        return {"num_labels": self.classes, **said}
