"""What is chosen by measuring: in turns, and within a budget."""

from __future__ import annotations

from typing import Any

import pytest

from harness.training import choice


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, (0.1, 5)), (3.0, (3.0, 1))])
def test_measurements_are_short(monkeypatch: pytest.MonkeyPatch, seconds: float, expected: tuple[float, int]) -> None:
    """After a turn that is not counted they take five, or end when they have taken too long."""
    now = [0.0]

    def way() -> None:
        now[0] += seconds

    monkeypatch.setattr(choice, "perf_counter", lambda: now[0])
    found: dict[str, Any] = choice.in_turns({"one": way, "other": way})
    assert found["one"] == (pytest.approx(expected[0]), expected[1])
