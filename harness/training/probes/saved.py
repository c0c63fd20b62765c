"""The trained model saved and loaded again, as inference would load it."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import AutoTokenizer

from harness.training.checkpoint import Loaded
from harness.training.probes.result import chosen, features, inputs, logits
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload

STRINGS = ("plain words", "Mixed CASE and 123", "naïve café", "日本語 emoji 🙂", "a\tb\nc", "[PAD] </s> <unk>")
"""Text that shows another vocabulary, normaliser or special token."""


def saved(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """What differs after ``save_pretrained`` and loading from the folder: weights, logits, tokenizer, label names."""
    model = twin(work.model)
    rows = [features(work, index) for index in chosen(work.examples.lengths)]
    batch = inputs(work, work.plain_collator()(rows))
    with torch.no_grad(), same_draws():
        before = logits(work, model(**batch))
    with tempfile.TemporaryDirectory(prefix="harness-saved-") as folder:
        model.save_pretrained(folder)
        work.tokenizer.save_pretrained(folder)
        try:
            again = work.task.auto.from_pretrained(folder, use_safetensors=True).eval()
            words = AutoTokenizer.from_pretrained(folder)
            with torch.no_grad(), same_draws():
                distance = float((before - logits(work, again(**batch))).abs().max())
        except Exception as error:  # whatever it is, what was saved is of no use
            return {"failed": f"{type(error).__name__}: {error}"[:500]}
    loaded_again = again.state_dict()
    return {
        "failed": "",
        "weights": [
            name
            for name, tensor in model.state_dict().items()
            if name not in loaded_again or not torch.equal(tensor, loaded_again[name])
        ],
        "logits": distance,
        "tokens": [text for text in STRINGS if words(text)["input_ids"] != work.tokenizer(text)["input_ids"]],
        "settings": [
            name
            for name, old, new in (
                ("pad_token_id", work.tokenizer.pad_token_id, words.pad_token_id),
                ("padding_side", work.tokenizer.padding_side, words.padding_side),
                ("id2label", model.config.id2label, again.config.id2label),
                ("config.pad_token_id", _pad(model), _pad(again)),
            )
            if old != new
        ],
    }


def _pad(model: Any) -> int | None:
    """Multimodal configs keep it with their text part."""
    return getattr(model.config.get_text_config(), "pad_token_id", None)
