"""Where differences come from: as plain text, as Markdown, as JSON."""

from __future__ import annotations

import json

from tabulate import tabulate

from harness.compare.triage import Finding, Triage
from harness.errors import count
from harness.report.comparison import FORMAT, comparison_lines, overall, pair_json
from harness.report.markdown import code, escape
from harness.report.table import printable

HEADERS = ("case", "cause", "control", "canary")


def triage_text(found: Triage) -> str:
    """The table, and the evidence of each case."""
    table = tabulate([_row(finding) for finding in found.findings], headers=HEADERS, disable_numparse=True)
    details = ["\n  ".join([finding.case, *_evidence(finding)]) for finding in found.findings]
    return printable("\n\n".join([table, *details, *filter(None, ["\n".join(found.notes)]), _tally(found)]))


def triage_markdown(found: Triage) -> str:
    """The same as a page."""
    rows = [[escape(cell) for cell in _row(finding)] for finding in found.findings]
    table = tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True)
    details = [f"- {code(finding.case)}: {escape('; '.join(_evidence(finding)))}" for finding in found.findings]
    notes = [f"- {escape(note)}" for note in found.notes]
    left_out = ["\n".join(["## Left out", "", *notes])] if notes else []
    return "\n\n".join(["# Triage", escape(_tally(found)), table, "\n".join(details), *left_out]) + "\n"


def triage_json(found: Triage) -> str:
    """The same for programs."""
    cases = [
        {
            "case": finding.case,
            "cause": finding.cause,
            "reason": finding.reason,
            "changed": finding.changed,
            "control": pair_json(finding.control),
            "canary": pair_json(finding.canary),
        }
        for finding in found.findings
    ]
    said = {"format": FORMAT, "verdict": overall(found.status), "cases": cases}
    return json.dumps({**said, "notes": found.notes}, indent=2, allow_nan=False) + "\n"


def _row(finding: Finding) -> list[str]:
    return [finding.case, finding.cause, finding.control.verdict, finding.canary.verdict]


def _evidence(finding: Finding) -> list[str]:
    legs = (("control against baseline", finding.control), ("canary against control", finding.canary))
    lines = [f"{name}: {line}" for name, pair in legs for line in comparison_lines(pair)]
    return [finding.reason, *(f"changed: {each}" for each in finding.changed), *lines]


def _tally(found: Triage) -> str:
    causes = [finding.cause for finding in found.findings]
    said = ", ".join(f"{causes.count(cause)} {cause}" for cause in dict.fromkeys(causes))
    return f"{count(len(causes), 'case')}: {said}"
