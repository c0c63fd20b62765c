"""What the checkpoint's own tokenizer makes of a text: the reference for what reached the model."""

from __future__ import annotations

from typing import Any

from harness import experiment
from harness.record import Example, Tokenizer
from harness.training.checkpoint import Loaded


def tokenizer(loaded: Loaded, max_length: int) -> Tokenizer:
    """The checkpoint's own, whatever the workload encodes and pads with."""
    words = loaded.tokenizer
    return Tokenizer(
        name=type(words).__name__,
        vocabulary=len(words),
        pad_token_id=words.pad_token_id,
        padding_side=words.padding_side,
        max_length=max_length,
    )


def example(loaded: Loaded, data: experiment.Data, index: int, max_length: int) -> Example:
    """A text of the data encoded once more, alone."""
    encoded = dict(loaded.tokenizer(data.sequences[index], truncation=True, max_length=max_length))
    return Example(
        index=index,
        text=data.sequences[index][:60],
        input_ids=encoded.pop("input_ids"),
        columns={name: values for name, values in encoded.items() if _is_column(name, values)},
        label=data.labels[index],
    )


def _is_column(name: str, values: Any) -> bool:
    """Whether it is a number for each token, other than the mask."""
    return name != "attention_mask" and isinstance(values, list) and all(isinstance(value, int) for value in values)
