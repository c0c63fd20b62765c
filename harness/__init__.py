"""Fine-tune declared experiments under pytest, judge the training, and time it."""

from collections.abc import Callable
from typing import TypeVar

__version__ = "0.1.0"

__all__ = ["__version__", "invariant"]

Check = TypeVar("Check", bound=Callable[..., None])


def invariant(check: Check) -> Check:
    """Make a pytest function in a ``conftest.py`` a law of the experiments below its folder.

    It becomes an item of every case, by its own name, and fails as any test does. Among its fixtures are `record`,
    what the training left, and `case`. An experiment turns it off by ``invariants: {NAME: false}``.

    >>> @invariant
    ... def loss_halves(record):
    ...     assert record.steps.loss[-1] < record.steps.loss[0] / 2
    """
    import pytest

    check.is_harness_invariant = True  # type: ignore[attr-defined]
    marked: Check = pytest.mark.invariant(check)
    return marked
