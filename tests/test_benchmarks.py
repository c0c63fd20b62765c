"""What benchmarks say of their numbers."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("rounds", "place"), [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (25, 8)]
)
def test_intervals_of_medians_are_those_of_the_tables(rounds: int, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 95 % from the value of that place to the one as far from the end (W. J. Conover, Practical Nonparametric
    Statistics, 3.2); below six values from the lowest to the highest.
    """
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    peers = pytest.importorskip("peers")
    assert peers.interval([*range(rounds, 0, -1)]) == (place, rounds + 1 - place)
