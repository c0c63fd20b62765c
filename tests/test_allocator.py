"""Freed memory, kept or given back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trial import attempt, case, train

from harness.training import allocator, devices
from harness.training.loops import LOOPS

SAID = {"steps": 3, "batch_size": 3}


@pytest.fixture(autouse=True)
def _glibc() -> None:
    """These are for the allocator that can be told."""
    if allocator.platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")


def test_kept_memory_is_not_cleared_again() -> None:
    """Blocks above 32 MiB come from the kernel page by page each time; kept, they are used again, once the heap has
    gaps that they fit into.
    """

    code = """
import resource, torch
from harness.training import allocator

def faults(floats, times=12):
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(floats)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults(9 << 20)  # 36 MiB: 9,216 pages of 4 KiB
with allocator.kept():
    kept = faults(9 << 20)
print(returned, kept, faults(144 << 20, 2))  # as large as 16 of them: it fits into no gap that 12 may have left
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # whose heap has no gaps yet
    returned, kept, again = map(int, done.stdout.split())
    assert kept < 0.1 * returned
    assert again == pytest.approx(16 * returned, rel=0.1)


def test_each_way_is_timed_as_it_is_after_a_step() -> None:
    """Neither the growing of a heap that is kept, nor one that the other way has left, is part of the typical time."""

    code = """
import resource, torch
from statistics import median
from harness.training import allocator

def passes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(9 << 20)  # 36 MiB: 9,216 pages of 4 KiB
    seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

seen = []
allocator._measured(passes)  # of each turn the third pass and the fifth are timed, the first turn is not counted
print(*(int(median(seen[first::5])) for first in (7, 9)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    kept, returned = map(int, done.stdout.split())
    assert kept < 0.1 * returned, done.stderr


@pytest.mark.parametrize("loop", LOOPS)
def test_losses_are_the_same(loop: str) -> None:
    """To the bit, whatever becomes of memory; the record says why it is kept."""
    kept, returned = (train(case(train={**SAID, "loop": loop, "keep_memory": on})) for on in (True, False))
    assert kept.steps.loss == returned.steps.loss
    assert (kept.memory.freed, returned.memory.freed) == ("freed memory is kept, as declared", "")


@pytest.mark.parametrize(("seconds", "keeps"), [(0.5, True), (0.95, False)])
def test_auto_keeps_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, seconds: float, keeps: bool) -> None:
    """By a tenth at least, and measuring changes no loss."""

    def timed(ways: dict[str, Callable[[], None]], ready: Callable[[str], None]) -> dict[str, tuple[float, int]]:
        for name, way in ways.items():
            ready(name)
            way()
        return {"kept": (seconds, 5), "returned": (1.0, 5)}

    monkeypatch.setattr(allocator, "in_turns", timed)
    found = train(case(train={**SAID, "keep_memory": "auto"}))
    assert found.settings["train.keep_memory"] is keeps
    says = f"{seconds:g} s a turn with it kept, 1 s with it given back (median of 5 turns)"
    assert found.memory.freed == f"freed memory is {'kept' if keeps else 'not kept'}, by a measurement: {says}"
    assert found.steps.loss == train(case(train=SAID)).steps.loss


def test_profiled_steps_keep_it_as_those_of_the_training_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A profile of steps that clear their memory again would be of others."""
    told: list[dict[int, int]] = []
    monkeypatch.setattr(allocator, "_tell", told.append)
    train(replace(case(train={"steps": 1, "keep_memory": True}), trace=tmp_path / "a.json.gz"))
    assert told == [allocator._KEPT, allocator._RETURNED] * 2


def test_other_allocators_are_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip where it is asked for, a reason where it may be chosen."""
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    asked = attempt(case(train={**SAID, "keep_memory": True}))
    assert (asked.outcome, asked.reason) == ("skipped", "no train.keep_memory here: it is for glibc")
    chosen = train(case(train={**SAID, "keep_memory": "auto"}))
    assert chosen.memory.freed == "freed memory is not kept: no train.keep_memory here: it is for glibc"


def test_other_devices_keep_what_is_freed() -> None:
    """A GPU's memory is torch's to keep."""
    gpu = replace(devices.find("cpu"), name="cuda", torch=torch.device("cuda"))
    with pytest.raises(devices.Unavailable, match=r"no train\.keep_memory on cuda: torch keeps"):
        allocator.require(gpu)
