"""Where cases run: the seam, and the engine that runs them in this process. No torch is needed to test it."""

import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_engine import FakeEngine, case, finished
from project import Project

import harness.training
from harness.engines import Engine
from harness.engines.inline import Inline
from harness.errors import Unavailable
from harness.plan import Case
from harness.progress import ProgressLine
from harness.record import Record


class Shelf:
    """In the place of the shelf of checkpoints."""

    cleared = 0

    def clear(self) -> None:
        """Count it."""
        self.cleared += 1


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Record]], None]:
    """Puts a function in the place of `harness.training.run.run`, and nothing that needs torch beside it."""

    def put(run: Callable[..., Record]) -> None:
        for name, content in {"run": {"run": run}, "checkpoint": {"Shelf": Shelf}}.items():
            module = ModuleType(f"harness.training.{name}")
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return put


Training = Callable[[Callable[..., Record]], None]


def test_both_engines_keep_the_protocol(tmp_path: Path) -> None:
    """The real engine and the fake one are engines to a type checker, and have its methods."""
    engines: list[Engine] = [Inline(tmp_path), FakeEngine(tmp_path)]

    for engine in engines:
        assert all(callable(getattr(engine, name)) for name in ("submit", "unavailable", "close"))


def test_cases_are_run_one_by_one_with_one_shelf(training: Training, tmp_path: Path) -> None:
    """Each case goes to `run` with the same shelf and the root; closing clears the shelf."""
    seen: list[dict[str, Any]] = []

    def run(case: Case, **arguments: Any) -> Record:
        seen.append(arguments)
        return finished(case)

    training(run)
    engine = Inline(tmp_path)

    records = [engine.submit(case()), engine.submit(case(steps=9))]
    engine.close()

    assert [len(record.steps.loss) for record in records] == [8, 9]
    assert seen[0]["shelf"] is seen[1]["shelf"]
    assert seen[0]["shelf"].cleared == 1
    assert [arguments["root"] for arguments in seen] == [tmp_path, tmp_path]
    assert [arguments["progress"] for arguments in seen] == [None, None]


def test_an_engine_that_ran_nothing_can_be_closed(tmp_path: Path) -> None:
    """Closing needs no case before."""
    Inline(tmp_path).close()


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (ImportError("libcuda is missing"), "crashed", "ImportError: libcuda is missing"),
        (SystemExit(3), "crashed", "SystemExit: 3"),
        (KeyboardInterrupt(), "interrupted", "stopped by Ctrl-C"),
    ],
    ids=["import", "exit", "ctrl-c"],
)
def test_what_run_cannot_record_is_recorded(
    training: Training, tmp_path: Path, error: BaseException, outcome: str, reason: str
) -> None:
    """An error beside the training, or Ctrl-C while torch is imported, is a record too: `submit` never raises."""

    def run(case: Case, **arguments: Any) -> Record:
        raise error

    training(run)

    record = Inline(tmp_path).submit(case())

    assert (record.outcome, record.reason) == (outcome, reason)
    assert record.name == "a.yaml::cpu"
    assert record.settings["train.steps"] == 8
    assert ("in run" in record.traceback) == (outcome == "crashed")


def test_torch_that_is_not_installed_is_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without torch each case leaves a record with the import's traceback."""
    monkeypatch.setitem(sys.modules, "harness.training.run", None)
    monkeypatch.setitem(sys.modules, "harness.training.checkpoint", None)

    record = Inline(tmp_path).submit(case())

    assert record.outcome == "crashed"
    assert "ModuleNotFoundError" in record.reason
    assert "Traceback" in record.traceback


def test_progress_is_told_of_the_case_and_cleared(training: Training, tmp_path: Path) -> None:
    """Steps are shown with the case they belong to; a case that stops halfway takes its line away all the same."""

    def run(case: Case, *, progress: Callable[[int, int, float, float], None], **arguments: Any) -> Record:
        progress(3, 8, 0.5, 40.0)
        return finished(case, outcome="crashed")

    training(run)
    terminal = StringIO()

    Inline(tmp_path, ProgressLine(terminal)).submit(case())

    assert "cpu: step 3/8, loss 0.5000, 40 samples/s" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b7\x1b[K\x1b8")


def test_a_device_that_is_not_here_has_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engine asks the machine, and hands its reason on."""

    def find(name: str) -> None:
        if name != "cpu":
            raise Unavailable(f"no {name} here")

    module = ModuleType("harness.training.devices")
    vars(module)["find"] = find
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(harness.training, "devices", module, raising=False)
    engine = Inline(tmp_path)

    assert engine.unavailable("cpu") is None
    assert engine.unavailable("cuda:3") == "no cuda:3 here"


def test_cases_run_in_this_process_by_default(project: Project, training: Training) -> None:
    """Without a hook, and after a hook that returns nothing, the engine is the inline one."""
    training(lambda case, **arguments: finished(case, reason="from here"))
    project.write("conftest.py", "def pytest_harness_engine(config): return None\n")
    project.experiment()

    result = project.run("experiments", "-k", "trains")

    assert result.ret == 0
    assert [record["reason"] for record in project.records()] == ["from here"]


def test_an_engine_that_raises_is_an_error_of_its_case(project: Project) -> None:
    """An engine that breaks its promise fails the items of that case, once asked; other cases run."""
    project.engine("answers={'cpu-custom': lambda case: 1 / 0}")
    project.experiment(loop=["custom", "trainer"], more="invariants: {loops_agree: false}")

    result = project.run("experiments")

    assert result.ret == 1
    assert project.asked() == ["experiments/a.yaml::cpu-custom", "experiments/a.yaml::cpu-trainer"]
    result.stdout.fnmatch_lines(["*1 case: 1 finished*"])
