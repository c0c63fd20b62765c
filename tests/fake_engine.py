"""An engine that trains nothing: records made by hand, and a log of what was asked.

The tests of the plugin put it into a project's `conftest.py`; it runs where torch is not importable.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import records

from harness import plan
from harness.experiment import Experiment, Point, Settings
from harness.plan import Case
from harness.record import Environment, Memory, Record, Steps

Answer = Callable[[Case], Record]

SECONDS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.125)
"""Of the steps, over and over. Powers of two: rates and sums of them are exact."""

ENVIRONMENT = Environment(
    versions={"python": "3.11.0", "torch": "2.0.0"},
    platform="Testix",
    processor="Abacus 9",
    device="Abacus 9",
    threads=2,
    commit="0123456789abcdef",
    dirty=False,
)


def case(steps: int = 8, **benchmark: Any) -> Case:
    """A case with these steps and this `benchmark` section."""
    settings = Settings.model_validate(
        {
            "checkpoint": "google-bert/bert-base-uncased",
            "data": {"sequences": ["good enough", "bad"], "labels": [1, 0]},
            "train": {"steps": steps, "batch_size": 2},
            "benchmark": {"warmup_steps": 3, **benchmark},
        }
    )
    path = Path("a.yaml").absolute()
    (only,) = plan.cases(Experiment(path, "", (Point((), settings),)), ["cpu"], root=path.parent)
    return only


def finished(case: Case, **changes: Any) -> Record:
    """A record of the case's steps that every law accepts."""
    train = case.settings.train
    losses = (*records.LOSSES, *[records.LOSSES[-1]] * train.steps)[: train.steps]
    columns = {
        "seconds": (SECONDS * train.steps)[: train.steps],
        "learning_rate": (train.learning_rate,) * train.steps,
    }
    group = records.HEALTHY.optimizer.groups[0].model_copy(update={"learning_rate": train.learning_rate})
    fields = {
        **case.declared(),
        "data": records.record(data={"rows": len(case.settings.data.sequences or ())}).data,
        "environment": ENVIRONMENT,
        "steps": records.steps(*losses, **columns),
        "optimizer": records.HEALTHY.optimizer.model_copy(update={"groups": (group,)}),
        "memory": Memory(peak_bytes=3 * 2**20, kind="resident in the process"),
        "probes": {name: evidence for name, evidence in records.HEALTHY.probes.items() if name in case.probes},
    }
    return records.HEALTHY.model_copy(update={**fields, **changes})


def stopped(outcome: str, reason: str, traceback: str = "") -> Answer:
    """Answer with a case that did not come to its end."""
    return lambda case: finished(
        case, outcome=outcome, reason=reason, traceback=traceback, steps=Steps(), parameters=(), probes={}
    )


def finding(case: Case) -> Record:
    """A finished case, whose exploration found a text, or has found it again."""
    assert case.exploration is not None
    found = {"sequences": ["\u202e[PAD]"], "batch_size": 1, "law": "trains", "error": "ValueError: no", "record": None}
    known = bool(case.exploration.known)
    evidence = {"trials": 0 if known else 5, "known": int(known), "held": {}, "found": {**found, "known": known}}
    return finished(case, probes={**records.PROBES, "exploration": evidence})


crashed = stopped("crashed", "ValueError: a broken thing", "Traceback (most recent call last):\n  the broken line\n")
out_of_memory = stopped("out of memory", "OutOfMemoryError: tried to get 9 GiB", "Traceback: the greedy line\n")
skipped = stopped("skipped", "no CUDA device: this machine is a fake")
interrupted = stopped("interrupted", "stopped by Ctrl-C")


def steps(record: Record, **columns: Any) -> Record:
    """The record with other columns of steps; other seconds are clocked anew."""
    if "seconds" in columns:
        samples = columns.get("samples", record.steps.samples)
        columns = {**records.clocked(columns["seconds"], samples, record.steps.watching_seconds), **columns}
    return record.model_copy(update={"steps": record.steps.model_copy(update=columns)})


def flat(case: Case) -> Record:
    """A finished case whose loss stays where it is."""
    return steps(finished(case), loss=(0.5,) * case.settings.train.steps)


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
        files = (self._folder / "reports" / "records").glob("*.jsonl")
        self._note(
            case=case.name,
            probes=sorted(case.probes),
            explores=None if case.exploration is None else [case.exploration.trials, len(case.exploration.known)],
            trace=None if case.trace is None else str(case.trace),
            stored=sum(len(file.read_text().splitlines()) for file in files),
            process=os.getpid(),
            torch="torch" in sys.modules,
        )
        return self._answers.get(case.id, finished)(case)

    def unavailable(self, device: str) -> str | None:
        """Every device but the available ones."""
        return None if device in self._available else f"no {device}: this machine is a fake"

    def close(self) -> None:
        """Log it."""
        self._note(case="close")

    def _note(self, **line: Any) -> None:
        with (self._folder / "asked.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
