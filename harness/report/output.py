"""What was found, in the format that is asked for."""

from __future__ import annotations

from harness.compare import Comparison, Table
from harness.compare.triage import Triage
from harness.report.comparison import comparison_json, comparison_markdown, comparison_text
from harness.report.triage import triage_json, triage_markdown, triage_text


def page(found: Comparison | Table | Triage, form: str) -> str:
    """As ``text``, ``markdown`` or ``json``."""
    if isinstance(found, Triage):
        return {"text": triage_text, "markdown": triage_markdown, "json": triage_json}[form](found)
    return {"text": comparison_text, "markdown": comparison_markdown, "json": comparison_json}[form](found)
