"""Summaries, and tables of laws and of faults, printed: for the terminal, and as Markdown."""

from harness.report.comparison import comparison_json, comparison_lines, comparison_markdown, comparison_text
from harness.report.laws import laws_markdown
from harness.report.markdown import markdown
from harness.report.mutation import mutation_markdown, mutation_text
from harness.report.output import page
from harness.report.summary import Row, Summary, summarise
from harness.report.terminal import terminal
from harness.report.triage import triage_json, triage_markdown, triage_text

__all__ = [
    "Row",
    "Summary",
    "comparison_json",
    "comparison_lines",
    "comparison_markdown",
    "comparison_text",
    "laws_markdown",
    "markdown",
    "mutation_markdown",
    "mutation_text",
    "page",
    "summarise",
    "terminal",
    "triage_json",
    "triage_markdown",
    "triage_text",
]
