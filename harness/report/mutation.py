"""The table of faults: which law caught which."""

from __future__ import annotations

from tabulate import tabulate

from harness.mutation import Mutant, Mutation
from harness.report.markdown import escape
from harness.report.table import printable

HEADERS = ("fault", "case", "loop", "caught by")


def mutation_text(mutation: Mutation) -> str:
    """As plain text: a table, the gaps with their sources, the score."""
    rows = [_cells(mutant) for mutant in mutation.mutants]
    table = tabulate(rows, headers=HEADERS, disable_numparse=True) if rows else ""
    gaps = [f"SURVIVED {_gap(mutant)}" for mutant in mutation.survivors]
    return printable("\n\n".join(part for part in [table, "\n".join(gaps), mutation.score] if part))


def mutation_markdown(mutation: Mutation) -> str:
    """As Markdown: the score, the table, the gaps, and what each fault is."""
    rows = [[escape(cell) for cell in _cells(mutant)] for mutant in mutation.mutants]
    faults = {mutant.fault.name: mutant.fault for mutant in mutation.mutants}.values()
    what = [[escape(text) for text in (fault.name, fault.description, fault.source)] for fault in faults]
    gaps = [f"- {escape(_gap(mutant))}" for mutant in mutation.survivors]
    parts = [
        "# Mutation report",
        f"{mutation.score[:1].upper()}{mutation.score[1:]}. Equivalent faults left exactly what the healthy run left.",
        tabulate(rows, headers=HEADERS, tablefmt="github", disable_numparse=True),
        "\n".join(["## Survived", "", *gaps]) if gaps else "",
        "## The faults",
        tabulate(what, headers=("fault", "what is wrong", "seen in"), tablefmt="github", disable_numparse=True),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(mutant: Mutant) -> tuple[str, str, str, str]:
    laws = ", ".join(verdict.law for verdict in mutant.broken)
    return (mutant.fault.name, mutant.case.name, mutant.case.settings.train.loop, laws or mutant.outcome)


def _gap(mutant: Mutant) -> str:
    return f"{mutant.fault.name} in {mutant.case.name}: {mutant.fault.description} ({mutant.fault.source})"
