"""The table of faults: which law caught which."""

from __future__ import annotations

from collections import Counter

from tabulate import tabulate

from harness.mutation import OUTCOMES, Mutant, Mutation
from harness.report.markdown import escape
from harness.report.table import printable

HEADERS = ("fault", "case", "loop", "caught by")
BY_FAULT = ("fault", "what is wrong", "cases", "broken laws", "seen in")


def mutation_text(mutation: Mutation) -> str:
    """As plain text: a table, the gaps with their sources, the score."""
    rows = [_cells(mutant) for mutants in _by_fault(mutation) for mutant in mutants]
    table = tabulate(rows, headers=HEADERS, disable_numparse=True) if rows else ""
    gaps = [f"SURVIVED {_gap(mutant)}" for mutant in mutation.survivors]
    return printable("\n\n".join(part for part in [table, "\n".join(gaps), mutation.score] if part))


def mutation_markdown(mutation: Mutation) -> str:
    """As Markdown: the score, also case by case; what survived; a row for each fault with the laws that caught it."""
    rows = [[escape(cell) for cell in _row(mutants)] for mutants in _by_fault(mutation)]
    gaps = [f"- {escape(_gap(mutant))}" for mutant in mutation.survivors]
    cases = [[escape(name), *map(str, one.counts)] for name, one in mutation.by_case.items()]
    explained = (
        "Beside each law stands the number of cases in which it is broken; a fault is equivalent in a case if it left "
        "what the healthy run left, up to the rounding of fp32."
    )
    parts = [
        "# Mutation report",
        f"{mutation.score[:1].upper()}{mutation.score[1:]}. {explained}",
        tabulate(cases, headers=("case", *OUTCOMES), tablefmt="github", disable_numparse=True) if cases else "",
        "\n".join(["## Survived", "", *gaps]) if gaps else "",
        tabulate(rows, headers=BY_FAULT, tablefmt="github", disable_numparse=True),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _by_fault(mutation: Mutation) -> list[list[Mutant]]:
    """The mutants of each fault, in the order of the faults."""
    found: dict[str, list[Mutant]] = {}
    for mutant in mutation.mutants:
        found.setdefault(mutant.fault.name, []).append(mutant)
    return list(found.values())


def _row(mutants: list[Mutant]) -> tuple[str, ...]:
    fault = mutants[0].fault
    outcomes = Counter(mutant.outcome for mutant in mutants)
    laws = Counter(verdict.law for mutant in mutants for verdict in mutant.broken)
    return (
        fault.name,
        fault.description,
        ", ".join(f"{outcome} {outcomes[outcome]}" for outcome in OUTCOMES if outcomes[outcome]),
        ", ".join(f"{law} {number}" for law, number in laws.most_common()),
        fault.source,
    )


def _cells(mutant: Mutant) -> tuple[str, str, str, str]:
    laws = ", ".join(verdict.law for verdict in mutant.broken)
    return (mutant.fault.name, mutant.case.name, mutant.case.settings.train.loop, laws or mutant.outcome)


def _gap(mutant: Mutant) -> str:
    return f"{mutant.fault.name} in {mutant.case.name}: {mutant.fault.description} ({mutant.fault.source})"
