"""Faults of low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from harness import experiment
from harness.training import adapters
from harness.training.checkpoint import Loaded
from harness.training.fault import NO_REPORT, Patch, fault, loading_fault
from harness.training.workload import Workload


def _adapted_anew(loaded: Loaded, **said: Any) -> Loaded:
    """The checkpoint with other adapters: the same but for what is said."""
    import peft

    config = loaded.model.peft_config["default"].to_dict()
    kept = {name: config[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    kept |= {"task_type": config["task_type"], "modules_to_save": config["modules_to_save"]}
    return replace(loaded, model=peft.get_peft_model(loaded.model.unload(), peft.LoraConfig(**{**kept, **said})))


def _adapts(settings: experiment.Settings) -> bool:
    return settings.peft is not None


def _trains_more(settings: experiment.Settings) -> bool:
    return settings.peft is not None and bool(settings.peft.modules_to_save)


def _layers(work: Workload) -> Iterator[Any]:
    return iter(adapters.adapted(work.model).values())


@loading_fault("peft#1070, unsloth#3317, peft#2369", when=_adapts)
def head_unknown_to_peft(loaded: Loaded, patch: Patch) -> Loaded:
    """``LoraConfig`` has neither a task type nor modules to save: the new head stays at its random start."""
    return _adapted_anew(loaded, task_type=None, modules_to_save=None)


@loading_fault("unsloth#2188, Chinese-LLaMA-Alpaca#604, qlora#214", when=_trains_more)
def embeddings_unknown_to_peft(loaded: Loaded, patch: Patch) -> Loaded:
    """Embeddings with new rows are left out of the modules to save: those rows never train."""
    kept = [name for name in loaded.adapters.modules_to_save if "embed" not in name] if loaded.adapters else []
    return _adapted_anew(loaded, modules_to_save=kept)


@loading_fault(NO_REPORT, when=_adapts)
def adapters_start_at_random(loaded: Loaded, patch: Patch) -> Loaded:
    """``init_lora_weights=False``: the adapted model is another one than the checkpoint before any step."""
    torch.manual_seed(0)
    return _adapted_anew(loaded, init_lora_weights=False)


@loading_fault(NO_REPORT, when=_adapts)
def alpha_forgotten(loaded: Loaded, patch: Patch) -> Loaded:
    """``lora_alpha`` is left at peft's default of 8, whatever is declared."""
    return _adapted_anew(loaded, lora_alpha=8)


@loading_fault(NO_REPORT, when=_adapts)
def adapters_without_their_dropout(loaded: Loaded, patch: Patch) -> Loaded:
    """``lora_dropout`` does not reach peft, or is another one than declared."""
    return _adapted_anew(loaded, lora_dropout=0.5)


@loading_fault(NO_REPORT, when=_adapts)
def adapters_on_the_first_layer_only(loaded: Loaded, patch: Patch) -> Loaded:
    """``layers_to_transform`` was left in from a trial: other layers get no adapter."""
    return _adapted_anew(loaded, layers_to_transform=[0])


@fault(NO_REPORT, when=_adapts)
def scale_applied_twice(work: Workload, patch: Patch) -> Workload:
    """What an adapter adds is scaled twice, as where it is scaled by hand as well."""
    for layer in _layers(work):
        layer.scaling["default"] *= 2
    return work


@fault(NO_REPORT, when=_adapts)
def weights_under_adapters_thawed(work: Workload, patch: Patch) -> Workload:
    """``requires_grad_(True)`` is called on the whole model after the adapters were put on."""
    for name, parameter in work.model.named_parameters():
        parameter.requires_grad_(not adapters.is_spare(name))
    return work


@fault(NO_REPORT, when=_adapts)
def one_matrix_of_adapters_frozen(work: Workload, patch: Patch) -> Workload:
    """Only ``lora_B`` is trained: a pattern of names that freezes too much."""
    for name, parameter in work.model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    return work


@fault("transformers#24103, peft#1070", when=_adapts)
def adapters_trained_before(work: Workload, patch: Patch) -> Workload:
    """The adapters of an earlier training are still on the model when this one begins."""
    with torch.no_grad():
        for name, parameter in work.model.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.01)
    return work


FAULTS = (
    head_unknown_to_peft,
    embeddings_unknown_to_peft,
    adapters_start_at_random,
    alpha_forgotten,
    adapters_without_their_dropout,
    adapters_on_the_first_layer_only,
    scale_applied_twice,
    weights_under_adapters_thawed,
    one_matrix_of_adapters_frozen,
    adapters_trained_before,
)
