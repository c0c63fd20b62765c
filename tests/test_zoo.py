"""Right trainings of architectures of every kind raise no alarm, but for those that the zoo's file explains."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import logging

from harness import plan
from harness.experiment import ArchitectureCheckpoint, architecture, read
from harness.laws import LAWS, judge, judge_together
from harness.plan import Case
from harness.report.markdown import escape
from harness.training.checkpoint import Shelf
from harness.training.run import run

ROOT = Path(__file__).parent.parent
ZOO = ROOT / "experiments" / "zoo"
TASKS = ("sequence-classification", "token-classification", "masked-lm", "causal-lm")
"""A file each."""
PROBES = frozenset(probe for law in LAWS if law.axis is None and not law.slow for probe in law.probes)

SAMPLE = {
    "sequence-classification": {
        "bert": "an encoder",
        "deberta-v2": "relative positions",
        "longformer": "windows, padded inside",
        "xlnet": "two streams, rows and places changed about, padded on the left",
        "gpt2": "a decoder, padded on the right",
        "gemma": "a decoder, padded on the left",
        "mixtral": "a mixture of experts",
        "jamba": "state spaces beside attention",
        "t5": "an encoder and a decoder",
        "bart": "an encoder and a decoder that does not load again",
        "fnet": "a Fourier transform that mixes padding in",
        "phimoe": "experts drawn at random in training",
    },
    "token-classification": {
        "roberta": "an encoder",
        "gpt_neox": "a decoder, which sees no word behind its own",
        "funnel": "pooled places, in which the last word meets padding",
    },
    "masked-lm": {
        "distilbert": "an encoder, whose head is its embedding",
        "modernbert": "rotary positions and windows",
        "bart": "a decoder that reads the labels",
    },
    "causal-lm": {
        "llama": "a decoder",
        "mamba": "a state space",
        "roberta": "an encoder that is told to be a decoder",
        "xlm": "a head that looks both ways and does not shift",
    },
}
"""By task, a few architectures of different kinds."""


@pytest.fixture(autouse=True)
def _quiet():
    """Warnings about odd tiny configs say nothing; threads that wait for a busy processor only cost time."""
    verbosity, threads = logging.get_verbosity(), torch.get_num_threads()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    yield
    logging.set_verbosity(verbosity)
    torch.set_num_threads(threads)


@cache
def cases(task: str) -> dict[str, list[Case]]:
    """The cases of a file of the zoo, by architecture."""
    found: dict[str, list[Case]] = {}
    file = ZOO / f"{task}.yaml"
    for case in plan.cases(read(file, {law.name: law.options for law in LAWS}), ["cpu"], root=ROOT):
        assert isinstance(case.settings.checkpoint, ArchitectureCheckpoint)
        found.setdefault(case.settings.checkpoint.architecture, []).append(replace(case, probes=PROBES, timed=False))
    return found


def check(task: str, name: str) -> None:
    """Train it in both loops: nothing is broken but what the file expects, and all of that is."""
    shelf = Shelf()
    records = [run(case, shelf=shelf, root=ROOT) for case in cases(task)[name]]
    verdicts = [verdict for record in records for verdict in judge(record)] + list(judge_together(records))
    assert [f"{v.about}::{v.law}: {v.message}" for v in verdicts if v.outcome == "broken"] == []
    assert {v.law for v in verdicts if v.outcome == "expected"} == set(records[0].expect_broken)
    assert all(record.finished or "trains" in record.expect_broken for record in records)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in SAMPLE.items() for name in names])
def test_a_right_training_raises_no_alarm(task: str, name: str) -> None:
    """One of each kind."""
    check(task, name)


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("task", "name"), [(task, name) for task in TASKS for name in sorted(architecture.known(task) or ())]
)
def test_no_architecture_raises_an_alarm(task: str, name: str) -> None:
    """All of them."""
    check(task, name)


@pytest.mark.parametrize("task", TASKS)
def test_the_zoo_has_every_architecture(task: str) -> None:
    """A new one of transformers is missed here."""
    assert cases(task).keys() == architecture.known(task)
    assert {case.settings.train.loop for each in cases(task).values() for case in each} == {"custom", "trainer"}


@pytest.mark.parametrize(("path", "there"), [("experiments", False), ("experiments/zoo/masked-lm.yaml", True)])
def test_the_zoo_runs_where_it_is_named(path: str, there: bool) -> None:
    """Its minutes are no part of `pytest experiments/`."""
    command = [sys.executable, "-m", "harness", "plan", path]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ("experiments/zoo/masked-lm.yaml::cpu-distilbert-custom" in planned.splitlines()) is there


@pytest.mark.parametrize("task", TASKS)
def test_every_expected_break_is_in_the_table(task: str) -> None:
    """docs/zoo.md is the table of a run of these files."""
    table = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip().replace("\\", "") for line in table.splitlines() if line.startswith("|")]
    own = [row.rpartition("::")[2] for row in rows if row.startswith(f"experiments/zoo/{task}.yaml::")]
    for name, both in cases(task).items():
        trains = any("trains" not in case.settings.expect_broken for case in both)
        assert any(row == f"cpu-{name}" or row.startswith(f"cpu-{name}-") for row in own) is trains, name
        for reason in {reason for case in both for reason in case.settings.expect_broken.values()}:
            assert escape(reason) in table
