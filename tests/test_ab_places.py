"""Where the sides of `harness ab` live: worktrees, processes, environments; and that nothing of them is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_ab import git
from test_compare import trained
from trial import case

from harness.ab import job
from harness.ab.environment import Environments
from harness.ab.job import Job, compare_sides
from harness.ab.process import Live, Side, SideFailed
from harness.ab.revision import Repository
from harness.ab.side import settle
from harness.ab.stopping import stopped_once
from harness.compare import NotComparable
from harness.errors import HarnessError
from harness.report import comparison_text

# Cases


class Scripted:
    """A live side that answers at once; the case b dies in it, c is of another seed in each, and e crashes in base."""

    def __init__(self, side: Side, arguments: object) -> None:
        self.side = side
        self.begun = 1

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def anew(self) -> None:
        """As a new process would."""
        self.begun += 1

    def hear(self) -> dict[str, Any]:
        """The cases."""
        return {"cases": [f"{name}.yaml::cpu-custom" for name in self.side.python.parts], "errors": []}

    def ask(self, **request: Any) -> dict[str, Any]:
        """A training, or steps of one."""
        if "chosen" in request:
            ASKED.append((self.side.name, next(iter(request)), request["chosen"]))
        if "train" in request:
            case = request["train"][0]
            if case == "b":
                raise SideFailed(f"{self.side.name}: its process ended with status -9")
            seed = len(self.side.name) if case == "c" else 1
            crashed = {"outcome": "crashed", "reason": "no"} if case == "e" and self.side.name == "base" else {}
            trained_there = trained(experiment=f"{case}.yaml", settings={"train.seed": seed}, **crashed)
            return {"record": trained_there.to_json(), "modules": []}
        number = request.get("steps", 1)
        columns = ("seconds", "processor_seconds", "compile_seconds")
        return dict.fromkeys(columns[:2], [0.02] * number) | {columns[2]: [0.0] * number} if number else {"ended": ""}


ASKED: list[tuple[str, str, Any]] = []
"""Side, kind and choices of each request of a training."""


def scripted(monkeypatch: pytest.MonkeyPatch, cases: str, **options: Any) -> Any:
    """The comparison of two sides that have these cases, a letter each."""
    monkeypatch.setattr(job, "Live", Scripted)
    base, new = (Side(name, Path(), Path(*cases)) for name in ("base", "new"))
    return compare_sides(base, new, Job(("experiments",), budget=4.0, **options))


def test_a_case_that_cannot_be_compared_does_not_take_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose process dies, one that is not alike and one without a base are named; the others are not lost."""
    found = scripted(monkeypatch, "abcde")
    assert [(pair.case[0], pair.verdict) for pair in found.pairs] == [
        ("a", "equivalent"),
        ("d", "equivalent"),
        ("e", "not compared"),
    ]
    assert [why.partition("\n")[0] for why in found.refused] == [
        "not compared: b.yaml::cpu-custom: base: its process ended with status -9",
        "not compared: c.yaml::cpu-custom: NOT COMPARABLE",
    ]
    assert "5 cases: 2 equivalent, 3 not compared" in comparison_text(found)


def test_where_no_case_can_be_compared_the_first_reason_is_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a job with one case."""
    with pytest.raises(SideFailed, match="status -9"):
        scripted(monkeypatch, "bc")
    with pytest.raises(NotComparable):
        scripted(monkeypatch, "c")


def test_an_axis_that_nobody_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one that waives nothing."""
    with pytest.raises(HarnessError, match=r"--across: found 'trian\.seed', expected .*did you mean 'train\.seed'"):
        scripted(monkeypatch, "ac", across=("trian.seed",))
    assert len(scripted(monkeypatch, "ac", across=("train.seed",)).pairs) == 2


# Worktrees


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With a space in its name, two commits, and a hook that prints and fails."""
    folder = tmp_path / "my prüject"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for name in ("one", "two"):
        (folder / "packages" / name).mkdir(parents=True)
        (folder / "packages" / name / "code.py").write_text("")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", name)
        git(folder, "tag", name)
    hook = folder / ".git" / "hooks" / "post-checkout"
    hook.write_text("#!/bin/sh\necho printed\nexit 1\n")
    hook.chmod(0o755)
    return folder


def worktrees(folder: Path) -> int:
    """How many git knows of beside the project."""
    return len(git(folder, "worktree", "list").splitlines()) - 1


def test_hooks_of_a_checkout_do_not_run(repository: Path) -> None:
    """They are a person's own, and a worktree whose hook fails is no failure."""
    with Repository(repository).checked_out("one") as side:
        assert (side.folder / "packages" / "one" / "code.py").exists()
        assert worktrees(repository) == 1
    assert worktrees(repository) == 0
    assert not side.folder.exists()


def test_a_folder_that_a_revision_lacks_is_named(repository: Path) -> None:
    """Not the place in a temporary folder where it would be; and that is gone."""
    with pytest.raises(HarnessError, match="one: found no folder packages/two in it"):
        Repository(repository / "packages" / "two").checked_out("one").__enter__()
    assert worktrees(repository) == 0


def test_a_shallow_clone_says_so(repository: Path, tmp_path: Path) -> None:
    """As continuous integration makes them."""
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "shallow")
    here = Repository(tmp_path / "shallow")
    for ask in (lambda: here.commit("one"), lambda: here.between("HEAD", "HEAD")):
        with pytest.raises(
            HarnessError, match="; this clone is shallow: git fetch --unshallow, or in CI fetch-depth: 0"
        ):
            ask()


def test_a_worktree_is_gone_when_it_is_stopped_while_git_makes_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a worktree could not be put away: git ends first."""
    slow = repository / "git"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *"worktree add"*) sleep 0.5;; esac\nexec {_git()} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{repository}{os.pathsep}{os.environ['PATH']}")
    stop = threading.Timer(0.25, os.kill, (os.getpid(), signal.SIGINT))
    here = Repository(repository)
    stop.start()
    with pytest.raises(KeyboardInterrupt), stopped_once(), here.checked_out("one"):
        raise AssertionError("it was not stopped")
    assert worktrees(repository) == 0


def _git() -> str:
    return subprocess.run(["sh", "-c", "command -v git"], capture_output=True, text=True, check=True).stdout.strip()


def test_code_of_the_working_tree_is_not_taken_for_that_of_a_revision(repository: Path) -> None:
    """As where a checkout is installed; what git does not track, such as an environment, is not looked at."""
    with Repository(repository).checked_out("one") as side:
        side.check([str(repository / ".venv" / "lib.py"), str(side.folder / "packages" / "one" / "code.py")])
        with pytest.raises(
            HarnessError, match=r"one: .*/packages/one/code.py was imported, which is the working tree's"
        ):
            side.check([str(repository / "packages" / "one" / "code.py")])
    Repository(repository).as_it_is().check([str(repository / "packages" / "one" / "code.py")])


def test_packages_come_from_the_folder_that_the_command_runs_in(repository: Path) -> None:
    """Before those of the root: a repository may hold several projects, each with its `src`."""
    (repository / "packages" / "one" / "src").mkdir()
    side = Repository(repository / "packages" / "one").as_it_is()
    own = [repository / place for place in ("packages/one", "packages/one/src", "")]
    assert side.environment()["PYTHONPATH"].split(os.pathsep)[:3] == list(map(str, own))


# Processes


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Callable[[str], Live]]:
    """A side whose interpreter is a shell script."""
    started: list[Live] = []

    def start(script: str) -> Live:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        started.append(Live(Side("v1", tmp_path, python), []))
        return started[-1]

    yield start
    for each in started:
        each.__exit__()


def test_what_a_side_has_started_ends_with_it(live: Callable[[str], Live], tmp_path: Path) -> None:
    """Workers of a loader or of a compiler, whatever they wait for."""
    side = live('sleep 600 & echo "{\\"worker\\": $!}"; wait')
    worker = side.hear()["worker"]
    side.__exit__()
    wait_until(lambda: not alive(worker))


def test_what_is_printed_before_a_side_begins_is_no_answer(live: Callable[[str], Live]) -> None:
    """A .pth file of an environment may print."""
    assert live('echo hello; echo 1; echo "{\\"cases\\": []}"').hear() == {"cases": []}
    with pytest.raises(SideFailed, match="v1: its process ended with status 3\nno torch"):
        live("echo no torch >&2; exit 3").hear()
    with pytest.raises(SideFailed, match="v1: its process was killed by signal 15"):
        live("kill -TERM $$").hear()


def test_mistakes_are_named_as_in_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not in the worktree that a revision is checked out in, which is gone when they are read."""
    errors = [f"{tmp_path}/experiments/a.yaml:2: found a list, expected text"]
    monkeypatch.setattr(Scripted, "hear", lambda self: {"cases": [], "errors": errors})
    monkeypatch.setattr(job, "Live", Scripted)
    side = Side("v1", tmp_path, Path("python"))
    with pytest.raises(SideFailed, match=r"not valid:\nexperiments/a\.yaml:2: found"):
        compare_sides(side, side, Job(("experiments",)))


def test_what_this_process_finds_is_not_installed_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip would leave out what it finds on this process's path, and the side, which has another path, would lack it."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$PYTHONPATH." >> {tmp_path}/paths; mkdir -p "$3/bin"; cp "$0" "$3/bin/"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "old.txt").write_text("torch\n")
    assert Environments(tmp_path / "kept").python(tmp_path / "old.txt").exists()
    assert (tmp_path / "paths").read_text() == ".\n.\n"


def test_pip_ends_with_who_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it has started, and without a trace in the cache."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/pid; touch "$TMPDIR/left"; wait\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (tmp_path / "old.txt").write_text("torch\n")
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt), stopped_once():
        Environments(tmp_path / "kept").python(tmp_path / "old.txt")
    wait_until(lambda: not alive(int((tmp_path / "pid").read_text())))
    assert list((tmp_path / "kept").iterdir()) == []


def alive(process: int) -> bool:
    """Neither gone nor waiting to be buried."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().split()[2] != "Z"


def wait_until(true: Callable[[], bool]) -> None:
    """Ten seconds at most."""
    for _ in range(200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("waited for ten seconds")


# What `auto` has chosen


def test_what_auto_has_chosen_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement might choose otherwise the next time: both sides, and all turns, compute as the base did."""
    ASKED.clear()
    scripted(monkeypatch, "a")
    settled = job.settled(trained())
    assert ASKED[:2] == [("base", "train", {}), ("new", "train", settled)]
    assert settled == {"packing": True, "compile": True}
    assert {kind for _, kind, _ in ASKED[2:]} == {"time"}
    assert all(chosen == settled for *_, chosen in ASKED[2:])
    auto = {"packing": "auto", "compile": "auto", "keep_memory": False}
    base = trained(settings={"train.packing": True, "train.compile": False, "train.keep_memory": True})
    chosen = job.settled(base)
    assert chosen == {"packing": True, "compile": False, "keep_memory": True}
    made = settle(case(train=auto), chosen).settings.train
    assert (made.packing, made.compile, made.keep_memory) == (True, False, False)
    assert job.settled(trained(settings={f"train.{name}": "auto" for name in auto})) == {}
