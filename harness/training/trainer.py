"""`transformers.Trainer` as the `trainer` loop uses it: with the batches of the workload, and watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from harness.training.compilation import options
from harness.training.evaluation import as_found, loader, split_of
from harness.training.metrics import measure
from harness.training.resume import Keeping
from harness.training.split import Reported
from harness.training.tasks import Answer
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
        per_device_eval_batch_size=work.split.batch_size if work.split else train.batch_size,
        eval_strategy="steps" if work.split and work.split.every else "no",
        eval_steps=work.split.every if work.split else None,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **_ways(work),
    )
    said._n_gpu = min(said.n_gpu, 1)  # else several GPUs mean nn.DataParallel over all of them
    if work.device.torch.type == "cuda":
        # It takes the first, whatever is asked for, and makes it the current one.
        said._setup_devices = work.device.torch
        torch.cuda.set_device(work.device.torch)
    return said


def _ways(work: Workload) -> dict[str, Any]:
    """Gradient checkpointing and compiling, by the names that this version of transformers has for them."""
    said: dict[str, Any] = {}
    if work.train.gradient_checkpointing:
        names = {field.name for field in fields(TrainingArguments)}
        name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
        said = {name: True, f"{name}_kwargs": work.checkpointing}
    if work.train.compile:
        said |= {"torch_compile": True}
        said |= {f"torch_compile_{name}": value for name, value in options(work.train.compile).items()}
    return said


class EvaluatingTrainer(Trainer):
    """The Trainer, with the experiment's split to evaluate on and its metrics."""

    def __init__(self, *, work: Workload, **kwargs: Any) -> None:
        self._work = work
        self._answers: tuple[Answer, ...] = ()
        self.reported = Reported({}, ())
        """What the last evaluation says."""
        if work.split is not None:
            kwargs |= {
                "eval_dataset": work.split.examples,
                "compute_metrics": self._metrics,
                "preprocess_logits_for_metrics": self._kept,
            }
        with work.products():  # where it compiles, Accelerate turns TF32 on
            super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)  # comes with disable_tqdm, and prints its own summary

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The split, in batches that are not noted among those of the training."""
        split = split_of(self._work)
        collate = split.drawn.noting(self._work.evaluation_collator())
        return self.accelerator.prepare(loader(self._work, collate))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, and leave the model in the mode it was in: the Trainer leaves it in eval mode."""
        split = split_of(self._work)
        with as_found(self.model):
            said: dict[str, float] = super().evaluate(*args, **kwargs)
        figures = {name: said[f"eval_{name}"] for name in ("loss", *split.metrics)}
        self.reported = Reported(figures, self._answers)
        return said

    def _kept(self, logits: Any, labels: Any) -> Any:
        """What it keeps of a batch: a tensor, or a tuple of several."""
        outputs = logits if isinstance(logits, tuple) else (logits,)  # behind them stand hidden states, where there are
        if self._work.train.compile:  # CUDA graphs write the next batch's outputs where those of this one are
            outputs = tuple(one.clone() for one in outputs[: len(self._work.task.outputs)])
        kept = self._work.task.kept(outputs[: len(self._work.task.outputs)], self._named(labels))
        return kept[0] if len(kept) == 1 else kept

    def _metrics(self, predictions: EvalPrediction) -> dict[str, float]:
        split, task = split_of(self._work), self._work.task
        kept = predictions.predictions if isinstance(predictions.predictions, tuple) else (predictions.predictions,)
        features = [split.examples[index] for index in range(len(split.examples))]
        labels = {name: torch.as_tensor(column) for name, column in self._named(predictions.label_ids).items()}
        self._answers = tuple(task.answers([*map(torch.as_tensor, kept)], labels, features, self._work.tokenizer))
        return measure(split.metrics, self._answers, split.label_names)

    def _named(self, labels: Any) -> dict[str, Any]:
        names = self._work.task.labels
        return dict(zip(names, labels if isinstance(labels, tuple) else (labels,), strict=True))


class WatchedTrainer(EvaluatingTrainer):
    """The Trainer, saying when it begins and when a step is done."""

    def __init__(self, *, work: Workload, watch: Watching, **kwargs: Any) -> None:
        self._order, self._drawn, self._watch = work.order(), work.drawn, watch
        self.losses: list[torch.Tensor] = []
        """Of the micro-batches of a step, as they were back-propagated."""
        self.norm: Any = None
        """Of the gradients before they were clipped."""
        if work.train.compute_loss_func:
            kwargs["compute_loss_func"] = _over_the_step(work)
        super().__init__(work=work, **kwargs)
        self._clip = self.accelerator.clip_grad_norm_
        self.accelerator.clip_grad_norm_ = self._noting_the_norm
        self.data_collator: Any = work.drawn.noting(self.data_collator)
        self.add_callback(_Tell(self, watch, work.keeping))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate between two steps."""

        def evaluation() -> Reported:
            super(WatchedTrainer, self).evaluate(*args, **kwargs)
            return self.reported

        if self._work.evaluates_after(self.state.global_step):  # what is asked after the last step comes later
            self._watch.evaluate(evaluation)
        return self.reported.figures

    def get_batch_samples(self, epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of a step: the loop waits for them here."""
        with self._drawn.waiting():
            return super().get_batch_samples(epoch_iterator, *args, **kwargs)

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
        return work.task.torch_loss(outputs, labels, "sum") / num_items_in_batch

    return compute


class _Tell(TrainerCallback):
    def __init__(self, trainer: WatchedTrainer, watch: Watching, keeping: Keeping) -> None:
        self._trainer = trainer
        self._watch = watch
        self._keeping = keeping

    def on_train_begin(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
        self._watch.begin(optimizer, self._trainer.accelerator.scaler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses, norm = self._trainer.losses, self._trainer.norm
        self._trainer.losses, self._trainer.norm = [], None
        self._watch.step_done(torch.stack(losses).sum(), norm)
        control.should_save = self._keeping.due(state.global_step)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._watch.kept()
