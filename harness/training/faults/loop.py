"""Faults of the loop: gradients, steps, what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from types import MethodType
from typing import Any

import torch

from harness.training.fault import NO_REPORT, Patch, fault
from harness.training.faults.seam import altered, stepping
from harness.training.workload import Workload


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _before_step(work: Workload, change: Callable[[Any], None]) -> Workload:
    """The workload, where `change(optimizer)` happens between the backward pass and the optimizer's step."""
    return stepping(work, lambda one: one.register_step_pre_hook(lambda one, args, kwargs: change(one)) and None)


def _after_step(work: Workload, change: Callable[[Any], None]) -> Workload:
    """The workload, where `change(optimizer)` happens after the optimizer's step."""
    return stepping(work, lambda one: one.register_step_post_hook(lambda one, args, kwargs: change(one)) and None)


@fault("Karpathy, most common neural net mistakes (2018); DeepCrime")
def gradients_not_cleared(work: Workload, patch: Patch) -> Workload:
    """``zero_grad()`` is forgotten: gradients add up over the steps."""
    patch.set(torch.optim.Optimizer, "zero_grad", lambda self, set_to_none=True: None)
    patch.set(torch.nn.Module, "zero_grad", lambda self, set_to_none=True: None)
    return work


@fault("accelerate#1299, accelerate#616, tatsu-lab/alpaca_farm#57, openWakeWord#316")
def gradients_cleared_too_early(work: Workload, patch: Patch) -> Workload:
    """``zero_grad()`` comes between the backward pass and the step."""

    def clear(optimizer: Any) -> None:
        for parameter in _parameters(optimizer):
            if parameter.grad is not None:
                parameter.grad.zero_()

    return _before_step(work, clear)


@fault("Lightning-AI/pytorch-lightning#9599, pytorch/examples#1196, milesial/Pytorch-UNet#468")
def gradients_clipped_hard(work: Workload, patch: Patch) -> Workload:
    """Gradients are clipped to a norm of 0.1, as where they are clipped while still scaled."""
    return _before_step(work, lambda optimizer: torch.nn.utils.clip_grad_norm_(_parameters(optimizer), 0.1) and None)


@fault("DeepCrime: change gradient clip", loops={"custom"})
def gradients_clipped(work: Workload, patch: Patch) -> Workload:
    """Gradients are clipped to a norm of 1, which nobody declared."""
    return _before_step(work, lambda optimizer: torch.nn.utils.clip_grad_norm_(_parameters(optimizer), 1.0) and None)


@fault("waifu-diffusion#64")
def gradients_clipped_by_value(work: Workload, patch: Patch) -> Workload:
    """Each element of a gradient is clipped to 0.001."""
    return _before_step(work, lambda optimizer: torch.nn.utils.clip_grad_value_(_parameters(optimizer), 1e-3))


@fault("transformers#35438, Automodel#3829")
def gradients_halved(work: Workload, patch: Patch) -> Workload:
    """Gradients are divided by two processes, of which there is one."""

    def halve(optimizer: Any) -> None:
        for parameter in _parameters(optimizer):
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)

    return _before_step(work, halve)


@fault(NO_REPORT)
def gradient_of_one_tensor_lost(work: Workload, patch: Patch) -> Workload:
    """The gradient of the first matrix is set to zero by a hook that was meant for another."""

    def lose(optimizer: Any) -> None:
        first = next(parameter for parameter in _parameters(optimizer) if parameter.grad is not None)
        first.grad.zero_()

    return _before_step(work, lose)


@fault("milesial/Pytorch-UNet#468, DeepCrime")
def every_other_step_skipped(work: Workload, patch: Patch) -> Workload:
    """``if step % 2: optimizer.step()``, left over from gradient accumulation."""

    def skipping(optimizer: Any) -> None:
        right, calls = optimizer.step, count()

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            return right(*args, **kwargs) if next(calls) % 2 == 0 else None

        optimizer.step = MethodType(step, optimizer)

    return stepping(work, skipping)


@fault("DeepCrime")
def never_stepped(work: Workload, patch: Patch) -> Workload:
    """``optimizer.step()`` is forgotten."""

    def idle(optimizer: Any) -> None:
        optimizer.step = MethodType(lambda self, *args, **kwargs: None, optimizer)

    return stepping(work, idle)


@fault(NO_REPORT)
def stepped_twice(work: Workload, patch: Patch) -> Workload:
    """The optimizer is stepped twice on the same gradients."""

    def doubled(optimizer: Any) -> None:
        right = optimizer.step

        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            right(*args, **kwargs)
            return right(*args, **kwargs)

        optimizer.step = MethodType(step, optimizer)

    return stepping(work, doubled)


@fault("pytorch#35047, Megatron-Bridge#3832")
def optimizer_state_lost(work: Workload, patch: Patch) -> Workload:
    """The optimizer is made anew at each step, as after a resume without its state: no momentum."""
    return _before_step(work, lambda optimizer: optimizer.state.clear())


@fault("unsloth#237, peft#1249")
def weights_rounded_after_each_step(work: Workload, patch: Patch) -> Workload:
    """Weights are stored in bf16 between steps: small updates are lost."""

    def rounded(optimizer: Any) -> None:
        with torch.no_grad():
            for parameter in _parameters(optimizer):
                parameter.copy_(parameter.bfloat16())

    return _after_step(work, rounded)


@fault("NVIDIA-NeMo/Speech#7228")
def weights_averaged_after_each_step(work: Workload, patch: Patch) -> Workload:
    """A moving average of the weights is written back into the model."""

    def averaged(optimizer: Any) -> None:
        with torch.no_grad():
            for parameter in _parameters(optimizer):
                state = optimizer.state[parameter]
                average = state.setdefault("average", parameter.clone())
                parameter.copy_(average.lerp_(parameter, 0.5))

    return _after_step(work, averaged)


@fault("BatsResearch/labelmodels#4, google/brax#152, DecoupleNet#3")
def graph_kept(work: Workload, patch: Patch) -> Workload:
    """``total += loss``: the graph of every step is kept."""
    kept: list[torch.Tensor] = []
    patch.callback(kept.clear)

    def hook(module: Any, args: Any, output: Any) -> None:
        if module.training and output.loss is not None:
            kept.append(output.loss)

    work.model.register_forward_hook(hook)
    return work


@fault("trl#6702, transformers#31391, transformers#13619")
def loss_not_a_number_once(work: Workload, patch: Patch) -> Workload:
    """The loss of the fourth step is NaN, which the Trainer's log shows as 0.0."""

    def hook(module: Any, args: Any, output: Any) -> None:
        module.forwards = getattr(module, "forwards", 0) + module.training
        if module.training and module.forwards == 4 and output.loss is not None:
            output["loss"] = output.loss * float("nan")

    work.model.register_forward_hook(hook)
    return work


@fault("DeepCrime: change number of epochs", loops={"custom", "accelerate"})
def stops_a_step_early(work: Workload, patch: Patch) -> Workload:
    """The loop ends a step too early, an off-by-one."""

    def windows(self: Workload, loader: Any = None) -> Iterator[list[Any]]:
        return islice(Workload.windows(self, loader), max(1, self.train.steps - 1))

    return altered(work, windows=windows)


@fault("NVIDIA-NeMo/Speech#7228")
def weights_set_back_in_the_midst(work: Workload, patch: Patch) -> Workload:
    """After a few steps the weights from before the training are loaded again, as those of a best checkpoint."""
    start = {name: one.detach().clone() for name, one in work.model.state_dict().items()}

    def hook(module: Any, args: Any) -> None:
        module.forwards = getattr(module, "forwards", 0) + module.training
        if module.training and module.forwards == 5:
            module.load_state_dict(start)

    work.model.register_forward_pre_hook(hook)
    return work


FAULTS = (
    gradients_not_cleared,
    gradients_cleared_too_early,
    gradients_clipped_hard,
    gradients_clipped,
    gradients_clipped_by_value,
    gradients_halved,
    gradient_of_one_tensor_lost,
    every_other_step_skipped,
    never_stepped,
    stepped_twice,
    optimizer_state_lost,
    weights_rounded_after_each_step,
    weights_averaged_after_each_step,
    graph_kept,
    loss_not_a_number_once,
    weights_set_back_in_the_midst,
    stops_a_step_early,
)
