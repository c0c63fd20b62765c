"""Cases of a few milliseconds, and folders with checkpoints for them: what the tests of training train."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForPreTraining, PreTrainedModel

from harness import plan
from harness.experiment import Experiment, FolderCheckpoint, Point, Settings
from harness.plan import Case
from harness.record import Record
from harness.training import environment, fresh, tokenizer
from harness.training.ceiling import Ceilings
from harness.training.checkpoint import Shelf
from harness.training.run import run

SEQUENCES = ["the soup was warm", "bread", "we waited an hour for the soup and the bread", "it was cold", "never again"]
LABELS = [1, 0, 1, 0, 0]
CEILINGS = Ceilings()
"""Of this machine, measured once for all tests."""
environment._git = functools.cache(environment._git)  # the same commit for all of them, and two processes a training


def settings(checkpoint: Any = None, **said: Any) -> Settings:
    """Settings of a tiny BERT with random weights, or of a checkpoint's folder, on the CPU."""
    if isinstance(checkpoint, Path):
        checkpoint = FolderCheckpoint(path=checkpoint)
    said.setdefault("data", {"sequences": SEQUENCES, "labels": LABELS})
    checkpoint = checkpoint or {"architecture": "bert", "size": "tiny"}
    return Settings.model_validate({"checkpoint": checkpoint, "device": "cpu", **said})


def case(
    checkpoint: Any = None, *, file: str = "trial.yaml", probes: Iterable[str] = (), timed: bool = False, **said: Any
) -> Case:
    """The one case of an experiment that says this."""
    path = Path.cwd() / file
    experiment = Experiment(path, "", (Point((), settings(checkpoint, **said)),))
    (only,) = plan.cases(experiment, ["cpu"], root=path.parent)
    return replace(only, probes=frozenset(probes), timed=timed)


def train(case: Case, shelf: Shelf | None = None) -> Record:
    """Run a case, and fail with its traceback where it does not finish."""
    record = attempt(case, shelf)
    assert record.finished, f"{record.outcome}: {record.reason}\n{record.traceback}"
    return record


def attempt(case: Case, shelf: Shelf | None = None) -> Record:
    """Run a case, however it ends."""
    return run(case, shelf=shelf or Shelf(ceilings=CEILINGS), root=case.path.parent)


@contextmanager
def at_once() -> Iterator[None]:
    """Whatever asks for a process of its own gets this one, in which a test's mistakes are made already."""

    def here(function: Callable[..., Any], settings: Settings, fault: object, *arguments: Any) -> Any:
        return function(settings, None, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "call", here)
        patch.setattr(fresh, "wait", lambda: None)
        patch.setattr(fresh, "warm_up", lambda: None)
        yield


def save(folder: Path, model: type[PreTrainedModel] = BertForPreTraining, *, words: bool = True, **said: Any) -> Path:
    """A checkpoint of random weights, as `save_pretrained` leaves it, with its tokenizer."""
    tokens = tokenizer.train(SEQUENCES)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = model.config_class(**{"vocab_size": len(tokens), **sizes, "max_position_embeddings": 64, **said})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(config).save_pretrained(folder)
    if words:
        tokens.save_pretrained(folder)
    return folder


def other_words(words: str) -> str:
    """The text of a tokenizer's file in which two ids stand for other words."""
    return words.replace('"the"', '"soup "').replace('"soup"', '"the"')
