"""Warm-up: it ends when steps are steady, not after a fixed count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record

from harness.steadiness import TOGETHER, first_steady
from harness.throughput import NotMeasured, Throughput, throughput, timed_steps

QUIET = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 0.98, 1.1, 0.9]


@pytest.mark.parametrize(
    ("warm", "expected"),
    [([], 1), ([9.0], 1), ([9.0, 5.0], 2), ([9.0, 5.0, 3.0, 2.0], 4), ([9.0, 1.0, 7.0], 3), ([9.0, 1.4, 1.3], 1)],
    ids=["none", "one", "two", "slowly", "a good step between", "hardly"],
)
def test_warm_up_ends_with_steady_steps(warm: list[float], expected: int) -> None:
    """However long it lasts, and whatever single step looks steady in it; what is within the noise is no warm-up."""
    assert first_steady([*warm, *QUIET]) == expected


def test_ragged_batches_are_steady() -> None:
    """Steps of different work are longer and shorter than each other, and none of that is warm-up."""
    assert first_steady([1.0, 3.0, 0.5, 2.0, 3.1, 0.6, 1.2, 2.9, 0.5, 3.0, 1.0, 0.7]) == 1


def test_a_training_that_never_becomes_steady() -> None:
    """Half of the steps are left at least."""
    assert first_steady([2.0 ** (10 - place) for place in range(10)]) == 5


@given(st.lists(st.floats(1e-4, 100), max_size=40), st.floats(0.1, 10))
def test_the_bounds_of_warm_up(seconds: list[float], times: float) -> None:
    """At least the first step, at most half; another unit of time changes nothing."""
    found = first_steady(seconds)

    assert min(1, len(seconds) // 2) <= found <= len(seconds) // 2
    assert found == first_steady([1024 * each for each in seconds])


@given(st.lists(st.floats(1.0, 1.4), min_size=2 * TOGETHER + 2, max_size=40), st.floats(3, 100))
def test_noise_is_no_warm_up(seconds: list[float], longer: float) -> None:
    """A first step is, and steps within half of the median are not."""
    assert first_steady([longer, *seconds]) == 1


def test_what_is_declared_goes_first() -> None:
    """A declared number is that number, whatever the steps look like."""
    warm = {"seconds": (9.0, 5.0, *QUIET), "processor_seconds": (), "loss": (0.5,) * 12}
    columns = dict.fromkeys(("real_tokens", "padded_tokens"), (9,) * 12) | {"samples": (2,) * 12}
    steps = {**warm, **columns, "watching_seconds": (0.0,) * 12}

    found = record(steps=steps, settings={"benchmark.warmup_steps": None})
    declared = record(steps=steps, settings={"benchmark.warmup_steps": 5})
    none = record(steps=steps, settings={"benchmark.warmup_steps": 0})

    assert timed_steps(found)[0] == 2
    speed = throughput(found)
    assert isinstance(speed, Throughput)
    assert speed.warmup_steps == 2
    assert timed_steps(declared)[0] == 5
    assert timed_steps(none)[0] == 0
    assert isinstance(throughput(none), Throughput)  # two steps of warm-up: the median does not mind
    assert not isinstance(throughput(none), NotMeasured)


def test_others_who_take_the_processor_are_no_warm_up() -> None:
    """On a processor its own time is looked at."""
    seconds = (9.0, 8.0, 7.0, 6.0, 1.0, 1.0, 1.0, 1.0)
    busy = record(
        steps={"seconds": seconds, "processor_seconds": (0.9,) * 8}, settings={"benchmark.warmup_steps": None}
    )

    assert timed_steps(busy)[0] == 1
