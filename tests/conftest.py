"""Fixtures of several test modules."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from project import Project

# A busy machine is no failure: examples have no time limit.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="module", autouse=True)
def libraries_are_no_garbage() -> None:
    """What is imported by now is no garbage: each Trainer looks for some when it is done, for longer than it trains."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models as small as those of the tests are slower on two threads than on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """No other process is started, which would take longer than a training, unless a test wants one."""
    from trial import at_once

    with at_once():
        yield


@pytest.fixture(scope="module")
def nothing_is_counted() -> Iterator[None]:
    """What a step does, and the machine could do, is for others to judge: it takes longer than a training."""
    from harness.training import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_measure", lambda job, work: None)
        yield


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project of its own, whose cases a fake engine answers."""
    tests = Path(__file__).parent  # and the harness beside them, wherever another one is installed
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tests, tests.parent))))
    # Where the tests are distributed, or run by GitHub, those within are not.
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    return Project(pytester)
