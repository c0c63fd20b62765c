"""What the checkpoint's own tokenizer makes of a text: the reference for what reached the model."""

from __future__ import annotations

from typing import Any

from harness import experiment
from harness.record import Example, Tokenizer
from harness.training import adapters
from harness.training.checkpoint import Loaded
from harness.training.tasks import Features, Task
from harness.training.tokenizer import accepts_token_types

LOOKED_AT = 100
"""Rows whose tokens are looked up in the tokenizer that came with the checkpoint, at most: the first."""

_SECOND = ("text_pair", "question", "choices")
"""Roles of a row whose text stands beside another one."""


def tokenizer(loaded: Loaded, task: Task, max_length: int) -> Tokenizer:
    """The checkpoint's own, whatever the workload encodes and pads with; and what its model makes of it."""
    words, model = loaded.tokenizer, adapters.base(loaded.model)
    return Tokenizer(
        name=type(words).__name__,
        vocabulary=len(words),
        pad_token_id=words.pad_token_id,
        padding_side=words.padding_side,
        max_length=max_length,
        end_token_ids=_ends(model, words),
        decoder_start_token_id=_generating(model, "decoder_start_token_id"),
        token_types=accepts_token_types(type(model), model.config),
        reasons=dict(loaded.reasons),
        foreign=_foreign(loaded, task, max_length),
        begin_token_id=words.bos_token_id,
    )


def _foreign(loaded: Loaded, task: Task, max_length: int) -> tuple[str, ...]:
    """Where another tokenizer is declared than the checkpoint's: ids that do not mean to the model what they say."""
    words, own = loaded.tokenizer, loaded.replaced
    texts = task.texts(loaded.rows.first(LOOKED_AT)) if own is not None else []
    if own is None or not texts:
        return ()
    encoded = words(texts, truncation=True, max_length=max_length)["input_ids"]
    used = sorted({token for ids in encoded for token in ids if token < len(own)})
    both = zip(used, words.convert_ids_to_tokens(used), own.convert_ids_to_tokens(used), strict=True)
    return tuple(
        f"id {token} is {ours!r}, and {theirs!r} in the tokenizer that came with the checkpoint"
        for token, ours, theirs in both
        if ours != theirs and "unused" not in (theirs or "unused")  # an id kept free for tokens of one's own
    )


def example(loaded: Loaded, task: Task, index: int, row: experiment.Row, max_length: int) -> Example:
    """A row of the data encoded once more, alone."""
    pair = any(row.get(role) is not None for role in _SECOND)
    return _example(index, " | ".join(task.texts([row])), task.expected(row, loaded.tokenizer, max_length), pair)


def _example(index: int, text: str, encoded: Features, pair: bool) -> Example:
    encoded = dict(encoded)
    labels = {name: encoded.pop(name) for name in ("labels", "start_positions", "end_positions") if name in encoded}
    choices = [_example(index, text, {**choice, "labels": 0}, pair) for choice in encoded.pop("choices", ())]
    return Example(
        index=index,
        text=text[:60],
        input_ids=encoded.pop("input_ids", ()),
        columns={name: values for name, values in encoded.items() if _is_column(name, values)},
        pair=pair,
        label=labels.get("labels", labels),
        choices=tuple(choices),
    )


def _is_column(name: str, values: Any) -> bool:
    """Whether it is a number for each token, other than the mask."""
    return name != "attention_mask" and isinstance(values, list) and all(isinstance(value, int) for value in values)


def _ends(model: Any, words: Any) -> tuple[int, ...]:
    """Ids of the tokens at which generation stops."""
    said = _generating(model, "eos_token_id")
    ends = {*(said if isinstance(said, list | tuple) else [said]), words.eos_token_id}
    return tuple(sorted(end for end in ends if end is not None))


def _generating(model: Any, name: str) -> Any:
    """What the config says of generating, or that of the generation where there is one."""
    own = getattr(getattr(model, "generation_config", None), name, None)
    return getattr(model.config, name, None) if own is None else own
