"""Faults of the checkpoint, and of the weights between loading and the first step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, set_seed

from harness import experiment
from harness.training import checkpoint
from harness.training.checkpoint import Loaded
from harness.training.fault import NO_REPORT, Patch, fault, loading_fault
from harness.training.workload import Workload

Tensors = dict[str, torch.Tensor]


def _stored(loaded: Loaded, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> Loaded:
    """The checkpoint without its head, each weight stored as `change(name, tensor)` has it, and loaded again."""
    model, head = loaded.model, set(checkpoint.head_names(loaded.model))
    tensors: Tensors = {}
    for name, tensor in model.state_dict().items():
        if name not in head:
            tensors |= change(name, tensor)
    with tempfile.TemporaryDirectory(prefix="harness-fault-") as folder:
        model.save_pretrained(folder, state_dict=tensors)
        set_seed(0)
        again, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    return replace(
        loaded,
        model=again,
        pretrained=True,
        missing=tuple(sorted(report["missing_keys"])),
        unused=tuple(sorted(report["unexpected_keys"])),
        mismatched=tuple(sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])),
    )


def _backbone(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    head = set(checkpoint.head_names(model))
    return [(name, parameter) for name, parameter in model.named_parameters() if name not in head]


@loading_fault("transformers#48722, moco-v3#30, NASA-IMPACT/hls-foundation-os#63")
def checkpoint_has_another_prefix(loaded: Loaded, patch: Patch) -> Loaded:
    """The names in the checkpoint have a prefix that the model's have not: the backbone stays random."""
    return _stored(loaded, lambda name, tensor: {f"encoder_model.{name}": tensor})


@loading_fault("transformers#48722")
def checkpoint_lacks_a_matrix(loaded: Loaded, patch: Patch) -> Loaded:
    """The checkpoint lacks one weight of the backbone, which is drawn anew."""
    lost = [name for name, parameter in _backbone(loaded.model) if parameter.dim() == 2][-1]
    return _stored(loaded, lambda name, tensor: {} if name == lost else {name: tensor})


@loading_fault("transformers#35141, transformers#30543")
def checkpoint_has_another_shape(loaded: Loaded, patch: Patch) -> Loaded:
    """A weight of the checkpoint has another shape, and is drawn anew."""
    cut = [name for name, parameter in _backbone(loaded.model) if parameter.dim() == 2][-1]
    return _stored(loaded, lambda name, tensor: {name: tensor[:-1].clone() if name == cut else tensor})


@fault("transformers#35141, transformers#45079")
def layer_drawn_anew(work: Workload, patch: Patch) -> Workload:
    """``_init_weights`` runs on a part of the backbone after loading."""
    matrices = [parameter for _, parameter in _backbone(work.model) if parameter.dim() == 2]
    with torch.no_grad():
        matrices[-1].normal_(std=0.02)
    return work


@fault("silnlp#1035")
def weights_of_another_model(work: Workload, patch: Patch) -> Workload:
    """The weights are those of another model of the same shape."""
    with torch.no_grad():
        for parameter in work.model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(parameter.flip(0))
    return work


@fault("unsloth#2188, Chinese-LLaMA-Alpaca#604")
def token_row_zeroed(work: Workload, patch: Patch) -> Workload:
    """The row of one token is zero, as after a resize."""
    with torch.no_grad():
        work.model.get_input_embeddings().weight[-1].zero_()
    return work


def _of_language_models(settings: experiment.Settings) -> bool:
    """Random rows stand for no words; and what an encoder without its head knows of them cannot be asked."""
    stored = not isinstance(settings.checkpoint, experiment.ArchitectureCheckpoint)
    return stored and settings.task in ("masked-lm", "causal-lm")


@loading_fault("silnlp#1035", when=_of_language_models)
def vocabulary_of_another_tokenizer(loaded: Loaded, patch: Patch) -> Loaded:
    """The checkpoint was trained with another tokenizer: its rows stand for other words."""
    rows = loaded.model.get_input_embeddings().weight
    outputs = loaded.model.get_output_embeddings()
    tables = {id(table): table for table in (rows, getattr(outputs, "weight", rows))}
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for table in tables.values():
            table.copy_(table[order])
    return loaded


@fault("peft#1249, diffusers#1246, sentence-transformers#3773")
def weights_in_fp16(work: Workload, patch: Patch) -> Workload:
    """Weights are trained in fp16, the precision of the file."""
    work.model.half()
    return work


@fault("peft#1706, unsloth#237")
def weights_in_bf16(work: Workload, patch: Patch) -> Workload:
    """Weights are trained in bf16, the precision of the file."""
    work.model.bfloat16()
    return work


@fault("unsloth#237")
def weights_rounded_once(work: Workload, patch: Patch) -> Workload:
    """Weights went through bf16 on their way into fp32."""
    work.model.bfloat16().float()
    return work


@fault("transformers#41038, transformers#1663, accelerate#2875")
def tied_weights_untied(work: Workload, patch: Patch) -> Workload:
    """Tensors that two modules share become two."""
    seen: set[int] = set()
    for module in work.model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen:
                setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))
            seen.add(id(parameter))
    return work


@fault(NO_REPORT)
def head_drawn_huge(work: Workload, patch: Patch) -> Workload:
    """The new head is drawn with a standard deviation of 1 instead of the model's."""
    head = set(checkpoint.head_names(work.model))
    with torch.no_grad():
        for name, parameter in work.model.named_parameters():
            if name in head and parameter.dim() > 1:
                parameter.normal_()
    return work


@fault("bl0/moco#4, transformers#31841")
def head_drawn_before_the_seed(work: Workload, patch: Patch) -> Workload:
    """New weights are drawn before the seed is set."""
    patch.set(checkpoint, "set_seed", lambda seed: torch.seed())
    return work


FAULTS = (
    checkpoint_has_another_prefix,
    checkpoint_lacks_a_matrix,
    checkpoint_has_another_shape,
    layer_drawn_anew,
    weights_of_another_model,
    token_row_zeroed,
    vocabulary_of_another_tokenizer,
    weights_in_fp16,
    weights_in_bf16,
    weights_rounded_once,
    tied_weights_untied,
    head_drawn_huge,
    head_drawn_before_the_seed,
)
