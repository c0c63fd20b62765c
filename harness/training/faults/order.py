"""Faults of what is drawn, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader

from harness.training import data, workload
from harness.training.fault import NO_REPORT, Patch, fault
from harness.training.faults.seam import altered, training_arguments
from harness.training.order import EpochOrder
from harness.training.tasks import Features
from harness.training.workload import Workload


def _drawing(patch: Patch, change: Callable[[EpochOrder, list[int]], list[int]]) -> None:
    """Let every epoch draw what `change(order, indices)` makes of the right indices."""
    right = EpochOrder.__iter__

    def changed(self: EpochOrder) -> Iterator[int]:
        return iter(change(self, list(right(self))))

    patch.set(EpochOrder, "__iter__", changed)


@fault("choderalab/modelforge#129, transformers#11258, Nerogar/OneTrainer#96")
def same_order_in_every_epoch(work: Workload, patch: Patch) -> Workload:
    """The sampler is never told the epoch: every one has the order of the first."""
    patch.set(EpochOrder, "set_epoch", lambda self, epoch: None)
    return work


@fault("choderalab/modelforge#129, DALLE-pytorch#230")
def not_shuffled(work: Workload, patch: Patch) -> Workload:
    """Every epoch has the order of the file, although shuffling is declared."""
    _drawing(patch, lambda order, indices: sorted(indices))
    return work


@fault("lhotse-speech/lhotse#562, facebookresearch/fairseq#1258")
def batches_made_once(work: Workload, patch: Patch) -> Workload:
    """Rows are put together once, and every epoch shuffles the batches only."""
    size = work.train.batch_size

    def change(order: EpochOrder, indices: list[int]) -> list[int]:
        batches = sorted(range(len(indices) // size), key=lambda batch: indices[batch])
        full = [index for batch in batches for index in range(batch * size, (batch + 1) * size)]
        return full + list(range(len(full), len(indices)))

    _drawing(patch, change)
    return work


@fault("transformers#11258")
def sorted_by_length(work: Workload, patch: Patch) -> Workload:
    """Every epoch goes from the shortest text to the longest."""
    lengths = work.examples.lengths
    _drawing(patch, lambda order, indices: sorted(indices, key=lambda index: lengths[index]))
    return work


@fault(NO_REPORT)
def drawn_with_replacement(work: Workload, patch: Patch) -> Workload:
    """An epoch draws each example at random, so some come twice and some never."""

    def change(order: EpochOrder, indices: list[int]) -> list[int]:
        return [indices[(place * place + 1) % len(indices)] for place in range(len(indices))]

    _drawing(patch, change)
    return work


@fault("Karpathy, A Recipe for Training Neural Networks (2019): overfit a single batch first")
def one_batch_again_and_again(work: Workload, patch: Patch) -> Workload:
    """Training on one batch, a trial that was left in."""
    size = work.train.batch_size
    _drawing(patch, lambda order, indices: (sorted(indices)[:size] * len(indices))[: len(indices)])
    return work


@fault("DeepCrime: delete training data")
def half_of_the_data(work: Workload, patch: Patch) -> Workload:
    """Only the first half of the data is used, a trial that was left in."""
    half = max(1, len(work.examples.lengths) // 2)
    _drawing(patch, lambda order, indices: [index % half for index in indices])
    return work


@fault("Lightning-AI/pytorch-lightning#19987, transformers#24415", loops={"custom"})
def loader_drops_the_last_batch(work: Workload, patch: Patch) -> Workload:
    """The data loader drops the partial batch that ends an epoch."""
    patch.set(
        workload, "DataLoader", partial(DataLoader, drop_last=len(work.examples.lengths) >= work.train.batch_size)
    )
    return work


@fault("Lightning-AI/pytorch-lightning#19987, transformers#24415", loops={"trainer"})
def trainer_drops_the_last_batch(work: Workload, patch: Patch) -> Workload:
    """``dataloader_drop_last`` is set."""
    training_arguments(patch, dataloader_drop_last=len(work.examples.lengths) >= work.train.batch_size)
    return work


@fault(NO_REPORT, loops={"trainer"})
def trainer_doubles_the_batch(work: Workload, patch: Patch) -> Workload:
    """Batches are twice the declared size, as with two GPUs under nn.DataParallel."""
    training_arguments(patch, per_device_train_batch_size=lambda arguments: 2 * arguments.per_device_train_batch_size)
    return work


@fault(NO_REPORT, loops={"custom"})
def loader_halves_the_batch(work: Workload, patch: Patch) -> Workload:
    """Batches are half the declared size, as where it is divided by a number of processes."""

    def halved(dataset: data.Examples, *, batch_size: int, **options: object) -> DataLoader[Features]:
        return DataLoader(dataset, batch_size=max(1, batch_size // 2), **options)

    patch.set(workload, "DataLoader", halved)
    return work


@fault("bl0/moco#4, transformers#31841")
def sampler_not_seeded(work: Workload, patch: Patch) -> Workload:
    """The order of the data is drawn from the operating system's randomness."""

    def change(order: EpochOrder, indices: list[int]) -> list[int]:
        generator = torch.Generator()
        generator.seed()
        return [indices[place] for place in torch.randperm(len(indices), generator=generator).tolist()]

    _drawing(patch, change)
    return work


@fault("unit8co/darts#2463, transformers#33336", loops={"custom"})
def each_batch_twice(work: Workload, patch: Patch) -> Workload:
    """Each batch is used for two steps."""

    def windows(self: Workload, loader: object = None) -> Iterator[list[object]]:
        for step, window in enumerate(Workload.windows(self, loader)):
            if step % 2 == 0:
                kept = window
            yield kept

    return altered(work, windows=windows)


FAULTS = (
    same_order_in_every_epoch,
    batches_made_once,
    not_shuffled,
    sorted_by_length,
    drawn_with_replacement,
    one_batch_again_and_again,
    half_of_the_data,
    loader_drops_the_last_batch,
    trainer_drops_the_last_batch,
    trainer_doubles_the_batch,
    loader_halves_the_batch,
    sampler_not_seeded,
    each_batch_twice,
)
