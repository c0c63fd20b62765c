"""Where a difference comes from: noise, the environment, or the code.

Two runs of the same commit are held against a baseline. The control has the libraries that the baseline had, so what
differs there is the code. The canary has the latest libraries, so what differs between it and the control is the
environment. What neither shows beyond chance is noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.compare.comparison import NOT_COMPARED, Comparison, Pair, compare
from harness.compare.identity import ALIASES, Difference, NotComparable, key
from harness.compare.measure import MARGIN
from harness.record import Environment, Record

Cause = Literal["code", "environment", "code and environment", "noise", "undecided"]


@dataclass(frozen=True)
class Finding:
    """What is to be said of a case."""

    case: str
    cause: Cause
    control: Pair
    """The control against the baseline: other code, the same libraries."""
    canary: Pair
    """The canary against the control: the same code, other libraries."""
    reason: str
    changed: tuple[str, ...]
    """What differs: commits, and versions of libraries."""


@dataclass(frozen=True)
class Triage:
    """All cases of the three."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def fails(self) -> bool:
        """At least one case has regressed, and not by noise."""
        return any(finding.cause not in ("noise", "undecided") for finding in self.findings)

    @property
    def status(self) -> int:
        """The exit status: 1 if a case has regressed, 2 if a run is missing with which it would be compared."""
        missing = any(NOT_COMPARED in (one.control.verdict, one.canary.verdict) for one in self.findings)
        return 1 if self.fails else 2 if missing else 0


def triage(
    baseline: Iterable[Record], control: Iterable[Record], canary: Iterable[Record], margin: float = MARGIN
) -> Triage:
    """Say of each case that all three have where a difference comes from.

    Raises:
        NotComparable: control and baseline differ in more than their commit, control and canary in more than
            libraries, or no case is in all three.
    """
    base, pinned, latest = tuple(baseline), tuple(control), tuple(canary)
    code = _leg("the control against the baseline", base, pinned, (), margin)
    environment = _leg("the canary against the control", pinned, latest, libraries((*pinned, *latest)), margin)
    others = {key(pair.base[0]): pair for pair in environment.pairs}
    findings = [_finding(pair, others[key(pair.new[0])]) for pair in code.pairs if key(pair.new[0]) in others]
    if not findings:
        raise NotComparable([], "no case is in the baseline, the control and the canary on the same hardware")
    return Triage(tuple(findings), tuple(dict.fromkeys((*code.notes, *environment.notes))))


def libraries(records: Iterable[Record]) -> tuple[str, ...]:
    """The axes that stand for other versions of libraries, and of Python."""
    names = {name for record in records for name in record.environment.versions}
    return (*sorted(names), *ALIASES["torch"])


def _leg(name: str, one: Sequence[Record], two: Sequence[Record], across: Sequence[str], margin: float) -> Comparison:
    try:
        if across and (commits := _commits(one, two)):
            raise NotComparable(commits)
        return compare(one, two, across=across, margin=margin, among=2)
    except NotComparable as error:
        raise NotComparable(error.differences, ": ".join(filter(None, (name, error.reason)))) from None


def _commits(one: Sequence[Record], two: Sequence[Record]) -> list[Difference]:
    """Cases that were not run from the same commit: nobody could tell libraries from code."""
    first = {record.name: record.environment.commit for record in one}
    pairs = [(record, first.get(record.name)) for record in two]
    return [
        Difference(record.name, "commit", commit, record.environment.commit)
        for record, commit in pairs
        if commit and record.environment.commit and commit != record.environment.commit
    ]


def _finding(control: Pair, canary: Pair) -> Finding:
    same = _same_code(control.base[0], control.new[0])
    cause: Cause = "undecided"
    reason = "these runs cannot tell; take turns: `harness ab`, and `harness ab --against-env` for the libraries"
    if control.fails and same:
        cause, reason = "noise", "the control differs from the baseline with the same commit and the same libraries"
    elif control.fails and canary.fails:
        cause, reason = "code and environment", "the control differs from the baseline, and the canary from the control"
    elif control.fails:
        cause, reason = "code", "the control, with the baseline's libraries, differs from it"
    if canary.fails and not (control.fails and not same):
        cause, reason = "environment", "the canary, of the same commit, differs from the control"
    elif not control.fails and _as_good(control) and _as_good(canary):
        cause, reason = "noise", "neither differs beyond chance"
    if NOT_COMPARED in (control.verdict, canary.verdict) and cause in ("noise", "undecided"):
        which = "baseline" if control.verdict == NOT_COMPARED else "control"
        cause, reason = "undecided", f"the run of the {which} did not finish: there is nothing to compare with"
    return Finding(control.case, cause, control, canary, reason, tuple(_changed(control, canary)))


def _same_code(one: Record, two: Record) -> bool:
    """Both from one commit, and nothing beside it."""
    first, second = one.environment, two.environment
    return first.commit is not None and first.commit == second.commit and not (first.dirty or second.dirty)


def _as_good(pair: Pair) -> bool:
    return pair.speed in ("equivalent", "faster") and pair.losses.holds


def _changed(control: Pair, canary: Pair) -> list[str]:
    base, pinned, latest = (pair[0].environment for pair in (control.base, control.new, canary.new))
    return [f"commit: {base.commit or 'unknown'} to {pinned.commit or 'unknown'}", *other_versions(pinned, latest)]


def other_versions(one: Environment, two: Environment) -> list[str]:
    """Libraries that are of another version, and of which."""
    names = sorted(one.versions.keys() | two.versions.keys())
    versions = [(name, one.versions.get(name, "none"), two.versions.get(name, "none")) for name in names]
    return [f"{name}: {first} to {second}" for name, first, second in versions if first != second]
