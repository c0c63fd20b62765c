"""The trained model saved, and loaded again in another process, as inference would load it."""

from __future__ import annotations

import copy
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from harness import experiment
from harness.training import adapters, attention, fresh
from harness.training.checkpoint import Loaded, digest
from harness.training.fault import Fault, begun
from harness.training.probes.result import chosen, features, inputs, logits
from harness.training.tasks import Task, task_of
from harness.training.twin import copied, same_draws, twin
from harness.training.workload import Workload

STRINGS = ("plain words", "Mixed CASE and 123", "naïve café", "日本語 emoji 🙂", "a\tb\nc", "[PAD] </s> <unk>")
"""Text that shows another vocabulary, normaliser or special token."""
_EXPECTED = "expected.pt"


def saved(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """What differs after ``save_pretrained`` and loading it in another process: weights, logits, tokenizer,
    label names. Adapters are loaded onto the checkpoint that they were trained on, and merged into it as well.
    """
    model = twin(work.model)
    attention.switch(model, attention.chosen(loaded.model))  # what is loaded again has transformers' choice, too
    rows = [features(work, index) for index in chosen(work.examples.lengths)]
    batch = inputs(work, work.plain_collator()(rows))
    with torch.no_grad(), same_draws():
        before = logits(work.task, model(**batch))
    with tempfile.TemporaryDirectory(prefix="harness-saved-") as name:
        folder = Path(name)
        expected = {
            "batch": dict(batch),
            "logits": before,
            "weights": _weights(model),
            "tokens": _tokens(work.tokenizer),
            "settings": _settings(work.tokenizer, adapters.base(model).config),
        }
        torch.save(expected, folder / _EXPECTED)
        if adapters.is_adapted(model):
            _save_base(loaded, model, folder)
        model.save_pretrained(folder / "model")
        work.tokenizer.save_pretrained(folder / "model")
        found: dict[str, Any] = fresh.call(reload, work.settings, work.fault, folder)
        return found


def _save_base(loaded: Loaded, model: Any, folder: Path) -> None:
    """What adapters are saved without: the checkpoint, unless it has files of its own, and the config."""
    place = loaded.folder or folder / "base"
    if loaded.folder is None:
        copy.deepcopy(loaded.model).unload().save_pretrained(place)
    model.peft_config["default"].base_model_name_or_path = str(place)
    adapters.base(model).config.save_pretrained(folder / "model")


def reload(settings: experiment.Settings, fault: Fault | None, folder: Path) -> dict[str, Any]:
    """The evidence, in the process that loads what was saved; the code of a mistake is here too."""
    with ExitStack() as mistake:
        if fault is not None:
            mistake.enter_context(begun(settings, fault))
        task, expected = task_of(settings), torch.load(folder / _EXPECTED, weights_only=True)
        try:
            # Copied: files are mapped into memory where they lie, and sums over rows that are aligned otherwise round
            # otherwise (measured 1e-6 in Inkling).
            again = copied(_load(task, folder / "model"))
            words = AutoTokenizer.from_pretrained(folder / "model")
            found = _logits(task, again, expected["batch"])
        except Exception as error:  # whatever it is, what was saved is of no use
            return {"failed": f"{type(error).__name__}: {error}"[:500]}
        weights, tokens = _weights(again), _tokens(words)
        told = _settings(words, adapters.base(again).config)
        return {
            "failed": "",
            "weights": [name for name, bits in expected["weights"].items() if weights.get(name) != bits],
            "logits": float((expected["logits"] - found).abs().max()),
            "tokens": [text for text, ids in expected["tokens"].items() if tokens[text] != ids],
            "settings": [name for name, value in expected["settings"].items() if told[name] != value],
            "merged": _merged(task, again, expected) if adapters.is_adapted(again) else None,
        }


def _load(task: Task, folder: Path) -> Any:
    if not (folder / "adapter_config.json").is_file():
        return task.auto.from_pretrained(folder, use_safetensors=True).eval()
    from peft import PeftConfig, PeftModel

    base = task.auto.from_pretrained(
        PeftConfig.from_pretrained(str(folder)).base_model_name_or_path,
        config=AutoConfig.from_pretrained(folder),
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # a head of another task, which the saved one replaces
    )
    return PeftModel.from_pretrained(base, folder).eval()


def _logits(task: Task, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), same_draws():
        return logits(task, model(**batch))


def _merged(task: Task, model: Any, expected: dict[str, Any]) -> float:
    """How far the logits are from those of the adapted model when the adapters are merged, relative to the largest."""
    before = expected["logits"]
    found = _logits(task, model.merge_and_unload(), expected["batch"])
    return float((before - found).abs().max() / before.abs().max().clamp_min(torch.finfo(before.dtype).tiny))


def _weights(model: Any) -> dict[str, str]:
    """A digest of each tensor that a forward pass reads."""
    return {name: digest([("", each)]) for name, each in model.state_dict().items() if not adapters.is_spare(name)}


def _tokens(words: Any) -> dict[str, list[int]]:
    return {text: words(text)["input_ids"] for text in STRINGS}


def _settings(words: Any, config: Any) -> dict[str, Any]:
    return {
        "pad_token_id": words.pad_token_id,
        "padding_side": words.padding_side,
        "chat_template": words.chat_template,
        "id2label": config.id2label,
        "problem_type": config.problem_type,
        # Multimodal configs keep it with their text part.
        "config.pad_token_id": getattr(config.get_text_config(), "pad_token_id", None),
    }
