"""Rows as features: what the model gets of a row, without padding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness import experiment
from harness.errors import CheckpointError
from harness.training.rows import Row
from harness.training.tasks import Features, Task

NOTED = ("index", "place", "row", "cut", "lost", "offsets")
"""What an example carries beside what the model gets: its index, the place of its row in the source, the row, how many
tokens were cut off, whether something that was to be learnt is lost with them, and where in a text its tokens stand."""


@dataclass(frozen=True)
class Encoder:
    """Rows of a task, as features without padding.

    Args:
        task: whose rows they are.
        tokenizer: called as a tokenizer is.
        max_length: longest encoding in tokens; longer text is cut.
        special: ids that stand for no text.
        words: the checkpoint's own tokenizer.
        positions: tokens that the model has positions for; none where it takes any number.
        evaluating: whether nothing may be left to chance when a batch is made.

    Raises:
        CheckpointError: when called: the tokenizer cannot cut a text to that length.
    """

    task: Task
    tokenizer: Any
    max_length: int
    special: frozenset[int] = frozenset()
    words: Any = None
    positions: int | None = None
    evaluating: bool = False

    def __call__(self, rows: Sequence[Row]) -> list[Features]:
        """The features of each row, with its label."""
        encode = self.task.encode_to_evaluate if self.evaluating else self.task.encode
        found = encode(rows, self.tokenizer, self.max_length)
        longest = max((len(ids) for features in found for ids in tokens_of(features)), default=0)
        if longest > self.max_length:  # tokenizers leave a text whole, silently, where special tokens find no room
            raise CheckpointError(
                f"max_length {self.max_length}: the tokenizer leaves {longest} tokens, {self._room()}"
            )
        for row, features in zip(rows, found, strict=True):
            features["cut"] = self._cut(row, features)
            features["lost"] = self.task.loses(row, features, self.tokenizer)
        return found

    def says_nothing(self, row: Row, features: Features) -> bool:
        """Whether a text is no token at all to the checkpoint's own tokenizer."""
        if not any(all(token in self.special for token in ids) for ids in tokens_of(features)):
            return False
        if self.tokenizer is self.words:
            return True
        return any(all(token in self.special for token in self._words(text)) for text in experiment.texts(row))

    def _words(self, text: str) -> list[int]:
        ids: list[int] = self.words(text)["input_ids"]
        return ids

    def _cut(self, row: Row, features: Features) -> int:
        """Tokens of a text, or of a pair, that its encoding lacks; 0 for other rows."""
        if "text" not in row or tokens_in(features) < self.max_length:
            return 0
        both = [[row[role]] for role in ("text", "text_pair") if row.get(role) is not None]
        whole = self.tokenizer(*both, verbose=False)["input_ids"][0]
        return max(0, len(whole) - self.max_length)

    def _room(self) -> str:
        special = getattr(self.tokenizer, "num_special_tokens_to_add", None)
        return f"for it adds {special()} special ones" if special else "more than it was asked for"


def encoder(task: Task, tokenizer: Any, max_length: int, positions: int | None = None) -> Encoder:
    """What encodes for the task; the unknown token is a word that the tokenizer does not know, so it says something."""
    special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return Encoder(task, tokenizer, max_length, special, tokenizer, positions)


def tokens_of(features: Features) -> list[list[int]]:
    """The ids of each text of an example: one, or one for each choice."""
    ids = features["input_ids"]
    return ids if ids and isinstance(ids[0], list) else [ids]


def tokens_in(features: Features) -> int:
    """Tokens of an example, of all its texts."""
    return sum(map(len, tokens_of(features)))


def bare(features: Features) -> Features:
    """What a collator gets of an example."""
    return {name: value for name, value in features.items() if name not in NOTED}


def longest(declared: int | None, tokenizer: Any, model: Any) -> int:
    """The longest encoding in tokens: as declared, else what both tokenizer and model can take."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None), positions(model)]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000]
    if declared is not None:
        return declared
    return min(known) if known else 512


def positions(model: Any) -> int | None:
    """The rows of the model's table of positions that tokens can have: RoBERTa's kind begins behind the padding's. None
    where it has no table, and reads texts of any length.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and re.search(r"(^|\.)(wpe|embed_positions|position_embeddings?)$", name)
    ]
    if not tables or not isinstance(limit, int):
        return None
    skipped = max(0 if table.padding_idx is None else table.padding_idx + 1 for table in tables)
    return max(limit, *(table.num_embeddings for table in tables)) - skipped
