"""What a library's loop costs beside the loop that is written out."""

import pytest
from records import case

from harness.record import Record
from harness.report import markdown, summarise, terminal
from harness.report.overhead import overheads


def timed(name: str, seconds: float, **settings: object) -> Record:
    """A case whose timed steps took so long; the first, of the warm-up, took longer."""
    return case(name, steps={"seconds": (9.0, 9.0, 9.0, *(seconds,) * 5)}, settings=settings)


def test_each_loop_is_compared_with_the_custom_one() -> None:
    """Case by case, with the median of the timed steps."""
    found = overheads([timed("cpu-custom", 0.01), timed("cpu-trainer", 0.015), timed("cpu-accelerate", 0.01)])
    assert [(one.name.rpartition("::")[2], one.ratio) for one in found] == [
        ("cpu-trainer", pytest.approx(1.5)),
        ("cpu-accelerate", pytest.approx(1.0)),
    ]
    assert str(found[0]) == "1.50 (15 ms, custom 10 ms)"


def test_only_like_cases_are_compared() -> None:
    """Another precision, another device or another batch size is another training."""
    custom = timed("cpu-custom", 0.01)
    assert overheads([custom, timed("cpu-trainer-bf16", 0.02)]) == ()
    assert overheads([custom, timed("cpu-trainer", 0.02, **{"train.batch_size": 4})]) == ()
    assert overheads([timed("cpu-trainer", 0.02), timed("cpu-accelerate", 0.02)]) == ()


def test_what_was_not_measured_has_no_overhead() -> None:
    """Too few timed steps say nothing."""
    short = case("cpu-trainer", settings={"benchmark.timed_steps": 1})
    assert overheads([case("cpu-custom", settings={"benchmark.timed_steps": 1}), short]) == ()


def test_reports_show_it() -> None:
    """Both of them, and neither where there is one loop only."""
    summary = summarise([timed("cpu-custom", 0.01), timed("cpu-trainer", 0.015)])
    line = "experiments/a.yaml::cpu-trainer"
    assert f"time per step over the custom loop's\n  {line}: 1.50 (15 ms, custom 10 ms)" in terminal(summary)
    assert f"## Time per step over the custom loop's\n\n- `{line}`: 1.50 (15 ms, custom 10 ms)" in markdown(summary)
    assert "over the custom loop's" not in terminal(summarise([timed("cpu-custom", 0.01)]))
