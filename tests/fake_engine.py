"""An engine that trains nothing: records made by hand, the same each time, and a log of what was asked.

The tests of the plugin put it into a project's `conftest.py`; it runs where torch is not importable.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.plan import Case
from harness.record import Batch, Checkpoint, Environment, Example, Memory, Parameter, Record, Steps, Tokenizer

Answer = Callable[[Case], Record]

SECONDS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
"""Of the steps, over and over. Powers of two: rates and sums of them are exact."""
LOSSES = (1.0, 0.875, 0.75, 0.5, 0.375, 0.25)

_LOG = "asked.jsonl"


def finished(case: Case, **changes: Any) -> Record:
    """A record that every law accepts: two examples, of 4 and 2 tokens, in each batch."""
    steps = case.settings.train.steps
    fields = {
        **case.declared(),
        "outcome": "finished",
        "started": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "seconds": 8.0,
        "environment": Environment(
            versions={"python": "3.11.0", "torch": "2.0.0"},
            platform="Testix",
            processor="Abacus 9",
            device="Abacus 9",
            threads=2,
            commit="0123456789abcdef",
            dirty=False,
        ),
        "checkpoint": Checkpoint(
            source=str(case.settings.checkpoint),
            architecture="FakeForSequenceClassification",
            parameters=12,
            dtype="float32",
            digest="5" * 64,
            pretrained=True,
            missing=("classifier.weight",),
            head=("classifier.weight",),
        ),
        "tokenizer": Tokenizer(
            name="FakeTokenizer", vocabulary=30, pad_token_id=0, padding_side="right", max_length=512
        ),
        "examples": (
            Example(index=0, text="good enough", input_ids=(1, 7, 8, 2), label=1),
            Example(index=1, text="", input_ids=(1, 2), label=0),
        ),
        "batches": (
            Batch(
                step=0,
                examples=(0, 1),
                tensors={
                    "input_ids": ((1, 7, 8, 2), (1, 2, 0, 0)),
                    "attention_mask": ((1, 1, 1, 1), (1, 1, 0, 0)),
                    "labels": (1, 0),
                },
            ),
        ),
        "steps": Steps(
            loss=_over(LOSSES, steps, last=LOSSES[-1]),
            learning_rate=(case.settings.train.learning_rate,) * steps,
            seconds=_over(SECONDS, steps),
            watching_seconds=(0.0,) * steps,
            samples=(2,) * steps,
            real_tokens=(6,) * steps,
            padded_tokens=(8,) * steps,
            digest=({"input_ids": "aa", "labels": "bb"},) * steps,
            examples=((0, 1),) * steps,
        ),
        "parameters": (
            _moved("encoder.weight", head=False),
            _moved("classifier.weight", head=True),
        ),
        "memory": Memory(peak_bytes=3 * 2**20, kind="resident in the process"),
        "probes": {name: {"loss": [0.5, 0.25]} for name in sorted(case.probes)},
    }
    return Record(**{**fields, **changes})


def stopped(outcome: str, reason: str, traceback: str = "") -> Answer:
    """Answer with a case that did not come to its end."""

    def answer(case: Case) -> Record:
        record = finished(case, outcome=outcome, reason=reason, traceback=traceback, parameters=(), probes={})
        return record.model_copy(update={"steps": Steps()})

    return answer


crashed = stopped("crashed", "ValueError: a broken thing", "Traceback (most recent call last):\n  the broken line\n")
out_of_memory = stopped("out of memory", "OutOfMemoryError: tried to get 9 GiB", "Traceback: the greedy line\n")
skipped = stopped("skipped", "no CUDA device: this machine is a fake")
interrupted = stopped("interrupted", "stopped by Ctrl-C")


def flat(case: Case) -> Record:
    """A finished case whose loss stays where it is."""
    record = finished(case)
    steps = record.steps.model_copy(update={"loss": (0.5,) * len(record.steps.loss)})
    return record.model_copy(update={"steps": steps})


class FakeEngine:
    """Answers each case with a record made for it.

    Args:
        folder: where `asked.jsonl` goes, and whose `reports/records` are counted when a case is asked for.
        answers: how to answer for a case, by its id; the others finish.
        available: the devices that there are.
    """

    def __init__(
        self, folder: Path, answers: Mapping[str, Answer] | None = None, available: tuple[str, ...] = ("cpu",)
    ) -> None:
        self._folder = folder
        self._answers = answers or {}
        self._available = available

    def submit(self, case: Case) -> Record:
        """Log the request, and answer."""
        records = (self._folder / "reports" / "records").glob("*.jsonl")
        asked = {
            "case": case.name,
            "probes": sorted(case.probes),
            "stored": sum(len(file.read_text().splitlines()) for file in records),
            "process": os.getpid(),
            "torch": "torch" in sys.modules,
        }
        self._note(asked)
        return self._answers.get(case.id, finished)(case)

    def unavailable(self, device: str) -> str | None:
        """Every device but the available ones."""
        return None if device in self._available else f"no {device}: this machine is a fake"

    def close(self) -> None:
        """Log it."""
        self._note({"case": "close"})

    def _note(self, line: Mapping[str, Any]) -> None:
        with (self._folder / _LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _over(values: tuple[float, ...], count: int, last: float | None = None) -> tuple[float, ...]:
    if last is not None:
        return (*values, *[last] * count)[:count]
    return (values * count)[:count]


def _moved(name: str, *, head: bool) -> Parameter:
    furthest = 0.01 if head else None
    return Parameter(
        name=name, shape=(2, 3), head=head, trainable=True, start=0.02, change=0.01, furthest=furthest, gradient=0.5
    )
