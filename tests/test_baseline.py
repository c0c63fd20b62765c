"""Baselines: which runs can be one, what is kept, and the item that compares with it."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from project import Project, messages, outcomes
from records import HEALTHY, PROBES, record
from test_compare import HERE, STEPS, trained

from harness.__main__ import main
from harness.compare import NotComparable, baseline
from harness.compare.baseline import Accepted, Baselines, accept, against
from harness.errors import HarnessError
from harness.record import Record

FIRST = datetime(2026, 1, 31, tzinfo=UTC)
SECOND = datetime(2026, 3, 1, tzinfo=UTC)


def accepted(*records: Record, old: Baselines | None = None, reason: str = "as it should be") -> Accepted:
    """What became of accepting them."""
    return accept(old or Baselines(), records, reason, FIRST if old is None else SECOND)


# Accepting


def test_a_healthy_run_is_a_baseline() -> None:
    """With the reason, the time and the environment; without the evidence that no comparison needs."""
    one = trained()
    found = accepted(one)
    assert (found.names, found.refused) == ((one.name,), ())
    kept = found.baselines.of(one)
    assert kept is not None
    assert (kept.reason, kept.accepted, kept.before) == ("as it should be", FIRST, ())
    (record,) = kept.records
    assert record.environment == HERE
    assert record.steps.loss == one.steps.loss
    assert (record.batches, record.examples, record.probes, record.steps.examples) == ((), (), {}, ())
    assert len(kept.model_dump_json()) < len(one.to_json()) / 1.5


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"outcome": "crashed", "reason": "ValueError: no"}, "crashed: ValueError: no"),
        ({"steps": {"loss": (0.5,) * STEPS}}, "loss_decreases is broken: "),
        ({"steps": {"loss": (0.5, *(math.nan,) * (STEPS - 1))}}, "loss_finite is broken: "),
        ({"probes": {**PROBES, "steps": {"error": "no"}}}, "loss_is_the_declared_one is invalid: "),
        ({"steps": {"seconds": (0.0,) * STEPS}}, "its times are invalid: a step took no time"),
        ({"settings": {"benchmark.timed_steps": 2}}, "its times are invalid: 2 timed steps"),
        ({"settings": {"benchmark.timed_steps": 5}}, "too noisy: no difference would show"),
        ({"noise": 1.0}, "too noisy: no difference below "),
    ],
    ids=["crashed", "broken", "NaN", "invalid", "no time", "two steps", "five steps", "noisy"],
)
def test_what_is_no_baseline(changes: dict[str, Any], why: str) -> None:
    """A broken, invalid or too noisy run is refused with its reason; others of the run are accepted."""
    bad, good = trained(**changes), record(trained(), experiment="experiments/b.yaml")
    found = accepted(bad, good)
    assert found.names == (good.name,)
    (said,) = found.refused
    assert said.startswith(f"{bad.name}: {why}")


def test_cases_that_do_not_agree_are_no_baselines() -> None:
    """Two loops with different losses: neither of them, for who knows which one is right."""
    loss = tuple(each + 0.01 for each in trained().steps.loss)
    found = accepted(trained(), trained("cpu-trainer", steps={"loss": loss}))
    assert found.names == ()
    assert [why.partition(": ")[2].partition(" is broken")[0] for why in found.refused] == ["loops_agree"] * 2


def test_loops_of_two_machines_need_not_agree() -> None:
    """Each machine adds up in its own order; on one of them loops do agree, and on the other they do not."""
    laptop = {"device": "Laptop", "processor": "Laptop"}

    def on_laptop(name: str, more: float) -> Record:
        return trained(name, environment=laptop, steps={"loss": tuple(each + more for each in trained().steps.loss)})

    alike = accepted(trained(), trained("cpu-trainer"), on_laptop("cpu-custom", 1e-3), on_laptop("cpu-trainer", 1e-3))
    assert (len(alike.names), alike.refused) == (4, ())
    other = accepted(trained(), trained("cpu-trainer"), on_laptop("cpu-custom", 0.0), on_laptop("cpu-trainer", 1e-3))
    assert len(other.names) == len(other.refused) == 2
    assert other.baselines.of(trained()) is not None


def test_what_did_not_run_is_not_refused() -> None:
    """A device that is not there, and a case that was stopped, leave the others as they are."""
    skipped = record(trained("cuda-custom"), outcome="skipped", reason="no CUDA device")
    assert accepted(skipped) == Accepted(Baselines(), (), ())


def test_a_renewed_baseline_keeps_what_was_there() -> None:
    """The old figures with their reason and environment, the oldest first; lines of other cases and machines stay."""
    first, laptop = trained(), trained(environment={"device": "Laptop", "processor": "Laptop"})
    old = accepted(first, laptop, reason="first").baselines
    new = accepted(trained(times=2.0), old=old, reason="a better tokenizer").baselines
    again = accepted(trained(times=1.5), old=new, reason="and a better one").baselines
    kept = again.of(first)
    assert kept is not None
    assert [(each.reason, each.accepted) for each in kept.before] == [("first", FIRST), ("a better tokenizer", SECOND)]
    assert kept.before[0].tokens_per_second == pytest.approx(90, rel=0.02)
    assert kept.before[1].tokens_per_second == pytest.approx(45, rel=0.02)
    assert kept.before[0].environment == HERE
    assert again.of(laptop) == old.of(laptop)


# The file


def test_a_baseline_file_comes_back_as_it_was(tmp_path: Path) -> None:
    """A line each, sorted; reading and writing it again changes nothing."""
    found = accepted(trained("cpu-trainer"), trained(), trained(environment={"device": "A Laptop"})).baselines
    path = tmp_path / "baseline.jsonl"
    path.write_text(found.to_text())
    assert baseline.read(path) == found
    assert baseline.read(path).to_text() == found.to_text()
    names = [json.loads(line)["records"][0]["case"] for line in found.to_text().splitlines()]
    assert names == ["cpu-custom", "cpu-custom", "cpu-trainer"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"baseline": 1, "rec', "torn line, expected a baseline"),
        ("[" * 100_000, "not JSON, expected a baseline"),
        ("[]", "not a baseline: found no number under 'baseline', expected a JSON object with one"),
        ('{"format": 1}', "not a baseline: found no number under 'baseline', expected a JSON object with one"),
        (HEALTHY.to_json(), "a record, expected a baseline: `harness baseline accept` makes one of it"),
        ('{"baseline": 9}', "baseline of format 9, this harness reads up to 1; upgrade pytest-finetune"),
        ('{"baseline": 1}', "not a baseline: accepted: found nothing, expected this field"),
        (
            '{"baseline": 1, "accepted": "2026-01-01T00:00:00Z", "reason": "", "records": []}',
            "not a baseline: records: found an empty list, expected at least 1 item",
        ),
    ],
    ids=["torn", "deep", "list", "neither", "record", "newer", "empty", "no records"],
)
def test_a_line_that_is_no_baseline_is_named(tmp_path: Path, line: str, said: str) -> None:
    """A gate must not pass because its file is broken: the first bad line is an error, with its place."""
    path = tmp_path / "baseline.jsonl"
    path.write_text(accepted(trained()).baselines.to_text() + line + "\n")
    with pytest.raises(HarnessError) as caught:
        baseline.read(path)
    assert str(caught.value) == f"{path}:2: {said}"


# Comparing with it


def test_a_record_is_compared_with_its_baseline() -> None:
    """Slower, as fast, another setting: the same verdicts as of `harness compare`."""
    kept = accepted(trained(noise=0.001)).baselines.of(trained())
    assert kept is not None
    assert against(kept, trained(times=1.5, noise=0.001)).fails
    assert against(kept, trained(at=1, noise=0.001)).verdict == "equivalent"
    assert against(kept, trained(at=1, steps={"loss": (0.9,) * STEPS})).verdict == "worse loss"
    with pytest.raises(NotComparable):
        against(kept, trained(settings={"train.seed": 1}))


def test_many_comparisons_are_each_more_careful() -> None:
    """What is certain of one case is not of one among a million."""
    kept = accepted(trained(noise=0.001)).baselines.of(trained())
    assert kept is not None
    slower = trained(times=1.04, noise=0.001)
    assert against(kept, slower).speed == "slower"
    assert against(kept, slower, among=1_000_000).speed == "undecided"


# The command and the item


@pytest.fixture
def accepting(project: Project) -> Project:
    """A project whose experiment has a baseline."""
    project.experiment(steps=STEPS, loop=["custom", "trainer"])
    project.engine("answers={'cpu-custom': quick, 'cpu-trainer': quick}", QUICK)
    assert project.run("experiments").ret == 0
    assert main(["baseline", "accept", str(project.path / "reports"), "--reason", "first", *to(project)]) == 0
    return project


QUICK = """
import math, random
def timed(case, times=1.0, **columns):
    noise = random.Random(case.id)
    seconds = tuple(times * math.exp(noise.gauss(0, 0.001)) for _ in range(case.settings.train.steps))
    return steps(finished(case), seconds=seconds, processor_seconds=seconds, **columns)
def quick(case): return timed(case)
def slow(case): return timed(case, 2.0)
def learns_less(case): return timed(case, 0.5, loss=(0.9,) * case.settings.train.steps)
def unsteady(case): return steps(finished(case), processor_seconds=())
def elsewhere(case):
    return quick(case).model_copy(update={"environment": ENVIRONMENT.model_copy(update={"device": "Other"})})
def beside_another(case):
    environment = ENVIRONMENT.model_copy(update={"processor": "Other"})
    return quick(case).model_copy(update={"environment": environment})
def packed(case, more=()):
    record = quick(case)
    return record.model_copy(update={"settings": {**record.settings, "train.packing": True, **dict(more)}})
def on_other_threads(case):
    return quick(case).model_copy(update={"environment": ENVIRONMENT.model_copy(update={"threads": 64})})
"""


def to(project: Project) -> list[str]:
    """The option that names the baseline file."""
    return ["--baseline", str(project.path / "baseline.jsonl")]


def judged(project: Project, answer: str) -> tuple[str, str]:
    """Outcome and message of the item of the case, which the engine answers so."""
    project.engine(f"answers={{'cpu-custom': {answer}, 'cpu-trainer': quick}}", QUICK)
    result = project.run("experiments", *to(project), "-k", "no_regression")
    name = "experiments/a.yaml::cpu-custom::no_regression"
    return outcomes(result)[name], messages(result).get(name, "")


@pytest.mark.parametrize(
    ("answer", "outcome", "said"),
    [
        ("quick", "passed", ""),
        ("slow", "failed", "slower, baseline of 20"),
        ("learns_less", "failed", "faster, but its loss does not hold: not comparable in value"),
        ("on_other_threads", "failed", "threads: 2 and 64"),
        ("unsteady", "skipped", "undecided, baseline of 20"),
        ("elsewhere", "skipped", "no baseline on Other, Abacus 9, there is one on Abacus 9"),
        ("beside_another", "skipped", "no baseline on Abacus 9, Other, there is one on Abacus 9"),
        ("packed", "failed", "train.packing: false and true"),
        ("crashed", "failed", "crashed: ValueError"),
    ],
)
def test_the_item(accepting: Project, answer: str, outcome: str, said: str) -> None:
    """Fails for a regression or unlike runs, and skips with the reason where nothing can be told."""
    found, message = judged(accepting, answer)
    assert found == outcome
    assert said in message


def test_there_is_no_item_without_a_baseline(project: Project) -> None:
    """The option adds it; a file that is not there, or is none, is bad usage."""
    project.experiment()
    collected = project.run("experiments", "--collect-only", "-q").outlines
    assert not [line for line in collected if "no_regression" in line]
    missing, torn = "cannot be read: No such file or directory", ":1: torn line, expected a baseline"
    for text, said in ((None, missing), ("{", torn)):
        if text is not None:
            project.write("baseline.jsonl", text)
        result = project.run("experiments", *to(project))
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: --baseline: *baseline.jsonl*{said}"])


def test_the_command(accepting: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Says what it accepted and refused; renews; needs a reason; and a baseline can be compared itself."""
    path, reports = accepting.path / "baseline.jsonl", str(accepting.path / "reports")
    assert main(["baseline", "accept", reports, "--reason", "again", *to(accepting)]) == 0
    assert capsys.readouterr().out.endswith(f"{path}: 2 baselines accepted, 0 refused\n")
    assert [line["before"][0]["reason"] for line in map(json.loads, path.read_text().splitlines())] == ["first"] * 2
    assert main(["compare", str(path), reports]) == 0
    assert main(["baseline", "accept", reports, "--reason", " ", *to(accepting)]) == 2
    before = path.read_text()
    accepting.engine("answers={'cpu-custom': crashed, 'cpu-trainer': quick}", QUICK)
    accepting.run("experiments")
    capsys.readouterr()
    assert main(["baseline", "accept", reports, "--reason", "worse", *to(accepting)]) == 1
    printed = capsys.readouterr()
    assert printed.err == "refused: experiments/a.yaml::cpu-custom: crashed: ValueError: a broken thing\n"
    assert printed.out == f"{path}: 1 baseline accepted, 1 refused\n"
    assert path.read_text().splitlines()[0] == before.splitlines()[0]
    assert main(["baseline", "accept", str(accepting.path / "none"), "--reason", "x", *to(accepting)]) == 2


# What may not be lost


def both() -> Baselines:
    """Of two cases."""
    return accepted(trained(), trained("cpu-trainer")).baselines


def test_a_line_that_is_not_renewed_stays_as_it_is(tmp_path: Path) -> None:
    """Byte for byte, with what a later version has written into it: a renewed line alone is a difference to commit."""
    path = tmp_path / "baseline.jsonl"
    first, second = both().to_text().splitlines()
    later = second.replace('"reason"', '"later": {"a": 1}, "reason"', 1)
    path.write_text(f"{first}\n{later}\n")
    renewed = accepted(trained(times=2.0), old=baseline.read(path)).baselines.to_text().splitlines()
    assert renewed[0] != first
    assert renewed[1] == later


def test_a_second_line_of_a_case_is_named(tmp_path: Path) -> None:
    """As a merge of two branches leaves it: which one counts is for a person to say, and neither is lost."""
    path = tmp_path / "baseline.jsonl"
    path.write_text(2 * accepted(trained()).baselines.to_text())
    with pytest.raises(HarnessError, match=r":2: a second baseline of .*cpu-custom on Abacus 9: keep one of the lines"):
        baseline.read(path)


def test_whatever_a_reason_holds_a_line_stays_a_line(tmp_path: Path) -> None:
    """Unicode has more ends of lines than a file."""
    path, reason = tmp_path / "baseline.jsonl", "a\u2028b\u0085c\nd\re"
    baseline.write(path, accepted(trained(), reason=reason).baselines)
    kept = baseline.read(path).of(trained())
    assert kept is not None
    assert kept.reason == reason


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the old one, and nothing beside it; rights and links stay."""
    path, link = tmp_path / "baseline.jsonl", tmp_path / "link.jsonl"
    path.write_text("old\n")
    path.chmod(0o640)
    link.symlink_to(path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            baseline.write(path, both())
    assert path.read_text() == "old\n"
    baseline.write(link, both())
    assert (baseline.read(path), link.is_symlink(), path.stat().st_mode & 0o777) == (both(), True, 0o640)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["baseline.jsonl", "link.jsonl"]


def full(*_: object) -> None:
    """A disk."""
    raise OSError("no space")


def test_who_accepts_at_the_same_time_waits(tmp_path: Path) -> None:
    """Each reads what the one before has written."""
    path = tmp_path / "baseline.jsonl"

    def add(number: int) -> None:
        with baseline.alone(path):
            old = baseline.read(path) if path.exists() else Baselines()
            time.sleep(0.01)
            baseline.write(path, accept(old, [trained(f"cpu-{number}")], "x").baselines)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert len(baseline.read(path).lines) == 8


def test_a_baseline_whose_times_would_be_refused_today_can_be_renewed() -> None:
    """Rules become stricter: its figures are no numbers then."""
    kept = accepted(trained()).baselines
    (one,) = kept.lines.values()
    void = one.records[0].model_copy(update={"steps": one.records[0].steps.model_copy(update={"began": ()})})
    old = Baselines({one.key: one.model_copy(update={"records": (void,)})})
    (new,) = accepted(trained(), old=old).baselines.lines.values()
    assert math.isnan(new.before[0].tokens_per_second)
    assert baseline.Baseline.model_validate_json(new.model_dump_json()).before[0].reason == "as it should be"


def test_runs_that_are_not_alike_are_no_baseline() -> None:
    """Nothing could be compared with both of them."""
    found = accepted(trained(), trained(at=9, settings={"train.seed": 1}))
    assert found.refused == (f"{trained().name}: its runs are not alike: train.seed: 42 and 1",)


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which everything was skipped leaves no baseline, and says why."""
    run, path = tmp_path / "run.jsonl", tmp_path / "baseline.jsonl"
    run.write_text(record(trained(), outcome="skipped", reason="no CUDA device").to_json() + "\n")
    assert main(["baseline", "accept", str(run), "--reason", "x", "--baseline", str(path)]) == 2
    assert capsys.readouterr().err == f"left out: {trained().name}: skipped: no CUDA device\n"
    assert not path.exists()


def test_what_auto_has_chosen_otherwise_is_no_regression(project: Project) -> None:
    """A measurement decides it, and would decide otherwise again after renewing; any other difference still fails."""
    project.experiment(steps=STEPS, more="matrix: {train.packing: [auto]}")
    project.engine("answers={'cpu-auto': lambda case: packed(case, {'train.packing': False})}", QUICK)
    assert project.run("experiments").ret == 0
    assert main(["baseline", "accept", str(project.path / "reports"), "--reason", "first", *to(project)]) == 0
    for answer, outcome in (("packed", "skipped"), ("lambda case: packed(case, {'train.eps': 1.0})", "failed")):
        project.engine(f"answers={{'cpu-auto': {answer}}}", QUICK)
        result = project.run("experiments", *to(project), "-k", "no_regression")
        name = "experiments/a.yaml::cpu-auto::no_regression"
        assert outcomes(result)[name] == outcome
        assert "train.packing: false and true" in messages(result)[name]
