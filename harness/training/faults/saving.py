"""Faults of what is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.training import adapters, checkpoint
from harness.training.fault import NO_REPORT, WHOLE_TEXTS, Patch, fault
from harness.training.workload import Workload

Tensors = dict[str, torch.Tensor]


def _saving(work: Workload, patch: Patch, change: Callable[[Any, Tensors], Tensors]) -> None:
    """Let models save what `change(model, tensors)` makes of their tensors; of adapters, of the file of those."""
    if adapters.is_adapted(work.model):
        _rewriting_adapters(patch, type(work.model), change)
        return
    right = PreTrainedModel.save_pretrained

    def save(self: Any, folder: Any, **kwargs: Any) -> None:
        right(self, folder, state_dict=change(self, dict(self.state_dict())), **kwargs)

    patch.set(PreTrainedModel, "save_pretrained", save)


def _rewriting_adapters(patch: Patch, kind: type, change: Callable[[Any, Tensors], Tensors]) -> None:
    right = kind.save_pretrained  # type: ignore[attr-defined]

    def save(self: Any, folder: Any, **kwargs: Any) -> None:
        right(self, folder, **kwargs)
        file = Path(folder) / "adapter_model.safetensors"
        save_file(change(self, load_file(file)), file, metadata={"format": "pt"})

    patch.set(kind, "save_pretrained", save)


def _plain(name: str) -> str:
    """The same in a model and in a file, of adapters too."""
    return adapters.plain(name).replace(".default.", ".")


def _rewriting(patch: Patch, kind: type, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Let a JSON file that `kind.save_pretrained` writes be changed afterwards."""
    right = kind.save_pretrained  # type: ignore[attr-defined]

    def save(self: Any, folder: Any, **kwargs: Any) -> Any:
        found = right(self, folder, **kwargs)
        file = Path(folder) / name
        said = json.loads(file.read_text(encoding="utf-8"))
        change(said)
        file.write_text(json.dumps(said), encoding="utf-8")
        return found

    patch.set(kind, "save_pretrained", save)


@fault("sentence-transformers#3980, peft#756, peft#602, unsloth#3317")
def head_not_saved(work: Workload, patch: Patch) -> Workload:
    """The new head is not among the saved weights: a reload draws it anew."""

    def change(model: Any, tensors: Tensors) -> Tensors:
        head = set(map(_plain, checkpoint.head_names(model)))
        return {name: tensor for name, tensor in tensors.items() if _plain(name) not in head}

    _saving(work, patch, change)
    return work


@fault("moco-v3#30, NASA-IMPACT/hls-foundation-os#63")
def saved_under_a_prefix(work: Workload, patch: Patch) -> Workload:
    """Saved names carry a wrapper's prefix."""
    _saving(work, patch, lambda model, tensors: {f"module.{name}": tensor for name, tensor in tensors.items()})
    return work


@fault("unsloth#237, peft#2898")
def saved_in_bf16(work: Workload, patch: Patch) -> Workload:
    """Weights are saved in bf16."""

    def change(model: Any, tensors: Tensors) -> Tensors:
        return {name: one.bfloat16() if one.is_floating_point() else one for name, one in tensors.items()}

    _saving(work, patch, change)
    return work


@fault("transformers#24103, sentence-transformers#3470, transformers#36201")
def saved_before_training(work: Workload, patch: Patch) -> Workload:
    """What is saved are the weights from before the training."""
    start = {_plain(name): tensor.detach().cpu().clone() for name, tensor in work.model.state_dict().items()}
    _saving(work, patch, lambda model, tensors: {name: start.get(_plain(name), one) for name, one in tensors.items()})
    return work


@fault("transformers#30543, peft#2898")
def a_matrix_not_saved(work: Workload, patch: Patch) -> Workload:
    """One weight of the backbone is lost when saving."""

    def change(model: Any, tensors: Tensors) -> Tensors:
        prefix = f"{model.base_model_prefix}."
        lost = [name for name, t in tensors.items() if _plain(name).startswith(prefix) and t.dim() == 2][-1]
        return {name: tensor for name, tensor in tensors.items() if name != lost}

    _saving(work, patch, change)
    return work


@fault("peft#2898, Chinese-LLaMA-Alpaca#604")
def last_token_row_not_saved(work: Workload, patch: Patch) -> Workload:
    """The row of the last token is saved as zeros."""

    def change(model: Any, tensors: Tensors) -> Tensors:
        table = model.get_input_embeddings().weight
        mine = {_plain(name) for name, parameter in model.named_parameters() if parameter is table}
        lost = {
            name: torch.cat([rows[:-1], torch.zeros_like(rows[-1:])])
            for name, rows in tensors.items()
            if _plain(name) in mine
        }
        return {**tensors, **lost}

    _saving(work, patch, change)
    return work


@fault("vllm-project/semantic-router#3557")
def tokenizer_not_saved(work: Workload, patch: Patch) -> Workload:
    """``tokenizer.save_pretrained`` is forgotten."""
    patch.set(PreTrainedTokenizerBase, "save_pretrained", lambda self, *args, **kwargs: ())
    return work


@fault("vllm-project/semantic-router#3557")
def padding_side_lost(work: Workload, patch: Patch) -> Workload:
    """The saved tokenizer pads on the other side."""

    def change(said: dict[str, Any]) -> None:
        said["padding_side"] = "right" if work.tokenizer.padding_side == "left" else "left"

    _rewriting(patch, PreTrainedTokenizerBase, "tokenizer_config.json", change)
    return work


@fault("vllm-project/semantic-router#3557")
def pad_token_lost(work: Workload, patch: Patch) -> Workload:
    """The saved tokenizer has no pad token."""
    _rewriting(patch, PreTrainedTokenizerBase, "tokenizer_config.json", lambda said: said.pop("pad_token", None))
    return work


@fault("vllm-project/semantic-router#3557")
def pad_id_lost(work: Workload, patch: Patch) -> Workload:
    """The saved config does not know the pad token."""
    _rewriting(patch, PreTrainedConfig, "config.json", lambda said: said.update(pad_token_id=None))
    return work


@fault("vllm-project/semantic-router#3557")
def label_names_lost(work: Workload, patch: Patch) -> Workload:
    """The saved config has other label names."""
    names = {str(number): f"class {number}" for number in range(work.model.config.num_labels)}
    swapped = {name: int(number) for number, name in names.items()}
    _rewriting(patch, PreTrainedConfig, "config.json", lambda said: said.update(id2label=names, label2id=swapped))
    return work


@fault("vllm-project/semantic-router#3557", tasks=WHOLE_TEXTS)
def kind_of_problem_lost(work: Workload, patch: Patch) -> Workload:
    """The saved config does not say how labels are meant: a sigmoid becomes a softmax."""
    _rewriting(patch, PreTrainedConfig, "config.json", lambda said: said.update(problem_type=None))
    return work


@fault(NO_REPORT, tasks={"causal-lm"})
def chat_template_not_saved(work: Workload, patch: Patch) -> Workload:
    """The saved tokenizer has no chat template: chats are written otherwise than in training."""
    right = PreTrainedTokenizerBase.save_pretrained

    def save(self: Any, *args: Any, **kwargs: Any) -> Any:
        template, self.chat_template = self.chat_template, None
        found = right(self, *args, **kwargs)
        self.chat_template = template
        return found

    patch.set(PreTrainedTokenizerBase, "save_pretrained", save)
    return work


@fault(NO_REPORT)
def special_tokens_not_saved(work: Workload, patch: Patch) -> Workload:
    """The saved tokenizer adds no special tokens."""
    _rewriting(patch, PreTrainedTokenizerBase, "tokenizer.json", lambda said: said.update(post_processor=None))
    return work


FAULTS = (
    head_not_saved,
    saved_under_a_prefix,
    saved_in_bf16,
    saved_before_training,
    a_matrix_not_saved,
    last_token_row_not_saved,
    tokenizer_not_saved,
    padding_side_lost,
    pad_token_lost,
    pad_id_lost,
    label_names_lost,
    kind_of_problem_lost,
    chat_template_not_saved,
    special_tokens_not_saved,
)
