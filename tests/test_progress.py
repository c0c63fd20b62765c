"""The progress line: it shows a step, vanishes, and leaves pytest's own output as it was."""

import os
import re
import signal
import sys
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
from fake_engine import case
from project import Project

from harness.progress import INTERVAL, ProgressLine

pexpect = pytest.importorskip("pexpect")

CODES = re.compile(r"\x1b(?:\[(?P<arguments>[?0-9;]*)(?P<letter>[A-Za-z])|(?P<single>[78]))|(?P<text>.)", re.DOTALL)


class Screen:
    """As much of a terminal as pytest and the progress line need: what it shows after all that was written."""

    def __init__(self, columns: int = 80) -> None:
        self.lines: list[list[str]] = [[]]
        self.columns = columns
        self.row = self.column = 0
        self.saved = (0, 0)
        self.wraps = True

    def write(self, text: str) -> "Screen":
        """Take characters and control sequences; an unknown sequence is an error."""
        for match in CODES.finditer(text):
            if match["text"]:
                self._character(match["text"])
            elif match["single"] == "7":
                self.saved = (self.row, self.column)
            elif match["single"] == "8":
                self.row, self.column = self.saved
            elif match["letter"] == "K" and not match["arguments"]:
                del self.lines[self.row][self.column :]
            elif match["arguments"] == "?7":
                self.wraps = match["letter"] == "h"
            else:
                assert match["letter"] == "m", match[0]
        return self

    def _character(self, character: str) -> None:
        if character == "\n":
            self.row += 1
        elif character == "\r":
            self.column = 0
        else:
            if self.column == self.columns:
                if self.wraps:
                    self.row, self.column = self.row + 1, 0
                else:
                    self.column -= 1
            while len(self.lines) <= self.row:
                self.lines.append([])
            line = self.lines[self.row]
            line.extend(" " * (self.column + 1 - len(line)))
            line[self.column] = character
            self.column += 1
        while len(self.lines) <= self.row:
            self.lines.append([])

    def __str__(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines)


# The line


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, as the progress line sees it."""
    now = [100.0]
    monkeypatch.setattr("harness.progress.monotonic", lambda: now[0])
    return now


def test_the_line_is_behind_what_is_there(time: list[float]) -> None:
    """It shows case, step, loss and rate; what was on the screen and the cursor stay where they are."""
    terminal = StringIO()
    terminal.write("experiments/a.yaml ..")

    ProgressLine(terminal)(case(), 3, 20, 0.6931471, 41.7)

    screen = Screen().write(terminal.getvalue())
    assert str(screen) == "experiments/a.yaml .. cpu: step 3/20, loss 0.6931, 42 samples/s"
    assert str(screen.write("F")).startswith("experiments/a.yaml ..Fcpu: ")


def test_the_last_step_takes_the_line_away(time: list[float]) -> None:
    """After the last step only what was there before is there."""
    terminal = StringIO()
    line = ProgressLine(terminal)
    terminal.write("before")

    for step in range(1, 21):
        time[0] += 1
        line(case(), step, 20, 0.5, 1.0)

    assert terminal.getvalue().count("step ") == 19
    assert str(Screen().write(terminal.getvalue())) == "before"


def test_a_shorter_line_leaves_nothing_of_a_longer_one(time: list[float]) -> None:
    """The rest of the line before it is cleared."""
    terminal = StringIO()
    line = ProgressLine(terminal)

    line(case(), 999, 1000, 123.4, 99999.0)
    time[0] += 1
    line(case(), 1, 9, 0.5, 1.0)

    assert str(Screen().write(terminal.getvalue())) == " cpu: step 1/9, loss 0.5000, 1 samples/s"


def test_a_long_line_does_not_wrap(time: list[float]) -> None:
    """At the edge of the terminal it is cut: a second line could not be taken back."""
    terminal = StringIO()
    line = ProgressLine(terminal)
    terminal.write("x" * 70)

    line(case(), 3, 20, 0.5, 1.0)
    assert str(Screen(80).write(terminal.getvalue())).count("\n") == 0
    line.clear()

    assert str(Screen(80).write(terminal.getvalue())) == "x" * 70


def test_fast_steps_are_not_all_shown(time: list[float]) -> None:
    """Within the interval one line is written, however many steps there are."""
    terminal = StringIO()
    line = ProgressLine(terminal)

    for step in range(1, 100):
        line(case(), step, 1000, 0.5, 1.0)
    time[0] += 1.5 * INTERVAL
    line(case(), 100, 1000, 0.5, 1.0)

    assert re.findall(r"step (\d+)/", terminal.getvalue()) == ["1", "100"]


def test_a_loss_that_is_no_number_is_shown(time: list[float]) -> None:
    """NaN in loss or rate is text like any other."""
    terminal = StringIO()

    ProgressLine(terminal)(case(), 1, 2, float("nan"), float("nan"))

    assert "loss nan, nan samples/s" in terminal.getvalue()


def test_without_a_terminal_nothing_is_written() -> None:
    """A process without one has a line that does nothing, before and after it is closed."""
    line = ProgressLine(None)

    line(case(), 1, 2, 0.5, 1.0)
    line.clear()
    line.close()


# On a real terminal, with real training

TINY = """\
checkpoint: {architecture: bert, size: tiny}
data: {sequences: [good enough, bad], labels: [1, 0]}
invariants: {loss_decreases: false}
"""
FEW, MANY = 60, 1_000_000


def test_on_a_terminal_the_line_appears_and_vanishes_and_ctrl_c_stops(project: Project) -> None:
    """While a case trains its steps are shown; pytest's output is as without them; Ctrl-C ends the run with a report.

    The interrupted case leaves a record of what it saw, and the case before it is whole.
    """
    (project.path / "conftest.py").unlink()
    project.write("experiments/a.yaml", f"{TINY}train: {{steps: {FEW}}}\nbenchmark: {{warmup_steps: 1}}\n")
    project.write("experiments/b.yaml", f"{TINY}train: {{steps: {MANY}}}\n")

    arguments = ["-m", "pytest", "experiments", "-k", "trains or loss_finite", "--color=no"]
    child = pexpect.spawn(
        sys.executable,
        arguments,
        cwd=project.path,
        # Threads that wait for each other take many times as long where others use the processor too.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        encoding="utf-8",
        timeout=120,
        dimensions=(50, 80),
        # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    output = StringIO()
    child.logfile_read = output
    child.expect(rf"cpu: step \d+/{MANY}, loss \d\.\d+, \d+ samples/s")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()

    assert child.exitstatus == 2
    assert re.search(rf"cpu: step \d+/{FEW}, ", output.getvalue())
    shown = str(Screen(80).write(output.getvalue()))
    assert "step " not in shown.replace("^C", "").partition("KeyboardInterrupt")[0]
    assert re.search(r"^experiments/a.yaml \.\.  +\[ 50%\]$", shown, re.MULTILINE)
    assert re.search(r"^experiments/a.yaml::cpu +\d+ held", shown, re.MULTILINE)
    finished, interrupted = project.records()
    assert (finished["outcome"], interrupted["outcome"]) == ("finished", "interrupted")
    assert len(finished["steps"]["loss"]) == FEW
    assert 0 < len(interrupted["steps"]["loss"]) < MANY


def test_no_line_where_stdout_is_no_terminal(project: Project) -> None:
    """Into a file or a pipe nothing but pytest's own output is written, though the process has a terminal."""
    project.engine(more="def pytest_harness_engine(config): return None\n")
    project.write("fake_run.py", FAKE_RUN)
    project.write("conftest.py", "import fake_run\n")
    project.experiment()
    script = f"{sys.executable} -m pytest experiments -k trains {{}}; echo status $?"

    for redirection, shows in (("", True), ("| cat", False), ("> out.txt", False), ("-p no:terminal", False)):
        child = pexpect.spawn("sh", ["-c", script.format(redirection)], cwd=project.path, encoding="utf-8", timeout=60)
        child.expect(pexpect.EOF)

        assert "status 0" in child.before
        assert ("step 1/8" in child.before) == shows


FAKE_RUN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from types import ModuleType
from fake_engine import finished

def run(case, *, progress, **arguments):
    if progress is not None:
        progress(1, 8, 0.5, 40.0)
    return finished(case)

def put(name, content):
    module = sys.modules[f"harness.training.{{name}}"] = ModuleType(name)
    vars(module).update(content)

put("run", {{"run": run}})
put("checkpoint", {{"Shelf": type("Shelf", (), {{"clear": print}})}})
"""
