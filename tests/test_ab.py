"""`harness ab`: two revisions of a project, whose trainings take turns in two live processes."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_compare import STEPS, trained

from harness.__main__ import main
from harness.ab.environment import Environments
from harness.ab.job import Job, Timed, trained_pair
from harness.ab.turns import LOOKS, PROCESSES, Steps, Turn, Turns, alternate
from harness.compare import Pair
from harness.compare.statistic import CONFIDENCE, paired
from harness.errors import HarnessError
from harness.record import Environment, Record

EXPERIMENT = """
checkpoint: {architecture: bert, size: tiny}
data: {sequences: [the soup was warm, bread, it was cold, never again], labels: [1, 0, 1, 0]}
train: {steps: 8, batch_size: 2, learning_rate: 1.0e-3}
invariants: {loss_decreases: false}
"""

SLOW = """
import time
from torch.optim.optimizer import register_optimizer_step_pre_hook
def spin(*_):
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end: pass
register_optimizer_step_pre_hook(spin)
"""

NOT_STEPPING = """
import torch
torch.optim.AdamW.step = lambda self, closure=None: None
"""

Harness = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with revisions: healthy, slower, one that trains nothing, and one that does not start."""
    folder = tmp_path_factory.mktemp("project")
    git(folder, "init", "-q", "-b", "main")
    (folder / "pytest.ini").write_text("[pytest]\ndevices = cpu\naddopts = -p no:hypothesispytest\n")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "a.yaml").write_text(EXPERIMENT)
    for tag, conftest in (("healthy", ""), ("slow", SLOW), ("dead", NOT_STEPPING), ("torn", "import nothing_of_it\n")):
        (folder / "conftest.py").write_text(conftest)
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", tag, "--allow-empty")
        git(folder, "tag", tag)
    git(folder, "checkout", "-q", "healthy")
    return folder


def git(folder: Path, *arguments: str) -> str:
    """Run git as somebody."""
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def ab(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Harness]:
    """Runs `harness ab` in the project; whatever happens, nothing is left behind."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["ab", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    yield run
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert git(project, "status", "--porcelain") == ""


def test_a_slower_revision_is_found(ab: Harness) -> None:
    """A step that takes several times as long is found at the first look, with status 1."""
    status, out, _ = ab("healthy", "slow", "--budget", "8", "--format", "json")
    (case,) = json.loads(out)["cases"]
    assert (status, case["verdict"], case["loss"]["outcome"]) == (1, "slower", "same")
    assert case["measures"][0]["ratio"] > 1.5
    assert "base against itself" in case["evidence"][0]


def test_a_revision_whose_training_is_wrong_is_no_win(ab: Harness) -> None:
    """An optimizer that does nothing is fast: the law that it breaks is named, and nothing is timed."""
    status, out, _ = ab("healthy", "dead", "--budget", "8")
    assert status == 1
    assert "broken law" in out or "worse loss" in out
    assert "broken in new alone: update_is_the_declared_one" in out


def test_a_revision_that_cannot_be_run_is_said_so(ab: Harness) -> None:
    """The end of what pytest said is shown, and the status is 2."""
    status, _, err = ab("healthy", "torn")
    assert status == 2
    assert err.startswith("torn: ")
    assert "nothing_of_it" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "found neither or both of BASE_REV and --against-env"),
        (["healthy", "--against-env", "old.txt"], "found neither or both of BASE_REV and --against-env"),
        (["nowhere"], "nowhere: found no such revision, expected a commit, branch or tag"),
        (["healthy", ""], "'': found no such revision, expected a commit, branch or tag"),
        (["healthy", "nowhere"], "nowhere: found no such revision, expected a commit, branch or tag"),
        (["--against-env", "old.txt"], "old.txt: cannot be read: No such file or directory"),
        (["healthy", "--experiments", "nothing"], "nothing: no such file or folder"),
        (["healthy", "-k", "custom"], "no case is on both sides: pytest collects none"),
    ],
)
def test_bad_input_has_a_clear_answer(ab: Harness, arguments: list[str], said: str) -> None:
    """With status 2, which is no verdict."""
    status, out, err = ab(*arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_nothing_is_left_after_ctrl_c(project: Path) -> None:
    """Neither worktrees nor processes, while both sides are live; one that was just being started when the signal came
    is known to nobody, and ends with its input."""
    command = [sys.executable, "-m", "harness", "ab", "healthy", "slow", "--budget", "600"]
    running = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True)
    sides = wait_for(lambda: children(running.pid), 2)
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 2
    assert running.stderr is not None
    assert running.stderr.read() == "stopped\n"
    assert len(git(project, "worktree", "list").splitlines()) == 1
    wait_for(lambda: [side for side in sides if not alive(side)], 2)


def test_sides_end_with_who_started_them(project: Path, tmp_path: Path) -> None:
    """Also where that one is killed, and can put away nothing."""
    command = [sys.executable, "-m", "harness", "ab", "healthy", "--budget", "600"]
    running = subprocess.Popen(command, cwd=project, env={**os.environ, "TMPDIR": str(tmp_path)})
    sides = wait_for(lambda: children(running.pid), 2)
    running.kill()
    running.wait()
    wait_for(lambda: [side for side in sides if not alive(side)], 2)
    (worktree,) = git(project, "worktree", "list").splitlines()[1:]
    git(project, "worktree", "remove", "--force", worktree.split()[0])


def wait_for(found: Callable[[], list[int]], number: int) -> list[int]:
    """What is found, once there are as many."""
    for _ in range(600):
        if len(there := found()) >= number:
            return there
        time.sleep(0.05)
    raise AssertionError("waited for half a minute")


def children(process: int) -> list[int]:
    """Live sides that it has started."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    commands = {int(each): Path(f"/proc/{each}/cmdline").read_text() for each in found}
    return [each for each, command in commands.items() if "harness.ab.side" in command]


def alive(process: int) -> bool:
    """Neither gone nor waiting to be buried."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"


# Turns


class Training:
    """Steps of a made-up side."""

    def __init__(self, times: float, generator: random.Random, clock: list[float], compiling: int = 0) -> None:
        self._times, self._generator, self._clock = times, generator, clock
        self._compiling, self._done = compiling, 0
        self.asked: list[int] = []

    def steps(self, number: int) -> Steps:
        """A drifting machine: what was asked of either side makes it slower."""
        self.asked.append(number)
        seconds = []
        for _ in range(number):
            self._clock[0] += 1
            drift = 1 + self._clock[0] / 2000
            seconds.append(0.02 * self._times * drift * self._generator.lognormvariate(0, 0.1))
        compiled = [float(self._done + step < self._compiling) for step in range(number)]
        self._done += number
        return {"seconds": seconds, "processor_seconds": seconds, "compile_seconds": compiled}


def made_up(times: float, seed: int) -> list[tuple[float, float, int]]:
    """Of each look: ratio, probability and pairs."""
    generator, clock = random.Random(seed), [0.0]
    sides = Training(1.0, generator, clock), Training(times, generator, clock)
    looks = alternate(lambda: sides, 20.0, generator)
    return [
        ((found := paired(turns.differences("seconds") or [])).ratio, found.probability, len(turns.pairs))
        for turns, _ in looks
    ]


def test_turns_cancel_drift() -> None:
    """A machine that gets slower all the time has no part in the ratio; each look sees more pairs."""
    looks = made_up(1.05, 1)
    assert len(looks) == len(LOOKS)
    assert looks[-1][0] == pytest.approx(1.05, abs=0.02)
    assert looks[0][2] < looks[1][2] < looks[2][2]


def test_looking_several_times_gives_no_more_false_alarms() -> None:
    """Of equal sides, alarms at any look are as rare as at one: 0.5 % is promised, 150 trials are made."""
    alarms = [
        any(each[1] <= (1 - CONFIDENCE) * share for each, share in zip(made_up(1.0, seed), LOOKS.values(), strict=True))
        for seed in range(150)
    ]
    assert sum(alarms) <= 4
    assert sum(LOOKS.values()) == pytest.approx(1)


def test_a_coin_is_tossed_for_each_pair() -> None:
    """Either side is first about as often as the other, whoever was first before; the base is held against itself."""
    generator, clock, order = random.Random(0), [0.0], list[int]()

    class Noted(Training):
        def steps(self, number: int) -> Steps:
            order.append(sides.index(self))
            return super().steps(number)

    sides = Noted(1.0, generator, clock), Noted(1.0, generator, clock)
    *_, (turns, _) = alternate(lambda: sides, 100.0, generator)
    assert turns.begun[0] == 0 < turns.begun[1]
    first = order[-2 * (len(turns.pairs) - turns.begun[-1]) :: 2]
    repeated = sum(one == two for one, two in pairwise(first))
    assert [0.4 < share / len(first) < 0.6 for share in (sum(first), repeated)] == [True, True]
    assert len(turns.differences("seconds") or ()) == len(turns.pairs)
    ends = [*turns.begun, len(turns.pairs)]
    assert len(turns.alike) == sum((after - before) // 2 for before, after in pairwise(ends))
    assert turns.seconds == pytest.approx(sum(turns.steps(0, "seconds")) + sum(turns.steps(1, "seconds")))


def test_both_sides_train_the_same_steps() -> None:
    """However often they are looked at, one side is never ahead by more than a turn; nor where it alone compiles."""
    generator, clock = random.Random(0), [0.0]
    sides = Training(1.0, generator, clock), Training(3.0, generator, clock, compiling=13)
    list(alternate(lambda: sides, 10.0, generator))
    assert sides[0].asked == sides[1].asked
    assert sum(sides[1].asked[:4]) > 13


# Environments


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A package in two releases, and one that brings the libraries of this environment with it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    here = "\n".join(path for path in sys.path if "site-packages" in path or Path(path, "harness").is_dir())
    wheel(folder, "these_libraries", "1.0", {"these_libraries.pth": here + "\n"})
    for release, sleep in (("1.0", "0"), ("2.0", "0.03")):
        wheel(folder, "trainer_friend", release, {"trainer_friend.py": f"SECONDS = {sleep}\n"})
    return folder


def wheel(folder: Path, name: str, release: str, files: dict[str, str]) -> None:
    """A wheel by hand."""
    about = f"{name}-{release}.dist-info"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{release}-py3-none-any.whl", "w") as file:
        for path, text in {**files, f"{about}/RECORD": record}.items():
            file.writestr(path, text)


def version_of(python: Path) -> str:
    """Of the package, as that interpreter sees it."""
    code = "import importlib.metadata as m; print(m.version('trainer_friend'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_an_environment_is_made_once(tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds what the file says and nothing of the one that runs; the same file gets it again without pip."""
    environments, file = Environments(tmp_path / "kept"), tmp_path / "old.txt"
    file.write_text(f"--no-index\n--find-links {wheels}\ntrainer_friend==1.0\n")
    python = environments.python(file)
    assert version_of(python) == "1.0"
    assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode
    monkeypatch.setattr(subprocess, "Popen", None)
    assert environments.python(file) == python


def test_what_pip_cannot_install_leaves_no_environment(tmp_path: Path, wheels: Path) -> None:
    """What pip says is shown; half an environment would be found the next time."""
    environments, file = Environments(tmp_path / "kept"), tmp_path / "old.txt"
    file.write_text(f"--no-index\n--find-links {wheels}\ntrainer_friend==3.0\n")
    with pytest.raises(HarnessError, match=r"old.txt: pip cannot install it:\n.*trainer_friend==3.0"):
        environments.python(file)
    assert list((tmp_path / "kept").iterdir()) == []


# What is said of turns


def turns_of(times: float, itself: float = 0.0, number: int = 160) -> Turns:
    """Pairs of a new side that takes so many times as long, of a base whose second turn takes more than its first."""
    generator, found = random.Random(0), Turns(begun=[number * place // PROCESSES for place in range(PROCESSES)])
    for _ in range(number):

        def turn(by: float) -> Turn:
            seconds = (0.02 * by * generator.lognormvariate(0, 0.02),)
            return Turn(seconds, seconds)

        found.pairs.append((turn(1), turn(times)))
        found.alike.append((turn(1), turn(1 + itself)))
    return found


def judged(turns: Turns, spent: float = 1.0, cases: int = 1, **changes: Any) -> Pair:
    """What is said of them, of a case that trains as its base does unless said otherwise."""
    return Timed(trained_pair(record(), record(**changes)), Job(()), cases).judged(turns, spent)


def record(**changes: Any) -> Record:
    """Of a training."""
    return trained(settings={"device": "cpu"}, **changes)


@pytest.mark.parametrize(("times", "verdict"), [(1.0, "equivalent"), (1.06, "slower"), (0.94, "faster")])
def test_turns_are_judged(times: float, verdict: str) -> None:
    """By both clocks; what the base is to itself is shown."""
    pair = judged(turns_of(times))
    assert [measure.name for measure in pair.measures][:2] == ["step time", "processor time"]
    assert pair.verdict == verdict
    assert pair.evidence[-1].startswith("base against itself in the same job: ")


def test_an_early_look_and_many_cases_ask_for_more() -> None:
    """The same turns are enough at the last look at one case, and not at the first, or among thousands."""
    turns = turns_of(1.019)
    assert judged(turns).verdict == "slower"
    assert judged(turns, spent=0.001).verdict == "undecided"
    assert judged(turns, cases=10_000).verdict == "undecided"


def test_a_base_that_differs_from_itself_is_no_measurement() -> None:
    """However clear the difference is: times of such a machine mean something else."""
    pair = judged(turns_of(1.5, itself=0.05))
    assert pair.verdict == "undecided"
    assert "the base differs from itself" in pair.measures[0].reason


@pytest.mark.parametrize(
    ("number", "spent", "verdict"), [(9, 1.0, "equivalent"), (8, 1.0, "undecided"), (11, 0.1, "undecided")]
)
def test_few_turns_say_nothing_however_alike_they_are(number: int, spent: float, verdict: str) -> None:
    """The exact test rejects nothing of so few, and so would an interval of them leave nothing out."""
    turns = Turns([(Turn((0.02,), (0.02,)),) * 2] * number, begun=list(range(PROCESSES)))
    pair = judged(turns, spent)
    assert pair.verdict == verdict
    assert verdict == "equivalent" or "at least" in pair.measures[0].reason


def test_a_faster_side_with_a_worse_loss_is_no_win() -> None:
    """Nor one whose loss is no number, or that crashes: each is a regression, and is not timed."""
    worse = tuple(0.7 + 0.001 * step for step in range(STEPS))
    assert trained_pair(record(), record(steps={"loss": worse})).verdict == "worse loss"
    nan = (0.7, *(math.nan,) * (STEPS - 1))
    assert trained_pair(record(), record(steps={"loss": nan})).verdict == "broken loss"
    assert trained_pair(record(), record(outcome="crashed", reason="ValueError: no")).fails


def test_a_law_that_is_broken_on_both_sides_is_no_regression() -> None:
    """It is said, and times are taken."""
    flat = {"loss": (0.5,) * STEPS}
    pair = trained_pair(record(steps=flat), record(steps=flat))
    assert not pair.fails
    assert pair.evidence == ("broken on both sides: loss_decreases",)


def test_libraries_of_another_version_are_named() -> None:
    """As `harness ab --against-env` compares them: what differs stands beside the verdict."""
    versions = {"torch": "2.13", "transformers": "5.17", "httpx": "0.28"}, {"torch": "2.13", "transformers": "5.23"}
    one, two = (record().model_copy(update={"environment": Environment(versions=each)}) for each in versions)
    assert trained_pair(one, two).evidence == ("httpx: 0.28 to none", "transformers: 5.17 to 5.23")
