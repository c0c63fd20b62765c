"""A summary as Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from tabulate import tabulate

from harness.laws import Verdict
from harness.laws.causes import Finding
from harness.record import Environment
from harness.report.evaluation import SCORE_HEADERS, how, score_cells
from harness.report.summary import Row, Summary
from harness.report.table import (
    COUNTER_HEADERS,
    DEVICE_HEADERS,
    HEADERS,
    OPERATOR_HEADERS,
    STEP_HEADERS,
    cells,
    counter_cells,
    device_cells,
    duration,
    operator_cells,
    printable,
    share,
    step_cells,
    used,
)
from harness.throughput import NotMeasured

STEPS_EXPLAINED = """\
A step is the median of the timed ones, a phase its share of all of them. *Data* is waiting for batches, *transfer*
moving them to the device, *optimizer* includes clipping and the loss scaler; *queued* is the share of the time in which
the loop waited for a processor that others had."""

DEVICE_EXPLAINED = """\
*MFU* is what the model's own operations reach of the fastest product of matrices that was measured in the session.
*Arithmetic* and *memory* are the shares of a step that its products, and what its operators read and write, would need
alone at the measured ceilings; caches can serve more than memory could. Where both together are not half of it, a
step is bound by *overhead*: calling operators, and what Python does between them. *J/1000 tokens* is the energy of the
device for a thousand real tokens."""

COUNTERS_EXPLAINED = """\
Counted in a further step, and the same again whatever else the machine does. *Operations* are floating-point ones of
products and attention, *bytes moved* are read and written by operators, each by itself, and a *host wait* is a value
that the host asks for."""

OPERATORS_EXPLAINED = """\
The costliest operators in {steps} further steps under the profiler, which takes time itself, most beside small ones: a
step took {step} there, and all operators together {busy} of it. [Perfetto](https://ui.perfetto.dev) opens the trace,
{trace}."""


def markdown(summary: Summary) -> str:
    """A page with the table, the broken laws, what was left out, and where it ran."""
    rows = [[escape(cell) for cell in cells(row)] for row in summary.rows]
    parts = [
        "# Fine-tuning report",
        summary.tally[:1].upper() + summary.tally[1:] + ".",
        _table(HEADERS, rows),
        "Rates are the median of the timed steps and their range; tokens are real ones, padding left out.",
        _scores(summary),
        _cases("Where a step's time goes", STEP_HEADERS, map(step_cells, summary.rows), STEPS_EXPLAINED),
        _cases("What a step makes of its device", DEVICE_HEADERS, map(device_cells, summary.rows), DEVICE_EXPLAINED),
        _cases("What a step does", COUNTER_HEADERS, map(counter_cells, summary.rows), COUNTERS_EXPLAINED),
        _section("Not counted", _each(summary, lambda row: row.uncounted)),
        *_profiles(summary),
        _section("Broken laws", broken_lines(summary)),
        _section("Left out", left_out_lines(summary)),
        _section("Could not be judged", _unjudged_lines(summary, "invalid")),
        _section("Could not have failed", _unjudged_lines(summary, "vacuous")),
        _section("Chosen", _each(summary, lambda row: row.chosen)),
        _section(
            "Time per step over the custom loop's",
            [f"- {code(one.name)}: {escape(str(one))}" for one in summary.overheads],
        ),
        _section("Compiled", [f"- {code(row.name)}: {row.compiled}" for row in summary.rows if row.compiled]),
        _section("Agreements", [_held(v) for v in summary.agreements if v.outcome == "held"]),
        _section("Records that could not be read", [f"- {escape(problem)}" for problem in summary.problems]),
        _costs(summary),
        _section("Where it ran", [environment_line(environment) for environment in summary.environments]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(summary: Summary) -> str:
    """The metrics of the cases that were evaluated."""
    lines = [[escape(cell) for cell in line] for line in score_cells(summary.rows)]
    if not lines:
        return ""
    return f"## Evaluation\n\n{_table(SCORE_HEADERS, lines)}\n\nIn brackets: {how(summary.rows)}."


def _cases(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]], explained: str) -> str:
    """A section with a line for each case that has one."""
    lines = [[escape(cell) for cell in cells] for cells in rows if cells]
    if not lines:
        return ""
    headers, lines = used(headers, lines)
    return f"## {title}\n\n{_table(headers, lines)}\n\n{explained}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _profiles(summary: Summary) -> Iterator[str]:
    """The costliest operators of each case that was profiled, or why there are none."""
    for row in summary.rows:
        if row.profile is None:
            continue
        title = f"## Profile of {code(row.name)}"
        if not row.profile.steps:
            yield f"{title}\n\nThere is none: {escape(row.profile.reason or 'no step was profiled')}"
            continue
        cells = [[escape(cell) for cell in line] for line in operator_cells(row.profile)]
        found = row.profile
        explained = OPERATORS_EXPLAINED.format(
            steps=found.steps,
            step=duration(found.seconds / found.steps),
            busy=share(found.busy_seconds / found.seconds if found.seconds else None),
            trace=code(found.trace),
        )
        parts = [title, *_unreliable(row), _table(OPERATOR_HEADERS, cells), explained]
        yield "\n\n".join(parts)


def _unreliable(row: Row) -> Iterator[str]:
    """A warning where the steps of the case could not be timed: what was in their way may be in others, too."""
    if isinstance(row.speed, NotMeasured):
        yield f"**The throughput of this case is invalid**, and these times may be, too: {escape(row.speed.reason)}"


def _costs(summary: Summary) -> str:
    """What the laws cost, by the evidence they read."""
    if not summary.costs:
        return ""
    rows = [
        (cost.evidence, f"{cost.seconds:.2f} s", f"{cost.seconds / summary.seconds:.0%}", ", ".join(cost.laws))
        for cost in summary.costs
    ]
    headers = ("evidence", "time", f"of {summary.seconds:.1f} s", "laws that read it")
    return f"## What the laws cost\n\n{_table(headers, [[escape(cell) for cell in row] for row in rows])}"


def _each(summary: Summary, sentences: Callable[[Row], Iterable[str]]) -> list[str]:
    """An item of a list for each sentence that there is of a case."""
    return [f"- {code(row.name)}: {escape(sentence)}" for row in summary.rows for sentence in sentences(row)]


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", "", *lines]) if lines else ""


def broken_lines(summary: Summary) -> list[str]:
    """An item of a list for each broken law, with those that are broken because of it."""
    return [_broken(finding) for finding in summary.findings]


def left_out_lines(summary: Summary) -> list[str]:
    """An item of a list for each case that did not finish or was not measured."""
    return [line for row in summary.rows for line in _left_out(row)]


def _unjudged_lines(summary: Summary, outcome: str) -> list[str]:
    """An item of a list for each law and what it says, with the cases of which it says so."""
    said: dict[tuple[str, str], list[str]] = {}
    for verdict in summary.unjudged(outcome):
        said.setdefault((verdict.law, verdict.message), []).append(code(verdict.about))
    return [f"- **{code(law)}**: {escape(message)}: {', '.join(names)}" for (law, message), names in said.items()]


def _broken(finding: Finding) -> str:
    verdict = finding.verdict
    cause = f"\n  Likely cause: {escape(verdict.cause)}" if verdict.cause else ""
    followed = "".join(
        f"\n  - and so {code(f'{one.about}::{one.law}')}: {escape(one.message)}" for one in finding.consequences
    )
    return f"- **{code(f'{verdict.about}::{verdict.law}')}**: {escape(verdict.message)}{cause}{followed}"


def _held(verdict: Verdict) -> str:
    return f"- {code(f'{verdict.about}::{verdict.law}')}: {escape(verdict.message)}"


def _left_out(row: Row) -> list[str]:
    if row.outcome != "finished":
        return [f"- {code(row.name)}: {row.outcome}: {escape(row.reason)}"]
    if isinstance(row.speed, NotMeasured):
        return [f"- {code(row.name)}: throughput is invalid: {escape(row.speed.reason)}"]
    return []


def environment_line(environment: Environment) -> str:
    """Device, platform, versions and commit, as an item of a list."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    commit = f"; commit {environment.commit[:12]}" if environment.commit else ""
    commit += " with changes" if environment.dirty else ""
    where = f"{environment.device}, {_threads(environment)}, {environment.platform}; {versions}{commit}".rstrip("; ")
    return f"- {escape(where)}"


def _threads(environment: Environment) -> str:
    """How many, and what to do where they are too many: they would wait for each other."""
    threads, processors = environment.threads or 0, environment.processors
    if processors is None or threads <= (most := max(1, round(processors))):
        return f"{environment.threads} threads"
    return f"{threads} threads, more than the {processors:g} processors that it may use (OMP_NUM_THREADS={most})"


def escape(text: str) -> str:
    """Text of an experiment must not become markup, nor a line of its own."""
    return re.sub(r"([\\`*_\[\]<>|&#~])", r"\\\1", _line(text))


def code(text: str) -> str:
    """Text as code, between more backticks in a row than it holds itself."""
    text = _line(text)
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _line(text: str) -> str:
    return printable(" ".join(text.splitlines()))
