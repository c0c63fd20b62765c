"""What can go wrong, in one family."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class HarnessError(Exception):
    """Anything that the harness itself reports as wrong."""


class InvalidExperiment(HarnessError):
    """An experiment file says something that it may not, once or many times."""

    def __init__(self, mistakes: Iterable["Mistake"]) -> None:
        """Keep every mistake; `str()` of the error is one line a mistake."""
        self.mistakes = tuple(mistakes)
        super().__init__(self.mistakes)

    def __str__(self) -> str:
        return "\n".join(map(str, self.mistakes))


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in an experiment file: where it is, what was found, and what is expected."""

    file: Path
    line: int
    """Counted from 1."""
    key: str
    """Dotted, as in `data.labels[2]`; empty where the file as a whole is meant."""
    found: str
    expected: str
    hint: str = ""
    """The next step, where one is likely: `did you mean 'train'?`."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: {self.key}: " if self.key else f"{self.file}:{self.line}: "
        return f"{where}found {self.found}, expected {self.expected}" + (f"; {self.hint}" if self.hint else "")


def shown(value: object) -> str:
    """A value as mistakes show it: short, and a list or a mapping by its kind."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return repr(value if len(value) <= 60 else f"{value[:57]}...")
        case list():
            return "a list" if value else "an empty list"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case _:
            return str(value)


_ELSEWHERE = {
    **dict.fromkeys(("text-classification", "sentiment-analysis"), "sequence-classification"),
    "ner": "token-classification",
    "fill-mask": "masked-lm",
    "text-generation": "causal-lm",
    **dict.fromkeys(("summarization", "translation", "text2text-generation"), "seq2seq-lm"),
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "lr": "learning_rate",
    "optim": "optimizer",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "lr_scheduler_type": "schedule",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "attn_implementation": "attention",
    "torch_compile": "compile",
    "max_seq_length": "max_length",
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
}
"""What transformers and peft call tasks, precisions and keys, and what an experiment file calls them."""


def meant(text: str, known: Iterable[str], most: int = 1) -> str:
    """A hint for text that is nearly one of the known words, or another library's word for one; empty otherwise."""
    words = list(known)
    section, dot, name = text.rpartition(".")
    other = f"{section}{dot}{_ELSEWHERE.get(name, name)}"
    near = [other] if other in words else difflib.get_close_matches(text, words, most)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def count(number: int, noun: str) -> str:
    """A number of things: `1 label`, `2 labels`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Unavailable(HarnessError):
    """The machine or the network lacks what the case needs: a skip with its reason, not a failure."""


class CheckpointError(HarnessError):
    """A checkpoint or tokenizer cannot be had or used."""


class DataError(HarnessError):
    """The rows of a dataset or file cannot be had or used."""
