"""A summary as plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from tabulate import tabulate

from harness.laws import Verdict
from harness.laws.causes import Finding
from harness.report.evaluation import SCORE_HEADERS, how, score_cells
from harness.report.summary import Summary
from harness.report.table import HEADERS, cells, printable
from harness.throughput import NotMeasured

NAMES = 8
"""Cases that are named for each reason."""

PERCENT = re.compile(r"\d+(?:\.\d+)?%")


def terminal(summary: Summary) -> str:
    """The table, then what is broken, then what is missing and why.

    What was skipped is no row of the table: a machine without a GPU skips half of everything.
    """
    parts = [
        _table(summary),
        _scores(summary),
        *(_broken(finding) for finding in summary.findings),
        _overheads(summary),
        _reasons(summary),
        *summary.problems,
    ]
    return printable("\n\n".join(part for part in [*parts, _last_lines(summary)] if part))


def _table(summary: Summary) -> str:
    rows = [cells(row) for row in summary.rows if row.outcome != "skipped"]
    return tabulate(rows, headers=HEADERS, disable_numparse=True) if rows else ""


def _scores(summary: Summary) -> str:
    """The metrics of the cases that were evaluated."""
    lines = score_cells(summary.rows)
    if not lines:
        return ""
    return f"{tabulate(lines, headers=SCORE_HEADERS, disable_numparse=True)}\n{how(summary.rows)}"


def _overheads(summary: Summary) -> str:
    """Time per step of the loops of libraries, over the custom loop's."""
    lines = [f"  {overhead.name}: {overhead}" for overhead in summary.overheads]
    return "\n".join(["time per step over the custom loop's", *lines]) if lines else ""


def _last_lines(summary: Summary) -> str:
    """The tally, and what the laws cost."""
    if not summary.costs:
        return summary.tally
    each = ", ".join(f"{cost.evidence} {cost.seconds:.1f}" for cost in summary.costs if cost.seconds >= 0.05)
    whole = math.fsum(cost.seconds for cost in summary.costs)
    took = f"evidence for the laws took {whole:.1f} s of {summary.seconds:.1f} s"
    return "\n".join([summary.tally, f"{took}: {each}" if each else took])


def _broken(finding: Finding) -> str:
    """The law, what it says, and what is broken because of it."""
    verdict = finding.verdict
    cause = [f"  likely cause: {verdict.cause}"] if verdict.cause else []
    followed = [f"  and so {_short(verdict, one)}: {one.message}" for one in finding.consequences]
    return "\n".join([f"BROKEN {verdict.about}::{verdict.law}", f"  {verdict.message}", *cause, *followed])


def _short(root: Verdict, verdict: Verdict) -> str:
    return verdict.law if verdict.about == root.about else f"{verdict.about}::{verdict.law}"


def _reasons(summary: Summary) -> str:
    """Each reason once, and whom it concerns: a device that is not there is the reason of many, an overloaded machine,
    too, in another share of the time of each.
    """
    reasons: dict[str, list[tuple[str, str]]] = {}
    for reason, name in _reasons_of(summary):
        reasons.setdefault(PERCENT.sub("%", reason), []).append((reason, name))
    return "\n".join(
        "\n  ".join([_spanned([reason for reason, _ in alike]), *_some([name for _, name in alike])])
        for alike in reasons.values()
    )


def _reasons_of(summary: Summary) -> Iterator[tuple[str, str]]:
    """Why something is missing or not timed, and the case that it is said of."""
    for row in summary.rows:
        if row.compiled:
            yield row.compiled, row.name
        if row.outcome != "finished" and not row.count("broken"):
            yield f"{row.outcome}: {row.reason}", row.name
        elif row.outcome == "finished" and isinstance(row.speed, NotMeasured):
            yield f"step_throughput is invalid: {row.speed.reason}", row.name
    for verdict in summary.unjudged("invalid"):
        yield f"{verdict.law} is invalid: {verdict.message}", verdict.about


def _spanned(reasons: Sequence[str]) -> str:
    """One reason for several that differ in percentages alone, each from the lowest to the highest."""
    columns = [sorted(each, key=_number) for each in zip(*map(PERCENT.findall, reasons), strict=True)]
    spans = (" to ".join(dict.fromkeys((each[0], each[-1]))) for each in columns)
    return PERCENT.sub(lambda _: next(spans), reasons[0])


def _number(percent: str) -> float:
    return float(percent.removesuffix("%"))


def _some(names: list[str]) -> list[str]:
    """The first few; the report has all."""
    more = len(names) - NAMES
    return names if more <= 1 else [*names[:NAMES], f"and {more} more"]
