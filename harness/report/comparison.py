"""A comparison, or a table across an axis: as plain text, as Markdown, as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from harness.compare import Cell, Comparison, Measure, NotComparable, Pair, Row, Table
from harness.compare.comparison import NOT_COMPARED
from harness.compare.statistic import CONFIDENCE, Shift
from harness.errors import count
from harness.report.markdown import code, escape
from harness.report.table import mebibytes, printable, short

Found = Comparison | Table

FORMAT = 1
"""The number of the JSON; fields may be added without a new one."""


COLUMNS = ("step time", "processor time", "peak memory")
"""Figures that stand in the table; of the others those that have changed stand below it."""


def comparison_text(found: Found) -> str:
    """The table, what is behind it, and a line that sums up."""
    headers, rows = _table(found)
    table = tabulate(rows, headers=headers, disable_numparse=True)
    details = ["\n  ".join(lines) for lines in _details(found)]
    return printable("\n\n".join(part for part in [table, *details, "\n".join(_notes(found)), tally(found)] if part))


def comparison_markdown(found: Found) -> str:
    """The same as a page."""
    headers, rows = _table(found)
    table = tabulate(
        [[escape(cell) for cell in row] for row in rows],
        headers=[escape(header) for header in headers],
        tablefmt="github",
        disable_numparse=True,
    )
    details = [f"- {code(name)}: {escape('; '.join(lines))}" for name, *lines in _details(found)]
    parts = [
        "# Comparison",
        f"{tally(found)[:1].upper()}{escape(tally(found)[1:])}.",
        table,
        "\n".join(["## Behind it", "", *details]) if details else "",
        "\n".join(["## Notes", "", *(f"- {escape(note)}" for note in _notes(found))]) if _notes(found) else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_json(found: Found | NotComparable) -> str:
    """The same for programs, refusals included; numbers that are not finite do not occur."""
    if isinstance(found, NotComparable):
        said: dict[str, Any] = {"verdict": "not comparable", "reason": found.reason}
        said["differences"] = [vars(one) for one in found.differences]
    elif isinstance(found, Table):
        said = {"verdict": overall(found.status), "across": found.across, "columns": found.columns}
        said |= {"rows": [_row_json(row, found.columns) for row in found.rows], "notes": found.notes}
    else:
        said = {"verdict": overall(found.status), "across": found.across, "sides": found.sides}
        said |= {"cases": [pair_json(pair) for pair in found.pairs], "notes": found.notes, "refused": found.refused}
    return json.dumps({"format": FORMAT, **said}, indent=2, allow_nan=False) + "\n"


def tally(found: Found) -> str:
    """``3 cases: 1 slower, 2 equivalent (intervals of 99.5 %)``."""
    rows: Sequence[Pair | Row] = found.pairs if isinstance(found, Comparison) else found.rows
    verdicts = Counter(row.verdict if isinstance(row, Pair) else row.agrees for row in rows)
    verdicts.update([NOT_COMPARED] * len(_refused(found)))
    said = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
    sides = f", {found.sides[0]} to {found.sides[1]}" if isinstance(found, Comparison) and found.across else ""
    across = f" across {', '.join(found.across)}{sides}" if found.across else ""
    what = "losses " if isinstance(found, Table) else ""
    return f"{count(verdicts.total(), 'case')}{across}: {what}{said} (intervals of {100 * _confidence(found):.4g}%)"


def _confidence(found: Found) -> float:
    """Of the intervals the least: `harness ab` asks for more where it looks early."""
    pairs = found.pairs if isinstance(found, Comparison) else ()
    return min((one.shift.confidence for pair in pairs for one in pair.measures if one.shift), default=CONFIDENCE)


def _notes(found: Found) -> tuple[str, ...]:
    """Which sides these are, and what was left out, and why."""
    return (*found.notes, *_refused(found))


def _refused(found: Found) -> tuple[str, ...]:
    return found.refused if isinstance(found, Comparison) else ()


def overall(status: int) -> str:
    """The verdict on all cases, by exit status."""
    return ("no regression", "regressed", NOT_COMPARED)[status]


# Cells


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    if isinstance(found, Table):
        return ["case", *found.columns, "losses"], [_row(row) for row in found.rows]
    known = (measure.name for pair in found.pairs for measure in pair.measures)
    names = tuple(dict.fromkeys(name for name in known if name in COLUMNS))
    rows = [
        [pair.case, pair.verdict, *(_measure(pair.measure(name)) for name in names), pair.losses.outcome]
        for pair in found.pairs
    ]
    return ["case", "verdict", *names, "loss"], rows


def _row(row: Row) -> list[str]:
    return [row.case, *("-" if cell is None else _cell(cell) for cell in row.cells), row.agrees]


def _cell(cell: Cell) -> str:
    rate = "not measured" if cell.tokens_per_second is None else f"{short(cell.tokens_per_second)} tokens/s"
    memory = "" if cell.peak_bytes is None else mebibytes(cell.peak_bytes)
    return ", ".join(part for part in (rate, _against_best(cell), memory) if part)


def _against_best(cell: Cell) -> str:
    """How fast it is as a share of the best."""
    measure = cell.against_best
    if measure is None:
        return "best" if cell.tokens_per_second is not None else ""
    if measure.shift is None:
        return ""
    found = measure.shift
    return f"{1 / found.ratio:.3f} ({1 / found.high:.3f} to {1 / found.low:.3f})"


def _measure(measure: Measure | None) -> str:
    if measure is None:
        return "-"
    if measure.shift is not None:
        return f"{interval(measure.shift)} {measure.outcome}"
    if measure.base and measure.new:
        return f"{_change(measure.new / measure.base)} {measure.outcome}"
    return measure.outcome


def _number(value: float | None, measure: Measure) -> str:
    """In full where it is counted."""
    if value is None:
        return "-"
    if measure.exact:
        return f"{value:.0f}"
    if measure.name == "reserved memory":
        return mebibytes(value)
    return f"{value:.1%}" if measure.name == "MFU" else f"{value:.2f} s"


def interval(found: Shift) -> str:
    """``+5.2% (+3.1% to +7.4%)``."""
    return f"{_change(found.ratio)} ({_change(found.low)} to {_change(found.high)})"


def _change(ratio: float) -> str:
    """``+5.2%``; a time that is several times as long as a factor."""
    return f"{ratio:.3g}x" if ratio >= 2 else f"{ratio - 1:+.1%}"


# What is behind them


def _details(found: Found) -> list[list[str]]:
    """Of each case that is not simply equivalent: its name, and a line for each thing to be said."""
    if isinstance(found, Table):
        return [
            [f"{row.case}, {column}", f"loss {cell.losses.message}"]
            for row in found.rows
            for column, cell in zip(found.columns, row.cells, strict=True)
            if cell is not None and cell.losses is not None and cell.losses.outcome != "same"
        ]
    details = [(pair.case, _behind(pair)) for pair in found.pairs]
    return [[case, *lines] for case, lines in details if lines]


def comparison_lines(pair: Pair) -> list[str]:
    """Everything that is to be said of one case: its figures, and what is behind them."""
    figures = [f"{measure.name} {_measure(measure)}" for measure in pair.measures if measure.name in COLUMNS]
    return [*figures, *_behind(pair)]


def _behind(pair: Pair) -> list[str]:
    told = [one for one in pair.measures if one.reason and (one.name in COLUMNS or one.exact)]
    lines = [f"{measure.name}: {measure.reason}" for measure in told]
    lines += [
        f"{measure.name}: {_number(measure.base, measure)} to {_number(measure.new, measure)}, {_measure(measure)}"
        for measure in pair.measures
        if measure.name not in COLUMNS and measure.outcome in ("more", "less")
    ]
    if pair.losses.outcome != "same":
        lines.append(f"loss {pair.losses.outcome}: {pair.losses.message}")
    if pair.verdict.endswith("loss") and pair.speed == "faster":
        lines.append("faster, but its loss does not hold: not comparable in value")
    return [*lines, *(f"broken in new alone: {law}" for law in pair.broken), *pair.evidence]


# JSON


def pair_json(pair: Pair) -> dict[str, Any]:
    """A case for programs."""
    return {
        "case": pair.case,
        "verdict": pair.verdict,
        "regressed": pair.fails,
        "runs": [len(pair.base), len(pair.new)],
        "measures": [_measure_json(measure) for measure in pair.measures],
        "loss": vars(pair.losses),
        "broken": pair.broken,
        "evidence": pair.evidence,
    }


def _measure_json(measure: Measure) -> dict[str, Any]:
    said: dict[str, Any] = {"name": measure.name, "outcome": measure.outcome, "base": measure.base, "new": measure.new}
    if (found := measure.shift) is not None:
        said |= {"ratio": found.ratio, "low": found.low, "high": found.high, "turns": found.turns}
        said |= {"confidence": found.confidence, "smallest": found.smallest}
    return {**said, "reason": measure.reason}


def _row_json(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    cells = {column: _cell_json(cell) for column, cell in zip(columns, row.cells, strict=True) if cell is not None}
    return {"case": row.case, "losses": row.agrees, "cells": cells}


def _cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "runs": cell.runs,
        "tokens_per_second": cell.tokens_per_second,
        "samples_per_second": cell.samples_per_second,
        "peak_bytes": cell.peak_bytes,
        "against_best": None if cell.against_best is None else _measure_json(cell.against_best),
        "loss": None if cell.losses is None else vars(cell.losses),
    }
