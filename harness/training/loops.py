"""The training loops, side by side, of one signature: ``loop(work, watch)`` trains ``work.train.steps`` steps.

All start from the same weights, draw the same batches in the same order and step the same optimizer; `workload.py`
says which. A loop tells the watch when it begins and when a step is done, and is otherwise left alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from harness.training.workload import Workload


class Watching(Protocol):
    """Whoever is told of a loop's steps."""

    def begin(self, optimizer: Any) -> None:
        """The loop is about to fetch its first batch."""

    def step_done(self, loss: torch.Tensor) -> None:
        """A step is over; `loss` is what was back-propagated."""


Loop = Callable[[Workload, Watching], None]


def custom(work: Workload, watch: Watching) -> None:
    """The loop of the textbook, in plain PyTorch."""
    model = work.model
    optimizer = work.optimizer()
    schedule = work.schedule(optimizer)
    set_seed(work.train.seed)  # dropout draws from here on
    model.train()  # from_pretrained returns a model in eval mode, with dropout off

    watch.begin(optimizer)
    for batch in work.batches():
        batch = batch.to(work.device.torch)
        with work.autocast():  # the backward pass runs outside: it uses the dtypes of the forward
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()  # after the optimizer: the first update uses the first rate
        optimizer.zero_grad()
        watch.step_done(loss)


def trainer(work: Workload, watch: Watching) -> None:
    """`transformers.Trainer`, with its own data loader, collator, autocast and stepping.

    What differs from its defaults is what the experiment declares: the optimizer and schedule go in through
    ``optimizers``, the order of examples through the sampler; gradients are not clipped.
    """
    optimizer = work.optimizer()
    with tempfile.TemporaryDirectory(prefix="harness-trainer-") as folder, _accelerate_on(work.device.torch):
        run = _WatchedTrainer(
            work=work,
            watch=watch,
            model=work.model,
            args=_arguments(work, folder),
            train_dataset=work.examples,
            processing_class=work.tokenizer,
            optimizers=(optimizer, work.schedule(optimizer)),
        )
        set_seed(work.train.seed)
        run.train()


LOOPS: dict[str, Loop] = {"custom": custom, "trainer": trainer}


def _arguments(work: Workload, folder: str) -> TrainingArguments:
    train = work.train
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        seed=train.seed,
        max_grad_norm=0,  # the custom loop does not clip either
        bf16=work.precision == "bf16",
        use_cpu=work.device.torch.type == "cpu",
        remove_unused_columns=False,  # the index of an example travels to the collator
        dataloader_pin_memory=work.device.torch.type == "cuda",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else several GPUs mean nn.DataParallel over all of them
    return arguments


class _WatchedTrainer(Trainer):
    """The Trainer, saying when it begins and when a step is done."""

    def __init__(self, *, work: Workload, watch: Watching, **kwargs: Any) -> None:
        self._order = work.order()
        self._loss = torch.tensor(float("nan"))
        super().__init__(**kwargs)
        self.data_collator: Any = work.drawn.noting(self.data_collator)
        self.remove_callback(PrinterCallback)  # comes with disable_tqdm, and prints its own summary
        self.add_callback(_Tell(self, watch))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._order

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Keep the raw loss of the step: the log averages it and can hide a NaN."""
        self._loss = super().training_step(*args, **kwargs)
        return self._loss


class _Tell(TrainerCallback):
    def __init__(self, trainer: _WatchedTrainer, watch: Watching) -> None:
        self._trainer = trainer
        self._watch = watch

    def on_train_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        self._watch.begin(optimizer)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._watch.step_done(self._trainer._loss)


@contextmanager
def _accelerate_on(device: torch.device) -> Iterator[None]:
    """Accelerate, below the Trainer, takes the first GPU unless this variable names another."""
    name = "ACCELERATE_TORCH_DEVICE"
    before = os.environ.get(name)
    if device.type == "cuda" and device.index:
        os.environ[name] = str(device)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
