"""Faults of the tokenizer and of how it is called."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from harness import experiment
from harness.training import tokenizer as tiny
from harness.training.checkpoint import Loaded
from harness.training.fault import NO_REPORT, WHOLE_TEXTS, Patch, fault, loading_fault
from harness.training.faults.seam import encoded
from harness.training.workload import Workload


@fault("transformers#18478, tloen/alpaca-lora#315, ndif-team/nnsight#672")
def pads_on_the_other_side(work: Workload, patch: Patch) -> Workload:
    """The tokenizer's padding side is changed, as for generation."""
    words = copy.deepcopy(work.tokenizer)
    words.padding_side = "right" if words.padding_side == "left" else "left"
    return replace(work, tokenizer=words)


@fault("transformers#35352, transformers#23530, trl#976")
def pad_token_is_the_end_token(work: Workload, patch: Patch) -> Workload:
    """``tokenizer.pad_token = tokenizer.eos_token``, for tokenizer and config, although there is a pad token."""
    words = copy.deepcopy(work.tokenizer)
    words.pad_token = words.eos_token or words.sep_token
    work.model.config.pad_token_id = words.pad_token_id
    return replace(work, tokenizer=words)


@fault(NO_REPORT, tasks=WHOLE_TEXTS)
def tokenizer_of_another_checkpoint(work: Workload, patch: Patch) -> Workload:
    """Texts are encoded by a tokenizer with another vocabulary, whose ids happen to fit."""
    texts = work.task.texts(work.examples.rows.first(1000))
    other = tiny.train([" ".join(text.split()[::-1])[::-1] for text in texts], vocab_size=40)
    rows = work.model.get_input_embeddings().num_embeddings

    def encode(texts: list[str], **options: Any) -> Any:
        found = other(texts, **options)
        found["input_ids"] = [[token % rows for token in ids] for ids in found["input_ids"]]
        return found

    return encoded(work, encode)


@fault("DeepCrime: missing preprocessing", tasks=WHOLE_TEXTS)
def special_tokens_left_out(work: Workload, patch: Patch) -> Workload:
    """Texts are encoded with ``add_special_tokens=False``."""
    return encoded(work, lambda texts, **options: work.tokenizer(texts, add_special_tokens=False, **options))


@fault("arcee-ai/DALM#56, deepseek-ai/DeepSeek-Coder#163", tasks=WHOLE_TEXTS)
def end_token_cut_off(work: Workload, patch: Patch) -> Workload:
    """The last token of each encoding is lost."""

    def encode(texts: list[str], **options: Any) -> Any:
        found = work.tokenizer(texts, **options)
        return {name: [row[:-1] if len(row) > 1 else row for row in rows] for name, rows in found.items()}

    return encoded(work, encode)


@fault(NO_REPORT, tasks=WHOLE_TEXTS)
def special_tokens_twice(work: Workload, patch: Patch) -> Workload:
    """Special tokens are written into the text and added again by the tokenizer."""

    def encode(texts: list[str], **options: Any) -> Any:
        found = work.tokenizer(texts, **options)
        return {name: [row[:1] + row for row in rows] for name, rows in found.items()}

    return encoded(work, encode, work.max_length + 1)


@fault("pytorch#70348, trl#980", tasks=WHOLE_TEXTS)
def texts_cut_short(work: Workload, patch: Patch) -> Workload:
    """A small ``max_length`` is left in the tokenization."""
    shortest = work.tokenizer.num_special_tokens_to_add() + 3
    return encoded(work, work.tokenizer, min(work.max_length, shortest))


@fault("DeepCrime: missing preprocessing")
def normaliser_lost(work: Workload, patch: Patch) -> Workload:
    """The tokenizer does not normalise: cased text meets an uncased vocabulary."""
    words = copy.deepcopy(work.tokenizer)
    if getattr(words, "backend_tokenizer", None) is None or words.backend_tokenizer.normalizer is None:
        return work
    words.backend_tokenizer.normalizer = None
    return replace(encoded(work, words), tokenizer=words)


def _pairs(settings: experiment.Settings) -> bool:
    columns = {*settings.data.columns, *(role for row in settings.data.given[:1] for role in row)}
    return settings.task in ("question-answering", "multiple-choice") or "text_pair" in columns


@loading_fault("transformers#48128, transformers#17082", when=_pairs)
def token_types_unknown_to_the_tokenizer(loaded: Loaded, patch: Patch) -> Loaded:
    """The tokenizer returns no token_type_ids: to the model both texts of a pair are the first."""
    names = loaded.tokenizer.model_input_names
    loaded.tokenizer.model_input_names = [name for name in names if name != "token_type_ids"]
    return loaded


@fault(NO_REPORT, tasks=WHOLE_TEXTS)
def texts_not_cleaned_alike(work: Workload, patch: Patch) -> Workload:
    """Punctuation is removed from the texts before they are encoded."""
    return encoded(
        work,
        lambda texts, **options: work.tokenizer(
            ["".join(c for c in text if c.isalnum() or c.isspace()) or text for text in texts], **options
        ),
    )


FAULTS = (
    pads_on_the_other_side,
    pad_token_is_the_end_token,
    tokenizer_of_another_checkpoint,
    special_tokens_left_out,
    end_token_cut_off,
    special_tokens_twice,
    texts_cut_short,
    normaliser_lost,
    token_types_unknown_to_the_tokenizer,
    texts_not_cleaned_alike,
)
