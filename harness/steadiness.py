"""When the steps of a training have become steady: where its warm-up ends."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles

TOGETHER = 3
"""Steady steps in a row that end a warm-up: one alone may be a short batch, or chance."""

FENCE = 1.5
"""A step is steady that is no longer than the third quartile of steps that nobody would call warm-up, and 1.5 times the
distance between their quartiles: what Tukey's box plots call no outlier (Exploratory Data Analysis, 1977). Where those
are all alike that is nothing, so half as long again as their median is steady, too: a step of warm-up allocates memory,
loads kernels and fills caches, and takes more than that, or does no harm to a median."""


def first_steady(seconds: Sequence[float]) -> int:
    """The first step after the warm-up, counted from 0.

    The second half of the steps is the yardstick. The warm-up has at least one step, as the first allocates what all
    others use, and at most half of them.
    """
    half = len(seconds) // 2
    yardstick = seconds[half:]
    if len(yardstick) < 2:
        return half
    low, _, high = quantiles(yardstick, n=4, method="inclusive")
    fence = max(high + FENCE * (high - low), FENCE * median(yardstick))
    for place in range(1, half):
        if all(each <= fence for each in seconds[place : place + TOGETHER]):
            return place
    return half
