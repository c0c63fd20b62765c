"""The machine beside the case: what it says, what it cannot say, and when a figure is void for it."""

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from records import clocked, record
from trial import case, train

from harness import record as parts
from harness.account import SHARED, SLOWED, STOLEN
from harness.errors import Unavailable
from harness.record import Record
from harness.throughput import NotMeasured, Throughput, throughput
from harness.training.devices import Device, PeakMemory, find
from harness.training.machine import Conditions, Gpu, Rapl, gpu, meter, ticks, usable
from harness.training.timing import StepClock

STEPS = 8
TIMED = {"benchmark.warmup_steps": 0}
ME = os.getpid()


class NVMLError(Exception):
    """What NVML raises where it does not know."""


def nvml(**answers: Any) -> Any:
    """A fake of the module `pynvml`: it answers what is given, and knows nothing else."""

    def unknown(*arguments: Any) -> None:
        raise NVMLError("Not Supported")

    names = ("TotalEnergyConsumption", "CurrentClocksEventReasons", "CurrentClocksThrottleReasons", "Temperature")
    names += ("ComputeRunningProcesses", "ProcessUtilization")
    asked = {f"nvmlDeviceGet{name}": _answering(answers[name]) if name in answers else unknown for name in names}
    return SimpleNamespace(NVMLError=NVMLError, NVML_TEMPERATURE_GPU=0, **asked)


def _answering(answer: Any) -> Callable[..., Any]:
    return lambda *arguments: answer


def process(pid: int, busy: int = 0) -> SimpleNamespace:
    """One that NVML knows of, and the percentage of the time in which it computed."""
    return SimpleNamespace(pid=pid, smUtil=busy)


# A GPU


def test_a_gpu_tells_energy_and_heat() -> None:
    """Millijoules are joules, and the bits of a reason its words."""
    card = Gpu(nvml(TotalEnergyConsumption=12_500, CurrentClocksEventReasons=0x60, Temperature=91), handle=None)

    assert card.joules() == 12.5
    assert card.slowed() == "too hot"
    assert card.celsius() == 91


@pytest.mark.parametrize(("mask", "said"), [(0x0, ""), (0x1, ""), (0x4, ""), (0x88, "hardware slowdown, power brake")])
def test_a_card_at_its_power_limit_or_idle_is_not_slowed(mask: int, said: str) -> None:
    """That is how it works; a brake is not."""
    assert Gpu(nvml(CurrentClocksEventReasons=mask), handle=None).slowed() == said


def test_an_older_driver_has_another_name_for_it() -> None:
    """Clocks throttle reasons."""
    assert Gpu(nvml(CurrentClocksThrottleReasons=0x20), handle=None).slowed() == "too hot"


def test_what_a_driver_does_not_know_is_none() -> None:
    """And never 0."""
    card = Gpu(nvml(), handle=None)

    assert [card.joules(), card.slowed(), card.celsius(), card.shared()] == [None] * 4


@pytest.mark.parametrize(
    ("running", "samples", "shared"),
    [
        ((ME,), [process(ME, 90)], 0.0),
        ((ME, 7), [process(ME, 50), process(7, 40), process(7, 60)], 0.5),
        ((ME, 7, 8), [process(7, 80), process(8, 80)], 1.0),
        ((ME, 7), [process(ME, 90)], 0.0),
        ((ME, 7), None, None),
        ((ME,), None, 0.0),
        ((4711,), [process(4711, 90)], None),
    ],
    ids=["alone", "shared", "crowded", "another that sleeps", "nobody says", "alone, nobody says", "in a container"],
)
def test_others_on_a_gpu(running: tuple[int, ...], samples: list[Any] | None, shared: float | None) -> None:
    """By what they compute: who only holds memory is in nobody's way. Where this process is not named nobody is."""
    answers: dict[str, Any] = {"ComputeRunningProcesses": [process(pid) for pid in running]}
    if samples is not None:
        answers["ProcessUtilization"] = samples
    found = Gpu(nvml(**answers), handle=None).shared()
    assert found == shared


def test_a_processor_is_no_gpu() -> None:
    """Its energy is counted by the kernel."""
    assert gpu(find("cpu")) is None
    assert isinstance(meter(find("cpu")), Rapl)


# A processor


def powercap(folder: Path, *microjoules: int) -> Path:
    """What the kernel shows of so many sockets."""
    for number, energy in enumerate(microjoules):
        for zone in (f"intel-rapl:{number}", f"intel-rapl:{number}:0"):  # the second is a part of the first
            (folder / zone).mkdir(exist_ok=True)
            (folder / zone / "energy_uj").write_text(f"{energy}\n")
            (folder / zone / "max_energy_range_uj").write_text("1000000000\n")
    return folder


def test_energy_of_sockets(tmp_path: Path) -> None:
    """All of them together, their parts once, and counters that wrap go on."""
    rapl = Rapl(powercap(tmp_path, 5_000_000, 999_000_000))
    assert rapl.joules() == 0.0
    powercap(tmp_path, 6_000_000, 2_000_000)

    assert rapl.joules() == pytest.approx(1 + 3)
    assert rapl.slowed() is None


def test_energy_that_nobody_may_read(tmp_path: Path) -> None:
    """Is none, and so is that of a machine without such counters."""
    assert Rapl(tmp_path).joules() is None
    rapl = Rapl(powercap(tmp_path, 5_000_000))
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert rapl.joules() is None


def test_a_step_takes_energy_from_before_it_to_after_it() -> None:
    """The clock reads the meter outside of its seconds."""
    now = 0.0

    class Slow:
        read = 0.0

        def joules(self) -> float:
            nonlocal now
            now += 5.0
            self.read += 3.0
            return self.read

        def slowed(self) -> str:
            return "too hot"

    clock = StepClock(lambda: None, lambda: now, second=lambda: now, meter=Slow())
    clock.start()
    now += 2.0
    lap = clock.stop()

    assert (lap.seconds, lap.ended - lap.began, lap.joules, lap.slowed) == (2.0, 2.0, 3.0, "too hot")
    assert clock.starting_seconds == 5.0


def stat(path: Path, user: int, idle: int, steal: int) -> Path:
    """The kernel's account of its processors."""
    path.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3\n")
    return path


def test_what_the_host_takes(tmp_path: Path) -> None:
    """Of the time in which there was work: an idle processor is not stolen from."""
    file = stat(tmp_path / "stat", 100, 1000, 10)
    conditions = Conditions(None, file)
    conditions.watch()
    stat(file, 250, 9000, 60)

    assert conditions.read().stolen == pytest.approx(50 / 200)


def test_what_is_too_short_or_unreadable_is_not_stolen(tmp_path: Path) -> None:
    """Some ticks are chance."""
    file = stat(tmp_path / "stat", 100, 1000, 10)
    conditions = Conditions(None, file)
    conditions.watch()
    stat(file, 110, 1000, 20)
    assert conditions.read().stolen is None
    file.write_text("nothing\n")
    assert conditions.read().stolen is None
    assert ticks(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("said", "processors"),
    [
        ({"": "max 100000", "a": "150000 100000", "a/b": "max 100000"}, 1.5),
        ({"": "50000 100000", "a": "150000 100000"}, 0.5),
        ({"a/b": "6400000 100000"}, 3),
        ({"a": "torn"}, 3),
        ({}, 3),
    ],
)
def test_processors_that_may_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], processors: float
) -> None:
    """The least of what the kernel's scheduler and each control group around the process allow."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 5}, raising=False)
    for name, quota in said.items():
        (tmp_path / "groups" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name / "cpu.max").write_text(f"{quota}\n")
    own = tmp_path / "own"
    own.write_text("4:memory:/elsewhere\n0::/a/b\n")
    assert usable(tmp_path / "groups", own) == processors
    assert usable(tmp_path / "groups", tmp_path / "none") == 3


def test_a_training_says_what_there_was_beside_it() -> None:
    """Live: a load, so many processors, a column for energy; no GPU."""
    found = train(case(train={"steps": 3}))

    assert found.machine.processors == os.cpu_count()
    assert (found.machine.load is not None) == hasattr(os, "getloadavg")
    assert (found.machine.shared, found.machine.celsius) == (None, None)
    assert len(found.steps.joules) == len(found.steps.slowed) == 3


# What is void


def reason(one: Record) -> str:
    """Why there is no figure; empty where there is one."""
    speed = throughput(one)
    return speed.reason if isinstance(speed, NotMeasured) else ""


def beside(**said: float) -> Record:
    """A record of a machine on which there was this."""
    return record(machine=parts.Machine(**said), settings=TIMED)


def test_stolen_processors_void_a_figure() -> None:
    """Beyond the limit; the ordinary does not."""
    assert reason(beside(stolen=STOLEN)) == ""
    assert reason(beside(stolen=STOLEN + 0.1)) == (
        "the machine was overloaded: its host gave 35% of the time of its processors to others (steal)"
    )


def test_a_shared_gpu_voids_a_figure() -> None:
    """Where others computed, and not where they only are."""
    assert reason(beside(shared=SHARED)) == ""
    assert reason(beside(shared=0.5)) == "the GPU was shared: other processes computed on it in 50% of the time"


def test_a_throttled_gpu_voids_a_figure() -> None:
    """After more than a tenth of the steps: one moment of heat is no news."""
    found = record(steps={"slowed": ("too hot", *("",) * (STEPS - 1))}, settings=TIMED)
    assert SLOWED * STEPS < 1
    assert reason(found) == "the GPU was throttled after 1 of 8 timed steps: too hot"
    early = record(steps={"slowed": ("too hot", *("",) * (STEPS - 1))}, settings={"benchmark.warmup_steps": 1})
    assert reason(early) == ""
    assert reason(record(steps={"slowed": (None,) * STEPS}, settings=TIMED)) == ""
    assert reason(record(steps={"slowed": ("",) * STEPS}, settings=TIMED)) == ""


# Energy


@pytest.mark.parametrize(
    ("seconds", "joules", "expected"),
    [
        (0.5, (9.0,) * STEPS, 1000.0),
        (0.5, (None,) * STEPS, None),
        (0.5, (9.0,) * (STEPS - 1) + (None,), None),
        (0.5, (), None),
        (0.01, (9.0,) * STEPS, None),
    ],
    ids=["counted", "nobody counts", "not in each", "an earlier record", "too short"],
)
def test_energy_of_a_thousand_tokens(seconds: float, joules: tuple[float | None, ...], expected: float | None) -> None:
    """Real ones; absent where it was not counted in each timed step, or for less than a second."""
    columns = {"seconds": (seconds,) * STEPS, "processor_seconds": (seconds,) * STEPS, "joules": joules}
    found = throughput(record(steps={**columns, **clocked((seconds,) * STEPS, (2,) * STEPS)}, settings=TIMED))

    assert isinstance(found, Throughput)
    assert found.joules_per_kilotoken == expected


def test_rocm_is_no_build_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There torch has no version of CUDA, and its devices bear that name all the same."""
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(Unavailable, match="is built without CUDA"):
        find("cuda")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(Unavailable, match="finds none"):
        find("cuda")


def test_what_hangs_in_a_circle_is_let_go_before_a_gpu_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Trainer of the case before does, with model and moments: they would count as memory of this one."""

    class Circle:
        def __init__(self) -> None:
            self.own = self

    said: list[str] = []
    left = weakref.ref(Circle())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append(f"emptied, with the circle {left()}"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: said.append(f"reset on {device}"))
    PeakMemory(Device("cuda", torch.device("cuda", 1))).watch()
    assert said == ["emptied, with the circle None", "reset on cuda:1"]
