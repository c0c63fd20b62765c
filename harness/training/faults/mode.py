"""Faults of train and eval mode, and of dropout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

from harness.training import loops
from harness.training.fault import Patch, fault
from harness.training.faults.seam import altered, calling_back
from harness.training.twin import silence
from harness.training.workload import Workload


@fault("Lightning-AI/pytorch-lightning#20105, autogluon#4965")
def never_in_train_mode(work: Workload, patch: Patch) -> Workload:
    """The model stays in eval mode, as ``from_pretrained`` returns it: ``train()`` has no effect."""
    train = type(work.model).train
    patch.set(type(work.model), "train", lambda self, mode=True: train(self, False))
    return work


@fault("Lightning-AI/pytorch-lightning#20128, Lightning-AI/pytorch-lightning#20646")
def inner_modules_stay_in_eval_mode(work: Workload, patch: Patch) -> Workload:
    """``train()`` sets the flag of the outer module alone."""

    def train(self: Any, mode: bool = True) -> Any:
        self.training = mode
        return self

    work.model.eval()
    patch.set(type(work.model), "train", train)
    return work


@fault("Lightning-AI/pytorch-lightning#19820")
def one_dropout_in_eval_mode(work: Workload, patch: Patch) -> Workload:
    """A part of the model is put back into eval mode in each forward pass."""

    def hook(module: Any, args: Any) -> None:
        dropouts = [part for part in module.modules() if isinstance(part, torch.nn.Dropout) and part.p > 0]
        for part in dropouts[-1:]:
            part.eval()

    work.model.register_forward_pre_hook(hook)
    return work


@fault("MILVLG/mcan-vqa#26, pytorch/tutorials#1624, shubhamagarwal92/mmd#14", loops={"custom"})
def left_in_eval_mode_by_an_evaluation(work: Workload, patch: Patch) -> Workload:
    """An evaluation in the middle of the training does not set train mode again."""

    def windows(self: Workload, loader: Any = None) -> Iterator[list[Any]]:
        for step, window in enumerate(Workload.windows(self, loader)):
            if step == 2:
                self.model.eval()
            yield window

    return altered(work, windows=windows)


@fault("MILVLG/mcan-vqa#26, pytorch/tutorials#1624", loops={"trainer"})
def callback_sets_eval_mode(work: Workload, patch: Patch) -> Workload:
    """A callback sets eval mode at the end of each step; the Trainer sets train mode again in the next."""

    class Evaluating(TrainerCallback):
        def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
            model.eval()

    calling_back(patch, Evaluating)
    return work


@fault("IBM/pytorch-seq2seq#38")
def evaluation_reseeds(work: Workload, patch: Patch) -> Workload:
    """Something sets the seed before each step, so each step draws the same dropout."""

    def hook(module: Any, args: Any) -> None:
        if module.training:
            torch.manual_seed(0)

    work.model.register_forward_pre_hook(hook)
    return work


@fault("DeepCrime: change dropout rate")
def dropout_set_to_zero(work: Workload, patch: Patch) -> Workload:
    """Every dropout of the checkpoint's configuration is set to 0."""
    silence(work.model)
    return work


@fault("DeepCrime: change dropout rate")
def dropout_of_another_recipe(work: Workload, patch: Patch) -> Workload:
    """Every dropout of the model is 0.5."""
    for module in work.model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            module.p = 0.5
    return work


@fault("transformers#31841, bl0/moco#4")
def dropout_not_seeded(work: Workload, patch: Patch) -> Workload:
    """The seed is never set, so dropout draws other numbers in each run."""
    patch.set(loops, "set_seed", lambda seed: torch.seed())
    return work


FAULTS = (
    never_in_train_mode,
    inner_modules_stay_in_eval_mode,
    one_dropout_in_eval_mode,
    left_in_eval_mode_by_an_evaluation,
    callback_sets_eval_mode,
    evaluation_reseeds,
    dropout_set_to_zero,
    dropout_of_another_recipe,
    dropout_not_seeded,
)
