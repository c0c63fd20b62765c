"""What the checkpoint's own tokenizer makes of a text: the reference for what reached the model."""

from __future__ import annotations

from typing import Any

from harness import experiment
from harness.record import Example, Tokenizer
from harness.training.checkpoint import Loaded
from harness.training.tasks import Features, Task


def tokenizer(loaded: Loaded, max_length: int) -> Tokenizer:
    """The checkpoint's own, whatever the workload encodes and pads with."""
    words = loaded.tokenizer
    return Tokenizer(
        name=type(words).__name__,
        vocabulary=len(words),
        pad_token_id=words.pad_token_id,
        padding_side=words.padding_side,
        max_length=max_length,
        reasons=dict(loaded.reasons),
    )


def example(loaded: Loaded, task: Task, index: int, row: experiment.Row, max_length: int) -> Example:
    """A row of the data encoded once more, alone."""
    return _example(index, " | ".join(task.texts([row])), task.expected(row, loaded.tokenizer, max_length))


def _example(index: int, text: str, encoded: Features) -> Example:
    encoded = dict(encoded)
    labels = {name: encoded.pop(name) for name in ("labels", "start_positions", "end_positions") if name in encoded}
    choices = [_example(index, text, {**choice, "labels": 0}) for choice in encoded.pop("choices", ())]
    return Example(
        index=index,
        text=text[:60],
        input_ids=encoded.pop("input_ids", ()),
        columns={name: values for name, values in encoded.items() if _is_column(name, values)},
        label=labels.get("labels", labels),
        choices=tuple(choices),
    )


def _is_column(name: str, values: Any) -> bool:
    """Whether it is a number for each token, other than the mask."""
    return name != "attention_mask" and isinstance(values, list) and all(isinstance(value, int) for value in values)
