"""Faults of going on from a checkpoint: most are seen by nothing else, for the training that goes through is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from harness import experiment
from harness.training import resume
from harness.training.fault import NO_REPORT, Patch, fault
from harness.training.faults.seam import training_arguments
from harness.training.workload import Workload

_OWN = frozenset({"custom", "trainer"})
"""Accelerate restores weights and random state in a function of its own."""


def _resumes(settings: experiment.Settings) -> bool:
    return settings.train.resume_at is not None


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In the place of a function that loads something."""


@fault("pytorch#35047, Megatron-Bridge#3832", when=_resumes)
def optimizer_state_not_loaded(work: Workload, patch: Patch) -> Workload:
    """The optimizer begins anew: ``optimizer.load_state_dict`` is forgotten."""
    patch.set(torch.optim.Optimizer, "load_state_dict", _nothing)
    return work


@fault("transformers#33336", when=_resumes)
def schedule_begins_anew(work: Workload, patch: Patch) -> Workload:
    """The schedule begins with another warm-up: ``scheduler.load_state_dict`` is forgotten."""
    patch.set(LambdaLR, "load_state_dict", _nothing)
    return work


@fault("transformers#17032, accelerate#4283, vllm-project/speculators#1026", loops=_OWN, when=_resumes)
def random_state_not_restored(work: Workload, patch: Patch) -> Workload:
    """Dropout draws from where the new process happens to be."""
    patch.set(resume, "set_random_state", _nothing)
    patch.set(Trainer, "_load_rng_state", _nothing)
    return work


@fault("unit8co/darts#2463, transformers#33336", when=_resumes)
def data_begin_anew(work: Workload, patch: Patch) -> Workload:
    """The order of the data begins at its start again; of the Trainer, ``ignore_data_skip=True``."""
    patch.set(Workload, "skip", _nothing)
    training_arguments(patch, ignore_data_skip=True)
    return work


@fault("transformers#24103", loops=_OWN, when=_resumes)
def weights_not_loaded(work: Workload, patch: Patch) -> Workload:
    """The optimizer goes on, on the weights from before the training."""
    right = resume.load
    patch.set(resume, "load", lambda folder, model, **parts: right(folder, **parts))
    patch.set(Trainer, "_load_from_checkpoint", _nothing)
    return work


@fault(NO_REPORT, when=_resumes)
def checkpoint_cut_off(work: Workload, patch: Patch) -> Workload:
    """The disk is full: a file of the checkpoint ends in the middle."""
    right = resume.seal

    def seal(keeping: resume.Keeping, *args: Any) -> None:
        right(keeping, *args)
        largest = max(keeping.folder.rglob("*"), key=lambda path: path.stat().st_size)
        Path(largest).write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])

    patch.set(resume, "seal", seal)
    return work


FAULTS = (
    optimizer_state_not_loaded,
    schedule_begins_anew,
    random_state_not_restored,
    data_begin_anew,
    weights_not_loaded,
    checkpoint_cut_off,
)
