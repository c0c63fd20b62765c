"""Faults that come with the Trainer: its defaults, callbacks and overridden methods."""

from __future__ import annotations

from typing import Any

from torch.nn import functional
from transformers import Trainer, TrainerCallback

from harness.training import trainer
from harness.training.fault import NO_REPORT, Patch, fault
from harness.training.faults.seam import calling_back, training_arguments
from harness.training.workload import Workload

TRAINER = {"trainer"}


@fault("transformers: TrainingArguments.max_grad_norm is 1.0 by default", loops=TRAINER)
def trainer_clips(work: Workload, patch: Patch) -> Workload:
    """Gradients are clipped to a norm of 1, the Trainer's default, which nobody declared."""
    training_arguments(patch, max_grad_norm=1.0)
    return work


@fault("transformers#47688", loops=TRAINER)
def trainer_accumulates(work: Workload, patch: Patch) -> Workload:
    """Gradients are accumulated over four batches, which nobody declared."""
    training_arguments(patch, gradient_accumulation_steps=4)
    return work


@fault("transformers: the Trainer makes its own optimizer where it is given none", loops=TRAINER)
def trainer_makes_its_own_optimizer(work: Workload, patch: Patch) -> Workload:
    """The optimizer and schedule are not handed over: the Trainer makes its own, with its own decay and decline."""
    start = Trainer.__init__

    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **{**kwargs, "optimizers": (None, None)})

    patch.set(Trainer, "__init__", changed)
    return work


@fault("transformers#37766, MakazhanAlpamys/Soup#720", loops=TRAINER)
def compute_loss_sums(work: Workload, patch: Patch) -> Workload:
    """An overridden ``compute_loss`` returns the sum over the batch."""

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        loss = functional.cross_entropy(outputs.logits, inputs["labels"], reduction="sum")
        return (loss, outputs) if return_outputs else loss

    patch.set(Trainer, "compute_loss", compute_loss)
    return work


@fault("transformers#37766", loops=TRAINER)
def compute_loss_smooths(work: Workload, patch: Patch) -> Workload:
    """``label_smoothing_factor`` is set, which nobody declared."""
    training_arguments(patch, label_smoothing_factor=0.1)
    return work


@fault("transformers#37766", loops=TRAINER)
def training_step_scales(work: Workload, patch: Patch) -> Workload:
    """The backward pass runs on a loss that was multiplied by the number of micro-batches."""
    right = Trainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = right(self, *args, **kwargs)
        return (found[0] * 2, found[1]) if isinstance(found, tuple) else found * 2

    patch.set(Trainer, "compute_loss", compute_loss)
    return work


@fault(NO_REPORT, loops=TRAINER)
def neftune_left_on(work: Workload, patch: Patch) -> Workload:
    """``neftune_noise_alpha`` is set, which nobody declared."""
    training_arguments(patch, neftune_noise_alpha=5.0)
    return work


@fault("DeepCrime: change early stopping", loops=TRAINER)
def callback_stops_early(work: Workload, patch: Patch) -> Workload:
    """A callback stops the training after three steps."""

    class Stopping(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step >= 3
            return control

    calling_back(patch, Stopping)
    return work


@fault("DeepCrime: change number of epochs", loops=TRAINER)
def trainer_goes_on_too_long(work: Workload, patch: Patch) -> Workload:
    """``max_steps`` is one too many."""
    training_arguments(patch, max_steps=lambda arguments: arguments.max_steps + 1)
    return work


@fault("DeepCrime: change gradient clip", loops=TRAINER)
def callback_changes_gradients(work: Workload, patch: Patch) -> Workload:
    """A callback that should log the gradients scales them."""

    class Scaling(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(0.9)

    calling_back(patch, Scaling)
    return work


@fault("transformers: remove_unused_columns keeps what the forward's signature names", loops=TRAINER)
def mask_removed_as_unused(work: Workload, patch: Patch) -> Workload:
    """The Trainer takes attention_mask for a column that the model does not use."""
    right = trainer.WatchedTrainer._prepare_inputs

    def prepared(self: Any, inputs: Any) -> Any:
        return {name: value for name, value in right(self, inputs).items() if name != "attention_mask"}

    patch.set(trainer.WatchedTrainer, "_prepare_inputs", prepared)
    return work


FAULTS = (
    trainer_clips,
    trainer_accumulates,
    trainer_makes_its_own_optimizer,
    compute_loss_sums,
    compute_loss_smooths,
    training_step_scales,
    neftune_left_on,
    callback_stops_early,
    trainer_goes_on_too_long,
    callback_changes_gradients,
    mask_removed_as_unused,
)
