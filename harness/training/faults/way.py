"""Faults of the way in which a training is computed: attention kernels, recomputation, compiled code."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from transformers import modeling_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.experiment import Settings
from harness.training import packing
from harness.training.checkpoint import Loaded
from harness.training.fault import NO_REPORT, Patch, fault, loading_fault
from harness.training.faults.seam import altered, on_backbone, training_arguments
from harness.training.workload import Workload


def _recomputes(settings: Settings) -> bool:
    return settings.train.gradient_checkpointing


def _compiles(settings: Settings) -> bool:
    return settings.train.compile not in (False, "auto")


def _packs(settings: Settings) -> bool:
    return settings.train.packing is True


def _on_kernel(patch: Patch, kind: str, change: Any) -> None:
    """Let an implementation of attention be ``change(right, module, query, key, value, mask, **kwargs)``."""
    right = ALL_ATTENTION_FUNCTIONS[kind]

    def changed(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        return change(right, module, query, key, value, attention_mask, **kwargs)

    patch.enter_context(mock.patch.dict(type(ALL_ATTENTION_FUNCTIONS)._global_mapping, {kind: changed}))


@loading_fault("pacman100/LLM-Workshop#1, trl#5842")
def kernel_ignores_the_mask(loaded: Loaded, patch: Patch) -> Loaded:
    """The sdpa implementation of attention is called without the mask that says what is padding."""

    def change(right: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        return right(module, query, key, value, None, **kwargs)

    _on_kernel(patch, "sdpa", change)
    return loaded


@loading_fault("pytorch#103749, pytorch#109517, unsloth#9848")
def kernel_divides_by_an_empty_sum(loaded: Loaded, patch: Patch) -> Loaded:
    """The sdpa implementation of attention gives NaN for a query that may see nothing at all."""

    def change(right: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        output, weights = right(module, query, key, value, mask, **kwargs)  # rows x queries x heads x width
        if mask is not None:
            hidden = ~mask if mask.dtype == torch.bool else mask < 0
            nothing = hidden.all(dim=-1)[:, 0].expand(output.shape[:2])
            output = output.masked_fill(nothing[:, :, None, None], float("nan"))
        return output, weights

    _on_kernel(patch, "sdpa", change)
    return loaded


@fault("pytorch#50633, pytorch#102339", when=_recomputes)
def checkpointing_draws_dropout_anew(work: Workload, patch: Patch) -> Workload:
    """Layers are recomputed with ``preserve_rng_state=False``: other units are dropped than in the forward pass."""
    patch.set(Workload, "checkpointing", {**work.checkpointing, "preserve_rng_state": False})
    return work


@fault("transformers#23170, peft#137", when=_recomputes)
def checkpointing_cuts_the_gradient(work: Workload, patch: Patch) -> Workload:
    """No gradient comes out of a recomputed layer, as of a reentrant one whose inputs need none."""
    right = modeling_utils.checkpoint

    def cut(function: Any, *args: Any, **kwargs: Any) -> Any:
        detached = [one.detach() if isinstance(one, torch.Tensor) else one for one in args]
        return right(function, *detached, **kwargs)

    patch.set(modeling_utils, "checkpoint", cut)
    return work


@fault(NO_REPORT, loops={"custom", "accelerate"}, when=_recomputes)
def checkpointing_forgotten(work: Workload, patch: Patch) -> Workload:
    """Nobody tells the model to recompute its layers: it trains as well, in all of the memory."""
    return altered(work, checkpoint_gradients=lambda self, model: None)


@fault(NO_REPORT, loops={"trainer"}, when=_recomputes)
def checkpointing_not_handed_on(work: Workload, patch: Patch) -> Workload:
    """The Trainer's arguments do not say that layers are recomputed."""
    training_arguments(patch, activation_checkpointing=False, gradient_checkpointing=False)
    return work


@loading_fault("pytorch#113180, pytorch#116935, pytorch#187445", when=_compiles)
def compiled_code_is_off(loaded: Loaded, patch: Patch) -> Loaded:
    """What is compiled gives the head one percent too much, as a decomposition that is wrong does."""
    on_backbone(patch, loaded.model, lambda state: state * 1.01 if torch.compiler.is_compiling() else state)
    return loaded


@fault(NO_REPORT, loops={"custom"}, when=_compiles)
def compiled_model_not_called(work: Workload, patch: Patch) -> Workload:
    """The loop compiles the model, and goes on to call the one that is not compiled."""
    return altered(work, compiled=lambda self, model: model)


@fault(NO_REPORT, loops={"trainer"}, when=_compiles)
def compiling_not_handed_on(work: Workload, patch: Patch) -> Workload:
    """The Trainer's arguments do not say that the model is compiled."""
    training_arguments(patch, torch_compile=False, torch_compile_backend=None, torch_compile_mode=None)
    return work


@loading_fault("trl#805, trl#1230", when=_packs)
def packed_sequences_see_each_other(loaded: Loaded, patch: Patch) -> Loaded:
    """Attention goes over a whole row of packed sequences, as over one text."""
    right = packing.attend

    def over_the_row(*args: Any, **kwargs: Any) -> Any:
        lengths = kwargs.pop("lengths", ())
        return right(*args, **{**kwargs, "lengths": [sum(lengths)] if lengths else ()})

    patch.set(packing, "attend", over_the_row)
    return loaded


@fault(NO_REPORT, when=_packs)
def packing_forgotten(work: Workload, patch: Patch) -> Workload:
    """The model is given another implementation of attention later, and computes padding as before."""
    packing.undone(work.model)
    return work


FAULTS = (
    kernel_ignores_the_mask,
    kernel_divides_by_an_empty_sum,
    checkpointing_draws_dropout_anew,
    checkpointing_cuts_the_gradient,
    checkpointing_forgotten,
    checkpointing_not_handed_on,
    compiled_code_is_off,
    compiled_model_not_called,
    compiling_not_handed_on,
    packed_sequences_see_each_other,
    packing_forgotten,
)
