"""Under GitHub Actions: annotations, the summary of a job; and properties in JUnit XML."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fake_engine import case, finished
from fake_engine import flat as flat_answer
from project import Project
from records import HEALTHY, record

from harness.errors import InvalidExperiment
from harness.experiment import matrix_keys
from harness.experiment.line import Lines
from harness.laws import LAWS
from harness.laws.place import KEYS, keys
from harness.report import summarise
from harness.report.github import LARGEST, MOST, Annotation, commands, fitted, job_summary, mistakes

# Workflow commands


def unescaped(command: str) -> tuple[dict[str, str], str]:
    """Properties and message as the runner of GitHub reads them (ActionCommand.cs)."""
    found = re.fullmatch(r"::error ([^\n\r]*?)::([^\n\r]*)", command)
    assert found, command

    def plain(text: str) -> str:
        for spelled, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
            text = text.replace(spelled, char)
        return text

    said = dict(part.split("=", 1) for part in found[1].split(","))
    return {name: plain(value) for name, value in said.items()}, plain(found[2])


@pytest.mark.parametrize(
    "text", ["plain", "100 %", "two\nlines", "a: b, c", "::error::nested", "%0A spelled", "é 🙂", ",file=/etc/passwd"]
)
def test_a_command_says_what_it_was_given(text: str) -> None:
    """Whatever a message or title holds, it stays in its place, and the command is one line."""
    (command,) = commands([Annotation(text, "experiments/a,b.yaml", 7, text)])
    assert unescaped(command) == ({"file": "experiments/a,b.yaml", "line": "7", "title": text}, text)


def test_control_characters_are_spelled_out() -> None:
    """Text of an experiment cannot command a terminal that shows the log."""
    (command,) = commands([Annotation("a", "a.yaml", 1, "red \x1b[31m\r")])
    assert unescaped(command)[1] == r"red \x1b[31m\r"


def test_no_more_annotations_than_github_keeps() -> None:
    """Ten are shown as they are; of more the tenth says how many are left, and which."""
    some = [Annotation(f"case::law{number}", "a.yaml", number, "no") for number in range(1, MOST + 1)]
    assert [unescaped(command)[0]["title"] for command in commands(some)] == [one.name for one in some]
    printed = commands([*some, Annotation("case::last", "a.yaml", 1, "no")])
    assert len(printed) == MOST
    properties, message = unescaped(printed[-1])
    assert properties == {"title": f"2 more failed, {MOST + 1} in all"}
    assert message == f"see the summary of the job: case::law{MOST}, case::last"


def test_causes_come_before_what_follows_from_them() -> None:
    """A broken law that another explains is annotated after those that nothing explains."""
    summary = summarise([flat_answer(case()).model_copy(update={"outcome": "finished", "checkpoint": None})])
    broken = [verdict for row in summary.rows for verdict in row.verdicts if verdict.outcome == "broken"]
    follows = {one.law for finding in summary.findings for one in finding.consequences}
    found = [Annotation(f"{one.about}::{one.law}", "a.yaml", 1, one.message) for one in broken]
    titles = [unescaped(one)[0]["title"].rpartition("::")[2] for one in commands(found[::-1], summary)]
    assert [title in follows for title in titles] == sorted(title in follows for title in titles)


def test_long_messages_are_cut() -> None:
    """A message is shown in a margin: its beginning is enough."""
    (command,) = commands([Annotation("a", "a.yaml", 1, "x" * 100_000)])
    assert len(command) < 2100


def test_each_mistake_has_its_own_line() -> None:
    """Of a bad file every mistake is found again in what its item says."""
    text = "/p/a.yaml:3: trian: found an unknown key, expected one of train\n/p/b.yaml:1: found x: y, expected z\nother"
    assert list(mistakes(text)) == [
        ("/p/a.yaml", 3, "trian: found an unknown key, expected one of train"),
        ("/p/b.yaml", 1, "found x: y, expected z"),
    ]


# Lines

FILE = """\
description: Lines.
checkpoint: {architecture: bert, size: tiny}
data:
  sequences: [a, b]
  labels: [1, 0]
train:
  steps: 8
invariants:
  head_is_new: false
matrix:
  train.loop:
    - custom
    - trainer
  precision: [fp32]
  include:
    - train.loop: accelerate
      precision: bf16
"""


@pytest.mark.parametrize(
    ("wanted", "values", "line"),
    [
        (["checkpoint"], {}, 2),
        (["data.labels", "data"], {}, 5),
        (["train.schedule", "train.steps"], {}, 7),
        (["train.loop"], {}, 11),
        (["train.loop"], {"train.loop": "trainer", "precision": "fp32"}, 13),
        (["train.loop"], {"train.loop": "accelerate", "precision": "bf16"}, 16),
        (["invariants.head_is_new"], {}, 9),
        (["peft"], {"precision": "bf16", "train.loop": "accelerate"}, 17),
        (["peft"], {"train.loop": "custom"}, 12),
        (["peft"], {}, 1),
        ([], {}, 1),
    ],
)
def test_the_line_of_a_key(tmp_path: Path, wanted: list[str], values: dict[str, str], line: int) -> None:
    """The first key that is written; in the matrix the case's own value; else what makes the case; else the top."""
    path = tmp_path / "a.yaml"
    path.write_text(FILE)
    assert Lines.read(path).of(wanted, values) == line


def test_what_a_base_says_has_no_line_in_the_file(tmp_path: Path) -> None:
    """An annotation is on the file that was run."""
    (tmp_path / "_base.yaml").write_text("\n\n\ncheckpoint: x\n")
    path = tmp_path / "a.yaml"
    path.write_text("extends: _base.yaml\ntrain:\n  steps: 3\n")
    assert Lines.read(path).of(["checkpoint"], {}) == 1
    assert Lines.read(path).of(["checkpoint", "train.steps"], {}) == 3


def test_a_file_that_cannot_be_read_has_no_lines(tmp_path: Path) -> None:
    """It is reported as a mistake, where it is read as an experiment."""
    with pytest.raises(InvalidExperiment):
        Lines.read(tmp_path / "none.yaml")


def test_every_law_is_about_some_key() -> None:
    """The table has the module of each law and no other; its keys are keys of experiments."""
    assert {law.function.__module__.rpartition(".")[2] for law in LAWS} == set(KEYS)
    assert [law.name for law in LAWS if len(keys(law)) < 3] == []
    known = matrix_keys({law.name: law.options for law in LAWS})
    sections = {key.partition(".")[0] for key in known}
    assert {key for law in LAWS for key in keys(law)[2:]} <= {*known, *sections, "data", "task"}


# The summary of a job


def test_the_summary_has_broken_cases_first() -> None:
    """Those that broke a law or crashed, then those that held, then those that did not run."""
    rows = [
        record(HEALTHY, case="skipped", outcome="skipped", reason="no device"),
        record(HEALTHY, case="held"),
        record(HEALTHY, case="crashed", outcome="crashed", reason="no"),
        record(HEALTHY, case="broken", steps={"loss": (0.5,) * 8}),
    ]
    page = job_summary(summarise(rows), [Annotation("experiments/a.yaml::held::mine", "a.yaml", 1, "not | halved")])
    order = re.findall(r"^\| experiments/a.yaml::(\w+)", page, re.MULTILINE)
    assert order == ["crashed", "broken", "held", "skipped"]
    assert "\n- **`experiments/a.yaml::broken::loss_decreases`**: " in page.partition("### Broken laws")[2]
    assert "### Also failed\n\n- `experiments/a.yaml::held::mine`: not \\| halved\n" in page


def test_the_summary_stays_below_what_github_shows() -> None:
    """A page of a hundred thousand cases is cut at the end of a line and says so."""
    line = "| " + "é" * 60 + " |\n"
    page = fitted(line * 20_000, LARGEST)
    assert LARGEST - 200 < len(page.encode()) <= LARGEST
    body, _, said = page.partition("\n\n**Cut here")
    assert set(body.splitlines(keepends=True)[:-1]) == {line}
    assert "1 MiB" in said
    assert fitted(line, len(line.encode())) == line
    assert fitted(line * 2, 10) == ""


# A session

BROKEN = """
def flat(case):
    return steps(finished(case), loss=(0.5,) * case.settings.train.steps)
"""


def under_github(project: Project, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[list[str], str]:
    """The workflow commands that a session prints in a step, and the summary that it leaves."""
    page = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path.parent))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    result = project.run("experiments", "-p", "no:benchmark", *arguments)
    return [line for line in result.outlines if line.startswith("::")], page.read_text() if page.exists() else ""


def test_failures_are_annotated_where_the_file_says_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken law at the key that matters, a mistake at its own line, each relative to the checkout."""
    project.engine("answers={'cpu-trainer': flat}", BROKEN)
    project.experiment(loop=["custom", "trainer"])
    project.write("experiments/bad.yaml", "checkpoint: x\ndata: {sequences: [a], labels: [1, 2]}\ntrian: {}\n")
    printed, page = under_github(project, monkeypatch, "-k", "loss_decreases or valid or trains")
    name = project.path.name
    found = [unescaped(command) for command in printed]
    assert [(said["file"], said["line"]) for said, _ in found] == [
        (f"{name}/experiments/bad.yaml", "2"),
        (f"{name}/experiments/bad.yaml", "3"),
        (f"{name}/experiments/a.yaml", "6"),  # the value of the matrix that makes it another case than cpu-custom
    ]
    assert found[0][1] == "data.labels: found 2 labels, expected 1, one for each sequence"
    assert found[2][0]["title"] == "experiments/a.yaml::cpu-trainer::loss_decreases"
    assert re.findall(r"^\| experiments/a.yaml::([\w-]+)", page, re.MULTILINE) == ["cpu-trainer", "cpu-custom"]
    assert "### Also failed\n\n- `experiments/bad.yaml::valid`: data.labels" in page


def test_nothing_is_said_where_nothing_failed_or_no_github_is(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No annotation for what held; elsewhere neither annotations nor a summary; other tests leave no summary."""
    project.experiment()
    printed, page = under_github(project, monkeypatch, "-k", "trains")
    assert printed == []
    assert "### " not in page
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    (project.path / "summary.md").unlink()
    project.run("experiments", "-k", "trains", "-p", "no:benchmark")
    assert not (project.path / "summary.md").exists()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    project.write("test_other.py", "def test_other(): assert False\n")
    assert not [line for line in project.run("test_other.py").outlines if line.startswith("::")]
    assert not (project.path / "summary.md").exists()


def test_a_summary_that_cannot_be_written_is_no_crash(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step without its folder, or a full disk, takes the summary of the job and nothing else."""
    project.experiment()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "none" / "summary.md"))
    result = project.run("experiments", "-k", "trains", "-p", "no:benchmark")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*1 case: 1 finished*", "*the summary of the job cannot be written: No such file or directory"]
    )


# JUnit


def properties(path: Path) -> dict[str, dict[str, str]]:
    """Properties by item, as JUnit XML has them."""
    return {
        str(item.get("name")): {str(each.get("name")): str(each.get("value")) for each in item.iter("property")}
        for item in ElementTree.parse(path).iter("testcase")
        if "a" in str(item.get("classname"))
    }


@pytest.mark.parametrize("distributed", [False, True], ids=["here", "xdist"])
def test_junit_has_the_figures_of_a_case(project: Project, distributed: bool) -> None:
    """Each item has its case and device, one item of a case all figures; also where workers ran them."""
    project.experiment()
    run, options = (project.spawn, ["-n", "1"]) if distributed else (project.run, [])
    run("experiments", "--junitxml", "junit.xml", "-p", "no:benchmark", "-k", "trains or head_is_new", *options)
    found = properties(project.path / "junit.xml")
    made = finished(case())
    assert found["head_is_new"] == {"case": "experiments/a.yaml::cpu", "device": "Abacus 9"}
    assert found["trains"] == {
        **found["head_is_new"],
        "outcome": "finished",
        "samples_per_second": "4",
        "samples_per_second.low": "0.5",
        "samples_per_second.high": "16",
        "tokens_per_second": "18",
        "tokens_per_second.low": "2.25",
        "tokens_per_second.high": "72",
        "timed_steps": "5",
        "peak_bytes": str(3 * 2**20),
        "loss_first": repr(made.steps.loss[0]),
        "loss_last": repr(made.steps.loss[-1]),
        "weights_digest": "5" * 64,
        "data_digest": made.settings["data.digest"],
        "commit": "0123456789abcdef",
        "version.python": "3.11.0",
        "version.torch": "2.0.0",
    }


def test_junit_says_why_there_is_no_figure(project: Project) -> None:
    """A crash is an outcome, and its figures are not measured."""
    project.engine("answers={'cpu': crashed}")
    project.experiment()
    project.run("experiments", "--junitxml", "junit.xml", "-p", "no:benchmark", "-k", "trains")
    found = properties(project.path / "junit.xml")["trains"]
    assert (found["outcome"], found["not_measured"]) == ("crashed", "ValueError: a broken thing")
