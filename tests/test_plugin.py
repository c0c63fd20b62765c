"""The plugin on a fake engine: items, selection, one training a case, outcomes, reports."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from project import ALONE, ITEMS, Project, messages, outcomes

from harness import plugin
from harness.laws import LAWS
from harness.plugin import node

ROOT = Path(__file__).parent.parent
LOOPS = ["custom", "trainer"]


def ids(experiment: str, *cases: str, items: tuple[str, ...] = ITEMS) -> list[str]:
    """The ids of these items of these cases."""
    return [f"{experiment}::{case}::{item}" for case in cases for item in items]


# Without torch


def test_a_run_needs_neither_torch_nor_transformers(project: Project) -> None:
    """Items, verdicts, records and reports of another engine's cases come about where torch cannot be imported."""
    project.experiment(loop=LOOPS)

    result = project.spawn("experiments", "-v")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["experiments/a.yaml::cpu-custom::loss_decreases PASSED*", "*2 cases: 2 finished*"])
    assert [line["torch"] for line in project.log()] == [False, False]
    assert [record["case"] for record in project.records()] == ["cpu-custom", "cpu-trainer"]
    assert "experiments/a.yaml::cpu-trainer" in (project.path / "reports" / "latest.md").read_text()


def test_collecting_imports_neither_torch_nor_transformers() -> None:
    """`pytest --collect-only experiments/` on the shipped experiments leaves both out of `sys.modules`."""
    code = (
        "import sys, pytest\n"
        "status = pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', 'experiments'])\n"
        "print('loaded', sorted({'torch', 'transformers', 'tokenizers', 'accelerate'} & set(sys.modules)), int(status))"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "experiments/course.yaml::cpu-custom-fp32::loss_decreases" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded [] 0"


@pytest.mark.parametrize("arguments", [[], ["-n1"]], ids=["here", "xdist"])
def test_other_projects_do_not_pay(project: Project, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without experiments imports no part of the harness that imports pydantic or YAML, also in CI."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    project.write("test_ordinary.py", "def test_nothing(): pass\n")
    project.write("data.yaml", "not: ours\n")
    project.write(
        "conftest.py",
        "import os, sys\n"
        "def pytest_unconfigure(config):\n"
        "    found = {'pydantic', 'yaml', 'torch', 'tabulate', 'harness.experiment'} & set(sys.modules)\n"
        "    config.rootpath.joinpath(f'loaded-{os.getpid()}').write_text(' '.join(sorted(found)))\n",
    )

    result = project.spawn(*arguments)

    result.assert_outcomes(passed=1)
    loaded = [file.read_text() for file in project.path.glob("loaded-*")]
    assert loaded == [""] * (1 + len(arguments))
    assert not (project.path / "reports").exists()


# Items and their selection


def test_the_options_are_few(pytestconfig: pytest.Config) -> None:
    """The plugin has these command-line options and these settings, and no other."""
    parser = pytest.Parser(_ispytest=True)

    plugin.pytest_addoption(parser)

    (group,) = [group for group in parser._groups if group.name == "finetune"]
    assert [name for option in group.options for name in option.names()] == [
        "--device",
        "--reports",
        "--explore",
        "--profile",
        "--baseline",
    ]
    assert set(parser._inidict) == {"devices", "experiment_files"}
    assert all(pytestconfig.getini(name) for name in parser._inidict)


def test_items_are_named_file_case_law(project: Project) -> None:
    """A case has an item for each law and one for its throughput; a file has one for each agreement it can have."""
    project.experiment(loop=LOOPS, precision=["fp32"])

    found = outcomes(project.run("experiments"))

    cases = ids("experiments/a.yaml", "cpu-custom-fp32", "cpu-trainer-fp32")
    assert list(found)[: len(cases)] == cases
    assert set(found) - set(cases) == {f"experiments/a.yaml::{law.name}" for law in LAWS if law.axis == "train.loop"}
    assert "failed" not in found.values()
    assert found["experiments/a.yaml::cpu-custom-fp32::loss_decreases"] == "passed"
    assert found["experiments/a.yaml::cpu-custom-fp32::step_throughput"] == "passed"
    assert found["experiments/a.yaml::loops_agree"] == "passed"


def test_an_item_is_selected_by_its_id(project: Project) -> None:
    """One law of one case runs that one training, and that one item."""
    project.experiment(loop=LOOPS)

    found = outcomes(project.run("experiments/a.yaml::cpu-trainer::loss_decreases"))

    assert found == {"experiments/a.yaml::cpu-trainer::loss_decreases": "passed"}
    assert project.asked() == ["experiments/a.yaml::cpu-trainer"]


def test_a_case_is_selected_by_its_id(project: Project) -> None:
    """A case selects all of its items."""
    project.experiment(loop=LOOPS)

    assert list(outcomes(project.run("experiments/a.yaml::cpu-custom"))) == ids("experiments/a.yaml", "cpu-custom")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-k", "loss_finite and trainer"], ["experiments/a.yaml::cpu-trainer::loss_finite"]),
        (["-m", "benchmark"], ids("experiments/a.yaml", "cpu-custom", "cpu-trainer", items=("step_throughput",))),
        (["-m", "invariant", "-k", "cpu-custom"], ids("experiments/a.yaml", "cpu-custom", items=ALONE)),
        (["-k", "loops_agree"], ["experiments/a.yaml::loops_agree"]),
    ],
    ids=["-k", "-m benchmark", "-m invariant", "agreement"],
)
def test_items_are_selected_as_in_pytest(project: Project, arguments: list[str], expected: list[str]) -> None:
    """`-k` matches names, `-m invariant` all laws, `-m benchmark` the throughput."""
    project.experiment(loop=LOOPS)

    assert list(outcomes(project.run("experiments", *arguments))) == expected


def test_a_law_that_is_off_is_no_item(project: Project) -> None:
    """`invariants: {LAW: false}` takes its items away."""
    project.experiment(loop=LOOPS, more="invariants: {loss_decreases: false, loops_agree: false}")

    found = outcomes(project.run("experiments"))

    assert not [name for name in found if "loss_decreases" in name or "loops_agree" in name]
    assert "experiments/a.yaml::cpu-custom::loss_finite" in found


# Devices


def test_devices_of_the_command_line_override(project: Project) -> None:
    """`--device`, given twice, replaces the devices of files that name some and of those that name none."""
    project.experiment("experiments/a.yaml", device=["cpu", "mps"])
    project.experiment("experiments/b.yaml")

    project.run("experiments", "--device", "cuda:1", "--device=cuda:0", "-k", "trains")

    assert project.asked() == [f"experiments/{name}.yaml::{at}" for name in "ab" for at in ("cuda:1", "cuda:0")]


def test_devices_of_the_configuration_are_for_files_without_one(project: Project) -> None:
    """The ini option `devices` is where files run that name no device, and only those."""
    project.configure("devices = cpu cuda")
    project.experiment("experiments/a.yaml", device=["mps"])
    project.experiment("experiments/b.yaml")

    project.run("experiments", "-k", "trains")

    assert project.asked() == ["experiments/a.yaml::mps", "experiments/b.yaml::cpu", "experiments/b.yaml::cuda"]


def test_an_unknown_device_is_a_usage_error(project: Project) -> None:
    """`--device gpu` says what devices are called, and nothing runs."""
    project.experiment()

    result = project.run("experiments", "--device", "gpu")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--device: found 'gpu', expected cpu, cuda, cuda:N, cuda:all or mps*"])


def test_exploring_has_an_item_of_its_own(project: Project) -> None:
    """`--explore N` adds an item to each case and asks the engine for that many data sets; nothing else does."""
    project.experiment(more="invariants: {holds_for_any_text: {}}", loop=LOOPS)

    project.run("experiments", "-m", "invariant", "-k", "not agree")
    found = outcomes(project.run("experiments", "--explore", "30"))

    assert [line["explores"] for line in project.log()] == [None, None, [30, 0], [30, 0]]
    assert [item for item in found if item.endswith("::holds_for_any_text")] == [
        "experiments/a.yaml::cpu-custom::holds_for_any_text",
        "experiments/a.yaml::cpu-trainer::holds_for_any_text",
    ]
    assert {result for item, result in found.items() if item.endswith("::holds_for_any_text")} == {"passed"}
    assert set(found.values()) == {"passed", "skipped"}  # laws of labels of tokens have nothing to say


def test_what_exploring_found_is_tried_first_the_next_time(project: Project) -> None:
    """A find is kept once beside the records, and every case of the experiment gets it in every later run."""
    project.engine("answers={'cpu-custom': finding}")
    project.experiment(loop=LOOPS)
    project.experiment("experiments/b.yaml", loop=["trainer"])

    first = project.run("experiments", "--explore", "5", "-k", "holds_for_any_text")
    second = project.run("experiments", "--explore", "5", "-k", "holds_for_any_text")

    item = "experiments/a.yaml::cpu-custom::holds_for_any_text"
    assert messages(first)[item].startswith("'\\u202e[PAD]' in batches of 1: it crashes: ValueError: no")
    assert messages(second)[item].startswith(
        "'\\u202e[PAD]' in batches of 1 (found before): it crashes: ValueError: no"
    )
    assert [line["explores"] for line in project.log()] == [[5, 0], [5, 1], [5, 0], [5, 1], [5, 1], [5, 0]]
    assert len((project.path / "reports" / "explored.jsonl").read_text().splitlines()) == 1


def test_a_law_that_stumbles_over_a_fresh_record_fails(project: Project) -> None:
    """It is wrong, or its probe is; the item says so. The report, perhaps of a record that was changed, goes on."""
    project.experiment()
    project.engine("answers={'cpu': odd}", "def odd(case): return finished(case, probes={'saved': {'weights': 3}})")

    result = project.run("experiments", "-k", "save_reload_equal")

    assert messages(result)["experiments/a.yaml::cpu::save_reload_equal"].endswith("KeyError")
    assert "save_reload_equal is invalid: it cannot read the evidence: KeyError: 'failed'" in result.stdout.str()


def test_exploring_nothing_is_a_usage_error(project: Project) -> None:
    """`--explore 0` says what is expected."""
    result = project.run("experiments", "--explore", "0")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--explore: found 0, expected a number of data sets, 1 or more*"])


@pytest.mark.parametrize(("devices", "found"), [("gpu", "'gpu'"), ("", "nothing")])
def test_a_wrong_device_in_the_configuration_is_an_error(project: Project, devices: str, found: str) -> None:
    """An unknown device, or none, in the ini option is an error at collection, in one line."""
    project.configure(f"devices = {devices}")
    project.experiment()

    result = project.run("experiments")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"devices, in pytest's configuration: found {found}, expected cpu, *"])


@pytest.mark.parametrize(("count", "expected"), [(0, ["cuda:0"]), (2, ["cuda:0", "cuda:1"])])
def test_all_cuda_devices_are_a_case_each(
    project: Project, monkeypatch: pytest.MonkeyPatch, count: int, expected: list[str]
) -> None:
    """`cuda:all` is a case for each; where there is none, one case is left to be skipped with its reason."""
    monkeypatch.setattr(node, "cuda_count", lambda: count)
    project.experiment(device=["cuda:all"])

    project.run("experiments", "-k", "trains")

    assert project.asked() == [f"experiments/a.yaml::{device}" for device in expected]


# Which files


def test_which_files_are_experiments(project: Project) -> None:
    """YAML below a folder `experiments` is one, also deeper; bases, hidden files and other YAML are none."""
    taken = ("experiments/a.yaml", "experiments/deep/b.yml", "sub/experiments/c.yaml")
    left = ("experiments/_base.yaml", "experiments/_bases/d.yaml", "experiments/.hidden/e.yaml", "compose.yaml")
    for name in (*taken, *left):
        project.experiment(name)
    project.write("experiments/notes.txt", "not YAML\n")

    project.run("-k", "trains")

    assert project.asked() == [f"{name}::cpu" for name in taken]


@pytest.mark.parametrize("name", ["experiments/_base.yaml", "experiments/_bases/x.yaml", "elsewhere/any.yml"])
def test_a_file_that_is_named_is_an_experiment(project: Project, name: str) -> None:
    """A path on the command line is taken whatever it is called."""
    project.experiment(name)

    project.run(name, "-k", "trains")

    assert project.asked() == [f"{name}::cpu"]


def test_patterns_of_experiment_files(project: Project) -> None:
    """The ini option `experiment_files` replaces the patterns."""
    project.configure("experiment_files = runs/*.yml")
    for name in ("experiments/a.yaml", "runs/b.yml"):
        project.experiment(name)

    project.run("-k", "trains")

    assert project.asked() == ["runs/b.yml::cpu"]


def test_files_of_one_name_in_two_folders(project: Project) -> None:
    """Experiments are told apart by their folder: in ids, records and the report."""
    project.experiment("experiments/one/same.yaml")
    project.experiment("experiments/two/same.yaml")

    result = project.run("experiments")

    assert result.ret == 0
    assert {record["experiment"] for record in project.records()} == {
        "experiments/one/same.yaml",
        "experiments/two/same.yaml",
    }
    result.stdout.fnmatch_lines(["*2 cases: 2 finished*"])


def test_experiments_and_ordinary_tests_run_together(project: Project) -> None:
    """In one session, one does not disturb the other."""
    project.experiment()
    project.write("test_ordinary.py", "def test_fails(): assert 0\n")

    found = outcomes(project.run())

    assert found["test_ordinary.py::test_fails"] == "failed"
    assert found["experiments/a.yaml::cpu::trains"] == "passed"


def test_this_project_can_be_tested_without_xdist(project: Project) -> None:
    """Its own conftest distributes a bare `pytest` where there is something to distribute it with."""
    project.configure("testpaths = .")
    project.write("conftest.py", (ROOT / "conftest.py").read_text())
    project.write("test_ordinary.py", "def test_nothing(): pass\n")

    project.run("-p", "no:xdist").assert_outcomes(passed=1)


@pytest.mark.parametrize("scope", ["function", "class", "module", "package", "session"])
def test_fixtures_of_the_user_apply(project: Project, scope: str) -> None:
    """An autouse fixture of any scope in a conftest beside the experiments wraps their items."""
    project.experiment()
    project.write(
        "experiments/conftest.py",
        "import pytest\n"
        f"@pytest.fixture(autouse=True, scope={scope!r})\n"
        "def around(request):\n"
        "    with open('fixtures.txt', 'a') as file: file.write('up ')\n"
        "    yield\n"
        "    with open('fixtures.txt', 'a') as file: file.write('down ')\n",
    )

    found = outcomes(project.run("experiments"))

    assert "error" not in found.values()
    each_item = scope in ("function", "class")
    assert (project.path / "fixtures.txt").read_text() == "up down " * (len(found) if each_item else 1)


# One training a case

REVERSED = """
def pytest_collection_modifyitems(items):
    items.reverse()
"""
MIXED = """
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (item.name, item.nodeid))
"""


@pytest.mark.parametrize("order", ["", REVERSED, MIXED], ids=["in order", "reversed", "mixed"])
def test_each_case_trains_once(project: Project, order: str) -> None:
    """However many items there are and in whatever order they run, a case is asked for once, and stored once."""
    project.engine(more=order)
    project.experiment("experiments/a.yaml", loop=LOOPS)
    project.experiment("experiments/b.yaml", loop=LOOPS)

    result = project.run("experiments")

    assert result.ret == 0
    cases = [f"experiments/{name}.yaml::cpu-{loop}" for name in "ab" for loop in LOOPS]
    assert Counter(project.asked()) == Counter(cases)
    assert len(project.records()) == len(cases)
    result.stdout.fnmatch_lines(["*4 cases: 4 finished*"])


def test_an_agreement_alone_trains_its_cases_once(project: Project) -> None:
    """An agreement law is all that is selected: its cases run, once each."""
    project.experiment(loop=LOOPS)

    result = project.run("experiments/a.yaml::loops_agree")

    assert outcomes(result) == {"experiments/a.yaml::loops_agree": "passed"}
    assert project.asked() == ["experiments/a.yaml::cpu-custom", "experiments/a.yaml::cpu-trainer"]


def test_a_plan_trains_nothing(project: Project) -> None:
    """`--setup-plan` shows what would run, and leaves no reports."""
    project.experiment(loop=LOOPS)

    result = project.run("experiments", "--setup-plan", "-k", "trains or agree")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["*experiments/a.yaml::cpu-custom::trains*"])
    assert project.asked() == []
    assert not (project.path / "reports").exists()


def test_records_are_written_before_the_next_case(project: Project) -> None:
    """When the engine is asked for a case, the records of all earlier ones are on disk."""
    project.experiment("experiments/a.yaml", loop=LOOPS)
    project.experiment("experiments/b.yaml")

    project.run("experiments")

    assert [line["stored"] for line in project.log()] == [0, 1, 2]


def test_a_record_is_written_before_it_is_judged(project: Project) -> None:
    """The line is on disk when the first law of a case begins."""
    project.engine(
        more="@pytest.hookimpl(tryfirst=True)\n"
        "def pytest_runtest_call(item):\n"
        "    (file,) = item.config.rootpath.glob('reports/records/*.jsonl')\n"
        "    assert file.read_text().endswith('}\\n')\n"
    )
    project.experiment()

    assert project.run("experiments").ret == 0


def test_the_engine_is_made_and_closed_once(project: Project) -> None:
    """One engine serves the session; it is closed at its end."""
    project.experiment("experiments/a.yaml", loop=LOOPS)
    project.experiment("experiments/b.yaml")

    project.run("experiments")

    assert (project.path / "asked.jsonl").read_text().splitlines()[-1] == '{"case": "close"}'
    assert (project.path / "asked.jsonl").read_text().count('"close"') == 1


def test_collecting_makes_no_engine(project: Project) -> None:
    """`--collect-only` asks for no engine, no record and no report."""
    project.engine(more="def pytest_harness_engine(config): assert False\n")
    project.experiment(loop=LOOPS)

    result = project.run("--collect-only", "-q", "experiments")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["experiments/a.yaml::cpu-custom::trains"])
    assert not (project.path / "reports").exists()


def test_workers_of_xdist_share_the_run(project: Project) -> None:
    """With `-n 2` items of a file stay on one worker, each case runs once, and the one report has them all."""
    for name in "abc":
        project.experiment(f"experiments/{name}.yaml", loop=LOOPS)
    project.write("test_ordinary.py", "import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_n(n): pass\n")

    result = project.spawn("-n2", "-v", "--reports", "out")

    assert result.ret == 0
    workers: dict[str, set[int]] = {}
    for line in project.log():
        workers.setdefault(line["case"].partition("::")[0], set()).add(line["process"])
    assert [len(processes) for processes in workers.values()] == [1, 1, 1]
    assert Counter(project.asked()) == Counter(
        f"experiments/{name}.yaml::cpu-{loop}" for name in "abc" for loop in LOOPS
    )
    runs = {file.name.split(".")[0] for file in (project.path / "out" / "records").iterdir()}
    assert len(runs) == 1
    result.stdout.fnmatch_lines(["*6 cases: 6 finished*"])
    result.stdout.re_match_lines([r".*PASSED experiments/b.yaml::cpu-trainer::trains\s*$"])
    report = (project.path / "out" / "latest.md").read_text()
    # The throughput is in our report, though pytest-benchmark switches itself off.
    assert len(re.findall(r"\| experiments/..yaml::cpu-\w+ +\|.*\| 4 \(0\.5 to 16\) +\|", report)) == 6


# Outcomes


def test_a_crash_is_one_failure(project: Project) -> None:
    """`trains` fails with the traceback, the other items of the case skip and point at it, other cases run."""
    project.engine("answers={'cpu-custom': crashed}")
    project.experiment(loop=LOOPS)

    result = project.run("experiments")

    assert result.ret == 1
    found, said = outcomes(result), messages(result)
    crashed = "experiments/a.yaml::cpu-custom"
    assert [name for name, outcome in found.items() if outcome == "failed"] == [f"{crashed}::trains"]
    assert "crashed: ValueError: a broken thing" in said[f"{crashed}::trains"]
    assert "the broken line" in said[f"{crashed}::trains"]
    for item in ITEMS[1:]:
        assert "crashed" in said[f"{crashed}::{item}"]
        assert "see cpu-custom::trains" in said[f"{crashed}::{item}"]
    assert "a broken thing" in said["experiments/a.yaml::loops_agree"]
    assert found["experiments/a.yaml::cpu-trainer::loss_decreases"] == "passed"
    assert "the broken line" in project.records()[0]["traceback"]
    result.stdout.fnmatch_lines(["*_ trains: experiments/a.yaml::cpu-custom _*"])
    result.stdout.fnmatch_lines(["BROKEN experiments/a.yaml::cpu-custom::trains", "*2 cases: 1 crashed, 1 finished*"])


@pytest.mark.parametrize(
    "select",
    [
        ["experiments/a.yaml::cpu-custom::loss_finite"],
        ["experiments", "-k", "loops_agree"],
        ["experiments", "-m", "benchmark"],
        ["experiments", "--benchmark-only"],
    ],
    ids=["law", "agreement", "benchmark", "--benchmark-only"],
)
def test_a_crash_fails_whatever_is_selected(project: Project, select: list[str]) -> None:
    """Without its `trains` a crash fails another selected item of the case, once: a run is never green over it."""
    project.engine("answers={'cpu-custom': crashed}")
    project.experiment(loop=LOOPS)

    result = project.run(*select)

    assert result.ret == 1
    (name,) = [name for name, outcome in outcomes(result).items() if outcome == "failed"]
    assert "the broken line" in messages(result)[name]


def test_a_crash_fails_where_its_law_is_off(project: Project) -> None:
    """Turning the law `trains` off does not hide a crash."""
    project.engine("answers={'cpu': crashed}")
    project.experiment(more="invariants: {trains: false}")

    result = project.run("experiments")

    assert list(outcomes(result).values()).count("failed") == 1
    result.stdout.fnmatch_lines(["experiments/a.yaml::cpu: crashed: ValueError: a broken thing"])


def test_what_is_expected_to_be_broken_does_not_fail(project: Project) -> None:
    """A broken law, or a crash, that the experiment expects is an xfail with its reason; the status is 0."""
    project.engine("answers={'cpu-custom': flat, 'cpu-trainer': crashed}")
    project.experiment(loop=LOOPS, more="expect_broken: {loss_decreases: known for long, trains: known too}")

    result = project.run("experiments", "-k", "cpu-custom and loss_decreases or cpu-trainer", "-rx")

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "XFAIL experiments/a.yaml::cpu-custom::loss_decreases - known for long: mean loss of *",
            "XFAIL experiments/a.yaml::cpu-trainer::trains - known too: crashed: ValueError: a broken thing",
        ]
    )


def test_what_is_expected_to_be_broken_and_is_not_fails(project: Project) -> None:
    """A law that holds though the experiment expects it broken says so."""
    project.experiment(more="expect_broken: {loss_decreases: known for long}")

    result = project.run("experiments/a.yaml::cpu::loss_decreases")

    assert result.ret == 1
    assert "expected to be broken (known for long), and it is held" in messages(result).popitem()[1]


def test_out_of_memory_is_told_from_a_crash(project: Project) -> None:
    """`trains` fails and says so; nothing else of the case is judged."""
    project.engine("answers={'cpu': out_of_memory}")
    project.experiment()

    result = project.run("experiments")

    assert Counter(outcomes(result).values()) == {"failed": 1, "skipped": len(ITEMS) - 1}
    assert "out of memory: OutOfMemoryError" in messages(result)["experiments/a.yaml::cpu::trains"]
    result.stdout.fnmatch_lines(["*1 case: 1 out of memory*"])


def test_a_missing_device_is_a_skip(project: Project) -> None:
    """Every item of the case skips with the reason, and the report names it."""
    project.engine("answers={'cuda': skipped}")
    project.experiment(device=["cpu", "cuda"])

    result = project.run("experiments")

    assert result.ret == 0
    reason = "no CUDA device: this machine is a fake"
    said = messages(result)
    assert all(reason in said[name] for name in ids("experiments/a.yaml", "cuda"))
    assert reason in said["experiments/a.yaml::devices_agree"]
    result.stdout.fnmatch_lines([f"skipped: {reason}", "  experiments/a.yaml::cuda"])
    assert f"- `experiments/a.yaml::cuda`: skipped: {reason}" in (project.path / "reports" / "latest.md").read_text()


def test_a_broken_law_says_what_and_why(project: Project) -> None:
    """The item fails with the law's own message and likely cause, without a traceback of the harness."""
    project.engine("answers={'cpu': flat}")
    project.experiment()

    result = project.run("experiments")

    (name,) = [name for name, outcome in outcomes(result).items() if outcome == "failed"]
    assert name == "experiments/a.yaml::cpu::loss_decreases"
    message = messages(result)[name]
    assert message.startswith("mean loss of the first 2 steps 0.5000, of the last 2 0.5000")
    assert "\nlikely cause: " in message
    assert "harness" not in message


def test_ctrl_c_stops_the_session(project: Project) -> None:
    """The interrupted case leaves a record, no other case runs, the cases before it are reported, the status is 2."""
    project.engine("answers={'cpu-custom': interrupted}")
    project.experiment("experiments/a.yaml")
    project.experiment("experiments/b.yaml", loop=LOOPS)

    result = project.spawn("experiments")

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert [record["outcome"] for record in project.records()] == ["finished", "interrupted"]
    assert project.asked() == ["experiments/a.yaml::cpu", "experiments/b.yaml::cpu-custom"]
    result.stdout.fnmatch_lines(["experiments/a.yaml::cpu * held*", "*2 cases: 1 finished, 1 interrupted*"])
    assert "experiments/a.yaml::cpu " in (project.path / "reports" / "latest.md").read_text()


def test_a_bad_file_is_one_failing_item(project: Project) -> None:
    """It names every mistake with its line; the other experiments run; the status is 1."""
    project.experiment("experiments/good.yaml")
    project.write("experiments/bad.yaml", "checkpoint: x\ndata: {sequences: [a], labels: [1, 2]}\ntrian: {steps: 0}\n")

    result = project.run("experiments")

    assert result.ret == 1
    found = outcomes(result)
    assert found["experiments/bad.yaml::valid"] == "failed"
    assert [name for name in found if "bad.yaml" in name] == ["experiments/bad.yaml::valid"]
    assert found["experiments/good.yaml::cpu::trains"] == "passed"
    lines = messages(result)["experiments/bad.yaml::valid"].splitlines()
    assert [re.sub(".*bad.yaml", "bad.yaml", line).split(": found")[0] for line in lines] == [
        "bad.yaml:2: data.labels",
        "bad.yaml:3: trian",
    ]
    assert "did you mean 'train'?" in lines[1]


@pytest.mark.parametrize("select", [["-m", "invariant"], ["-k", "custom"], ["--benchmark-only"]], ids=" ".join)
def test_a_bad_file_fails_whatever_is_selected(project: Project, select: list[str]) -> None:
    """Nobody knows what is in it: as a module that cannot be imported it fails, and is not counted as deselected."""
    project.experiment("experiments/good.yaml", loop=LOOPS)
    project.write("experiments/bad.yaml", "trian: {}\n")
    left = project.run("experiments", *select, "--deselect=experiments/bad.yaml").parseoutcomes()

    result = project.run("experiments", *select)

    assert result.ret == 1
    found = outcomes(result)
    assert [name for name, outcome in found.items() if outcome == "failed"] == ["experiments/bad.yaml::valid"]
    assert result.parseoutcomes().get("deselected", 0) == left["deselected"] - 1


def test_a_bad_file_can_be_left_out(project: Project) -> None:
    """It can be deselected by its id; and `--lf` does not ask for it where it was not among the failures."""
    project.engine("answers={'cpu': flat}")
    project.experiment("experiments/good.yaml")
    project.write("experiments/bad.yaml", "trian: {}\n")

    without = project.run("experiments", "-m", "invariant", "--deselect=experiments/bad.yaml::valid")
    again = project.run("experiments", "--lf")

    assert "experiments/bad.yaml::valid" not in outcomes(without)
    assert list(outcomes(again)) == ["experiments/good.yaml::cpu::loss_decreases"]


@pytest.mark.parametrize("change", ["write_text('train: {steps')", "unlink()"], ids=["half saved", "gone"])
def test_a_file_may_change_before_its_turn(project: Project, change: str) -> None:
    """Its cases are those that were collected, and they run; only their lines are not known."""
    project.engine(
        more="def pytest_runtest_logfinish(nodeid, location):\n"
        "    from pathlib import Path\n"
        "    if nodeid == 'experiments/a.yaml::cpu::trains':\n"
        f"        Path('experiments/b.yaml').{change}\n"
    )
    for name in "abc":
        project.experiment(f"experiments/{name}.yaml")

    result = project.run("experiments", "-k", "trains")

    assert result.ret == 0
    assert project.asked() == [f"experiments/{name}.yaml::cpu" for name in "abc"]
    result.stdout.fnmatch_lines(["*3 cases: 3 finished*"])


def test_junit_names_cases_and_laws(project: Project) -> None:
    """JUnit XML has an entry an item, with the failure's message."""
    project.engine("answers={'cpu': flat}")
    project.experiment()

    project.run("experiments", "--junit-xml=junit.xml")

    entries = {
        (entry.get("classname"), entry.get("name")): entry
        for entry in ElementTree.parse(project.path / "junit.xml").iter("testcase")
    }
    assert set(entries) == {("experiments.a.yaml.cpu", item) for item in ITEMS}
    failure = entries["experiments.a.yaml.cpu", "loss_decreases"].find("failure")
    assert failure is not None
    assert (failure.text or "").startswith("mean loss of the first 2 steps")


def test_the_first_failure_can_stop_the_run(project: Project) -> None:
    """`-x` stops after the first broken law: later cases do not train."""
    project.engine("answers={'cpu-custom': flat}")
    project.experiment(loop=LOOPS)

    result = project.run("experiments", "-x")

    assert result.ret == 1
    assert project.asked() == ["experiments/a.yaml::cpu-custom"]
    result.stdout.fnmatch_lines(["*1 case: 1 finished*"])


def test_last_failed_runs_again(project: Project) -> None:
    """`--lf` runs the broken law alone, and so that one training."""
    project.engine("answers={'cpu-custom': flat}")
    project.experiment(loop=LOOPS, more="invariants: {loops_agree: false}")
    project.run("experiments")
    (project.path / "asked.jsonl").unlink()

    result = project.run("experiments", "--lf")

    assert list(outcomes(result)) == ["experiments/a.yaml::cpu-custom::loss_decreases"]
    assert project.asked() == ["experiments/a.yaml::cpu-custom"]


# Reports


def test_reports_go_where_they_are_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--reports DIR` is meant as seen from the working directory, also below the root directory."""
    project.experiment()
    (project.path / "deep").mkdir()
    monkeypatch.chdir(project.path / "deep")

    result = project.run("../experiments", "--reports", "out", "--rootdir", str(project.path))

    assert len(project.records("deep/out")) == 1
    assert (project.path / "deep" / "out" / "latest.md").exists()
    assert not (project.path / "reports").exists()
    result.stdout.fnmatch_lines(["report: out/latest.md"])


@pytest.mark.parametrize(
    ("there", "options", "found"),
    [
        ("out", [], "out, which is a file, expected a folder"),
        ("out/records", [], "out/records, which is a file, expected a folder"),
        ("out/latest.md/", [], "out/latest.md, which is a folder, expected a file"),
        ("out/explored.jsonl/", ["--explore=2"], "out/explored.jsonl, which is a folder, expected a file"),
        ("", [f"--reports={'x' * 300}"], f"{'x' * 300}/records, which cannot be made: File name too long"),
        ("", [f"--reports={'x' * 300}", "--profile"], f"{'x' * 300}/records, which cannot be made: *"),
    ],
)
def test_a_report_folder_that_cannot_be_written_is_known_before_anything_trains(
    project: Project, there: str, options: list[str], found: str
) -> None:
    """What stands in the way of records and reports is a usage error before a training, which would be lost."""
    project.experiment()
    path = project.path / there
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch() if there and not there.endswith("/") else path.mkdir(exist_ok=True)

    result = project.run("experiments", "--reports=out", *options)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --reports: found */{found}"])
    assert project.asked() == []


def test_under_xdist_each_item_says_that_the_report_folder_cannot_be_written(project: Project) -> None:
    """A worker cannot refuse the session, but trains nothing that would be lost."""
    project.experiment(loop=LOOPS)
    project.write("experiments/bad.yaml", "trian: {}\n")
    (project.path / "reports").touch()

    result = project.spawn("experiments", "-n1", "-k", "trains or loops_agree")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1, errors=3)
    result.stdout.fnmatch_lines(["*trian: found an unknown key*"])
    result.stdout.fnmatch_lines(["--reports: found */reports, which is a file, expected a folder"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert project.asked() == []


def test_what_exploring_does_not_need_is_not_in_the_way(project: Project) -> None:
    """Without `--explore` nobody writes `explored.jsonl`; and collecting alone makes no folder."""
    project.experiment()
    assert project.run("experiments", "--collect-only").ret == 0
    assert not (project.path / "reports").exists()
    (project.path / "reports" / "explored.jsonl").mkdir(parents=True)

    assert project.run("experiments").ret == 0


def test_a_report_that_cannot_be_written_is_no_crash(project: Project) -> None:
    """A disk that is full at the end takes the page and nothing else: the table and the records are there."""
    project.experiment()
    project.engine(more="def pytest_sessionfinish(session):\n    (session.path / 'reports' / 'latest.md').mkdir()\n")

    result = project.run("experiments")

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["1 case: 1 finished*", "report: reports/latest.md cannot be written: *; `harness report` makes it again"]
    )
    assert len(project.records()) == 1


def test_runs_add_up_and_the_report_is_of_the_last(project: Project) -> None:
    """Records of earlier runs stay, in files of their own; `latest.md` is of the run that just ended."""
    project.experiment(loop=LOOPS)

    project.run("experiments")
    project.run("experiments/a.yaml::cpu-custom::trains")

    assert len(project.records()) == 3
    assert "cpu-trainer" not in (project.path / "reports" / "latest.md").read_text()


# Probes


def probes(project: Project) -> dict[str, list[str]]:
    """The probes that each case was asked to run."""
    return {line["case"].split("::")[1]: line["probes"] for line in project.log()}


@pytest.mark.parametrize(
    ("available", "selected", "expected"),
    [
        (("cpu", "cuda"), "devices_agree", ["replay"]),
        (("cpu",), "devices_agree", []),
        (("cpu", "cuda"), "loss_finite", []),
    ],
    ids=["two devices", "one device", "not selected"],
)
def test_a_probe_runs_for_those_who_need_it(
    project: Project, available: tuple[str, ...], selected: str, expected: list[str]
) -> None:
    """The replay runs where `devices_agree` is selected and has two devices to compare, and only there."""
    project.engine(f"available={available}")
    project.experiment(device=["cpu", "cuda"])

    project.run("experiments", "-k", selected)

    assert probes(project) == {"cpu": expected, "cuda": expected}


def test_the_probes_of_a_case_are_those_of_its_selected_laws(project: Project) -> None:
    """Each law's own probes are asked for when it alone is selected."""
    project.experiment()
    for law in LAWS:
        if law.axis is None and law.probes:
            (project.path / "asked.jsonl").unlink(missing_ok=True)

            project.run(f"experiments/a.yaml::cpu::{law.name}", "--explore", "1")

            assert probes(project) == {"cpu": sorted(law.probes)}


def test_a_law_that_is_skipped_needs_no_probe(project: Project) -> None:
    """`--benchmark-only` and a mark of one's own skip laws before their case trains: it collects nothing for them."""
    project.experiment()

    project.run("experiments", "--benchmark-only")

    assert probes(project) == {"cpu": []}


def test_a_path_selects_no_slow_law(project: Project) -> None:
    """A law that trains again runs where the id of an item names it, or `-k` does; not where a folder is called so."""
    path = project.experiment("deterministic/experiments/deterministic.yaml")
    item = f"{path}::cpu::deterministic"

    runs = [project.run(*select) for select in ([path], [item], [path, "-k", "deterministic"])]

    assert [outcomes(run).get(item) for run in runs] == [None, "passed", "passed"]


# The whole picture


def test_records_hold_what_the_engine_gave(project: Project) -> None:
    """What is stored is the engine's record: case, settings, samples."""
    project.experiment(loop=["trainer"])

    project.run("experiments")

    (record,) = project.records()
    assert record["case"] == "cpu-trainer"
    assert record["settings"]["train.loop"] == "trainer"
    assert record["steps"]["seconds"] == [4.0, 2.0, 1.0, 0.5, 0.25, 0.125, 4.0, 2.0]
