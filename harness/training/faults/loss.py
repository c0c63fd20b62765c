"""Faults of the loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from harness import experiment
from harness.training.checkpoint import Loaded
from harness.training.fault import NO_REPORT, WHOLE_TEXTS, Patch, fault, loading_fault
from harness.training.faults.seam import on_loss
from harness.training.workload import Workload


@loading_fault("DeepCrime: change loss function")
def loss_negated(loaded: Loaded, patch: Patch) -> Loaded:
    """The loss is maximised."""
    on_loss(patch, loaded.model, lambda loss, logits, labels: -loss)
    return loaded


@loading_fault("transformers#47688, transformers#37766, MakazhanAlpamys/Soup#720")
def loss_times_four(loaded: Loaded, patch: Patch) -> Loaded:
    """The loss is not divided by the number of micro-batches."""
    on_loss(patch, loaded.model, lambda loss, logits, labels: loss * 4)
    return loaded


@loading_fault("transformers#34191, MakazhanAlpamys/Soup#720")
def loss_summed(loaded: Loaded, patch: Patch) -> Loaded:
    """The loss is the sum over the batch, not its mean."""
    on_loss(patch, loaded.model, lambda loss, logits, labels: loss * len(logits))
    return loaded


@loading_fault("transformers#34191")
def loss_a_little_too_small(loaded: Loaded, patch: Patch) -> Loaded:
    """The loss is divided by one row too many."""
    on_loss(patch, loaded.model, lambda loss, logits, labels: loss * len(logits) / (len(logits) + 1))
    return loaded


@loading_fault(NO_REPORT, tasks=WHOLE_TEXTS)
def labels_smoothed(loaded: Loaded, patch: Patch) -> Loaded:
    """Labels are smoothed by 0.1, which nobody declared."""
    on_loss(patch, loaded.model, lambda loss, z, labels: functional.cross_entropy(z, labels, label_smoothing=0.1))
    return loaded


@loading_fault("DeepCrime: change loss function", tasks=WHOLE_TEXTS)
def loss_is_squared_error(loaded: Loaded, patch: Patch) -> Loaded:
    """Squared error between logits and one-hot labels, as of a regression."""
    on_loss(patch, loaded.model, lambda loss, z, labels: functional.mse_loss(z, _one_hot(labels, z)))
    return loaded


@loading_fault("transformers#11012, adapter-hub/adapters#40", tasks=WHOLE_TEXTS)
def loss_is_binary(loaded: Loaded, patch: Patch) -> Loaded:
    """Binary cross-entropy for each class, as of a multi-label problem."""

    def binary(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(logits, _one_hot(labels, logits))

    on_loss(patch, loaded.model, binary)
    return loaded


@loading_fault(NO_REPORT, tasks=WHOLE_TEXTS)
def classes_weighted(loaded: Loaded, patch: Patch) -> Loaded:
    """The first class counts twice, which nobody declared."""

    def weighted(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = logits.new_ones(logits.shape[-1])
        weight[0] = 2
        return functional.cross_entropy(logits, labels, weight)

    on_loss(patch, loaded.model, weighted)
    return loaded


def _of(problem: str) -> Callable[[experiment.Settings], bool]:
    """Whether labels of texts pose that problem."""

    def when(settings: experiment.Settings) -> bool:
        labels = (row.get("label", 0) for row in settings.data.given[:1])
        return experiment.problem_of(labels, settings.data.problem_type) == problem

    return when


@loading_fault("transformers#2491, transformers#1713", tasks=WHOLE_TEXTS, when=_of("single_label_classification"))
def first_class_ignored(loaded: Loaded, patch: Patch) -> Loaded:
    """``ignore_index`` is 0, as where 0 pads the labels: nothing is learnt of the first class."""
    on_loss(patch, loaded.model, lambda loss, z, labels: functional.cross_entropy(z, labels, ignore_index=0))
    return loaded


@loading_fault(NO_REPORT, tasks=WHOLE_TEXTS, when=_of("multi_label_classification"))
def classes_exclude_each_other(loaded: Loaded, patch: Patch) -> Loaded:
    """One softmax over classes of which several may be right."""
    on_loss(patch, loaded.model, lambda loss, z, y: functional.cross_entropy(z, y))
    return loaded


@loading_fault("deepset-ai/FARM#229", tasks=WHOLE_TEXTS, when=_of("regression"))
def squares_of_all_pairs(loaded: Loaded, patch: Patch) -> Loaded:
    """Logits of shape (rows, 1) and labels of shape (rows) make squares of rows x rows."""
    on_loss(patch, loaded.model, lambda loss, z, y: (z - y).square().mean())
    return loaded


@loading_fault("tatsu-lab/alpaca_farm#57, accelerate#1299", tasks=WHOLE_TEXTS)
def last_row_left_out(loaded: Loaded, patch: Patch) -> Loaded:
    """The loss is taken over all rows of a batch but the last."""

    def without(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits[:-1], labels[:-1]) if len(logits) > 1 else loss

    on_loss(patch, loaded.model, without)
    return loaded


@loading_fault("transformers#47394, transformers#37830", tasks=WHOLE_TEXTS)
def labels_shifted_in_the_loss(loaded: Loaded, patch: Patch) -> Loaded:
    """The loss compares each row with the label of its neighbour, as a shift for language models does."""
    on_loss(patch, loaded.model, lambda loss, z, labels: functional.cross_entropy(z, labels.roll(1)))
    return loaded


@loading_fault("DeepCrime: add weights regularisation")
def squares_of_the_logits_added(loaded: Loaded, patch: Patch) -> Loaded:
    """A penalty is added to the loss, which nobody declared."""
    on_loss(patch, loaded.model, lambda loss, logits, labels: loss + 0.01 * logits.square().mean())
    return loaded


@fault("DeepCrime: add weights regularisation")
def squares_of_the_weights_added(work: Workload, patch: Patch) -> Workload:
    """Weight decay is in the loss as well."""

    def hook(module: torch.nn.Module, args: object, output: dict[str, torch.Tensor]) -> None:
        if module.training and output.get("loss") is not None:
            penalty = sum(parameter.square().sum() for parameter in module.parameters())
            output["loss"] = output["loss"] + 1e-3 * penalty

    work.model.register_forward_hook(hook)
    return work


def _one_hot(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return functional.one_hot(labels, logits.shape[-1]).to(logits.dtype)


FAULTS = (
    loss_negated,
    loss_times_four,
    loss_summed,
    loss_a_little_too_small,
    labels_smoothed,
    loss_is_squared_error,
    loss_is_binary,
    classes_weighted,
    first_class_ignored,
    classes_exclude_each_other,
    squares_of_all_pairs,
    last_row_left_out,
    labels_shifted_in_the_loss,
    squares_of_the_logits_added,
    squares_of_the_weights_added,
)
