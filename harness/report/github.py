"""What GitHub Actions shows of a run: annotations on lines of files, and the summary of a job.

Both are documented under "Workflow commands for GitHub Actions"; the escaping is that of `@actions/core`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from harness.report.markdown import broken_lines, code, escape, left_out_lines
from harness.report.summary import Row, Summary
from harness.report.table import HEADERS, cells, printable

MOST = 10
"""Error annotations of a step that GitHub keeps."""

LONGEST = 2000
"""Characters of a message: it is shown in the margin of a file, the whole of it is in the report."""

LARGEST = 2**20
"""Bytes of the summary of a step: a larger one is not shown at all."""

CUT = "\n\n**Cut here: GitHub shows at most 1 MiB of a step. The rest is in the report.**\n"


@dataclass(frozen=True)
class Annotation:
    """An error at a line of a file."""

    name: str
    """The failed item, as pytest writes it."""
    file: str
    """Relative to the repository, with forward slashes."""
    line: int
    """Counted from 1."""
    message: str

    def __str__(self) -> str:
        """The workflow command."""
        message = self.message if len(self.message) <= LONGEST else f"{self.message[:LONGEST]}..."
        return _command(message, file=self.file, line=str(self.line), title=self.name)


def commands(found: Sequence[Annotation], summary: Summary | None = None) -> list[str]:
    """Workflow commands: those that explain others first, and no more than a step may have.

    Args:
        found: in the order in which they failed.
        summary: of the same run: says which broken laws follow from which.
    """
    follows = _consequences(summary)
    ordered = sorted(found, key=lambda one: one.name in follows)
    if len(ordered) <= MOST:
        return list(map(str, ordered))
    rest = ordered[MOST - 1 :]
    named = ", ".join(one.name for one in rest[:20]) + (" and more" if len(rest) > 20 else "")
    more = _command(f"see the summary of the job: {named}", title=f"{len(rest)} more failed, {len(found)} in all")
    return [*map(str, ordered[: MOST - 1]), more]


def job_summary(summary: Summary | None, found: Sequence[Annotation], room: int = LARGEST) -> str:
    """The page of a job as Markdown: cases that break a law first.

    Args:
        summary: of the records; none where no case ran.
        found: every item that failed; those that are no verdict of a law have a section of their own.
        room: bytes that it may have.
    """
    parts = ["## Fine-tuning"]
    judged: set[str] = set()
    if summary is not None:
        rows = [[escape(cell) for cell in cells(row)] for row in sorted(summary.rows, key=_rank)]
        verdicts = [*(v for row in summary.rows for v in row.verdicts), *summary.agreements]
        judged = {f"{verdict.about}::{verdict.law}" for verdict in verdicts if verdict.outcome == "broken"}
        parts += [
            f"{escape(summary.tally[:1].upper() + summary.tally[1:])}.",
            tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True),
            _section("Broken laws", broken_lines(summary)),
        ]
    others = [one for one in found if one.name not in judged]
    parts.append(_section("Also failed", [f"- {code(one.name)}: {escape(one.message)}" for one in others]))
    if summary is not None:
        parts.append(_section("Left out", left_out_lines(summary)))
        parts.append(_section("Records that could not be read", [f"- {escape(one)}" for one in summary.problems]))
    elif not others:
        parts.append("No case ran.")
    return fitted("\n\n".join(part for part in parts if part) + "\n", room)


def fitted(page: str, room: int) -> str:
    """As many whole lines of a page as there is room for, in bytes; says where it is cut."""
    if len(page.encode()) <= room:
        return page
    kept, left = list[str](), room - len(CUT.encode())
    for line in page.splitlines(keepends=True):
        left -= len(line.encode())
        if left < 0:
            break
        kept.append(line)
    return "".join(kept).rstrip("\n") + CUT if kept else ""


def mistakes(text: str) -> Iterable[tuple[str, int, str]]:
    """File, line and message of each line that says `file:line: message`."""
    for line in text.splitlines():
        if found := re.fullmatch(r"(.+?):(\d+): (.*)", line):
            yield found[1], int(found[2]), found[3]


def _rank(row: Row) -> tuple[bool, bool]:
    failed = row.count("broken") > 0 or row.outcome not in ("finished", "skipped")
    return (not failed, row.outcome == "skipped")


def _consequences(summary: Summary | None) -> set[str]:
    found = summary.findings if summary is not None else ()
    return {f"{one.about}::{one.law}" for finding in found for one in finding.consequences}


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"### {title}", "", *lines]) if lines else ""


def _command(message: str, **properties: str) -> str:
    said = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::error {said}::{_data(printable(message))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
