"""Two trainings that take turns, a fraction of a second each, until it is clear who is slower or the time is over.

Turns come in pairs, base-new or new-base, and a coin says which, for each pair anew: whatever the machine does, it is
as likely to be against the one side as against the other. The two of a pair train the very same steps, so what differs
is not the batch. The base's turns of two pairs that follow each other show, in the same job, what a difference looks
like where there is none.

No number of turns averages out what two processes of the same code differ by for as long as they live. So both sides
are begun anew `PROCESSES` times, each time by processes of their own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Protocol

TURN = 0.03
"""Seconds of a turn at least; one of whole steps. The shorter, the more pairs and the more alike their two turns: on
the recorded step times of a busy machine (benchmarks/results/traces.jsonl.xz, 60 seconds a side) turns of a quarter of
a second gave intervals nearly twice as wide."""

WARM_UP = 5
"""Steps of each side that nobody looks at; as many follow to see how long one takes."""

COMPILING = 50
"""Steps at most that a warm-up goes on for while steps still compile."""

PROCESSES = 4
"""Of each side, one after the other, with an equal share of the time budget each."""

LOOKS = {1: 0.1, 2: 0.2, 4: 0.7}
"""After how many processes the turns are looked at, and what share of the chance of a false alarm that look may spend
(alpha spending with a schedule fixed in advance: Lan and DeMets, Biometrika 1983). The shares sum to 1, so by
Bonferroni's inequality looking three times gives no more false alarms than looking once. When a look comes depends on
the time that both sides took together, which says nothing of who was slower."""

Steps = dict[str, list[float]]
"""Columns with an entry a step: `seconds`, `processor_seconds`, `compile_seconds`."""


class Stepping(Protocol):
    """A training that goes on by as many steps as it is asked for."""

    def steps(self, number: int) -> Steps:
        """Train on, and say what each step took."""


Begin = Callable[[], tuple[Stepping, Stepping]]


@dataclass(frozen=True)
class Turn:
    """Some steps of one side that followed each other."""

    seconds: tuple[float, ...]
    processor_seconds: tuple[float, ...]

    def logs(self, column: str) -> list[float] | None:
        """Natural logarithms of what the steps took by a clock; none where it is too coarse for them."""
        found: tuple[float, ...] = getattr(self, column)
        return [math.log(each) for each in found] if all(each > 0 for each in found) else None


Pair = tuple[Turn, Turn]
"""Turns of base and new over the same steps, one right after the other."""


@dataclass
class Turns:
    """What the turns have shown until now."""

    pairs: list[Pair] = field(default_factory=list)
    alike: list[Pair] = field(default_factory=list)
    """Of two turns of the base, of which a coin says which is called new."""
    begun: list[int] = field(default_factory=list)
    """At which pair new processes were begun."""
    seconds: float = 0.0
    """Of all turns together, by the clock on the wall."""

    def differences(self, column: str) -> list[float] | None:
        """What new took more than base in each pair, on a log scale; none where a clock is too coarse."""
        logs = [(base.logs(column), new.logs(column)) for base, new in self.pairs]
        found = [median(two - one for one, two in zip(*each, strict=True)) for each in logs if all(each)]  # type: ignore[arg-type]
        return found if len(found) == len(logs) else None

    def by_process(self, differences: Sequence[float]) -> list[Sequence[float]]:
        """Those of each pair of processes."""
        ends = [*self.begun, len(differences)]
        return [differences[begin:end] for begin, end in pairwise(ends) if begin < end]

    def calibration(self) -> list[float]:
        """The same by the clock on the wall of the base and itself; its turns are of other steps."""
        sides = [(one.logs("seconds"), two.logs("seconds")) for one, two in self.alike]
        return [median(two) - median(one) for one, two in sides if one and two]

    def steps(self, side: int, column: str) -> list[float]:
        """What all steps of base (0) or new (1) took."""
        return [each for pair in self.pairs for each in getattr(pair[side], column)]


def alternate(begin: Begin, budget: float, chance: random.Random) -> Iterator[tuple[Turns, float]]:
    """Take turns; at each look what there is, and the share of the chance of a false alarm that it may spend.

    Args:
        begin: base and new in processes that have not taken turns yet.
        budget: seconds of all turns together.
        chance: the coin.
    """
    turns = Turns()
    for process in range(1, PROCESSES + 1):
        sides = begin()
        number = max(1, math.ceil(TURN / max(warm_up(sides), 1e-6)))
        turns.begun.append(len(turns.pairs))
        while turns.seconds < budget * process / PROCESSES:
            _pair(turns, sides, number, chance)
        if process in LOOKS:
            yield turns, LOOKS[process]


def warm_up(sides: Sequence[Stepping]) -> float:
    """Train the first steps of both, as many of each also where one alone compiles.

    Returns:
        The seconds of a step after them: the median of the slower side.
    """
    for side in sides:
        side.steps(WARM_UP)
    for _ in range(COMPILING // WARM_UP):
        found = [side.steps(WARM_UP) for side in sides]
        if not any(any(each["compile_seconds"]) for each in found):
            break
    return max(median(each["seconds"]) for each in found)


def _pair(turns: Turns, sides: tuple[Stepping, Stepping], number: int, chance: random.Random) -> None:
    first = chance.randrange(2)
    done = {side: _turn(sides[side], number) for side in (first, 1 - first)}
    turns.pairs.append((done[0], done[1]))
    turns.seconds += math.fsum(second for turn in done.values() for second in turn.seconds)
    if (len(turns.pairs) - turns.begun[-1]) % 2 == 0:
        own = [base for base, _ in turns.pairs[-2:]]
        chance.shuffle(own)
        turns.alike.append((own[0], own[1]))


def _turn(side: Stepping, number: int) -> Turn:
    found = side.steps(number)
    return Turn(tuple(found["seconds"]), tuple(found["processor_seconds"]))
