"""The seeded model, optimizer and batches that all loops share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils.data import DataLoader
from transformers import get_constant_schedule_with_warmup

from harness import experiment
from harness.errors import CheckpointError
from harness.training import data, tokenizer
from harness.training.checkpoint import Loaded
from harness.training.devices import Device
from harness.training.tasks import Collator, Task, task_of

if TYPE_CHECKING:
    from harness.training.fault import Fault


class Watching(Protocol):
    """Whoever is told of a loop's steps."""

    def begin(self, optimizer: Any) -> None:
        """The loop is about to fetch its first batch."""

    def step_done(self, loss: torch.Tensor) -> None:
        """A step is over; `loss` is what was back-propagated."""


@dataclass(frozen=True)
class Workload:
    """What a loop needs to train: it decides only how."""

    model: Any
    """On the device, in fp32, untouched by any step."""
    task: Task
    tokenizer: Any
    examples: data.Examples | data.Ahead
    max_length: int
    settings: experiment.Settings
    """All that is declared; a probe may train under another `train` or `precision` than it says."""
    train: experiment.Train
    precision: str
    device: Device
    drawn: data.Drawn
    fault: Fault | None = None
    """What is wrong on purpose: another process that goes on with the case makes the same mistake."""

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over every trainable parameter, decay on all of them, as `torch.optim.AdamW` does."""
        return torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            lr=self.train.learning_rate,
            betas=self.train.betas,
            eps=self.train.eps,
            weight_decay=self.train.weight_decay,
        )

    def schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """Linear from 0 over the warm-up steps, then constant."""
        return get_constant_schedule_with_warmup(optimizer, self.train.warmup_steps)

    def order(self) -> data.EpochOrder | None:
        """Which example comes when; none where the examples come in an order already."""
        if isinstance(self.examples, data.Ahead):
            return None
        return data.EpochOrder(
            len(self.examples),
            self.train.seed,
            self.train.shuffle,
            batch_size=self.train.batch_size,
            lengths=self.examples.lengths if self.train.batching == "grouped" else None,
            drop_last=self.train.drop_last,
        )

    @property
    def padding(self) -> dict[str, Any]:
        """How batches are padded, as tokenizers say it; empty where it is to the longest row."""
        said: dict[str, Any] = {}
        if self.train.padding == "max_length":
            said |= {"padding": "max_length", "max_length": self.max_length}
        if self.train.pad_to_multiple_of is not None:
            said["pad_to_multiple_of"] = self.train.pad_to_multiple_of
        return {**said, **self._fixed}

    @property
    def _fixed(self) -> dict[str, Any]:
        return {} if self.fixed_length is None else {"padding": "max_length", "max_length": self.fixed_length}

    def collator(self) -> Collator:
        """Pads as declared: a new one each time, in the state in which a training begins."""
        return _padding(self.task.collator(self.tokenizer, self.model), self.padding)

    def plain_collator(self, *, longest: bool = False) -> Collator:
        """The same without anything random; it may leave out the labels.

        Args:
            longest: pad to the longest row, whatever is declared, if the model can take that.
        """
        plain = self.task.plain_collator(self.tokenizer, self.model) or self.task.collator(self.tokenizer, self.model)
        return _padding(plain, self._fixed if longest else self.padding)

    @property
    def fixed_length(self) -> int | None:
        """The one length in tokens that every batch must be padded to; None where any length will do."""
        return tokenizer.fixed_length(self.model.config)

    def batches(self) -> Iterator[Any]:
        """Batches on the CPU, padded as declared, epoch after epoch, until every step has one."""
        order, collate = self.order(), self.drawn.noting(self.collator())
        options: dict[str, Any] = {} if order is None else {"sampler": order}
        loader = DataLoader(self.examples, batch_size=self.train.batch_size, collate_fn=collate, **options)
        turns: Any = self.examples if order is None else order
        made = 0
        for epoch in count():
            turns.set_epoch(epoch)
            for batch in self.drawn.timing(iter(loader)):
                yield batch
                made += 1
                if made == self.train.steps:
                    return

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass; weights stay in fp32."""
        if self.precision == "bf16":
            return torch.autocast(self.device.torch.type, dtype=torch.bfloat16)
        return nullcontext()


def _padding(collator: Collator, said: dict[str, Any]) -> Collator:
    """The collator, told how to pad."""
    for name, value in said.items():
        if not hasattr(collator, name):
            raise CheckpointError(f"train.{name}: {type(collator).__name__}, which collates for the task, cannot")
        setattr(collator, name, value)
    return collator


def prepare(loaded: Loaded, settings: experiment.Settings, device: Device) -> Workload:
    """A fresh copy of the weights on the device, and the examples encoded."""
    max_length = data.longest(settings.train.max_length, loaded.tokenizer, loaded.model)
    task = task_of(settings)
    encode = data.encoder(task, loaded.tokenizer, max_length, data.positions(loaded.model))
    return Workload(
        model=copy.deepcopy(loaded.model).to(device.torch),
        task=task,
        tokenizer=loaded.tokenizer,
        examples=data.examples(loaded.rows, encode, settings.train, settings.data.shuffle_buffer),
        max_length=max_length,
        settings=settings,
        train=settings.train,
        precision=settings.precision,
        device=device,
        drawn=data.Drawn(),
    )
