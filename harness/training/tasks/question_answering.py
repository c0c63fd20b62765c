"""The part of a text that answers a question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForQuestionAnswering

from harness import experiment
from harness.errors import CheckpointError
from harness.training.tasks.task import Answer, Features, Task, Tensors, cross_entropy


class QuestionAnswering(Task):
    """First and last token of `answer` in `context`; both are 0 where the answer is cut off, as in SQuAD 2."""

    auto = AutoModelForQuestionAnswering
    outputs = ("start_logits", "end_logits")
    labels = ("start_positions", "end_positions")
    per = "token"
    formula = "mean cross-entropy of first and last token"
    padding_side = ("right", "places in the text are counted from the first column")

    def encode(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Question and text, of which the text is cut."""
        found = []
        for row in rows:
            whole, cut = _encoded(row, tokenizer, None), _encoded(row, tokenizer, max_length)
            start, end = span(row)
            offsets, parts = whole["offset_mapping"], whole.sequence_ids()
            inside = [place for place, part in enumerate(parts) if part == 1 and offsets[place][0] < offsets[place][1]]
            first = next((place for place in inside if offsets[place][1] > start), len(parts))
            last = next((place for place in reversed(inside) if offsets[place][0] < end), 0)
            if not first <= last < len(cut["input_ids"]) or cut.sequence_ids()[last] != 1:
                first = last = 0
            kept = {name: values for name, values in cut.items() if name != "offset_mapping"}
            found.append({**kept, "start_positions": first, "end_positions": last})
        return found

    def expected(self, row: experiment.Row, tokenizer: Any, max_length: int) -> Features:
        """Every token that holds a character of the answer: all of them are there, or the answer is lost."""
        cut = _encoded(row, tokenizer, max_length)
        places, all_places = (_places(row, encoded) for encoded in (cut, _encoded(row, tokenizer, None)))
        lost = not places or len(places) < len(all_places)
        return {
            **{name: values for name, values in cut.items() if name != "offset_mapping"},
            "start_positions": 0 if lost else min(places),
            "end_positions": 0 if lost else max(places),
        }

    def encode_to_evaluate(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Beside it, where in the text each token stands: an answer is text."""
        found = self.encode(rows, tokenizer, max_length)
        for row, features in zip(rows, found, strict=True):
            encoded = _encoded(row, tokenizer, max_length)
            parts = encoded.sequence_ids()
            features["offsets"] = [
                tuple(span) if part == 1 else None for span, part in zip(encoded["offset_mapping"], parts, strict=True)
            ]
        return found

    def kept(self, outputs: Sequence[torch.Tensor], labels: Tensors) -> tuple[torch.Tensor, ...]:
        """The scores of each token as the first and as the last one of the answer."""
        return tuple(scores.float() for scores in outputs)

    def answers(
        self, kept: Sequence[torch.Tensor], labels: Tensors, features: Sequence[Features], tokenizer: Any
    ) -> Iterator[Answer]:
        """The words between first and last token of the best span; no words where that is token 0 (SQuAD 2)."""
        for start, end, row in zip(*kept, features, strict=True):
            offsets, context = row["offsets"], row["row"]["context"]
            inside = [0, *(place for place, span in enumerate(offsets) if span is not None)]
            first, last = best_span(start[inside], end[inside])
            said = context[offsets[inside[first]][0] : offsets[inside[last]][1]] if first else ""
            yield Answer(said, row["row"]["answer"])

    def loss(self, logits: Sequence[torch.Tensor], labels: Tensors) -> torch.Tensor:
        """Half of the sum of two cross-entropies, each over the places of the text."""
        both = [cross_entropy(z, labels[name]) for z, name in zip(logits, self.labels, strict=True)]
        return torch.stack(both).mean()

    def loses(self, row: experiment.Row, features: Features, tokenizer: Any) -> bool:
        """Whether the answer is cut off."""
        return bool(features["end_positions"] == 0)


def best_span(start: torch.Tensor, end: torch.Tensor) -> tuple[int, int]:
    """First and last place of the span whose two scores add up to most; the first of them is 0 alone, or no part.

    Args:
        start: of each place, as the first one; place 0 means that there is no answer.
        end: of each place, as the last one.
    """
    sums = start[:, None] + end[None, :]
    allowed = torch.ones_like(sums, dtype=torch.bool).triu()
    allowed[0, 1:] = False
    best = int(sums.where(allowed, torch.full_like(sums, -torch.inf)).argmax())
    return divmod(best, len(start))


def span(row: experiment.Row) -> tuple[int, int]:
    """First character of the answer, and the one behind its last."""
    start = row.get("answer_start")
    start = row["context"].index(row["answer"]) if start is None else start
    return start, start + len(row["answer"])


def _places(row: experiment.Row, encoded: Any) -> list[int]:
    """Tokens that hold a character of the answer."""
    answer = range(*span(row))
    found = []
    for place in range(len(encoded["input_ids"])):
        characters = encoded.token_to_chars(place) if encoded.token_to_sequence(place) == 1 else None
        if characters is not None and set(range(characters.start, characters.end)) & set(answer):
            found.append(place)
    return found


def _encoded(row: experiment.Row, tokenizer: Any, max_length: int | None) -> Any:
    """Question and text with the place of each token, cut to a length where there is one.

    Raises:
        CheckpointError: the question alone is too long, or the tokenizer cannot say where its tokens stand.
    """
    cut = {} if max_length is None else {"truncation": "only_second", "max_length": max_length}
    try:
        return tokenizer(row["question"], row["context"], return_offsets_mapping=True, **cut)
    except NotImplementedError as error:
        raise CheckpointError(f"the tokenizer cannot say where in a text its tokens stand: {error}") from error
    except Exception as error:  # tokenizers raises no narrower class
        if "Truncation error" not in str(error):
            raise
        raise CheckpointError(f"max_length {max_length}: no room beside the question {row['question']!r}") from error
