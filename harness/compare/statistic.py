"""How many times as long the new runs take as the base ones: a ratio, its interval, and what they could have shown.

Step times of real machines drift, come in bursts and in modes, and each resembles the one before. None of that is
modelled. Two things are used instead:

- **In turns.** Where base and new took turns, each two neighbouring runs are one difference, and drift is in both of
  its sides. Had they been swapped, the difference would have the other sign and nothing else would change, whatever the
  noise is: Wilcoxon's signed-rank test is exact, and its interval is made of the middles of two differences (Hodges and
  Lehmann, 1963). Of more than `EXACT` differences, those from quiet times weigh more than those from busy ones.
- **One after the other.** Where they did not, all that differed between the two times is in the difference, and no
  number of steps averages it out. How much that may be is seen inside a run: the steps are cut into blocks, and blocks
  differ by their noise and by the drift between them. `REACH` times the most that blocks differ by, at any distance, is
  what two runs of the same code may differ by.

All of it is on a log scale and made of medians: the unit of time does not matter, and base and new may be exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, median, variance
from typing import Any

CONFIDENCE = 0.995
"""Of an interval. Half of what is promised (1 % false alarms), which leaves room for what a test cannot be exact in."""

TURNS = 9
"""Pairs of runs with which the exact test can reach that: at best it says 2 / 2**9, which is 0.4 %."""

NEAR = 9
"""Differences to each side that say what is common around one: enough for a median, few enough to follow a machine."""

HUBER = 2.0
"""Times the median size beyond which a difference counts no more: 1.35 deviations of normal ones, which keeps 95 % of
what a mean would see of those (Huber, 1964)."""

FEW = 25
"""Summands, by the ratio of their moments, below which their sum is not taken for normal."""

EXACT = 50
"""Turns up to which ranks are asked, exactly; of more, `locally`."""

BLOCKS = 12
"""Into which the timed steps of a run are cut, where there are as many."""

FEWEST = 8
"""Blocks, and so timed steps, below which nothing is said."""

REACH = 3.8
"""How many times the most that blocks differ by two runs of the same code may be apart: the 99.5 % quantile for noise
like 1/f, which is as large at any length (simulated: 20, 100 and 400 steps in 12 blocks, 1,500 pairs of runs each: 3.9,
3.6 and 3.0). White noise has 0.6, heavy tails 0.6, bursts 0.7, two modes 2.3, a random slope 1.6."""

PROCESS = 0.006
"""Deviation of the log of a time between processes that run the same code, which no process sees inside itself: the
layout of memory and the like move whole runs by a percent or more (Mytkowicz et al., ASPLOS 2009). On a busy machine of
2 processors it was 0.6 % in 14 jobs of `harness ab` of a tiny BERT, two processes each; 28 of four at a time, which
find less of their own in the caches, differed by 1.2 %, also with one hash seed or one layout of addresses."""

PRIOR = 2
"""How many pairs of processes that differ by `PROCESS` count as seen before a job has any. Its own may differ by more:
10 pairs each of two tiny BERTs, under a load of 4 to 7, did by 1.2 and 1.3 %. Of simulated jobs of equal code with four
pairs, 0.6 % are certain of a difference at 1.3 %, and 1.4 % at 2 %, where 0.4 % are promised; with `PROCESS` alone 18
and 38 % were. Of those that are slower by 3 %, 90 % are found if processes differ by 0.6 %."""

OTHERS = 0.1
"""Share by which sides that ran one after the other may differ in how much of the time they had a processor. Beyond
that the machine was another one, and what others did to its caches is in processor times, too."""


@dataclass(frozen=True)
class Run:
    """The timed steps of one training."""

    started: float
    """In seconds: says who took turns with whom."""
    logs: tuple[float, ...]
    """Natural logarithm of what a step took for a unit of its work, by step."""
    share: float | None = None
    """Of a median step's wall time in which others did not keep it from a processor; none where that is not known."""


@dataclass(frozen=True)
class Shift:
    """How many times as much the new runs take as the base ones."""

    ratio: float
    low: float
    high: float
    """With `low` the interval of `confidence`."""
    probability: float
    """Of a difference as large where there is none."""
    turns: int = 0
    """Pairs of runs that took turns; 0 where they ran one after the other."""
    confidence: float = CONFIDENCE
    least: float = 0.0
    """The smallest difference that more turns would show, however many: that of processes stays."""

    @property
    def smallest(self) -> float:
        """The smallest difference that samples as noisy as these show in four of five comparisons; 0.05 is 5 %."""
        half = (math.log(self.high) - math.log(self.low)) / 2
        return math.expm1(_in_four_of_five(self.confidence) * half)


def shift(base: Sequence[Run], new: Sequence[Run], *, alike: bool = True) -> Shift | str:
    """Compare runs; a sentence where they cannot be.

    Args:
        base: runs of the one side.
        new: runs of the other.
        alike: steps of the same number do the same work, and are compared with each other.
    """
    steps = min(len(run.logs) for run in (*base, *new)) if base and new else 0
    pairs = in_turns(base, new)
    if steps and len(pairs) >= TURNS:  # each may be as short as it likes: their number counts
        return paired([_difference(one, two, alike) for one, two in pairs])
    if steps < FEWEST:
        return f"{steps} timed steps, at least {FEWEST} are needed: raise train.steps"
    if (busy := _busier(base, new)) is not None:
        return busy
    return _one_after_the_other(base, new, min(steps, BLOCKS))


def paired(differences: Sequence[float], *, confidence: float = CONFIDENCE) -> Shift:
    """Of two processes that took turns: what each turn of the new one took more than its partner, on a log scale.

    Args:
        differences: one a turn, in the order in which they came.
        confidence: of the interval.
    """
    few = signed_rank(differences, confidence) if len(differences) <= EXACT else locally(differences, confidence)
    return _shift(*few, len(differences), confidence)


def in_processes(parts: Sequence[Sequence[float]], confidence: float = CONFIDENCE) -> Shift:
    """The same of several processes of each side, one pair of them after the other.

    Turns average out what the machine does, and not what differs between two processes for as long as they live. That
    widens the interval, and no number of turns makes it narrower. How much it is says the variance between the parts,
    beyond what their turns explain. As they are few it is averaged with what other jobs had, and the quantile is that
    of Student's t with the degrees of freedom of both (Smyth, 2004, of arrays of genes).

    Args:
        parts: the differences of each pair of processes.
        confidence: of the interval.
    """
    from scipy.stats import t

    turns = paired([each for part in parts for each in part], confidence=confidence)
    freedom = PRIOR + len(parts) - 1
    apart = math.sqrt((PRIOR * 2 * PROCESS**2 + (len(parts) - 1) * _beyond_turns(parts)) / freedom / _effective(parts))
    centre, low, high = (math.log(each) for each in (turns.ratio, turns.low, turns.high))
    reach = float(t.ppf((1 + confidence) / 2, freedom))
    low, high = centre - math.hypot(centre - low, reach * apart), centre + math.hypot(high - centre, reach * apart)
    nearer = (high - centre) if centre < 0 else (centre - low)  # the side on which there is no difference
    chance = max(turns.probability, 2 * float(t.cdf(-reach * abs(centre) / nearer, freedom)))
    least = math.expm1(_in_four_of_five(confidence) * reach * apart)
    return replace(_shift(centre, low, high, chance, turns.turns, confidence), least=least)


def _beyond_turns(parts: Sequence[Sequence[float]]) -> float:
    """Variance of the medians of the parts, less what medians of so many differences vary by anyway."""
    if len(parts) < 2:
        return 0.0
    centres = [median(part) for part in parts]
    scatters = [median(abs(each - centre) for each in part) for part, centre in zip(parts, centres, strict=True)]
    # Of normal differences 1.48 of those are a deviation, and a median's variance is pi / 2 times that of a mean.
    own = [math.pi / 2 * (1.4826 * each) ** 2 / len(part) for part, each in zip(parts, scatters, strict=True)]
    return max(0.0, variance(centres) - fmean(own))


def _effective(parts: Sequence[Sequence[float]]) -> float:
    """How many parts the mean of all is of, if all counted the same: one that had a quiet time counts for more than one
    that had a busy one (Kish's effective size).
    """
    sizes = [(len(part), median(map(abs, part))) for part in parts]
    if not all(size for _, size in sizes):
        return float(len(parts))
    weights = [number / size**2 for number, size in sizes]
    return math.fsum(weights) ** 2 / math.fsum(weight**2 for weight in weights)


def in_turns(base: Sequence[Run], new: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Base and new runs that ran one right after the other; each run is in one pair at most."""
    order = sorted([*((run, 0) for run in base), *((run, 1) for run in new)], key=lambda one: one[0].started)
    pairs, place = [], 0
    while place + 1 < len(order):
        (first, side), (second, other) = order[place : place + 2]
        if side != other:
            pairs.append((first, second) if side == 0 else (second, first))
        place += 1 + (side != other)
    return pairs


def noise(runs: Sequence[Run]) -> float:
    """The smallest difference to another side as noisy as these runs that would be seen without turns; 0.05 is 5 %."""
    count = min(BLOCKS, *(len(run.logs) for run in runs))
    if count < FEWEST:
        return math.inf
    return _shift(0.0, *_within(2 * _drift(_blocks(runs, count)), 2 * _between(runs)), 1.0).smallest


def turns_for(together: int, confidence: float = CONFIDENCE) -> int:
    """How many turns the exact test takes to be certain of one of several figures: at best it says 2 / 2**turns."""
    return max(TURNS, math.ceil(math.log2(2 * max(together, 1) / (1 - confidence))))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities of several comparisons, so adjusted that each bounds the chance of any false alarm among them.

    Holm's method and not Benjamini and Hochberg's, which lets some alarms be false: one is enough to turn a gate off.
    And it holds however the cases depend on each other: those of one session share a machine and are wrong together.
    """
    adjusted, largest = [0.0] * len(probabilities), 0.0
    order = sorted(range(len(probabilities)), key=lambda place: probabilities[place])
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[place]))
        adjusted[place] = largest
    return adjusted


def signed_rank(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float, float]:
    """Of differences that are as likely to be of either sign: the centre, its interval, the probability.

    The interval holds the shifts that Wilcoxon's test does not reject; the centre is the median of the middles of all
    pairs. Too few differences reject nothing (of 99.5 %: fewer than `TURNS`).
    """
    import numpy

    if not any(differences):
        return 0.0, 0.0, 0.0, 1.0
    values = numpy.asarray(differences, dtype=float)
    first, second = numpy.triu_indices(len(values))
    middles = numpy.sort((values[first] + values[second]) / 2)

    # From both ends: where differences are of one size they may not be the same, and sides could not be exchanged.
    outside = min(_rejected(values, middles, confidence), _rejected(-values, -middles[::-1], confidence))
    low, high = float(middles[outside]), float(middles[len(middles) - 1 - outside])
    return float(numpy.median(middles)), low, high, _wilcoxon(values[values != 0])


def locally(differences: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float, float]:
    """The same of many differences in the order in which they came, of a machine that is quiet now and busy then.

    Each difference is divided by what those around it are like (`NEAR` to each side: the median of their sizes), cut
    off at `HUBER`, and weighted by one over the same: quiet times say more. What it is divided by is made of sizes
    alone, so where every difference is as likely to be of either sign, so is every summand, and their sum over the root
    of the sum of their squares is normal (Efron, JASA 1969: for symmetric summands of whatever scale). The interval
    holds what that does not reject. Where few of them weigh as much as all others, the ranks are asked instead.
    """
    import numpy

    values, reach = numpy.asarray(differences, dtype=float), _quantile(confidence)
    about = values - numpy.median(values)
    if not numpy.median(numpy.abs(about)):
        return signed_rank(differences, confidence)  # most are exactly the same: there is no scale
    summands = _summands(about, numpy)
    if (summands**2).sum() ** 2 < FEW * (summands**4).sum():
        return signed_rank(differences, confidence)

    def beyond(limit: float) -> float:
        """The difference that is as many deviations away from what was seen."""
        below, above = float(values.min()), float(values.max())
        for _ in range(22):
            middle = (below + above) / 2
            below, above = (middle, above) if _deviations(values - middle, numpy) > limit else (below, middle)
        return (below + above) / 2

    probability = 2 * NormalDist().cdf(-abs(_deviations(values, numpy)))
    centre = beyond(0.0)
    return centre, min(beyond(reach), centre), max(beyond(-reach), centre), probability


def _deviations(values: Any, numpy: Any) -> float:
    summands = _summands(values, numpy)
    whole = math.sqrt((summands**2).sum())
    return float(summands.sum() / whole) if whole else 0.0


def _summands(values: Any, numpy: Any) -> Any:
    """What each difference says, by what is common around it."""
    sizes = numpy.pad(numpy.abs(values), NEAR, mode="reflect")
    windows = numpy.lib.stride_tricks.sliding_window_view(sizes, 2 * NEAR + 1)
    around = numpy.partition(windows, NEAR, axis=1)[:, NEAR]  # the median, and several times as quick
    around = numpy.maximum(around, numpy.median(sizes) / 100)  # where clocks are coarse many differences are 0
    if not around.all():
        return numpy.sign(values)
    return numpy.clip(values / around, -HUBER, HUBER) / around


def _rejected(values: Any, middles: Any, confidence: float) -> int:
    """How many of the sorted middles the test rejects as the true difference, on each side."""
    count = len(values)
    if count > EXACT:
        spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
        return int(count * (count + 1) / 4 - _quantile(confidence) * spread)

    def rejected(place: int) -> bool:
        between = (middles[place] + middles[place + 1]) / 2  # where no difference is 0 and no two are of one size
        return _wilcoxon(values - between) <= 1 - confidence

    outside, inside = 0, len(middles) // 2
    while outside < inside:
        place = (outside + inside) // 2
        outside, inside = (place + 1, inside) if rejected(place) else (outside, place)
    return outside


def _wilcoxon(differences: Any) -> float:
    """The probability of the signed ranks."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences, method="exact" if len(differences) <= EXACT else "auto").pvalue)


def _difference(base: Run, new: Run, alike: bool) -> float:
    if alike:
        return median(two - one for one, two in zip(base.logs, new.logs, strict=False))
    return median(new.logs) - median(base.logs)


def _one_after_the_other(base: Sequence[Run], new: Sequence[Run], count: int) -> Shift:
    """Sides as far apart as their blocks are, within what blocks at any distance differ by."""
    moved = [two - one for one, two in zip(_blocks(base, count), _blocks(new, count), strict=True)]
    centre = median((one + two) / 2 for place, one in enumerate(moved) for two in moved[place:])
    low, high = _within(_drift(moved), _between(base) + _between(new))
    unit = high / _quantile(CONFIDENCE)
    return _shift(centre, centre + low, centre + high, 2 * NormalDist().cdf(-abs(centre) / unit))


def _busier(base: Sequence[Run], new: Sequence[Run]) -> str | None:
    """Why sides that did not take turns say nothing of each other: the machine had less time for one of them."""
    sides = [[run.share for run in side if run.share] for side in (base, new)]
    if not all(sides):
        return None
    one, two = (median(side) for side in sides)
    if max(one, two) <= (1 + OTHERS) * min(one, two):
        return None
    return f"base had a processor for {one:.0%} of a step, new for {two:.0%}: take turns, as `harness ab` does"


def _within(drift: float, between: float) -> tuple[float, float]:
    """What two sides of the same code may be apart, down and up.

    Args:
        drift: variance of what their blocks differ by.
        between: variance of what their runs differ by.
    """
    reach = math.hypot(REACH * math.sqrt(max(drift, between)), _quantile(CONFIDENCE) * math.sqrt(2) * PROCESS)
    return -reach, reach


def _between(side: Sequence[Run]) -> float:
    """Variance of the levels of a side's runs; 0 where there are too few to tell."""
    return variance(median(run.logs) for run in side) if len(side) > 2 else 0.0


def _blocks(side: Sequence[Run], count: int) -> list[float]:
    """Medians of equal parts of the steps, over all runs of a side."""

    def part(run: Run, place: int) -> tuple[float, ...]:
        return run.logs[len(run.logs) * place // count : len(run.logs) * (place + 1) // count]

    return [median(median(part(run, place)) for run in side) for place in range(count)]


def _drift(blocks: Sequence[float]) -> float:
    """The mean square of what blocks differ by, at the distance at which it is largest, up to half of all."""
    return max(
        math.fsum((after - before) ** 2 for before, after in zip(blocks, blocks[lag:], strict=False))
        / (len(blocks) - lag)
        for lag in range(1, len(blocks) // 2 + 1)
    )


def _in_four_of_five(confidence: float) -> float:
    """How many times half an interval a difference is that is seen in four of five comparisons."""
    return 1 + NormalDist().inv_cdf(0.8) / _quantile(confidence)


def _quantile(confidence: float) -> float:
    """Of how many deviations an interval reaches to both sides."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _shift(
    centre: float, low: float, high: float, probability: float, turns: int = 0, confidence: float = CONFIDENCE
) -> Shift:
    return Shift(math.exp(centre), math.exp(low), math.exp(high), probability, turns, confidence)
