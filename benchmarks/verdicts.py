"""Scores verdicts on recorded step times: false alarms on equal code, and slowdowns that are found.

    $ python benchmarks/verdicts.py | tee benchmarks/results/verdicts.txt

A comparison takes whole rounds of `traces.py` at random and makes two sides of them. *In turns*, each round is cut into
pieces of some length, which go to base and new in pairs, who is first decided by a coin; twelve rounds make 60 seconds
a side, six make 60 seconds in all. *One after the other*, a side is one round, or six that followed each other. Equal
code is the trace as it is; a slowdown multiplies the times of the new side, by both clocks.

Every rule judges the same samples. The others see wall time, as they do.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy
from measure import environment
from pytest_benchmark.utils import PercentageRegressionCheck
from scipy.stats import mannwhitneyu
from tabulate import tabulate
from traces import Round, read

from harness.ab.turns import LOOKS, PROCESSES
from harness.compare import MARGIN, Losses, Measure, Pair
from harness.compare.measure import judged_together
from harness.compare.statistic import CONFIDENCE, TURNS, Run, Shift, in_processes, shift

SLOWER = (0.0, 0.03, 0.05)
Array = numpy.ndarray


@dataclass(frozen=True, eq=False)
class Piece:
    """Some steps that followed each other."""

    started: float
    wall: Array
    """Seconds of each step by the clock on the wall."""
    processor: Array
    """Seconds that the process had a processor in it."""


Cut = Sequence[Sequence[Piece]]
"""The pieces of each round, in order."""


@dataclass(frozen=True)
class Sides:
    """A comparison."""

    base: Sequence[Piece]
    new: Sequence[Piece]

    def slowed(self, by: float) -> Sides:
        """The new side takes `1 + by` times as long."""
        times = 1 + by
        return Sides(self.base, [Piece(each.started, each.wall * times, each.processor * times) for each in self.new])

    @property
    def wall(self) -> tuple[Array, Array]:
        """All steps of each side by the clock on the wall."""
        base, new = (numpy.concatenate([each.wall for each in side]) for side in (self.base, self.new))
        return base, new


# Who is compared with whom


def cut(rounds: Sequence[Round], seconds: float) -> Cut:
    """The steps of each round in pieces that take so many seconds, or the little more that whole steps need."""
    cuts = [list(_pieces(one, seconds)) for one in rounds]
    return [one for one in cuts if one]  # a round in which nothing but the warm-up was done has none


def _pieces(one: Round, seconds: float) -> Iterator[Piece]:
    begun, started = 0, one.started
    for step in range(1, len(one.wall) + 1):
        spent = sum(one.wall[begun:step])
        if spent >= seconds or (step == len(one.wall) and math.isinf(seconds)):
            yield Piece(started, numpy.array(one.wall[begun:step]), numpy.array(one.processor[begun:step]))
            begun, started = step, started + spent


def in_turns(rounds: Cut, number: int, chance: random.Random) -> Sides:
    """The pieces of so many rounds, in pairs; who is first is decided by a coin."""
    base: list[Piece] = []
    new: list[Piece] = []
    for place in sorted(chance.sample(range(len(rounds)), number)):
        for pair in zip(rounds[place][::2], rounds[place][1::2], strict=False):
            first = chance.random() < 0.5
            base.append(pair[not first])
            new.append(pair[first])
    return Sides(base, new)


def one_after_the_other(rounds: Cut, number: int, chance: random.Random) -> Sides:
    """So many rounds that followed each other, and as many others."""
    sides = chance.sample(range(len(rounds) // number), 2)
    base, new = ([piece for one in rounds[side * number :][:number] for piece in one] for side in sides)
    return Sides(base, new)


@dataclass(frozen=True)
class Way:
    """How base and new are measured."""

    title: str
    seconds: float
    """Of a turn; infinite where a whole round is one run."""
    rounds: int
    turns: bool

    def draw(self, rounds: Cut, chance: random.Random) -> Sides:
        """A comparison, at random."""
        return (in_turns if self.turns else one_after_the_other)(rounds, self.rounds, chance)


WAYS = (
    Way("in turns of 0.03 s, 60 s a side", 0.03, 12, True),
    Way("in turns of 0.03 s, 60 s in all", 0.03, 6, True),
    Way("in turns of 0.25 s, 60 s a side", 0.25, 12, True),
    Way("in turns of 2 s, 60 s a side", 2.0, 12, True),
    Way("one after the other, 60 s a side", math.inf, 6, False),
    Way("one after the other, 10 s a side", math.inf, 1, False),
)


# Who judges


def harness(sides: Sides) -> str:
    """`harness compare`: both clocks, judged together, with a loss that holds."""
    return _speed(lambda base, new: shift(base, new, alike=False), sides)


def harness_ab(sides: Sides) -> str:
    """The same of two live processes, whose layout in memory and the like is in every difference, at its last look."""

    def judge(base: Sequence[Run], new: Sequence[Run]) -> Shift | str:
        if len(base) < TURNS or len(base) != len(new):
            return "no turns"
        differences = [median(two.logs) - median(one.logs) for one, two in zip(base, new, strict=True)]
        ends = [len(differences) * place // PROCESSES for place in range(PROCESSES + 1)]
        parts = [differences[begin:end] for begin, end in pairwise(ends) if begin < end]
        return in_processes(parts, 1 - (1 - CONFIDENCE) * LOOKS[PROCESSES])

    return _speed(judge, sides)


def _speed(judge: Callable[[Sequence[Run], Sequence[Run]], Shift | str], sides: Sides) -> str:
    measures = []
    for name in ("step time", "processor time"):
        column = name.partition(" ")[0].replace("step", "wall")
        base, new = ([_run(each, getattr(each, column)) for each in side] for side in (sides.base, sides.new))
        found = judge(base, new)
        if isinstance(found, str):
            return "undecided"  # too few steps, or others were busier beside one side
        measures.append(Measure(name, "undecided", shift=found))
    return Pair("", (), (), tuple(judged_together(measures, MARGIN)), Losses("same", "")).speed


def _run(each: Piece, seconds: Array) -> Run:
    return Run(each.started, tuple(numpy.log(seconds).tolist()), float(numpy.median(each.processor / each.wall)))


def pytest_benchmark(sides: Sides) -> str:
    """`--benchmark-compare-fail=median:5%`, by its own code."""
    base, new = ({"median": float(numpy.median(side))} for side in sides.wall)
    return "slower" if PercentageRegressionCheck("median", 5).fails(new, base) else ""


def asv(sides: Sides) -> str:
    """A Mann-Whitney test of all samples at 0.002, the threshold of asv's own test."""
    base, new = sides.wall
    if mannwhitneyu(base, new).pvalue >= 0.002:
        return ""
    return "slower" if numpy.median(new) > numpy.median(base) else "faster"


def asv_factor(sides: Sides) -> str:
    """The same where the median is also higher by asv's default factor, 1.1."""
    base, new = sides.wall
    return asv(sides) if numpy.median(new) > 1.1 * numpy.median(base) else ""


def plain(sides: Sides) -> str:
    """5 % on the median of what the runs' medians are."""
    base, new = (numpy.median([numpy.median(each.wall) for each in side]) for side in (sides.base, sides.new))
    return "slower" if new > 1.05 * base else ""


RULES: dict[str, Callable[[Sides], str]] = {
    "harness compare": harness,
    "harness ab": harness_ab,
    "pytest-benchmark, median:5%": pytest_benchmark,
    "asv, Mann-Whitney": asv,
    "asv, and factor 1.1": asv_factor,
    "5 % on the median": plain,
}


# Score


def table(job: tuple[str, Way, tuple[int, int]]) -> str:
    """One way of comparing one workload: what each rule says of the same comparisons."""
    workload, way, (equal, slowed) = job
    rounds = cut([each for each in read() if each.workload == workload], way.seconds)
    rows: dict[str, list[str]] = {name: [name] for name in RULES}
    for by in SLOWER:
        chance, number = random.Random(20260131), slowed if by else equal
        said = {name: Counter[str]() for name in RULES}
        for _ in range(number):
            sides = way.draw(rounds, chance).slowed(by)
            for name, rule in RULES.items():
                said[name][rule(sides)] += 1
        for name, counted in said.items():
            found = counted["slower"] + (0 if by else counted["faster"])  # an alarm is an alarm
            rows[name].append(f"{found / number:.1%}")
    headers = [way.title, "false alarms", *(f"{by:.0%} found" for by in SLOWER[1:])]
    return f"{workload}, {equal} comparisons of equal code, {slowed} of each slowdown\n" + tabulate(
        rows.values(), headers=headers, disable_numparse=True
    )


def main() -> None:
    """Print a table for each way to compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--equal", type=int, default=2000, help="comparisons of equal code (%(default)s)")
    parser.add_argument("--slowed", type=int, default=500, help="comparisons of each slowdown (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(%(default)s)")
    options = parser.parse_args()
    rounds = read()
    loads = [each.load for each in rounds]
    print(environment())
    for workload in dict.fromkeys(each.workload for each in rounds):
        mine = [each for each in rounds if each.workload == workload]
        wall, processor = (
            numpy.concatenate([getattr(each, column) for each in mine]) for column in ("wall", "processor")
        )
        print(
            f"{workload}: {len(mine)} rounds with {len(wall)} steps in {wall.sum() / 60:.0f} minutes; a step takes "
            f"{numpy.median(wall) * 1000:.1f} ms by the wall and {numpy.median(processor) * 1000:.1f} ms of a processor"
        )
    print(f"load while it was recorded: {min(loads):.1f} to {max(loads):.1f}, median {numpy.median(loads):.1f}")
    workloads = dict.fromkeys(each.workload for each in rounds)
    jobs = [(workload, way, (options.equal, options.slowed)) for workload in workloads for way in WAYS]
    with ProcessPoolExecutor(options.processes) as pool:
        for text in pool.map(table, jobs):
            print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
