"""Comparisons to where they are wanted, in the format that is asked for."""

from __future__ import annotations

from pathlib import Path

from harness.compare import Comparison, Table
from harness.compare.triage import Triage
from harness.report.comparison import comparison_json, comparison_markdown, comparison_text
from harness.report.triage import triage_json, triage_markdown, triage_text


def write(found: Comparison | Table | Triage, form: str, output: Path | None) -> None:
    """Print it as ``text``, ``markdown`` or ``json``, or write it to a file."""
    if isinstance(found, Triage):
        page = {"text": triage_text, "markdown": triage_markdown, "json": triage_json}[form](found)
    else:
        page = {"text": comparison_text, "markdown": comparison_markdown, "json": comparison_json}[form](found)
    page = page.rstrip() + "\n"
    if output is None:
        print(page, end="")
    else:
        output.write_text(page, encoding="utf-8")
