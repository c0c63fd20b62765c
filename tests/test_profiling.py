"""Traces and the costliest operators: by hand, in a live case, and through the option."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from project import Project
from trial import LABELS, SEQUENCES, case, train

from harness.record import Operator, Profile, Record
from harness.training import profiling
from harness.training.profiling import MOST, PROFILED, SETTLING, Profiling, Ranges, operators
from harness.training.timing import PHASES


@pytest.fixture(scope="module", params=["custom", "trainer"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A case that is profiled, in a loop that is written out and in one that is not; and its trace."""
    trace = tmp_path_factory.mktemp("reports") / "traces" / "run" / "case.json.gz"
    said = {"loop": request.param, "steps": 2, "batch_size": 2, "gradient_accumulation": 2}
    data = {"sequences": SEQUENCES[:4], "labels": LABELS[:4]}
    return train(replace(case(train=said, data=data), trace=trace)), trace


def test_a_trace_opens_and_names_steps_and_phases(trained: tuple[Record, Path]) -> None:
    """It is JSON with a range for each profiled step, and inside them ranges of all phases, and operators."""
    record, path = trained
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    ranges = [event for event in events if event.get("cat") == "user_annotation"]
    names = [event["name"] for event in ranges]

    assert len([name for name in names if name.startswith("step ")]) == PROFILED
    assert set(PHASES) <= set(names)
    assert names.count("forward") == names.count("backward") == 2 * PROFILED
    (first, *_) = (event for event in ranges if event["name"].startswith("step "))
    inner = [event for event in ranges if event["name"] in PHASES and _inside(event, first)]
    assert len(inner) > len(PHASES)
    products = [event for event in events if event.get("name") == "aten::addmm" and _inside(event, first)]
    assert products
    assert record.profile is not None
    assert record.profile.trace == "traces/run/case.json.gz"


def _inside(event: dict[str, Any], outer: dict[str, Any]) -> bool:
    return bool(outer["ts"] <= event["ts"] and event["ts"] + event["dur"] <= outer["ts"] + outer["dur"])


def test_the_costliest_operators_are_in_the_record(trained: tuple[Record, Path]) -> None:
    """The dearest first, no phase among them, and together no more than the steps took."""
    profile = trained[0].profile

    assert profile is not None
    assert (profile.reason, profile.steps, len(profile.operators)) == ("", PROFILED, MOST)
    seconds = [each.seconds for each in profile.operators]
    assert seconds == sorted(seconds, reverse=True)
    assert 0 < sum(seconds) < profile.busy_seconds < profile.seconds
    assert {each.name for each in profile.operators}.isdisjoint({*PHASES, "step 3"})
    assert all(each.calls % PROFILED == 0 for each in profile.operators), profile.operators


def test_a_profile_changes_nothing_of_the_case(tmp_path: Path) -> None:
    """It is taken of further steps of a copy: steps and parameters are those of a case without."""
    plain = case(train={"steps": 3, "batch_size": 2})
    one, other = train(plain), train(replace(plain, trace=tmp_path / "t.json.gz"))

    assert other.steps.loss == one.steps.loss
    assert other.parameters == one.parameters
    assert one.profile is None


def test_what_cannot_be_profiled_has_its_reason(tmp_path: Path) -> None:
    """The training stands all the same."""
    (tmp_path / "file").write_text("no folder")
    found = train(replace(case(train={"steps": 2}), trace=tmp_path / "file" / "t.json.gz"))

    assert found.profile is not None
    assert found.profile.reason.startswith(("FileExistsError", "NotADirectoryError"))


def test_what_has_no_room_for_a_copy_is_not_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case has trained all the same."""

    def further(*args: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(profiling, "further", further)
    found = train(replace(case(train={"steps": 1}), trace=tmp_path / "a.json.gz"))
    assert found.profile is not None
    assert found.profile.reason == "OutOfMemoryError: out of memory"


def test_a_profiled_step_ends_when_the_device_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is profiled behind the last of them."""
    said: list[str] = []

    def says(what: str) -> Callable[..., None]:
        return lambda *args: said.append(what)

    monkeypatch.setattr(profiling, "profile", lambda **_: SimpleNamespace(start=says("start"), stop=says("stop")))
    monkeypatch.setattr(Ranges, "begin", says("begin"))
    monkeypatch.setattr(Ranges, "end", says("end"))
    device = SimpleNamespace(torch=torch.device("cpu"), wait=says("wait"))
    own: Any = SimpleNamespace(device=device)
    profiler = Profiling(own)
    for _ in range(SETTLING + PROFILED):
        profiler.step_done(torch.zeros(()))
    profiled = ["wait", "end", "begin"] * (PROFILED - 1)
    settling = ["wait", "end"] * (SETTLING - 1) + ["wait", "end", "start", "begin"]
    assert said == [*settling, *profiled, "wait", "end", "end", "stop"]


def test_operators_by_hand() -> None:
    """Kernels are their operators' on a device, and ranges that bear a name are no operators."""
    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    averages = [
        SimpleNamespace(
            key=name, count=calls, self_cpu_time_total=host, self_device_time_total=device,
            device_type=type(kind)(kind.value), is_user_annotation=named,
        )
        for name, calls, host, device, kind, named in (
            ("aten::view", 9, 5.0, 0.0, cpu, False),
            ("aten::mm", 3, 2e6, 4e6, cpu, False),
            ("aten::add", 6, 3e6, 1e6, cpu, False),
            ("gemm_kernel", 3, 0.0, 4e6, cuda, False),
            ("forward", 3, 9e6, 9e6, cpu, True),
        )
    ]  # fmt: skip

    assert operators(averages, on_device=True) == (
        Operator(name="aten::mm", calls=3, seconds=4.0),
        Operator(name="aten::add", calls=6, seconds=1.0),
    )
    assert [each.name for each in operators(averages, on_device=False)] == ["aten::add", "aten::mm", "aten::view"]


def test_ranges_are_closed_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase ends where the next begins, one that was interrupted begins again, and between steps there is none."""
    said: list[str] = []

    class Range:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            said.append(self.name)

        def __exit__(self, *args: object) -> None:
            said.append(f"/{self.name}")

    monkeypatch.setattr(profiling, "record_function", Range)
    ranges = Ranges()
    ranges.enter("forward")
    ranges.begin("step 3")
    ranges.enter("forward")
    with ranges.inside("transfer"):
        pass
    ranges.end()
    ranges.end()
    with ranges.inside("data"):
        pass

    assert said == [
        "step 3", "other", "/other", "forward", "/forward", "transfer", "/transfer", "forward", "/forward", "/step 3"
    ]  # fmt: skip


# The option


def test_the_option_asks_for_a_trace_a_case(project: Project) -> None:
    """Each case has a file of its own below the reports' folder, and without the option none."""
    project.experiment(loop=["custom", "trainer"])
    project.engine("answers={'cpu-custom': profiled}", PROFILED_ANSWER)

    said = project.run("experiments", "--profile", "-k", "loss_finite")

    assert said.ret == 0
    traces = [line["trace"] for line in project.log()]
    assert len(set(traces)) == 2
    folder = str(project.path / "reports" / "traces")
    assert all(trace.startswith(folder) and trace.endswith(".json.gz") for trace in traces)
    page = (project.path / "reports" / "latest.md").read_text()
    assert "## Profile of `experiments/a.yaml::cpu-custom`" in page
    assert "| aten::addmm | 250 ms            | 50%           | 4              |" in page
    said.stdout.fnmatch_lines(["traces: none, for no case left one"])

    project.run("experiments", "-k", "loss_finite")
    assert [line["trace"] for line in project.log()][2:] == [None, None]


PROFILED_ANSWER = """
from harness.record import Operator, Profile
def profiled(case):
    known = (Operator(name="aten::addmm", calls=8, seconds=0.5),)
    return finished(case, profile=Profile(trace="traces/run/a.json.gz", steps=2, seconds=1.0, operators=known))
"""


def test_the_traces_must_have_a_folder(project: Project) -> None:
    """Something else in its place is said before anything is trained."""
    project.experiment()
    project.write("reports/traces", "a file")

    result = project.run("experiments", "--profile")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--profile: found */reports/traces, which is a file, expected a folder"])


def test_a_profile_survives_the_store() -> None:
    """To JSON and back."""
    known = (Operator(name="aten::mm", calls=1, seconds=1),)
    profile = Profile(trace="traces/run/a.json.gz", steps=3, seconds=1.0, operators=known)
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
