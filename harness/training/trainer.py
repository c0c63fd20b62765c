"""`transformers.Trainer` as the `trainer` loop uses it: with the batches of the workload, and watched."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from harness.training.workload import Watching, Workload


def arguments(work: Workload, folder: str) -> TrainingArguments:
    """What the experiment declares, in the Trainer's words; `folder` is for what it may write."""
    train = work.train
    said = TrainingArguments(
        output_dir=folder,
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        gradient_accumulation_steps=train.gradient_accumulation,
        seed=train.seed_of_dropout,
        data_seed=train.seed_of_data,
        max_grad_norm=train.max_grad_norm or 0,  # its default is 1
        label_smoothing_factor=train.label_smoothing,
        bf16=work.precision == "bf16",
        fp16=work.precision == "fp16",
        use_cpu=work.device.torch.type == "cpu",
        accelerator_config={"dispatch_batches": False},  # one process fetches its own, also of a stream
        remove_unused_columns=False,  # the index of an example travels to the collator
        dataloader_pin_memory=work.device.torch.type == "cuda",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    said._n_gpu = min(said.n_gpu, 1)  # else several GPUs mean nn.DataParallel over all of them
    return said


class WatchedTrainer(Trainer):
    """The Trainer, saying when it begins and when a step is done."""

    def __init__(self, *, work: Workload, watch: Watching, **kwargs: Any) -> None:
        self._order, self._drawn = work.order(), work.drawn
        self.losses: list[torch.Tensor] = []
        """Of the micro-batches of a step, as they were back-propagated."""
        self.norm: Any = None
        """Of the gradients before they were clipped."""
        if work.train.compute_loss_func:
            kwargs["compute_loss_func"] = _over_the_step(work)
        super().__init__(**kwargs)
        self._clip = self.accelerator.clip_grad_norm_
        self.accelerator.clip_grad_norm_ = self._noting_the_norm
        self.data_collator: Any = work.drawn.noting(self.data_collator)
        self.remove_callback(PrinterCallback)  # comes with disable_tqdm, and prints its own summary
        self.add_callback(_Tell(self, watch))

    def get_batch_samples(self, epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of a step, and note how long that took."""
        start = perf_counter()
        try:
            return super().get_batch_samples(epoch_iterator, *args, **kwargs)
        finally:
            self._drawn.waited += perf_counter() - start

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._order

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Keep the raw loss: the log averages it and can hide a NaN."""
        self.losses.append(super().training_step(*args, **kwargs))
        return self.losses[-1]

    def _noting_the_norm(self, *args: Any, **kwargs: Any) -> Any:
        self.norm = self._clip(*args, **kwargs)
        return self.norm


def _over_the_step(work: Workload) -> Callable[..., torch.Tensor]:
    """The declared loss as a `compute_loss_func`: divided by all labels of a step, whatever the head does."""

    def compute(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return work.task.summed(outputs, labels) / num_items_in_batch

    return compute


class _Tell(TrainerCallback):
    def __init__(self, trainer: WatchedTrainer, watch: Watching) -> None:
        self._trainer = trainer
        self._watch = watch

    def on_train_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        self._watch.begin(optimizer, self._trainer.accelerator.scaler)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        losses, norm = self._trainer.losses, self._trainer.norm
        self._trainer.losses, self._trainer.norm = [], None
        self._watch.step_done(torch.stack(losses).sum(), norm)
