"""The learning rate that an experiment declares, in closed form."""

from __future__ import annotations


def declared_rate(learning_rate: float, warmup_steps: int, step: int) -> float:
    """The rate of a step, counted from 0: linear from 0 over the warm-up, then constant."""
    return learning_rate * min(1.0, step / warmup_steps) if warmup_steps else learning_rate
