"""Faults of the backbone: what reaches the attention, and what comes out."""

from __future__ import annotations

from typing import Any

import torch

from harness.training.checkpoint import Loaded
from harness.training.fault import NO_REPORT, Patch, fault, loading_fault
from harness.training.faults.seam import on_backbone, on_forward
from harness.training.workload import Workload


def _masked(patch: Patch, model: Any, change: Any) -> None:
    """Let the backbone get another attention_mask than the model got."""

    def changed(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = change(kwargs["attention_mask"])
        return forward(*args, **kwargs)

    on_forward(patch, model.base_model, changed)


@loading_fault("pacman100/LLM-Workshop#1, trl#5842")
def attention_ignores_the_mask(loaded: Loaded, patch: Patch) -> Loaded:
    """The backbone attends to padding, whatever the mask says."""
    _masked(patch, loaded.model, torch.ones_like)
    return loaded


@loading_fault("transformers#48363")
def attention_reads_the_mask_inverted(loaded: Loaded, patch: Patch) -> Loaded:
    """The backbone takes the mask for one in which 1 means padding."""
    _masked(patch, loaded.model, lambda mask: 1 - mask)
    return loaded


@fault("Karpathy, A Recipe for Training Neural Networks (2019): input-independent baseline")
def embedding_zeroed(work: Workload, patch: Patch) -> Workload:
    """Embedded tokens are multiplied by 0."""
    work.model.get_input_embeddings().register_forward_hook(lambda module, args, output: output * 0)
    return work


@loading_fault("Karpathy, A Recipe for Training Neural Networks (2019): input-independent baseline")
def input_ignored(loaded: Loaded, patch: Patch) -> Loaded:
    """The model computes on the same token throughout, whatever it gets: only the length is left of a text."""
    pad = loaded.tokenizer.pad_token_id

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs["input_ids"]
        real = kwargs.get("attention_mask", torch.ones_like(ids)).bool() & (ids != loaded.tokenizer.eos_token_id)
        return forward(*args, **{**kwargs, "input_ids": ids.masked_fill(real & (ids != pad), pad + 1)})

    on_forward(patch, loaded.model, change)
    return loaded


@loading_fault("Karpathy, A Recipe for Training Neural Networks (2019): chart dependencies by backpropagation")
def examples_mix_by_a_mean(loaded: Loaded, patch: Patch) -> Loaded:
    """The mean over the batch is taken off each example."""
    on_backbone(patch, loaded.model, lambda state: state - 0.3 * state.mean(0, keepdim=True))
    return loaded


@loading_fault("Karpathy, A Recipe for Training Neural Networks (2019): chart dependencies by backpropagation")
def examples_mix_by_a_view(loaded: Loaded, patch: Patch) -> Loaded:
    """Rows of the batch are exchanged, as by a view where a transpose was meant."""
    on_backbone(patch, loaded.model, lambda state: state.roll(1, 0))
    return loaded


@loading_fault("pytorch#103749, pytorch#109517, unsloth#9848")
def padded_rows_are_not_a_number(loaded: Loaded, patch: Patch) -> Loaded:
    """Rows with padding become NaN, as in a softmax over masked positions only."""

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            padded = (mask == 0).any(-1)
            output["logits"] = output.logits.masked_fill(padded[:, None], float("nan"))
            if output.loss is not None and bool(padded.any()):
                output["loss"] = output.loss * float("nan")
        return output

    on_forward(patch, loaded.model, change)
    return loaded


@loading_fault(NO_REPORT)
def backbone_detached(loaded: Loaded, patch: Patch) -> Loaded:
    """The head gets the backbone's state without its graph: only the head trains."""
    on_backbone(patch, loaded.model, lambda state: state.detach())
    return loaded


@loading_fault(NO_REPORT)
def embedding_detached(loaded: Loaded, patch: Patch) -> Loaded:
    """The embedding's output is computed without a graph: word vectors never train."""
    table = loaded.model.get_input_embeddings()

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return output.detach() if self.num_embeddings == table.num_embeddings else output

    on_forward(patch, table, change)
    return loaded


@fault("transformers#48892, vllm#44371")
def buffers_not_restored(work: Workload, patch: Patch) -> Workload:
    """Buffers that no checkpoint holds, such as position ids and rotary frequencies, are not restored."""
    for buffer in work.model.buffers():
        buffer.zero_() if not buffer.is_floating_point() else buffer.mul_(0.5)
    return work


@fault(NO_REPORT)
def embedding_noise(work: Workload, patch: Patch) -> Workload:
    """Noise is added to embedded tokens in training, which nobody declared."""

    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output + 0.01 * torch.randn_like(output) if module.training else None

    work.model.get_input_embeddings().register_forward_hook(hook)
    return work


@fault(NO_REPORT)
def runs_under_autocast(work: Workload, patch: Patch) -> Workload:
    """The forward pass runs in bf16, although fp32 is declared."""
    device = work.device.torch.type

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return forward(*args, **kwargs)

    if work.precision == "fp32":
        on_forward(patch, work.model, change)
    return work


FAULTS = (
    attention_ignores_the_mask,
    attention_reads_the_mask_inverted,
    embedding_zeroed,
    input_ignored,
    examples_mix_by_a_mean,
    examples_mix_by_a_view,
    padded_rows_are_not_a_number,
    backbone_detached,
    embedding_detached,
    buffers_not_restored,
    embedding_noise,
    runs_under_autocast,
)
