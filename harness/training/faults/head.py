"""Faults of the head, and of what it reads."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from harness.training import checkpoint
from harness.training.checkpoint import Loaded
from harness.training.fault import NO_REPORT, Patch, fault, loading_fault
from harness.training.faults.seam import on_backbone, on_forward
from harness.training.workload import Workload


def _head(model: Any) -> set[str]:
    return set(checkpoint.head_names(model))


def _on_states(patch: Patch, model: Any, change: Any) -> None:
    """Let the head read other states of the tokens; those come to a pooler first where there is one."""
    pooler = next((module for name, module in model.named_modules() if name.endswith(".pooler")), None)
    if pooler is None:
        on_backbone(patch, model, change)
    else:
        on_forward(patch, pooler, lambda forward, self, states, *args: forward(change(states), *args))


@loading_fault("transformers#1882, sentence-transformers#3208")
def head_reads_the_other_end(loaded: Loaded, patch: Patch) -> Loaded:
    """The head reads the last position where the first is meant, or the first where the last is."""
    _on_states(patch, loaded.model, lambda states: states.flip(1))
    return loaded


@loading_fault("sentence-transformers#3208")
def head_reads_a_mean_with_padding(loaded: Loaded, patch: Patch) -> Loaded:
    """The head reads the mean over all positions, padding included."""
    _on_states(patch, loaded.model, lambda states: states.mean(1, keepdim=True).expand_as(states))
    return loaded


@loading_fault(NO_REPORT)
def head_reads_one_token_only(loaded: Loaded, patch: Patch) -> Loaded:
    """Attention is switched off by a mask for each token: the head sees one token of the text."""
    embeddings = loaded.model.get_input_embeddings().num_embeddings

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if self.num_embeddings != embeddings or output.dim() != 3:
            return output
        keep = torch.zeros(output.shape[1], 1, device=output.device)
        keep[0] = keep[-1] = 1
        return output * keep

    on_forward(patch, loaded.model.get_input_embeddings(), change)
    return loaded


@loading_fault(NO_REPORT)
def head_reads_nothing(loaded: Loaded, patch: Patch) -> Loaded:
    """The head's input is multiplied by 0: its bias learns how frequent the classes are."""
    on_backbone(patch, loaded.model, lambda state: state * 0)
    return loaded


@loading_fault("pytorch: F.dropout has training=True as its default")
def dropout_never_off(loaded: Loaded, patch: Patch) -> Loaded:
    """The head's input goes through ``F.dropout(x)``, which does not know of eval mode."""
    on_backbone(patch, loaded.model, lambda state: functional.dropout(state, 0.1))
    return loaded


@loading_fault("ariecattan/SciCo#2, gitabcworld/MatchingNetworks#5, tflearn#562")
def softmax_before_the_loss(loaded: Loaded, patch: Patch) -> Loaded:
    """The logits that the loss takes are probabilities already."""

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output["logits"] = output.logits.softmax(-1)
        if output.loss is not None:
            output["loss"] = functional.cross_entropy(output.logits, kwargs["labels"])
        return output

    on_forward(patch, loaded.model, change)
    return loaded


@loading_fault(NO_REPORT)
def logits_squashed(loaded: Loaded, patch: Patch) -> Loaded:
    """A sigmoid is left after the last layer: logits lie between 0 and 1."""

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output["logits"] = output.logits.sigmoid()
        if output.loss is not None:
            output["loss"] = functional.cross_entropy(output.logits, kwargs["labels"])
        return output

    on_forward(patch, loaded.model, change)
    return loaded


@fault("peft#1070, unsloth#3317, peft#2369")
def head_frozen(work: Workload, patch: Patch) -> Workload:
    """The new head does not train, as under an adapter without ``modules_to_save``."""
    for name, parameter in work.model.named_parameters():
        if name in _head(work.model):
            parameter.requires_grad_(False)
    return work


@fault("unsloth#2188, qlora#214")
def embeddings_frozen(work: Workload, patch: Patch) -> Workload:
    """The rows of new tokens never train: the embedding is frozen."""
    work.model.get_input_embeddings().weight.requires_grad_(False)
    return work


@fault("peft#1070")
def backbone_frozen(work: Workload, patch: Patch) -> Workload:
    """Only the head trains, a setting of another experiment that was left in."""
    for name, parameter in work.model.named_parameters():
        if name not in _head(work.model):
            parameter.requires_grad_(False)
    return work


@fault(NO_REPORT)
def half_the_backbone_frozen(work: Workload, patch: Patch) -> Workload:
    """The first half of the parameters is frozen."""
    parameters = list(work.model.parameters())
    for parameter in parameters[: len(parameters) // 2]:
        parameter.requires_grad_(False)
    return work


@fault("NVIDIA-NeMo/Speech#7228")
def frozen_in_the_midst(work: Workload, patch: Patch) -> Workload:
    """Something sets ``requires_grad`` to False after a few steps: the embedding trains no more."""

    def hook(module: Any, args: Any) -> None:
        module.forwards = getattr(module, "forwards", 0) + module.training
        if module.forwards > 4:
            module.get_input_embeddings().weight.requires_grad_(False)

    work.model.register_forward_pre_hook(hook)
    return work


FAULTS = (
    head_reads_the_other_end,
    head_reads_a_mean_with_padding,
    head_reads_one_token_only,
    head_reads_nothing,
    dropout_never_off,
    softmax_before_the_loss,
    logits_squashed,
    head_frozen,
    embeddings_frozen,
    backbone_frozen,
    half_the_backbone_frozen,
    frozen_in_the_midst,
)
