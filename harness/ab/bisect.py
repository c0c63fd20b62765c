"""The change that made a project slower, or its training wrong: searched for by halves, each half by `compare_sides`.

What is compared with is always the good end, not the neighbour: a change of the searched size stays as large as it was
found to be between the ends, however many small ones there are around it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.compare import Comparison, NotComparable, Pair
from harness.compare.statistic import CONFIDENCE
from harness.errors import HarnessError
from harness.report.comparison import interval

State = Literal["good", "bad", "undecided", "cannot be run"]


@dataclass(frozen=True)
class Probe:
    """One candidate, compared with the good end."""

    name: str
    state: State
    reason: str
    """The figures, or why there are none."""
    found: Comparison | None = None


@dataclass(frozen=True)
class Culprit:
    """Where the search ended."""

    suspects: tuple[str, ...]
    """The first bad candidate, after those before it of which nothing can be said; none if the bad end is not bad."""
    probes: tuple[Probe, ...]
    """In the order in which they were made."""

    @property
    def found(self) -> bool:
        """There is one suspect."""
        return len(self.suspects) == 1

    @property
    def certainty(self) -> float:
        """That no candidate was called what it is not: each is with a probability of 0.5 % at most."""
        return 1 - (1 - CONFIDENCE) * sum(probe.state in ("good", "bad") for probe in self.probes)


Try = Callable[[str], Comparison]
"""Compares a candidate with the good end; raises where it cannot be run."""


def search(candidates: Sequence[str], attempt: Try, told: Callable[[Probe], None] = lambda probe: None) -> Culprit:
    """The first candidate that is bad, as `git bisect` searches for it.

    One that cannot be run, or of which nothing can be said, is passed over: the nearest to it that is not known yet is
    tried instead. Where only such ones are left, they are suspects beside the first bad one.

    Args:
        candidates: the oldest first; the last is the bad end.
        attempt: compares one.
        told: of each probe.
    """
    end = probe(candidates[-1], attempt)
    told(end)
    if end.state != "bad":
        return Culprit((), (end,))
    probes = [end]

    def state(place: int) -> State:
        probes.append(probe(candidates[place], attempt, end.found))
        told(probes[-1])
        return probes[-1].state

    good, bad, void = -1, len(candidates) - 1, set[int]()
    while left := [place for place in range(good + 1, bad) if place not in void]:
        place = min(left, key=lambda each: abs(2 * each - (good + bad)))
        match state(place):
            case "bad":
                bad = place
            case "good":
                good = place
            case _:
                void.add(place)
    return Culprit(tuple(candidates[good + 1 : bad + 1]), tuple(probes))


def probe(name: str, attempt: Try, end: Comparison | None = None) -> Probe:
    """Compare one candidate, and say what it is.

    Args:
        name: of the candidate.
        attempt: compares it.
        end: how the bad end compares; none where this is it.
    """
    try:
        found = attempt(name)
    except NotComparable as error:
        return Probe(name, "cannot be run", error.listed.replace("\n  ", " "))
    except HarnessError as error:
        return Probe(name, "cannot be run", str(error).splitlines()[-1])
    said = [f"{pair.case}: {_figures(pair)}" for pair in found.pairs]
    figures = "; ".join([*said, *(" ".join(each.split()) for each in found.refused)])
    if found.fails:
        return Probe(name, "bad", figures, found)
    return Probe(name, "good" if _is_good(found, end) else "undecided", figures, found)


def _is_good(found: Comparison, end: Comparison | None) -> bool:
    """What is wrong at the bad end is not wrong here: the training is right, or it is less slow beyond doubt."""
    here = {pair.case: pair for pair in found.pairs}
    if end is None and found.refused:
        return False
    wrong = found.pairs if end is None else [pair for pair in end.pairs if pair.fails]
    return all(pair.case in here and _is_better(here[pair.case], pair) for pair in wrong)


def _is_better(pair: Pair, end: Pair) -> bool:
    if not pair.losses.holds:
        return False
    if pair.speed in ("equivalent", "faster") or (end.fails and end.speed != "slower"):
        return True
    slower = [one for one in end.measures if one.outcome == "slower" and one.shift is not None]
    shifts = [(pair.measure(one.name), one.shift) for one in slower]
    return any(mine and mine.shift and its and mine.shift.high < its.ratio for mine, its in shifts)


def _figures(pair: Pair) -> str:
    """``slower, step time +5.2% (+3.1% to +7.4%)``."""
    times = [f"{one.name} {interval(one.shift)}" for one in pair.measures if one.shift is not None]
    return ", ".join([pair.verdict, *pair.broken, *times])
