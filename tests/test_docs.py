"""The documents say what there is: every key, option, law and command, and their examples run."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

from harness import __main__, experiment
from harness.laws import LAWS
from harness.laws.explain import page

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXPERIMENTS = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", [*experiment.matrix_keys({}), "description", "extends", "matrix"])
def test_every_key_is_documented(key: str) -> None:
    """Each key of an experiment file has its row; sections are shown by their keys."""
    assert f"`{key}`" in EXPERIMENTS or f"`{key}." in EXPERIMENTS


@pytest.mark.parametrize(
    "name",
    ["devices", "experiment_files", "--device NAME", "--reports DIR", "--explore N", "--profile", "--baseline PATH"],
)
def test_every_option_of_pytest_is_documented(name: str) -> None:
    """Ini and command line options have their row."""
    assert f"| `{name}` |" in EXPERIMENTS


@pytest.mark.parametrize("option", ["--across AXIS", "--margin SHARE", "--format text", "--output FILE"])
def test_every_option_of_compare_is_documented(option: str) -> None:
    """Options of `harness compare` have their row."""
    assert f"| `{option}`" in (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "option",
    [
        "--against-env FILE",
        "--experiments PATH",
        "-k EXPRESSION",
        "--budget SECONDS",
        "--package NAME",
        "--releases LIST",
        "--requirements FILE",
    ],
)
def test_every_option_of_ab_is_documented(option: str) -> None:
    """Options of `harness ab` and `harness bisect` have their row."""
    assert f"| `{option}" in (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "option", ["--format github-action-benchmark", "--format bencher", "--better bigger", "--output FILE"]
)
def test_every_option_of_export_is_documented(option: str) -> None:
    """Options of `harness export` have their row."""
    assert f"| `{option}`" in (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")


def test_the_inputs_of_the_action_are_documented() -> None:
    """Each input and output of `action.yml` has its row, with its default."""
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    for name, said in action["inputs"].items():
        assert f"| `{name}` | `{said['default']}` | " in page or f"| `{name}` | | " in page, name
    assert [name for name in action["outputs"] if f"| `{name}` | " not in page] == []


def test_the_page_of_laws_is_current() -> None:
    """docs/laws.md is what `harness explain` prints."""
    assert (ROOT / "docs" / "laws.md").read_text(encoding="utf-8") == page(LAWS)


def test_every_command_is_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """`harness --help` and the README list the same commands."""
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    listed = set(re.findall(r"^    (\w+) ", capsys.readouterr().out, re.MULTILINE))
    assert listed == set(re.findall(r"^\| `harness (\w+)", README, re.MULTILINE))


def test_the_experiment_of_the_readme_is_the_one_that_is_shipped() -> None:
    """The file shown is experiments/course.yaml."""
    shipped = (ROOT / "experiments" / "course.yaml").read_text(encoding="utf-8").split("\n", 1)[1]
    assert f"```yaml\n# experiments/course.yaml\n{shipped}```" in README


def test_the_items_of_a_case_are_those_collected() -> None:
    """The README shows some of the items, in their order."""
    shown = re.findall(r"^experiments/course.yaml::cpu-custom-fp32::(\w+)$", README, re.MULTILINE)
    items = [*(law.name for law in LAWS if law.axis is None and not law.slow), "step_throughput"]
    assert [item for item in items if item in shown] == shown
    assert {"trains", "step_throughput"} <= set(shown)


def test_a_law_of_ones_own_is_judged(pytester: pytest.Pytester) -> None:
    """The README's law is an item of each case, has the evidence, fails as a test does, and can be turned off."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    tiny = (ROOT / "experiments" / "tiny.yaml").read_text(encoding="utf-8")
    (pytester.path / "experiments").mkdir()
    (pytester.path / "conftest.py").write_text(code)
    (pytester.path / "experiments" / "a.yaml").write_text(tiny.replace("steps: 30", "steps: 4"))
    (pytester.path / "experiments" / "off.yaml").write_text(tiny + "invariants: {loss_halves: false}\n")
    importlib.import_module("harness.training.run")  # else pytester forgets torch again, which is imported but once
    quickly = ("-p", "no:benchmark", "-p", "no:hypothesispytest")
    result = pytester.runpytest_inprocess("experiments", "-k", "loss_halves", *quickly)
    result.assert_outcomes(failed=2, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["*assert record.steps.loss?-1? < record.steps.loss?0? / 2", "E *assert 0.*"])
    assert "off.yaml" not in "\n".join(line for line in result.outlines if "FAILED" in line)


def test_a_misspelt_law_of_ones_own_is_a_mistake(pytester: pytest.Pytester) -> None:
    """Names of own laws are known to the file, and only there where their conftest is."""
    (pytester.path / "conftest.py").write_text("import harness\n\n@harness.invariant\ndef loss_halves(record): pass\n")
    tiny = (ROOT / "experiments" / "tiny.yaml").read_text(encoding="utf-8")
    (pytester.path / "a.yaml").write_text(tiny + "invariants: {loss_halvs: false}\n")
    result = pytester.runpytest_inprocess("a.yaml", "-p", "no:benchmark")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*a.yaml:*: invariants.loss_halvs: *did you mean 'loss_halves'?"])
