"""The seeded model, optimizer and batches that all loops share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding, get_constant_schedule_with_warmup

from harness import experiment
from harness.training import data, tokenizer
from harness.training.checkpoint import Loaded
from harness.training.devices import Device


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
    tokenizer: Any
    examples: data.Examples
    max_length: int
    settings: experiment.Settings
    """All that is declared; a probe may train under another `train` or `precision` than it says."""
    train: experiment.Train
    precision: str
    device: Device
    drawn: data.Drawn

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

    def order(self) -> data.EpochOrder:
        """Which example comes when."""
        return data.EpochOrder(len(self.examples), self.train.seed, self.train.shuffle)

    def collator(self) -> data.Collator:
        """Pads to the longest of the batch, or to the one length that the model can train on."""
        if self.fixed_length is not None:
            return DataCollatorWithPadding(self.tokenizer, padding="max_length", max_length=self.fixed_length)
        return DataCollatorWithPadding(self.tokenizer)

    @property
    def fixed_length(self) -> int | None:
        """The one length in tokens that every batch must be padded to; None where any length will do."""
        return tokenizer.fixed_length(self.model.config)

    def batches(self) -> Iterator[Any]:
        """Batches on the CPU, padded to their longest row, epoch after epoch, until every step has one."""
        order = self.order()
        collate = self.drawn.noting(self.collator())
        loader = DataLoader(self.examples, batch_size=self.train.batch_size, sampler=order, collate_fn=collate)
        made = 0
        for epoch in count():
            order.set_epoch(epoch)
            for batch in loader:
                yield batch
                made += 1
                if made == self.train.steps:
                    return

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass; weights stay in fp32."""
        if self.precision == "bf16":
            return torch.autocast(self.device.torch.type, dtype=torch.bfloat16)
        return nullcontext()


def prepare(loaded: Loaded, settings: experiment.Settings, device: Device) -> Workload:
    """A fresh copy of the weights on the device, and the examples encoded."""
    max_length = data.longest(settings.train.max_length, loaded.tokenizer, loaded.model)
    return Workload(
        model=copy.deepcopy(loaded.model).to(device.torch),
        tokenizer=loaded.tokenizer,
        examples=data.Examples(settings.data, loaded.tokenizer, max_length),
        max_length=max_length,
        settings=settings,
        train=settings.train,
        precision=settings.precision,
        device=device,
        drawn=data.Drawn(),
    )
