"""A project of its own for tests that run pytest on experiments."""

import json
from pathlib import Path
from typing import Any

import pytest
import scipy.stats  # noqa: F401

# pytester forgets what a test of it imports. With all of the harness imported here, runs share its modules; and numpy,
# which comparing takes with scipy, cannot be imported twice.
import harness.engines.inline
import harness.hooks
import harness.plan
import harness.progress
import harness.report
import harness.session  # noqa: F401
from harness.laws import LAWS

ALONE = tuple(law.name for law in LAWS if law.axis is None and not law.slow)
"""The laws that are items of each case."""

ITEMS = (*ALONE, "step_throughput")


class Project:
    """A folder with experiments, whose cases a fake engine answers unless a test says otherwise."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.path = pytester.path
        self.configure()
        self.engine()

    def write(self, name: str, text: str) -> Path:
        """A file, and the folders that lead to it."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def configure(self, settings: str = "") -> None:
        """Write pytest's configuration."""
        # Hypothesis's plugin takes a second to import, and each run in this process imports it again.
        options = "--strict-markers --strict-config -p no:hypothesispytest -p no:anyio"
        self.write("pytest.ini", f"[pytest]\naddopts = {options}\n{settings}\n")

    def engine(self, arguments: str = "", more: str = "") -> None:
        """Write the conftest, with arguments of `FakeEngine` and more lines."""
        lines = [
            "import pytest",
            "from fake_engine import *",
            "def pytest_harness_engine(config):",
            f"    return FakeEngine(config.rootpath, {arguments})",
        ]
        self.write("conftest.py", "\n".join([*lines, more, ""]))

    def experiment(self, name: str = "experiments/a.yaml", *, steps: int = 8, more: str = "", **matrix: Any) -> str:
        """Write an experiment of two sequences, with a matrix or without; its name."""
        lines = [
            "checkpoint: google-bert/bert-base-uncased",
            "data: {sequences: [good enough, bad], labels: [1, 0]}",
            f"train: {{steps: {steps}, batch_size: 2}}",
            *([] if "benchmark:" in more else ["benchmark: {warmup_steps: 3}"]),
            more,
        ]
        if matrix:
            axes = {key.replace("loop", "train.loop"): list(values) for key, values in matrix.items()}
            lines.append(f"matrix: {json.dumps(axes)}")
        self.write(name, "\n".join([*lines, ""]))
        return name

    def run(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in this process."""
        return self._pytester.runpytest_inprocess(*arguments)

    def spawn(self, *arguments: str) -> pytest.RunResult:
        """Run pytest in a process of its own, in which torch and its kind cannot be imported."""
        return self._pytester.runpytest_subprocess("-p", "no_torch", *arguments)

    def asked(self) -> list[str]:
        """The cases that the engine was asked for, in order."""
        return [line["case"] for line in self.log()]

    def log(self) -> list[dict[str, Any]]:
        """What the engine was asked, in order."""
        path = self.path / "asked.jsonl"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        return [line for line in lines if line["case"] != "close"]

    def records(self, folder: str = "reports") -> list[dict[str, Any]]:
        """The stored records."""
        files = sorted((self.path / folder / "records").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def outcomes(result: pytest.RunResult) -> dict[str, str]:
    """Outcome by node id, of a run in this process; `error` where the setup failed."""
    found: dict[str, str] = {}
    for report in result.reprec.getreports("pytest_runtest_logreport"):  # type: ignore[attr-defined]
        if report.when == "call" or report.outcome != "passed":
            found[report.nodeid] = "error" if report.failed and report.when != "call" else report.outcome
    return found


def messages(result: pytest.RunResult) -> dict[str, str]:
    """What an item that did not pass says, by node id."""
    reports = result.reprec.getreports("pytest_runtest_logreport")  # type: ignore[attr-defined]
    return {
        report.nodeid: report.longrepr[2] if report.skipped else report.longreprtext
        for report in reports
        if report.outcome != "passed"
    }
