"""A run under GitHub Actions: what fails is annotated where the experiment says it, and the job gets a summary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # what a run without experiments should not have to import
    from harness.report import Summary
    from harness.report.github import Annotation

SUFFIXES = (".yaml", ".yml")


@dataclass(eq=False)  # pluggy wants to hash its plugins
class Actions:
    """A plugin of one session that notes every failure of an experiment file; of pytest-xdist, in the controller."""

    root: Path
    """What node ids are relative to."""
    workspace: Path
    """The checkout: what annotations are relative to."""
    page: Path | None
    """Where the summary of the step goes."""
    found: list[Annotation] = field(default_factory=list)
    problem: str = ""
    """Why the summary could not be written."""

    @classmethod
    def of(cls, root: Path, environment: Mapping[str, str]) -> Actions:
        """Of a step with this environment."""
        page = environment.get("GITHUB_STEP_SUMMARY")
        return cls(root, Path(environment.get("GITHUB_WORKSPACE") or root), Path(page) if page else None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what failed, at the line that the item says it comes from."""
        if report.failed and report.nodeid.partition("::")[0].endswith(SUFFIXES):
            file, line, _ = report.location
            self._note(report.nodeid, file, (line or 0) + 1, report.longreprtext)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note the experiments that could not be collected at all."""
        if report.failed and report.nodeid.endswith(SUFFIXES):
            self._note(report.nodeid, report.nodeid, 1, report.longreprtext)

    def lines(self, summary: Summary | None) -> list[str]:
        """What the log is told: what GitHub makes annotations of, and why there is no summary."""
        problem = [self.problem] if self.problem else []
        if not self.found:
            return problem
        from harness.report.github import commands

        return commands(self.found, summary) + problem

    def write(self, summary: Summary | None) -> None:
        """Add the page of this run to the summary of the step."""
        if self.page is None or (summary is None and not self.found):
            return
        from harness.report.github import LARGEST, job_summary

        try:
            before = self.page.stat().st_size if self.page.exists() else 0
            with self.page.open("a", encoding="utf-8") as file:
                file.write(job_summary(summary, self.found, LARGEST - before))
        except OSError as error:  # a full disk
            self.problem = f"the summary of the job cannot be written: {error.strerror or error}"

    def _note(self, name: str, file: str, line: int, text: str) -> None:
        from harness.report.github import Annotation, mistakes

        if name.endswith("::valid") and (each := tuple(mistakes(text))):
            for where, number, message in each:
                self.found.append(Annotation(name, self._shown(Path(where)), number, message))
            return
        self.found.append(Annotation(name, self._shown(self.root / file), line, _essence(text)))

    def _shown(self, file: Path) -> str:
        return Path(os.path.relpath(file, self.workspace)).as_posix()


def _essence(text: str) -> str:
    """What a failure says: pytest's lines of the error where it shows code, else the first paragraph."""
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return "\n".join(errors) or text.strip().partition("\n\n")[0]
