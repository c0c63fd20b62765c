"""The table of laws: which held where, with the reason of each that was expected to be broken."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from harness.errors import count
from harness.laws import LAWS, Verdict, judge, judge_together
from harness.record import Record
from harness.report.markdown import code, environment_line, escape

SHORT = {"held": "+", "not applicable": "n/a"}
"""How cells write the outcomes that most of them have."""


@dataclass(frozen=True)
class _Row:
    """Cases that differ in their loop alone."""

    name: str
    records: tuple[Record, ...]
    verdicts: dict[str, tuple[Verdict, ...]]
    """Of each law, in the order of the records."""

    def outcomes(self, law: str) -> tuple[str, ...]:
        """What the law said, once where all loops agree."""
        return tuple(dict.fromkeys(verdict.outcome for verdict in self.verdicts[law]))

    def cell(self, law: str) -> str:
        """The outcome; of each loop where they differ."""
        if len(self.outcomes(law)) == 1:
            return SHORT.get(self.outcomes(law)[0], self.outcomes(law)[0])
        each = zip(self.records, self.verdicts[law], strict=True)
        return ", ".join(f"{record.settings.get('train.loop', 'custom')} {verdict.outcome}" for record, verdict in each)


def laws_markdown(records: Iterable[Record]) -> str:
    """Cases by laws as a page of Markdown; a law that all of them hold is named above the table and has no column."""
    last = tuple({record.name: record for record in records}.values())
    rows = _rows([record for record in last if record.finished])
    quick = [law.name for law in LAWS if law.axis is None and any(_said(row, law.name) for row in rows)]
    everywhere = [law for law in quick if all(row.outcomes(law) == ("held",) for row in rows)]
    columns = [law for law in quick if law not in everywhere]
    headers = ("case", "parameters", *columns)
    table = [[escape(cell) for cell in (row.name, _size(row), *map(row.cell, columns))] for row in rows]
    together = [verdict for verdict in judge_together(last) if verdict.outcome != "not applicable"]
    alone = [verdict for row in rows for verdicts in row.verdicts.values() for verdict in verdicts]
    parts = [
        "# Laws by case",
        _counts(last, [*alone, *together]),
        f"Held by all: {', '.join(map(code, everywhere))}." if everywhere else "",
        f"In the table {code('+')} is held; loops share a row.",
        tabulate(table, headers=headers, tablefmt="github", disable_numparse=True) if rows else "",
        _section("Broken", _named(rows, "broken") + _agreements(together, "broken")),
        _section("Broken as expected", _named(rows, "expected") + _agreements(together, "expected")),
        _section("Invalid", _named(rows, "invalid") + _agreements(together, "invalid")),
        _section("Vacuous", _reasons(rows, "vacuous")),
        _section("Between cases", _agreements(together, "held")),
        _section("Left out", [_left_out(record) for record in last if not record.finished]),
        _section("Where it ran", list(dict.fromkeys(environment_line(record.environment) for record in last))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(records: Sequence[Record]) -> list[_Row]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(f"{record.experiment}::{_without_loop(record)}", []).append(record)
    several = len({record.experiment for record in records}) > 1
    rows = []
    for name, group in groups.items():
        judged = [{verdict.law: verdict for verdict in judge(record)} for record in group]
        verdicts = {law: tuple(each[law] for each in judged) for law in judged[0]}
        rows.append(_Row(name if several else name.partition("::")[2], tuple(group), verdicts))
    return rows


def _without_loop(record: Record) -> str:
    """The id of a case, without the part that says which loop trained it."""
    return re.sub(rf"-{re.escape(record.settings.get('train.loop', 'custom'))}(?=-|$)", "", record.case)


def _said(row: _Row, law: str) -> bool:
    return row.outcomes(law) != ("not applicable",)


def _size(row: _Row) -> str:
    """The number of parameters."""
    return f"{max(record.checkpoint.parameters if record.checkpoint else 0 for record in row.records):,}"


def _counts(records: Sequence[Record], verdicts: Sequence[Verdict]) -> str:
    finished = [record for record in records if record.finished]
    days = sorted({f"{record.started:%Y-%m-%d}" for record in records})
    models = len({record.checkpoint.source for record in finished if record.checkpoint})
    outcomes = Counter(verdict.outcome for verdict in verdicts)
    laws = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
    return (
        f"{count(models, 'checkpoint')} in {count(len(finished), 'finished case')}, "
        f"{len(records) - len(finished)} left out; verdicts: {laws}. Run on {' and '.join(days)}."
    )


def _named(rows: Sequence[_Row], outcome: str) -> list[str]:
    """What is found in each row, and why: the same for both loops stands there once."""
    found: dict[tuple[str, str, str, str], None] = {}
    for row in rows:
        for law, verdicts in row.verdicts.items():
            for verdict in verdicts:
                if verdict.outcome == outcome:
                    found[row.name, law, verdict.cause, verdict.message] = None
    return [f"- {code(name)}, {code(law)}: {_why(cause, message)}" for name, law, cause, message in found]


def _why(cause: str, message: str) -> str:
    return escape(f"{cause}. Found: {message}" if cause else message)


def _agreements(verdicts: Iterable[Verdict], outcome: str) -> list[str]:
    return [
        f"- {code(f'{verdict.about}::{verdict.law}')}: {_why(verdict.cause, verdict.message)}"
        for verdict in verdicts
        if verdict.outcome == outcome
    ]


def _reasons(rows: Sequence[_Row], outcome: str) -> list[str]:
    """Each reason once, without its numbers, and how many rows it concerns."""
    found = Counter(
        (law, re.sub(r"\d[\d.e+-]*", "N", verdicts[0].message))
        for row in rows
        for law, verdicts in row.verdicts.items()
        if row.outcomes(law) == (outcome,)
    )
    return [f"- {code(law)}, {count(number, 'row')}: {escape(why)}" for (law, why), number in found.most_common()]


def _left_out(record: Record) -> str:
    why = record.expect_broken.get("trains", "")
    return f"- {code(record.name)}: {record.outcome}: {escape(record.reason)}{escape(f' ({why})' if why else '')}"


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", "", *lines]) if lines else ""
