"""One text from another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

from harness import experiment
from harness.training.tasks.task import (
    IGNORED,
    Answer,
    Collator,
    Features,
    Task,
    Tensors,
    counted,
    cross_entropy,
    ended,
    predicted,
    supervised,
)


class _Shifting(DataCollatorForSeq2Seq):
    """Shifts labels for models that do it themselves, too, such as NLLB's: without labels they can be asked nothing."""

    def __call__(self, features: Any, return_tensors: str | None = None) -> Any:
        batch = super().__call__(features, return_tensors)
        config = self.model.config
        if "decoder_input_ids" not in batch and config.decoder_start_token_id is not None:
            start = torch.full_like(batch["labels"][:, :1], config.decoder_start_token_id)
            shifted = torch.cat([start, batch["labels"][:, :-1]], dim=1)
            batch["decoder_input_ids"] = shifted.masked_fill(shifted == IGNORED, config.pad_token_id)
        return batch


class Seq2SeqLM(Task):
    """`target` from `text`. The decoder gets the target shifted by one, and the end of the target is learnt, too."""

    auto = AutoModelForSeq2SeqLM
    per = "target"
    brings_head = True

    def encode(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Both texts, each cut to `max_length` tokens; those of the target are the labels."""
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)
        targets = tokenizer(text_target=[row["target"] for row in rows])["input_ids"]
        return [
            {
                **{name: column[number] for name, column in encoded.items()},
                "labels": ended(targets[number], tokenizer)[:max_length],
            }
            for number in range(len(rows))
        ]

    def expected(self, row: experiment.Row, tokenizer: Any, max_length: int) -> Features:
        """Each text alone."""
        target = list(tokenizer(text_target=row["target"])["input_ids"])
        if tokenizer.eos_token_id is not None and target[-1:] != [tokenizer.eos_token_id]:
            target.append(tokenizer.eos_token_id)
        return {**tokenizer(row["text"], truncation=True, max_length=max_length), "labels": target[:max_length]}

    def collator(self, tokenizer: Any, model: Any) -> Collator:
        """Pads labels with -100, and shifts them for the decoder as the model wants it."""
        return _Shifting(tokenizer, model=model)

    def loss(self, logits: Sequence[torch.Tensor], labels: Tensors) -> torch.Tensor:
        """Cross-entropy of each label and the logits at its own place: the decoder's ids are shifted already."""
        return cross_entropy(logits[0], labels["labels"], self.smoothing)

    def terms(self, labels: Tensors) -> int:
        """Tokens of the targets."""
        return supervised(labels["labels"])

    def kept(self, outputs: Sequence[torch.Tensor], labels: Tensors) -> tuple[torch.Tensor, ...]:
        """Each label beside the logits at its own place."""
        return predicted(outputs[0], labels["labels"])

    def answers(
        self, kept: Sequence[torch.Tensor], labels: Tensors, features: Sequence[Features], tokenizer: Any
    ) -> Iterator[Answer]:
        """Tokens right, tokens to predict, and their loss."""
        return counted(kept)

    def loses(self, row: experiment.Row, features: Features, tokenizer: Any) -> bool:
        """Whether the target has lost its end."""
        return tokenizer.eos_token_id not in (None, features["labels"][-1])
