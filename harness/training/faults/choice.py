"""Faults of what an experiment may choose: accumulation, clipping, scaling, smoothing, groups, freezing, schedules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from types import MethodType
from typing import Any

import torch
from transformers import get_constant_schedule_with_warmup

from harness import experiment
from harness.training.fault import NO_REPORT, Patch, fault
from harness.training.faults.seam import altered, stepping
from harness.training.workload import Workload

OWN = {"custom", "accelerate"}
"""Loops that divide the loss themselves."""


def _accumulates(settings: experiment.Settings) -> bool:
    return settings.train.gradient_accumulation > 1


def _clips(settings: experiment.Settings) -> bool:
    return settings.train.max_grad_norm is not None


def _scales(settings: experiment.Settings) -> bool:
    return settings.precision == "fp16"


def _freezes(settings: experiment.Settings) -> bool:
    return settings.train.freeze is not None


def _falls(settings: experiment.Settings) -> bool:
    return settings.train.schedule != "constant"


@fault("accelerate#1299, accelerate#616, tatsu-lab/alpaca_farm#57, openWakeWord#316", when=_accumulates)
def only_the_last_micro_batch_counts(work: Workload, patch: Patch) -> Workload:
    """``zero_grad()`` stands inside the loop over micro-batches."""

    def clear(module: Any, args: Any) -> None:
        if torch.is_grad_enabled():
            for parameter in module.parameters():
                parameter.grad = None

    work.model.register_forward_pre_hook(clear)
    return work


@fault("transformers#34191, huggingface/blog#2414, MakazhanAlpamys/Soup#720", loops=OWN, when=_accumulates)
def mean_of_means(work: Workload, patch: Patch) -> Workload:
    """Each micro-batch's mean counts alike, however much it has to learn: the bug of 2024."""
    return altered(work, shares=lambda self, window: [1 / len(window)] * len(window))


@fault("transformers#47688, transformers#37766", loops=OWN, when=_accumulates)
def micro_batches_added_up(work: Workload, patch: Patch) -> Workload:
    """Nobody divides by the number of micro-batches."""
    return altered(work, shares=lambda self, window: [1.0] * len(window))


@fault("modelscope/ms-swift#10084, pytorch-lightning#19987, burn#5695", loops=OWN, when=_accumulates)
def last_step_of_an_epoch_too_weak(work: Workload, patch: Patch) -> Workload:
    """Its few micro-batches are divided by the number that a whole step has."""

    def shares(self: Workload, window: list[Any]) -> list[float]:
        part = len(window) / self.train.gradient_accumulation
        return [part * share for share in Workload.shares(self, window)]

    return altered(work, shares=shares)


@fault("transformers#24415, pytorch-lightning#19987", loops=OWN, when=_accumulates)
def last_step_of_an_epoch_left_out(work: Workload, patch: Patch) -> Workload:
    """``if (i + 1) % accumulation == 0``, where the batches of an epoch do not divide."""

    def whole(self: Workload, loader: Any) -> Iterator[list[Any]]:
        longer = self.train.model_copy(update={"steps": self.train.steps * len(work.examples.lengths)})
        for window in Workload.windows(replace(self, train=longer), loader):
            if len(window) == self.train.gradient_accumulation:
                yield window
            else:
                self.drawn.queue.clear()

    def windows(self: Workload, loader: Any = None) -> Iterator[list[Any]]:
        return islice(whole(self, loader), self.train.steps)

    return altered(work, windows=windows)


@fault(NO_REPORT, loops=OWN, when=lambda settings: settings.train.label_smoothing > 0)
def smoothing_forgotten(work: Workload, patch: Patch) -> Workload:
    """The model's own loss is taken, which smooths nothing."""
    return altered(work, loss=lambda self, outputs, batch: outputs.loss)


@fault("DeepCrime: change gradient clip", when=_clips)
def clipping_forgotten(work: Workload, patch: Patch) -> Workload:
    """The norm is taken for the log, and the gradients stay as they are."""
    right = torch.nn.utils.clip_grad_norm_

    def measured(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        return right(parameters, float("inf"), *args, **kwargs)

    patch.set(torch.nn.utils, "clip_grad_norm_", measured)
    return work


@fault(
    "Lightning-AI/pytorch-lightning#9599, pytorch/examples#1196, milesial/Pytorch-UNet#468",
    loops={"custom"},
    when=lambda settings: _clips(settings) and _scales(settings),
)
def clipped_while_scaled(work: Workload, patch: Patch) -> Workload:
    """``scaler.unscale_()`` is missing before the gradients are clipped."""
    right = torch.amp.GradScaler.unscale_

    def unscale_(self: Any, optimizer: Any) -> None:
        """Only when the scaler's own step asks for it, after the clipping."""
        self.asked = not getattr(self, "asked", False)
        if not self.asked:
            right(self, optimizer)

    return _scaling(work, unscale_=unscale_)


@fault("Micikevicius et al., Mixed Precision Training (ICLR 2018)", loops={"custom"}, when=_scales)
def loss_not_scaled(work: Workload, patch: Patch) -> Workload:
    """``loss.backward()`` in place of ``scaler.scale(loss).backward()``."""
    right = torch.amp.GradScaler.scale

    def scale(self: Any, loss: torch.Tensor) -> torch.Tensor:
        right(self, loss.detach())  # a scaler that has never scaled refuses to step
        return loss * 1.0

    return _scaling(work, scale=scale)


@fault("milesial/Pytorch-UNet#468", loops={"custom"}, when=lambda settings: _scales(settings) and not _clips(settings))
def stepped_past_the_scaler(work: Workload, patch: Patch) -> Workload:
    """``optimizer.step()`` in place of ``scaler.step(optimizer)``: gradients stay scaled, which AdamW hides."""
    return _scaling(work, step=lambda self, optimizer: optimizer.step(), update=lambda self: None)


def _scaling(work: Workload, **methods: Any) -> Workload:
    """The workload, whose scaler has other methods; only where it scales."""

    def scaler(self: Workload) -> torch.amp.GradScaler:
        made = Workload.scaler(self)
        for name, method in methods.items() if made.is_enabled() else ():
            setattr(made, name, MethodType(method, made))
        return made

    return altered(work, scaler=scaler)


@fault("stanza#1320", when=lambda settings: any(group.learning_rate for group in settings.train.groups))
def rates_of_groups_forgotten(work: Workload, patch: Patch) -> Workload:
    """All parameter groups have the same learning rate."""

    def level(optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = work.train.learning_rate

    return stepping(work, level)


@fault("DeepCrime: add weights regularisation", when=lambda settings: settings.train.decay == "matrices")
def biases_and_norms_decay(work: Workload, patch: Patch) -> Workload:
    """All parameters decay, biases and norms among them."""

    def decay(optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] = work.train.weight_decay

    return stepping(work, decay)


@fault("DeepCrime: change optimisation function", when=lambda settings: settings.train.momentum > 0)
def momentum_forgotten(work: Workload, patch: Patch) -> Workload:
    """SGD without its momentum."""

    def still(optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["momentum"] = 0.0

    return stepping(work, still)


@fault("NVIDIA-NeMo/Speech#7228", when=_freezes)
def thawed(work: Workload, patch: Patch) -> Workload:
    """Something sets ``requires_grad`` on all parameters again, as some wrappers do."""
    for parameter in work.model.parameters():
        parameter.requires_grad_(True)
    return work


@fault("NVIDIA-NeMo/Speech#7228", when=_freezes)
def frozen_decay(work: Workload, patch: Patch) -> Workload:
    """A weight decay written by hand goes over all parameters of the model."""

    def change(optimizer: Any) -> None:
        def shrink(*args: Any) -> None:
            with torch.no_grad():
                for parameter in work.model.parameters():
                    parameter.mul_(1 - 1e-4)

        optimizer.register_step_post_hook(shrink)

    return stepping(work, change)


@fault("accelerate#662, burn#5695", when=lambda settings: _accumulates(settings) and _falls(settings))
def schedule_stepped_by_micro_batches(work: Workload, patch: Patch) -> Workload:
    """The schedule is stepped once for each micro-batch: it ends too early."""

    def schedule(self: Workload, optimizer: Any) -> Any:
        made = Workload.schedule(self, optimizer)
        right = made.step

        def step(self: Any) -> None:
            for _ in range(work.train.gradient_accumulation):
                right()

        made.step = MethodType(step, made)
        return made

    return altered(work, schedule=schedule)


@fault("DeepCrime: change learning rate", when=_falls)
def rate_stays(work: Workload, patch: Patch) -> Workload:
    """The learning rate stays after the warm-up, where a falling one is declared."""
    return altered(
        work, schedule=lambda self, optimizer: get_constant_schedule_with_warmup(optimizer, self.warmup_steps)
    )


FAULTS = (
    only_the_last_micro_batch_counts,
    mean_of_means,
    micro_batches_added_up,
    last_step_of_an_epoch_too_weak,
    last_step_of_an_epoch_left_out,
    smoothing_forgotten,
    clipping_forgotten,
    clipped_while_scaled,
    loss_not_scaled,
    stepped_past_the_scaler,
    rates_of_groups_forgotten,
    biases_and_norms_decay,
    momentum_forgotten,
    thawed,
    frozen_decay,
    schedule_stepped_by_micro_batches,
    rate_stays,
)
