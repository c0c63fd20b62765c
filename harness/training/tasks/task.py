"""What a task is: how its rows become numbers, and what is declared of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch.nn import functional
from transformers import DataCollatorWithPadding

from harness import experiment

Features = dict[str, Any]
"""What a collator takes of one example: ids, mask and labels as numbers and lists."""
Collator = Callable[[list[Features]], Any]
Tensors = Mapping[str, torch.Tensor]

IGNORED = -100
"""The label that torch's cross-entropy leaves out."""


@dataclass(frozen=True)
class Answer:
    """What the model said of one example, and what was to be said: plain numbers, lists or text."""

    said: Any
    meant: Any
    loss: float = math.nan
    """Summed over the tokens of a language model that were to be predicted; of other tasks there is none."""


class Task(ABC):
    """One kind of fine-tuning. What it declares is said twice: `encode` makes it, `expected` says what it has to be.

    Args:
        settings: of the case.
    """

    auto: ClassVar[Any]
    """The Auto class of its models."""
    outputs: ClassVar[tuple[str, ...]] = ("logits",)
    """Fields of the model's output from which the loss is taken."""
    labels: ClassVar[tuple[str, ...]] = ("labels",)
    """Arguments of the model that are labels."""
    per: ClassVar[Literal["example", "token", "target"]] = "example"
    """What a row of logits stands for: a row of tokens, one of its tokens, or one token of the decoder's."""
    scores_choices: ClassVar[bool] = False
    """Whether an example is several texts, and its logits one score of each."""
    formula: ClassVar[str] = "cross-entropy"
    """The loss, in words."""
    causal: ClassVar[bool] = False
    """Whether a token's logits must depend on no token behind it."""
    brings_head: ClassVar[bool] = False
    """Whether checkpoints are expected to hold the head, as those of language models do."""
    padding_side: ClassVar[tuple[Literal["left", "right"], str] | None] = None
    """Where padding has to be, and why; none where the tokenizer's own side serves."""

    chat_template: ClassVar[str | None] = None
    """For a tokenizer that is trained on the experiment's own text."""
    marks: ClassVar[tuple[str, ...]] = ()
    """What such a tokenizer has to know beside that text."""
    masked: float | None = None
    """Share of the tokens that are hidden at random, to be predicted."""

    def __init__(self, settings: experiment.Settings) -> None:
        self.data = settings.data
        self.seed = settings.train.seed_of_data
        self.smoothing = settings.train.label_smoothing

    @abstractmethod
    def encode(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """Features of each row, without padding; longer texts are cut to `max_length` tokens."""

    @abstractmethod
    def expected(self, row: experiment.Row, tokenizer: Any, max_length: int) -> Features:
        """What `encode` must give for a row, by another way of computing it: the reference of the laws."""

    @abstractmethod
    def loss(self, logits: Sequence[torch.Tensor], labels: Tensors) -> torch.Tensor:
        """The declared loss of a batch in fp64, by a formula of its own.

        Args:
            logits: the model's outputs named in `outputs`.
            labels: the arguments named in `labels`.
        """

    def terms(self, labels: Tensors) -> int:
        """Over how many terms the loss is a mean."""
        return len(labels[self.labels[0]])

    def drawable(self, tokenizer: Any) -> Callable[[Features], int] | None:
        """Counts the tokens of an example of which its terms are drawn at random; none where nothing is drawn."""
        return None

    def paired(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels with each label at the place of the logits that have to say it."""
        return logits, labels

    def torch_loss(self, outputs: Any, labels: torch.Tensor, reduction: str) -> torch.Tensor:
        """The loss where a loop does not take the model's own: torch's, smoothed as declared.

        Args:
            outputs: of the model.
            labels: the argument of that name.
            reduction: ``mean`` over its terms, which torch counts on the device, so that nobody waits; or ``sum``.
        """
        z, y = self.paired(outputs.logits, labels)
        return functional.cross_entropy(
            z.flatten(0, -2).float(),
            y.flatten(),
            ignore_index=IGNORED,
            reduction=reduction,
            label_smoothing=self.smoothing,
        )

    def collator(self, tokenizer: Any, model: Any) -> Collator:
        """Pads a batch, labels included; the library's own class."""
        return DataCollatorWithPadding(tokenizer)

    def plain_collator(self, tokenizer: Any, model: Any) -> Collator | None:
        """One that draws nothing at random, where `collator` does; it may leave out the labels."""
        return None

    def encode_to_evaluate(self, rows: Sequence[experiment.Row], tokenizer: Any, max_length: int) -> list[Features]:
        """As `encode`, with everything drawn that `collator` would draw."""
        return self.encode(rows, tokenizer, max_length)

    def evaluation_collator(self, tokenizer: Any, model: Any) -> Collator:
        """Pads a batch of such examples, labels included, and draws nothing."""
        return self.collator(tokenizer, model)

    def kept(self, outputs: Sequence[torch.Tensor], labels: Tensors) -> tuple[torch.Tensor, ...]:
        """What an evaluation keeps of a batch: little, with a row for each example.

        Args:
            outputs: the model's, as named in `outputs`.
            labels: the arguments named in `labels`.
        """
        return (outputs[0].float(),)

    def answers(
        self, kept: Sequence[torch.Tensor], labels: Tensors, features: Sequence[Features], tokenizer: Any
    ) -> Iterator[Answer]:
        """The answer to each example: the class with the highest score, unless a task says otherwise.

        Args:
            kept: as `kept` gave it, of one batch or of many; rows may be padded further.
            labels: likewise.
            features: of the same examples.
            tokenizer: that encoded them.
        """
        for scores, label in zip(kept[0], labels[self.labels[0]], strict=True):
            yield Answer(int(scores.argmax()), int(label))

    def configuration(self) -> dict[str, Any]:
        """What the model's config has to say of the head."""
        return {}

    def texts(self, rows: Iterable[experiment.Row]) -> list[str]:
        """Every text of the rows, for a tokenizer of their own."""
        return [text for row in rows for text in experiment.texts(row)]

    def loses(self, row: experiment.Row, features: Features, tokenizer: Any) -> bool:
        """Whether something that was to be learnt is lost, as in what is cut off."""
        return False


def columns(encoded: Mapping[str, Any], ids: Sequence[int]) -> Features:
    """The encoding of one text whose ids are these: as the tokenizer gave it, cut, or with a token more."""
    length = len(encoded["input_ids"])
    kept = {name: list(values) for name, values in encoded.items() if len(values) == length}
    more = len(ids) - length
    for name, values in kept.items():
        kept[name] = [*values, *values[-1:] * more] if more > 0 else values[: len(ids)]
    kept["input_ids"] = list(ids)
    if "attention_mask" in kept:
        kept["attention_mask"] = [1] * len(ids)
    return kept


def ended(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The ids with the tokenizer's end token behind them, unless they have it or there is none."""
    end = tokenizer.eos_token_id
    return list(ids) if end is None or (ids and ids[-1] == end) else [*ids, end]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean over all labels but the ignored ones of log(sum(exp(z))) - z[label], in fp64.

    With `smoothing`, that share of the label is spread over all classes alike (Szegedy et al. 2016, section 7).
    """
    logits, labels = logits.double().flatten(0, -2), labels.flatten()
    logits, labels = logits[labels != IGNORED], labels[labels != IGNORED]
    picked = logits.gather(-1, labels.view(-1, 1)).squeeze(-1)
    said = (1 - smoothing) * picked + smoothing * logits.mean(-1) if smoothing else picked
    return (logits.logsumexp(-1) - said).mean()


def predicted(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of each example: how many labels have the highest logits, how many there are, and the sum of their losses.

    Args:
        logits: examples x places x values.
        labels: examples x places, each the label of its place; -100 where there is none.
    """
    there = labels != IGNORED
    known = labels.where(there, torch.zeros_like(labels))
    losses = logits.float().log_softmax(-1).gather(-1, known.unsqueeze(-1)).squeeze(-1).neg().double()
    right = (logits.argmax(-1) == labels) & there
    return right.sum(-1), there.sum(-1), (losses * there).sum(-1)


def counted(kept: Sequence[torch.Tensor]) -> Iterator[Answer]:
    """The answers of a language model: how many tokens are right, of how many, and what they lost."""
    for right, there, loss in zip(*(column.tolist() for column in kept), strict=True):
        yield Answer(right, there, loss)


def supervised(labels: torch.Tensor) -> int:
    """Labels that are not ignored."""
    return int((labels != IGNORED).sum())
