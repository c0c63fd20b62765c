"""A summary as plain text."""

from __future__ import annotations

from tabulate import tabulate

from harness.laws import Verdict
from harness.report.summary import Summary
from harness.report.table import HEADERS, cells, printable
from harness.throughput import NotMeasured


def terminal(summary: Summary) -> str:
    """The table, then what is broken, then what is missing and why."""
    table = tabulate([cells(row) for row in summary.rows], headers=HEADERS, disable_numparse=True)
    parts = [table, *(_broken(verdict) for verdict in summary.broken), _reasons(summary), *summary.problems]
    return printable("\n\n".join(part for part in [*parts, summary.tally] if part))


def _broken(verdict: Verdict) -> str:
    lines = [f"BROKEN {verdict.about}::{verdict.law}", f"  {verdict.message}"]
    return "\n".join([*lines, f"  likely cause: {verdict.cause}"] if verdict.cause else lines)


def _reasons(summary: Summary) -> str:
    """Each reason once, and whom it concerns: a device that is not there is the reason of many."""
    reasons: dict[str, list[str]] = {}
    for row in summary.rows:
        if row.outcome != "finished" and not row.count("broken"):
            reasons.setdefault(f"{row.outcome}: {row.reason}", []).append(row.name)
        elif row.outcome == "finished" and isinstance(row.speed, NotMeasured):
            reasons.setdefault(f"step_throughput is invalid: {row.speed.reason}", []).append(row.name)
    return "\n".join("\n  ".join([reason, *names]) for reason, names in reasons.items())
