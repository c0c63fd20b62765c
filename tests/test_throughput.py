"""Throughput: from samples to rates, from a clock to samples, and into pytest-benchmark."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from fake_engine import case, finished, steps
from project import Project, messages, outcomes

from harness.account import PHASES
from harness.plugin.judgement import Replay
from harness.record import Record
from harness.throughput import NotMeasured, Rate, Throughput, throughput

SECONDS = [4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 4.0, 2.0]
"""Of the steps of the fake engine's records; the first three are warm-up."""


# From samples to rates


def test_rates_are_exact() -> None:
    """Each step's samples and real tokens over its seconds: median, lowest and highest; the warm-up is left out."""
    # Timed: 0.5, 0.25, 0.125, 4 and 2 s, with 2 samples, 9 real tokens and 12 computed ones each.
    assert throughput(finished(case())) == Throughput(
        seconds=(0.5, 0.25, 0.125, 4.0, 2.0),
        samples_per_second=Rate(median=4.0, low=0.5, high=16.0),
        tokens_per_second=Rate(median=18.0, low=2.25, high=72.0),
        padding=0.25,
        warmup_steps=3,
        data_wait=0.004,
        padded_tokens_per_second=Rate(median=24.0, low=3.0, high=96.0),
        phases={**dict.fromkeys(PHASES, 0.0), "data": 0.01 / 6.875, "forward": 6.865 / 6.875},
    )


def test_a_record_that_does_not_say_its_window_has_the_default() -> None:
    """Settings that a record lacks are what they are where nothing is said: no error."""
    said = finished(case(steps=40, warmup_steps=None, timed_steps=None))
    silent = {name: value for name, value in said.settings.items() if not name.startswith("benchmark.")}
    assert throughput(said.model_copy(update={"settings": silent})) == throughput(said)


def test_timed_steps_end_the_window() -> None:
    """`benchmark.timed_steps` leaves out what comes after them."""
    speed = throughput(finished(case(warmup_steps=1, timed_steps=4)))

    assert isinstance(speed, Throughput)
    assert speed.seconds == (2.0, 1.0, 0.5, 0.25)
    assert speed.warmup_steps == 1


def test_steps_of_different_size() -> None:
    """A short last batch counts as what it holds: rates are of each step, padding is of all timed tokens."""
    record = steps(
        finished(case(steps=4, warmup_steps=0)),
        seconds=(1.0, 1.0, 1.0, 0.5),
        samples=(8, 8, 8, 1),
        real_tokens=(40, 30, 20, 5),
        padded_tokens=(80, 40, 20, 10),
    )

    speed = throughput(record)

    assert isinstance(speed, Throughput)
    assert speed.samples_per_second == Rate(8.0, 2.0, 8.0)
    assert speed.tokens_per_second == Rate(25.0, 10.0, 40.0)
    assert speed.padding == 1 - 95 / 150


@pytest.mark.parametrize(
    ("declared", "remedy"),
    [
        ({"warmup_steps": 0}, "1 timed step after 0 of warm-up: at least 3 are needed; raise train.steps"),
        (
            {"warmup_steps": 0, "timed_steps": 1},
            "1 timed step after 0 of warm-up: at least 3 are needed; raise benchmark.",
        ),
    ],
)
def test_too_few_timed_steps_name_what_would_help(declared: dict[str, int], remedy: str) -> None:
    """No warm-up can be lowered where there is none, and no further step is timed where so few are declared."""
    record = finished(case(steps=1))
    said = {f"benchmark.{name}": value for name, value in declared.items()}
    found = throughput(record.model_copy(update={"settings": {**record.settings, **said}}))
    assert isinstance(found, NotMeasured)
    assert found.reason.startswith(remedy)
    assert "warmup_steps" not in found.reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (finished(case(steps=5)), "2 timed steps after 3 of warm-up: at least 3 are needed; raise train.steps"),
        (finished(case(steps=2)), "0 timed steps after 3 of warm-up"),
        (steps(finished(case()), seconds=(*SECONDS[:7], 0.0)), "a step took no time"),
        (finished(case(), outcome="crashed", reason="it broke"), "it broke"),
    ],
    ids=["too few", "only warm-up", "no time", "crashed"],
)
def test_no_figure_without_a_measurement(record: Record, reason: str) -> None:
    """What was not measured has a reason in the place of a number."""
    speed = throughput(record)

    assert isinstance(speed, NotMeasured)
    assert speed.reason.startswith(reason)


# From a clock to samples


def test_the_device_is_waited_for_before_each_reading() -> None:
    """The step clock waits, reads, and at the end waits and reads, and waits nowhere between: a wait left out at either
    side would show.
    """
    timing = pytest.importorskip("harness.training.timing")
    happened: list[str] = []
    readings = iter([9.0, 10.0, 10.75, 19.0, 20.0, 20.5])

    def now() -> float:
        happened.append("read")
        return next(readings)

    clock = timing.StepClock(lambda: happened.append("wait"), now, marks=timing.HostMarks(lambda: 0.0))

    seconds = []
    for _ in range(2):
        clock.start()
        clock.enter("forward")
        happened.append("step")
        seconds.append(clock.stop().seconds)

    assert seconds == [0.75, 0.5]
    assert happened == ["read", "wait", "read", "step", "wait", "read"] * 2


def test_work_that_is_only_queued_is_measured() -> None:
    """On a device that works behind our back, a step lasts until its work is done, and no longer."""
    timing = pytest.importorskip("harness.training.timing")
    time, done_at = 0.0, 0.0

    def wait() -> None:
        nonlocal time
        time = max(time, done_at)

    clock = timing.StepClock(wait, lambda: time)
    done_at = 5.0  # left over from before the step
    clock.start()
    time += 1.0  # queueing
    done_at = time + 8.0

    assert clock.stop().seconds == 9.0
    assert time == 14.0


def test_a_step_must_begin() -> None:
    """`stop` without `start` is a mistake of the caller, also after a step that ended."""
    timing = pytest.importorskip("harness.training.timing")
    clock = timing.StepClock(lambda: None)
    clock.start()
    clock.stop()

    with pytest.raises(RuntimeError, match="without start"):
        clock.stop()


def test_the_replay_gives_back_each_sample() -> None:
    """Two readings of the replaying clock are one recorded sample apart, to the last bit."""
    samples = [0.1, 0.2, 1e-9, 3.0000000000000004]
    clock = Replay()
    clock.load(samples)

    readings = [clock() for _ in range(2 * len(samples))]

    assert [end - start for start, end in zip(readings[::2], readings[1::2], strict=True)] == samples


# Into pytest-benchmark


def benchmarks(path: Path) -> dict[str, Any]:
    """The entries of pytest-benchmark's JSON, by node id."""
    return {entry["fullname"]: entry for entry in json.loads(path.read_text())["benchmarks"]}


def test_benchmark_json_has_the_recorded_samples(project: Project) -> None:
    """pytest-benchmark's data are the record's timed steps exactly, with its own statistics over them."""
    project.experiment(loop=["custom", "trainer"])

    result = project.run("experiments", "--benchmark-json=out.json")

    assert result.ret == 0
    entries = benchmarks(project.path / "out.json")
    assert list(entries) == [f"experiments/a.yaml::cpu-{loop}::step_throughput" for loop in ("custom", "trainer")]
    for entry, record in zip(entries.values(), project.records(), strict=True):
        assert entry["stats"]["data"] == record["steps"]["seconds"][3:]
        assert entry["stats"]["median"] == median(record["steps"]["seconds"][3:])
        assert entry["stats"]["rounds"] == 5
        assert entry["name"] == record["case"]
        assert entry["group"] == "experiments/a.yaml"
        assert entry["extra_info"] == {
            "samples_per_second": 4.0,
            "tokens_per_second": 18.0,
            "padding": 0.25,
            "warmup_steps": 3,
        }


def test_benchmark_compare_with_a_saved_run(project: Project) -> None:
    """A saved run is found again and compared; a slower one fails `--benchmark-compare-fail`."""
    project.experiment()
    slower = "lambda case: steps(finished(case), seconds=(9.0,) * 8)"

    saved = project.run("experiments", "-m", "benchmark", "--benchmark-save=base")
    same = project.run("experiments", "-m", "benchmark", "--benchmark-compare", "--benchmark-compare-fail=median:1%")
    project.engine(f"answers={{'cpu': {slower}}}")
    worse = project.run("experiments", "-m", "benchmark", "--benchmark-compare", "--benchmark-compare-fail=median:1%")

    assert (saved.ret, same.ret) == (0, 0)
    same.stdout.fnmatch_lines(["cpu (0001_base) *", "cpu (NOW) *"])
    assert worse.ret != 0
    worse.stdout.fnmatch_lines(["experiments/a.yaml::cpu *0.222 (0.222 to 0.222)*"])
    worse.stderr.fnmatch_lines(["*Performance has regressed*"])


@pytest.mark.parametrize(
    ("arguments", "throughput_outcome", "law_outcome"),
    [
        (["--benchmark-only"], "passed", "skipped"),
        (["--benchmark-skip"], "skipped", "passed"),
        (["--benchmark-disable"], "passed", "passed"),
        (["-p", "no:benchmark"], "passed", "passed"),
    ],
    ids=["only", "skip", "disable", "not there"],
)
def test_the_report_has_the_throughput_whatever_the_benchmark_does(
    project: Project, arguments: list[str], throughput_outcome: str, law_outcome: str
) -> None:
    """pytest-benchmark's switches decide on its item; the harness's own report shows the rates all the same."""
    project.experiment()

    result = project.run("experiments", *arguments)

    assert result.ret == 0
    found = outcomes(result)
    assert found["experiments/a.yaml::cpu::step_throughput"] == throughput_outcome
    assert found["experiments/a.yaml::cpu::loss_finite"] == law_outcome
    result.stdout.fnmatch_lines(["experiments/a.yaml::cpu *4 (0.5 to 16)  18 (2.25 to 72)  25%*"])


def test_the_benchmark_mark_selects_without_pytest_benchmark(project: Project) -> None:
    """`-m benchmark` needs the mark, not the plugin."""
    project.experiment()

    result = project.run("experiments", "-p", "no:benchmark", "-m", "benchmark")

    assert outcomes(result) == {"experiments/a.yaml::cpu::step_throughput": "passed"}


@pytest.mark.parametrize("arguments", [[], ["-p", "no:benchmark"]], ids=["benchmark", "no benchmark"])
def test_too_few_steps_are_invalid(project: Project, arguments: list[str]) -> None:
    """Neither pass nor fail: a skip that says `invalid`, why, and what to do; in the report too."""
    project.experiment(steps=5)

    result = project.run("experiments", *arguments)

    reason = "2 timed steps after 3 of warm-up: at least 3 are needed"
    name = "experiments/a.yaml::cpu::step_throughput"
    assert outcomes(result)[name] == "skipped"
    assert f"invalid: {reason}" in messages(result)[name]
    result.stdout.fnmatch_lines([f"step_throughput is invalid: {reason}*", "  experiments/a.yaml::cpu"])
    assert result.ret == 0
