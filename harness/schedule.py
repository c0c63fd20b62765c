"""The learning rate that an experiment declares, in closed form."""

from __future__ import annotations

import math


def warmup(steps: int, warmup_steps: int, warmup_ratio: float | None) -> int:
    """Steps of the warm-up: as declared, or a share of all steps, rounded up."""
    return warmup_steps if warmup_ratio is None else math.ceil(steps * warmup_ratio)


def declared_share(schedule: str, steps: int, warmup_steps: int, step: int) -> float:
    """The share of the highest rate that a step has, counted from 0.

    Linear from 0 over the warm-up; then constant, or falling to 0 at the end of all steps: in a line, or as half a
    cosine (Loshchilov and Hutter 2017, equation 5, without restarts).
    """
    if step < warmup_steps:
        return step / warmup_steps
    left = (steps - step) / max(1, steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, left)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * min(1.0, 1 - left))) / 2
    return 1.0
