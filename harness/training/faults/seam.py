"""Where a fault gets hold of a training: the workload's methods, the collator, model code, the Trainer's arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from transformers import TrainerCallback

from harness.training import data, encoding, trainer
from harness.training.fault import Patch
from harness.training.tasks import Collator
from harness.training.workload import Workload

Row = dict[str, Any]


def altered(work: Workload, **methods: Callable[..., Any]) -> Workload:
    """The same workload with other methods; they reach the right ones as `Workload.NAME(self)`."""
    kind = type(f"Altered{type(work).__name__}", (type(work),), methods)
    return kind(**{field.name: getattr(work, field.name) for field in fields(work)})


def stepping(work: Workload, change: Callable[[torch.optim.Optimizer], Any]) -> Workload:
    """The same workload, whose optimizer has been through `change`."""

    def optimizer(self: Workload) -> torch.optim.Optimizer:
        made = Workload.optimizer(self)
        return change(made) or made

    return altered(work, optimizer=optimizer)


def on_batch(patch: Patch, change: Callable[[Any, Any], Any]) -> None:
    """Let the collator of both loops hand on what `change(batch, collator)` makes of each batch."""
    make = Workload.collator

    def collator(self: Workload) -> Collator:
        right = make(self)

        def collate(features: list[Row]) -> Any:
            batch = right(features)
            return change(batch, right) or batch

        return collate

    patch.set(Workload, "collator", collator)


def on_forward(patch: Patch, module: Any, change: Callable[..., Any]) -> None:
    """Let every module of that class run ``change(forward, self, *args, **kwargs)`` in place of its forward.

    The class is changed and not the module, as by a mistake in its code: a model loaded again has it too.
    """
    forward = type(module).forward

    @functools.wraps(forward)
    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(functools.partial(forward, self), self, *args, **kwargs)

    patch.set(type(module), "forward", changed)


def on_loss(patch: Patch, model: Any, loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]) -> None:
    """Let the model's own loss be ``loss(loss, logits, labels)``."""

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if output.loss is not None:
            output["loss"] = loss(output.loss, output.logits, kwargs["labels"])
        return output

    on_forward(patch, model, change)


def on_backbone(patch: Patch, model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let what the head gets of the backbone go through `change`: the pooled state, or else the state of each token.

    Args:
        patch: takes it back.
        model: with a head.
        change: gets and gives a tensor with a row for each example.
    """

    def changed(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        for name in ("pooler_output", "last_hidden_state"):
            if output.get(name) is not None:
                output[name] = change(output[name])
                break
        return output

    on_forward(patch, model.base_model, changed)


def relabelled(work: Workload, change: Callable[[int, Row], Row]) -> Workload:
    """The same workload, each of whose rows is ``change(index, row)``."""
    if isinstance(work.examples, data.Ahead):
        right = work.examples
        return replace(
            work, examples=data.Ahead(right.rows, right.encode, right.train, right.shuffle_buffer, change=change)
        )
    return replace(work, examples=Changed(work.examples, change))


class Changed(data.Examples):
    """Examples, each of whose features are ``change(index, features)``."""

    def __init__(self, right: data.Examples, change: Callable[[int, Row], Row]) -> None:
        self._right, self._change = right, change
        self.lengths, self.lost, self.rows, self.encode = right.lengths, right.lost, right.rows, right.encode

    def like(self, rows: Any) -> Changed:
        """Other rows, changed likewise."""
        return Changed(self._right.like(rows), self._change)

    def __len__(self) -> int:
        return len(self._right)

    def __getitem__(self, index: int) -> Row:
        return self._change(index, self._right[index])


def encoded(work: Workload, tokenizer: Callable[..., Any], max_length: int | None = None) -> Workload:
    """The same workload with its texts encoded by that function, and padded as before."""
    encode = replace(encoding.encoder(work.task, work.tokenizer, max_length or work.max_length), tokenizer=tokenizer)
    buffer = work.settings.data.shuffle_buffer
    return replace(work, examples=data.examples(work.examples.rows, encode, work.train, buffer))


def declared_labels(work: Workload) -> list[int]:
    """The label of every example whose length is known."""
    return [work.examples[index]["label"] for index in range(len(work.examples.lengths))]


def training_arguments(patch: Patch, **changes: Any) -> None:
    """Other `TrainingArguments` than the loop gives its Trainer."""
    right = trainer.arguments

    def changed(*args: Any) -> Any:
        said = right(*args)
        for name, value in changes.items():
            setattr(said, name, value(said) if callable(value) else value)
        return said

    patch.set(trainer, "arguments", changed)


def calling_back(patch: Patch, callback: type[TrainerCallback]) -> None:
    """Give the loop's Trainer one more callback."""
    start = trainer.WatchedTrainer.__init__

    def changed(self: Any, **kwargs: Any) -> None:
        start(self, **kwargs)
        self.add_callback(callback())

    patch.set(trainer.WatchedTrainer, "__init__", changed)
