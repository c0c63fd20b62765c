"""The next token of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

from harness import experiment
from harness.errors import CheckpointError
from harness.training.tasks.task import (
    IGNORED,
    Answer,
    Collator,
    Features,
    Task,
    Tensors,
    columns,
    counted,
    cross_entropy,
    ended,
    predicted,
    supervised,
)

Spans = tuple[tuple[int, int], ...]
"""Parts of a text, as first character and the one behind the last."""


class CausalLM(Task):
    """`text`; or `prompt` and `answer`, of which the answer is learnt; or `messages`, of which the assistant's are.

    The end of the text is learnt, too: its end-of-sequence token has a label, also where it is the pad token. The first
    token has none, for nothing stands before it; transformers' Trainer counts one there for models such as GPT-2, and
    divides their loss by it.
    """

    auto = AutoModelForCausalLM
    per = "token"
    causal = True
    brings_head = True
    padding_side = ("right", "positions are counted from the first column, which has to be a token")
    chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' + eos_token + ' ' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )

    marks = (":",)  # of the template

    def encode(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Ids, and the same ids as labels where they are to be learnt, which the model shifts; if one is cut off."""
        found = []
        for row in rows:
            text, spans = written(row, tokenizer)
            encoded, ids = tokens(row, text, tokenizer)
            added, offsets = encoded["special_tokens_mask"], encoded["offset_mapping"]
            learnt = [
                not special and any(_meets(start, end, *span) for span in spans)
                for special, (start, end) in zip(added, offsets, strict=True)
            ]
            learnt += [True] * (len(ids) - len(learnt))
            if "messages" not in row and ids[-1] == tokenizer.eos_token_id:
                learnt[-1] = True
            lost = any(learnt[max_length:])
            ids, learnt = ids[:max_length], learnt[:max_length]
            learnt[0] = False  # there is no token before it to predict it from
            labels = [token if mine else IGNORED for token, mine in zip(ids, learnt, strict=True)]
            found.append({**columns(_inputs(encoded), ids), "labels": labels, "lost": lost})
        return found

    def expected(self, row: experiment.Row, tokenizer: Any, max_length: int) -> Features:
        """Token by token: whether any of its characters is to be learnt."""
        text, spans = written(row, tokenizer)
        encoded, ids = tokens(row, text, tokenizer)
        learnt = {place for begin, stop in spans for place in range(begin, stop)}
        seams = learnt | {stop for _, stop in spans}
        labels = []
        for place, token in enumerate(ids):
            of_text = place < len(encoded["input_ids"]) and encoded.token_to_sequence(place) is not None
            span = encoded.token_to_chars(place) if of_text else None
            held = range(span.start, span.end) if span is not None else range(0)
            inside = span is not None and (not learnt.isdisjoint(held) if held else span.start in seams)
            ends = place == len(ids) - 1 and token == tokenizer.eos_token_id and "messages" not in row
            labels.append(token if place and (inside or ends) else IGNORED)
        return {**columns(_inputs(encoded), ids[:max_length]), "labels": labels[:max_length]}

    def collator(self, tokenizer: Any, model: Any) -> Collator:
        """Pads labels with -100 wherever there is padding, and nowhere else.

        `DataCollatorForLanguageModeling` makes labels of ids instead, and ignores every id that is the pad token:
        where that is the end token, no text has an end to learn.
        """
        return DataCollatorForSeq2Seq(tokenizer)

    def loss(self, logits: Sequence[torch.Tensor], labels: Tensors) -> torch.Tensor:
        """Cross-entropy of each label and the logits one token before it."""
        return cross_entropy(logits[0][:, :-1], labels["labels"][:, 1:], self.smoothing)

    def paired(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each label beside the logits one token before it."""
        return logits[:, :-1], labels[:, 1:]

    def terms(self, labels: Tensors) -> int:
        """Labels with a token before them."""
        return supervised(labels["labels"][:, 1:])

    def kept(self, outputs: Sequence[torch.Tensor], labels: Tensors) -> tuple[torch.Tensor, ...]:
        """Each label beside the logits one token before it."""
        return predicted(outputs[0][:, :-1], labels["labels"][:, 1:])

    def answers(
        self, kept: Sequence[torch.Tensor], labels: Tensors, features: Sequence[Features], tokenizer: Any
    ) -> Iterator[Answer]:
        """Tokens right, tokens to predict, and their loss."""
        return counted(kept)

    def loses(self, row: experiment.Row, features: Features, tokenizer: Any) -> bool:
        """Whether nothing is left to be learnt, or a part of an answer or of what the assistant says is cut off."""
        return all(label == IGNORED for label in features["labels"][1:]) or ("text" not in row and features["lost"])


def _meets(start: int, end: int, begin: int, stop: int) -> bool:
    """Whether a token has a character between two places; white space may have none, and stands where it would."""
    return begin <= start <= stop if start == end else start < stop and end > begin


def _inputs(encoded: Any) -> dict[str, Any]:
    """What the model gets of an encoding."""
    return {name: values for name, values in encoded.items() if name not in ("offset_mapping", "special_tokens_mask")}


def written(row: experiment.Row, tokenizer: Any) -> tuple[str, Spans]:
    """The text that the model reads, and what of it is to be learnt.

    Prompt and answer are joined as they are, with a space between them where neither has one there.

    Raises:
        CheckpointError: the tokenizer has no chat template, or one that cannot say where a message begins.
    """
    if "messages" in row:
        return _chat(list(row["messages"]), tokenizer)
    if "prompt" not in row:
        return row["text"], ((0, len(row["text"])),)
    prompt, answer = row["prompt"], row["answer"]
    seam = "" if prompt[-1].isspace() or answer[0].isspace() else " "
    text = f"{prompt}{seam}{answer}"
    return text, ((len(prompt), len(text)),)


def _chat(messages: list[dict[str, str]], tokenizer: Any) -> tuple[str, Spans]:
    """A chat as the tokenizer's template writes it; the assistant's turns, with what ends them."""
    if tokenizer.chat_template is None:
        raise CheckpointError("messages: the tokenizer has no chat template")

    def write(count: int, **said: bool) -> str:
        return str(tokenizer.apply_chat_template(messages[:count], tokenize=False, **said))

    whole = write(len(messages))
    spans = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = write(number, add_generation_prompt=True) if number else "", write(number + 1)
            if not (whole.startswith(after) and after.startswith(before)):
                raise CheckpointError(
                    f"messages[{number}]: the chat template writes it otherwise where more or less of the chat is "
                    "given: it cannot be told what the assistant says"
                )
            spans.append((len(before), len(after)))
    return whole, tuple(spans)


def tokens(row: experiment.Row, text: str, tokenizer: Any) -> tuple[Any, list[int]]:
    """The tokenizer's encoding with the place of each token, and the ids with the end of the text.

    A chat template writes special tokens itself.

    Raises:
        CheckpointError: the tokenizer cannot say where in the text a token stands.
    """
    said = {"add_special_tokens": False, "split_special_tokens": False} if "messages" in row else {}
    try:
        encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, **said)
    except NotImplementedError as error:
        raise CheckpointError(f"the tokenizer cannot say where in a text its tokens stand: {error}") from error
    ids = list(encoded["input_ids"])
    return encoded, ids if "messages" in row else ended(ids, tokenizer)
