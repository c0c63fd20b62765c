"""Summaries, and tables of laws and of faults, printed: for the terminal, and as Markdown."""

from harness.report.comparison import comparison_json, comparison_lines, comparison_markdown, comparison_text, write
from harness.report.laws import laws_markdown
from harness.report.markdown import markdown
from harness.report.mutation import mutation_markdown, mutation_text
from harness.report.summary import Row, Summary, summarise
from harness.report.terminal import terminal

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
    "summarise",
    "terminal",
    "write",
]
