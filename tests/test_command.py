"""The `harness` command: check, plan, devices, schema, report; what it prints, and its exit status."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
import yaml
from project import Project
from records import HEALTHY, case

import harness.training
from harness import __version__
from harness.__main__ import main
from harness.store import Store

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "harness" / "experiment.schema.json"
LOOPS = ["custom", "trainer"]

Harness = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(project: Project, capsys: pytest.CaptureFixture[str]) -> Harness:
    """Runs a command in an empty project: status, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def spawn(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in which torch and its kind cannot be imported."""
    code = f"import sys, no_torch; from harness.__main__ import main; sys.exit(main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", code], cwd=project.path, capture_output=True, text=True, check=False)


# The command itself


@pytest.mark.parametrize("arguments", [[], ["chek"], ["check"], ["plan"]])
def test_bad_usage_has_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A missing or unknown command, or one without the paths it needs, shows the usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: harness" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` names distribution and version."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pytest-finetune {__version__}\n"


def test_the_module_runs(project: Project) -> None:
    """`python -m harness` is the same command."""
    project.experiment()

    done = subprocess.run(
        [sys.executable, "-m", "harness", "check", "experiments"], cwd=project.path, capture_output=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, b"1 experiment: no mistakes\n")


@pytest.mark.parametrize("arguments", [["schema"], ["check", "experiments"]], ids=["long", "short"])
def test_a_reader_that_goes_away_is_no_error(
    project: Project, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """`harness schema | head -0` ends without a traceback, whether or not its output fits into a buffer."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    project.experiment()
    reader, writer = os.pipe()
    os.close(reader)

    command = [sys.executable, "-m", "harness", *arguments]
    done = subprocess.run(command, cwd=project.path, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)

    assert (done.returncode, done.stderr) == (2, b"")


# check


def test_check_passes_what_is_right(project: Project, run: Harness) -> None:
    """Files and folders are checked together, and counted."""
    for name in ("experiments/a.yaml", "experiments/deep/b.yml", "other.yaml"):
        project.experiment(name)

    assert run("check", "experiments", "other.yaml") == (0, "3 experiments: no mistakes\n", "")


def test_check_prints_every_mistake(project: Project, run: Harness) -> None:
    """Every mistake of every file is a line with file, line, key, found and expected; the status is 1."""
    project.experiment("experiments/good.yaml")
    project.write("experiments/one.yaml", "checkpoint: x\ndata: {sequences: [a], labels: [1, 2]}\ntrian: {}\n")
    project.write("experiments/two.yaml", "- a list\n")

    status, out, err = run("check", "experiments")

    assert (status, err) == (1, "")
    assert out.splitlines() == [
        "experiments/one.yaml:2: data.labels: found 2 labels, expected 1, one for each sequence",
        next(line for line in out.splitlines() if line.startswith("experiments/one.yaml:3: trian: found an unknown")),
        next(line for line in out.splitlines() if line.startswith("experiments/two.yaml:1: found a list, expected")),
    ]


def test_check_knows_laws_of_ones_own(project: Project, run: Harness) -> None:
    """A file may name the laws of the conftest.py around it, and gets a hint for one that is spelled nearly so."""
    project.engine(more="import harness\n@harness.invariant\ndef loss_halves(record): pass\n")
    project.experiment("experiments/a.yaml", more="invariants: {loss_halves: false}")
    project.experiment("elsewhere/b.yaml", more="expect_broken: {loss_halfs: why}")

    assert run("check", "experiments") == (0, "1 experiment: no mistakes\n", "")
    status, out, err = run("check", "experiments", "elsewhere")
    assert (status, err) == (1, "")
    assert out.startswith("elsewhere/b.yaml:5: expect_broken.loss_halfs: found an unknown law, expected one that ")
    assert out.endswith("; did you mean 'loss_halves'?\n")


def test_check_of_a_law_behind_a_broken_conftest_is_none(project: Project, run: Harness) -> None:
    """If the conftest.py that may have the law cannot be loaded, nothing is said about the file; pytest says why."""
    project.write("conftest.py", "import nowhere_to_be_found\n")
    project.experiment("experiments/a.yaml", more="invariants: {loss_halves: false}")

    status, out, err = run("check", "experiments")

    assert (status, out) == (2, "")
    assert "nowhere_to_be_found" in err
    assert err.endswith("pytest cannot load the conftest.py around experiments/a.yaml\n")


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_path_that_is_not_there_is_named(run: Harness, command: str) -> None:
    """It is an error with the path, and nothing else is done."""
    assert run(command, "nowhere") == (2, "", "nowhere: no such file or folder\n")


def test_a_folder_without_experiments_is_an_error(project: Project, run: Harness) -> None:
    """A check of nothing does not pass: a wrong path in CI must not be green."""
    project.write("experiments/_base.yaml", "train: {}\n")

    status, out, err = run("check", "experiments")

    assert (status, out) == (2, "")
    assert err == "experiments: found no experiment, expected *.yaml or *.yml files\n"


# plan


def test_plan_is_what_pytest_collects(project: Project) -> None:
    """Cases are listed in the order of pytest's items, under its configuration, without importing torch."""
    settings = "devices = cpu cuda:1\nexperiment_files = experiments/*.yaml runs/*.yaml\n"
    project.configure(settings)
    project.experiment("experiments/a.yaml", loop=LOOPS)
    project.experiment("experiments/_base.yaml")
    project.experiment("runs/b.yaml", device=["cuda"])
    project.experiment("elsewhere/experiments/c.yaml")

    planned = spawn(project, "plan", ".")
    collected = project.run("--collect-only", "-q", ".")

    items = [line.rsplit("::", 1)[0] for line in collected.outlines if line.count("::") == 2]
    assert planned.stdout.splitlines() == list(dict.fromkeys(items))
    assert planned.stdout.splitlines() == [
        "experiments/a.yaml::cpu-custom",
        "experiments/a.yaml::cpu-trainer",
        "experiments/a.yaml::cuda:1-custom",
        "experiments/a.yaml::cuda:1-trainer",
        "runs/b.yaml::cuda",
    ]
    assert (planned.returncode, planned.stderr) == (0, "")
    assert project.asked() == []


@pytest.mark.parametrize("options", ["-v -ra --tb=short --color=yes", "-n 2", "--ff -p no:benchmark", "-q -q -q"])
def test_plan_takes_any_configuration(project: Project, options: str) -> None:
    """Options in pytest's configuration that are about running and printing do not disturb it."""
    project.write("pytest.ini", f"[pytest]\naddopts = -p no:hypothesispytest {options}\n")
    project.experiment()

    done = spawn(project, "plan", "experiments")

    assert (done.returncode, done.stdout) == (0, "experiments/a.yaml::cpu\n")


def test_plan_takes_devices(project: Project) -> None:
    """`--device` replaces those of files and configuration, as in pytest."""
    project.experiment(device=["cuda"])

    done = spawn(project, "plan", "experiments", "--device=cpu", "--device", "mps")

    assert done.stdout.splitlines() == ["experiments/a.yaml::cpu", "experiments/a.yaml::mps"]


def test_plan_names_bad_files(project: Project) -> None:
    """Mistakes go to stderr, the cases of other files to stdout; the status is 1."""
    project.experiment("experiments/good.yaml")
    project.write("experiments/bad.yaml", "checkpoint: x\n")

    done = spawn(project, "plan", "experiments")

    assert (done.returncode, done.stdout) == (1, "experiments/good.yaml::cpu\n")
    assert "bad.yaml:1: data: found nothing, expected this key" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "conftest", "said"),
    [
        (["conftest.py"], "", "found no experiment, expected YAML files in a folder called experiments"),
        (["experiments", "--device=gpu"], "", "--device: found 'gpu', expected cpu"),
        (["experiments"], "import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        (["experiments"], "def pytest_collection_finish(): 1 / 0", "ZeroDivisionError"),
    ],
    ids=["nothing", "device", "conftest", "plugin"],
)
def test_plan_fails_with_a_reason(project: Project, arguments: list[str], conftest: str, said: str) -> None:
    """Where pytest cannot collect, its own reason is shown."""
    project.experiment()
    project.write("conftest.py", f"{conftest}\n")

    done = spawn(project, "plan", *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


# devices


def test_devices_lists_name_and_title(run: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a device, by the name that experiments use."""
    module = ModuleType("harness.training.devices")
    vars(module)["here"] = lambda: (("cpu", ""), ("cuda:0", "NVIDIA H200"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(harness.training, "devices", module, raising=False)

    assert run("devices") == (0, "cpu\ncuda:0  NVIDIA H200\n", "")


def test_this_machine_has_a_cpu(run: Harness) -> None:
    """The real list starts with it."""
    pytest.importorskip("torch")

    status, out, _ = run("devices")

    assert status == 0
    assert out.splitlines()[0] == "cpu"


# schema


def test_the_committed_schema_is_current(run: Harness) -> None:
    """`harness/experiment.schema.json` is what `harness schema` prints; `harness schema --output` renews it."""
    status, out, _ = run("schema")

    assert status == 0
    assert out == SCHEMA.read_text(encoding="utf-8")


def test_schema_goes_to_a_file(project: Project, run: Harness) -> None:
    """`--output` writes what is printed otherwise, and prints nothing."""
    assert run("schema", "--output", "out.json") == (0, "", "")

    assert (project.path / "out.json").read_text() == run("schema")[1]


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.name)
def test_the_committed_schema_fits_the_shipped_experiments(path: Path) -> None:
    """Shipped files are valid under it; with an unknown key, or an unknown law, they are not."""
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    data = yaml.safe_load(path.read_text(encoding="utf-8"))

    validator.validate(data)

    assert not validator.is_valid({**data, "trian": {}})
    assert not validator.is_valid({**data, "invariants": {"loss_decrease": False}})
    assert validator.is_valid({**data, "invariants": {"loss_decreases": {"by": 0.2}}})


# report


@pytest.fixture
def kept(project: Project) -> Store:
    """A store with two cases, where `harness report` looks for it."""
    kept = Store(project.path / "reports", "20260131T120000Z-3f9a")
    for one in (case("cpu-custom"), case("cpu-trainer")):
        kept.append(one)
    return kept


def test_report_needs_no_torch(project: Project, kept: Store) -> None:
    """Records alone are judged again and printed where torch cannot be imported."""
    done = spawn(project, "report")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("2 cases: 2 finished; laws: ")
    assert "experiments/a.yaml::cpu-trainer" in done.stdout


def test_report_remakes_what_the_run_printed(project: Project, run: Harness) -> None:
    """Terminal text and Markdown from the records are those of the run itself."""
    project.experiment(loop=LOOPS)
    printed = project.run("experiments").stdout.str()
    written = (project.path / "reports" / "latest.md").read_text()

    assert run("report")[1] in printed
    assert run("report", "reports", "--output", "again.md") == (0, "", "")
    assert (project.path / "again.md").read_text() == written


def test_report_takes_the_newest_run_of_a_folder(project: Project, kept: Store, run: Harness) -> None:
    """Of a folder the newest run is shown; of files those that are named."""
    newer = Store(project.path / "reports", "20260201T120000Z-0000")
    newer.append(case("cpu-new"))

    assert "cpu-new" in run("report")[1]
    assert "cpu-custom" not in run("report", "reports")[1]
    assert "3 cases: 3 finished" in run("report", str(newer.path), str(kept.path))[1]


def test_report_of_laws(project: Project, kept: Store, run: Harness) -> None:
    """`--laws` prints cases by laws, as Markdown, there or to a file."""
    status, out, _ = run("report", "--laws")
    assert status == 0
    assert out.startswith("# Laws by case\n")
    assert run("report", "--laws", "--output", "laws.md") == (0, "", "")
    assert (project.path / "laws.md").read_text() == out


def test_report_uses_whole_lines(kept: Store, run: Harness) -> None:
    """A torn line and one of a newer format are named, in text and Markdown, and the others are reported."""
    with kept.path.open("a") as file:
        file.write('{"format": 999}\n' + HEALTHY.to_json()[:50])

    status, out, _ = run("report")

    assert status == 0
    assert "2 cases: 2 finished" in out
    assert f"{kept.path.name}:3: record of format 999, this harness reads up to 1; upgrade pytest-finetune" in out
    assert f"{kept.path.name}:4: torn line, expected a record" in out
    run("report", "--output", "out.md")
    assert "## Records that could not be read\n\n- reports/records/" in Path("out.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "reports: cannot be read: No such file or directory\nreports: no records to report"),
        (["nowhere"], "nowhere: cannot be read: No such file or directory\nnowhere: no records to report"),
        (["empty"], "empty: found no records, expected *.jsonl or records/*.jsonl\nempty: no records to report\n"),
        (
            ["empty", "torn.jsonl"],
            "empty: found no records, expected *.jsonl or records/*.jsonl\ntorn.jsonl:1: torn line, expected a rec",
        ),
    ],
    ids=["default", "missing", "empty", "torn"],
)
def test_report_of_nothing_fails(project: Project, run: Harness, arguments: list[str], said: str) -> None:
    """Without a single record the status is 2, and every reason is named."""
    (project.path / "empty").mkdir()
    project.write("torn.jsonl", '{"format": 1, "exp')

    status, out, err = run("report", *arguments)

    assert (status, out) == (2, "")
    assert err.startswith(said)


@pytest.mark.parametrize("command", ["schema", "report"])
def test_an_output_that_cannot_be_written_is_named(
    run: Harness, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is bad usage, with the path, before anything is done."""
    with pytest.raises(SystemExit) as caught:
        run(command, "--output", "no/such/folder/out")

    assert caught.value.code == 2
    assert "found no/such/folder/out, expected a file that can be written" in capsys.readouterr().err
