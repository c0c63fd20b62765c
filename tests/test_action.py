"""The action and the workflows: right by GitHub's schemas, wired up, and their steps do what they say."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import Project

from harness.__main__ import main

ROOT = Path(__file__).parent.parent
ACTION = ROOT / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict[str, Any]:
    """A YAML file as GitHub reads it: `on` is a word, not true."""
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in loaded.items()}


def strings(value: Any) -> list[str]:
    """Every text in it."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return [value] if isinstance(value, str) else []


def used(value: Any, context: str) -> set[str]:
    """Names of a context that expressions in it read: `inputs.NAME`."""
    return {name for text in strings(value) for name in re.findall(rf"\b{context}\.([\w-]+)", text)}


def steps(path: Path) -> list[dict[str, Any]]:
    """All steps and calls of a file."""
    loaded = load(path)
    if "runs" in loaded:
        return list(loaded["runs"]["steps"])
    return [step for job in loaded["jobs"].values() for step in [*job.get("steps", ()), *([job] * ("uses" in job))]]


# By the schema


@pytest.mark.parametrize(("kind", "paths"), [("actions", [ACTION]), ("workflows", WORKFLOWS)], ids=["action", "flows"])
def test_files_keep_the_published_schema(kind: str, paths: list[Path]) -> None:
    """The schemas of schemastore.org, which check-jsonschema brings along."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.github-{kind}"]
    done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ok -- validation done\n"), done.stdout


@pytest.mark.parametrize("path", [ACTION, *WORKFLOWS], ids=lambda path: path.name)
def test_what_others_made_is_pinned(path: Path) -> None:
    """Actions of others by a whole commit with its version beside it; what is here by its path."""
    for step in steps(path):
        if "uses" in step:
            assert re.fullmatch(r"\./\S+|[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
    for line in path.read_text(encoding="utf-8").splitlines():
        assert "uses: " not in line or "uses: ./" in line or re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


@pytest.mark.parametrize("path", [ACTION, *WORKFLOWS], ids=lambda path: path.name)
def test_no_step_writes_an_expression_into_its_script(path: Path) -> None:
    """Scripts get what others wrote through the environment: a title of a pull request must not become a command."""
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []


def test_inputs_and_outputs_of_the_action_are_those_it_uses() -> None:
    """Each input is declared with a default and read; each output is of a step that writes it."""
    action = load(ACTION)
    assert used(action["runs"], "inputs") == set(action["inputs"])
    assert all("default" in one and one["description"] for one in action["inputs"].values())
    written = {
        f"{step['id']}.{name}" for step in steps(ACTION) for name in re.findall(r'echo "(\w+)=', step.get("run", ""))
    }
    read = re.findall(r"steps\.(\w+)\.outputs\.(\w+)", " ".join(strings(action["outputs"])))
    assert {f"{step}.{name}" for step, name in read} == written
    assert all(step["shell"] == "bash" for step in steps(ACTION) if "run" in step)


def test_variables_of_a_script_are_those_it_is_given() -> None:
    """Each step's `env` is read by its script, and nothing else is but GitHub's own and its own."""
    for step in steps(ACTION):
        if "run" in step:
            read = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", step["run"]))
            assert read - {"GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"} == set(step["env"])


def test_the_workflow_hands_all_of_its_inputs_on() -> None:
    """What the action takes is declared by the workflow and passed on, and nothing that the action does not know."""
    workflow, action = load(ROOT / ".github" / "workflows" / "fine-tuning.yml"), load(ACTION)
    declared = set(workflow["on"]["workflow_call"]["inputs"])
    assert used(workflow["jobs"], "inputs") == declared
    (passed,) = [step["with"] for step in steps(ROOT / ".github" / "workflows" / "fine-tuning.yml") if step.get("id")]
    assert set(passed) == set(action["inputs"]) - {"reports"}
    for name, value in passed.items():
        assert value == f"${{{{ inputs.{name} }}}}"
    for name in set(passed) - {"python-version", "artifact"}:
        default = workflow["on"]["workflow_call"]["inputs"][name]["default"]
        assert str(default).lower() == action["inputs"][name]["default"]


def test_the_example_gives_what_the_workflow_takes() -> None:
    """Each `with` of a call is an input of the workflow, and the experiments that it names are there."""
    declared = load(ROOT / ".github" / "workflows" / "fine-tuning.yml")["on"]["workflow_call"]["inputs"]
    for step in steps(ROOT / ".github" / "workflows" / "experiments.yml"):
        assert step["uses"] == "./.github/workflows/fine-tuning.yml"
        assert set(step["with"]) <= set(declared)
        assert all((ROOT / path).exists() for path in step["with"]["experiments"].split())


# By running it


@dataclass
class Job:
    """Runs the `run` steps of the action as the runner of GitHub does; those that use other actions are noted."""

    folder: Path
    inputs: dict[str, str]
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    log: str = ""
    summary: str = ""
    failed: bool = False

    def run(self) -> None:
        """Every step whose condition holds."""
        known = {name: one["default"] for name, one in load(ACTION)["inputs"].items()}
        assert set(self.inputs) <= set(known)
        self.inputs = known | self.inputs
        for step in steps(ACTION):
            if not self._holds(step.get("if", "success()")):
                continue
            if "uses" in step:
                self.used.append(step["uses"].partition("@")[0])
            else:
                self._script(step)

    def _script(self, step: dict[str, Any]) -> None:
        files = {name: self.folder / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "GITHUB_ENV")}
        for file in files.values():
            file.write_text("")
        given = {name: self._filled(value) for name, value in step["env"].items()}
        bin = str(Path(sys.executable).parent)
        environment = {
            **os.environ,
            **given,
            **{name: str(file) for name, file in files.items()},
            "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": str(self.folder),
        }
        script = self.folder / "step.sh"
        script.write_text(step["run"])
        command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        self.log += done.stdout + done.stderr
        self.failed |= done.returncode != 0
        self.summary += files["GITHUB_STEP_SUMMARY"].read_text()
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        if "id" in step:
            self.outputs[step["id"]] = dict(line.split("=", 1) for line in lines)

    def _filled(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            context, _, name = found[1].partition(".")
            return {"inputs": self.inputs, "github": {"action_path": str(ROOT)}}[context][name]

        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", value, text)

    def _holds(self, condition: str) -> bool:
        """The conditions of this action: terms joined by `&&`. Without a status function all before has to be well."""
        terms = [term.strip() for term in condition.removeprefix("${{").removesuffix("}}").split("&&")]
        if "!cancelled()" not in terms and self.failed:
            return False
        return all(self._term(term) for term in terms)

    def _term(self, term: str) -> bool:
        if term in ("success()", "!cancelled()"):
            return True
        found = re.fullmatch(r"inputs\.([\w-]+) (==|!=) '([^']*)'", term)
        assert found, term
        return (self.inputs[found[1]] == found[3]) == (found[2] == "==")


STEADY = """
def lasting(second):
    def answer(case):
        count = case.settings.train.steps
        return steps(finished(case), seconds=(second,) * count, processor_seconds=(second,) * count)
    return answer
"""

HERE = {"install": "false", "hub-cache": "false", "arguments": "-p no:benchmark"}


def job(project: Project, **inputs: str) -> Job:
    """The action on the project, without installing and without the caches of GitHub."""
    made = Job(project.path, {**HERE, **inputs})
    made.run()
    return made


def test_all_held(project: Project) -> None:
    """Status 0, reports and JUnit XML in the folder, the table in the summary, the reports uploaded."""
    project.experiment()
    done = job(project, arguments="-p no:benchmark -k trains", reports="out put")
    assert not done.failed, done.log
    assert done.outputs == {"run": {"status": "0"}}
    assert done.used == ["actions/upload-artifact"]
    assert "| experiments/a.yaml::cpu |" in done.summary
    assert {"latest.md", "junit.xml", "records"} <= {file.name for file in (project.path / "out put").iterdir()}


def test_inputs_may_have_several_lines(project: Project) -> None:
    """As the input of a step is often written: every word of every line counts."""
    for name in ("a", "b"):
        project.experiment(f"experiments/{name}.yaml")
    files = "experiments/a.yaml\nexperiments/b.yaml\n"
    done = job(project, experiments=files, arguments="-p no:benchmark\n-k trains\n")
    assert not done.failed, done.log
    assert "2 passed" in done.log


def test_broken_and_slower(project: Project) -> None:
    """A law and a baseline that do not hold: annotated, status 1; it is compared and uploaded all the same."""
    project.engine("answers={'cpu-custom': lasting(0.5), 'cpu-trainer': lasting(0.5)}", STEADY)
    project.experiment(loop=["custom", "trainer"], steps=40)
    project.run("experiments", "-p", "no:benchmark", "-k", "trains")
    baseline = str(project.path / "baseline.jsonl")
    assert main(["baseline", "accept", str(project.path / "reports"), "--reason", "x", "--baseline", baseline]) == 0
    project.engine("answers={'cpu-custom': lasting(0.5), 'cpu-trainer': lasting(1.0)}", STEADY)
    done = job(project, baseline="baseline.jsonl", reports="new", arguments="-p no:benchmark -k no_regression")
    assert done.failed
    assert done.outputs == {"run": {"status": "1"}, "compare": {"status": "1"}}
    assert done.used == ["actions/upload-artifact"]
    (command,) = [line for line in done.log.splitlines() if line.startswith("::error ")]
    assert command.startswith(
        "::error file=experiments/a.yaml,line=6,title=experiments/a.yaml%3A%3Acpu-trainer%3A%3Ano_"
    )
    assert "::slower, baseline of " in command
    assert "# Comparison\n\n2 cases: 1 equivalent, 1 slower" in done.summary


def test_a_baseline_that_is_not_there_is_said(project: Project) -> None:
    """The first run of a project has none: a warning, and the experiments run."""
    project.experiment()
    done = job(project, baseline="baseline.jsonl", arguments="-p no:benchmark -k trains", artifact="")
    assert not done.failed, done.log
    assert "::warning title=No baseline::baseline.jsonl is not there" in done.log
    assert (done.outputs["compare"], done.used) == ({}, [])


def test_a_mistake_in_the_arguments_is_no_verdict(project: Project) -> None:
    """pytest's own status for bad usage, and no summary of a comparison with nothing."""
    project.experiment()
    done = job(project, arguments="--device gpu", baseline="experiments/a.yaml")
    assert done.failed
    assert done.outputs == {"run": {"status": "4"}, "compare": {}}
    assert done.summary == ""


def test_installing_is_one_command_of_pip(project: Project) -> None:
    """The harness of the action with its extras, and what else is asked for, word by word."""
    project.write("bin/python", '#!/bin/sh\nprintf "%s\\n" "$@" > installed\n').chmod(0o755)
    (step,) = [step for step in steps(ACTION) if step.get("name") == "Install"]
    for more in ("", "-r 'a b' -c constraints.txt", "torch\ntransformers\n"):
        environment = {"PATH": f"{project.path / 'bin'}:/usr/bin:/bin", "ACTION": "/here", "EXTRAS": "data,peft"}
        command = ["bash", "-e", "-o", "pipefail", "-c", step["run"]]
        subprocess.run(command, cwd=project.path, env={**environment, "REQUIREMENTS": more}, check=True)
        words = (project.path / "installed").read_text().splitlines()
        assert words == ["-m", "pip", "install", "pytest-finetune[data,peft] @ file:///here", *more.split()]


# The step of the documents that compares two revisions


def documented_step(name: str) -> dict[str, Any]:
    """A step in a YAML block of docs/ci.md."""
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    (found,) = [step for block in blocks if isinstance(block, list) for step in block if step.get("name") == name]
    return dict(found)


@pytest.mark.parametrize(("status", "summary"), [(0, "| a |\n"), (1, "| a |\n"), (2, "")])
def test_the_documented_step_of_ab(status: int, summary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as `harness ab` does, with its table in the summary where there is one; its options are there."""
    step = documented_step("Slower than the base of the pull request?")
    table = "" if status == 2 else 'while [ "$1" != --output ]; do shift; done; echo "| a |" > "$2"'
    fake = tmp_path / "bin" / "harness"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > said\n{table}\nexit {status}\n')
    fake.chmod(0o755)
    (tmp_path / "summary.md").touch()
    variables = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "BASE": "main", "GITHUB_STEP_SUMMARY": "summary.md"}
    done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=variables, check=False)
    assert (done.returncode, (tmp_path / "summary.md").read_text()) == (status, summary)
    assert set(step["env"]) == {"BASE", "OMP_NUM_THREADS"}
    monkeypatch.chdir(tmp_path)
    assert main((tmp_path / "said").read_text().split()) == 2  # understood: only experiments and a repository lack
