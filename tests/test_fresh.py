"""Another process: what happens there knows nothing of what happened here."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel, PreTrainedModel
from trial import CEILINGS, case, save, train

from harness.laws import judge
from harness.training import fresh
from harness.training.checkpoint import Shelf
from harness.training.run import run


@pytest.mark.parametrize("said", [{}, {"peft": {}}], ids=["whole", "adapters"])
def test_what_is_saved_is_loaded_in_another_process(tmp_path: Path, said: dict[str, Any]) -> None:
    """The law of it holds, with adapters and without."""
    found = train(case(save(tmp_path, BertModel), train={"steps": 2}, probes={"saved"}, **said))
    (verdict,) = (one for one in judge(found) if one.law == "save_reload_equal")
    assert verdict.outcome == "held", verdict


def test_nothing_that_was_patched_here_is_known_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that is changed in this process is what the library says in the other."""
    monkeypatch.setattr(PreTrainedModel, "main_input_name", "nothing")
    assert fresh.call(main_input_name) == "input_ids"


def main_input_name() -> str:
    """Of the class as the process knows it."""
    return str(PreTrainedModel.main_input_name)


def fail() -> None:
    """It goes wrong."""
    raise ValueError("no such thing")


def vanish() -> None:
    """The process ends without a word."""
    os._exit(7)


def test_each_call_has_a_process_of_its_own() -> None:
    """Neither this one nor that of the call before."""
    assert len({fresh.call(os.getpid), fresh.call(os.getpid), os.getpid()}) == 3


@pytest.mark.parametrize(("function", "says"), [(fail, "ValueError: no such thing"), (vanish, "exit code 7")])
def test_what_goes_wrong_there_is_said_here(function: Any, says: str) -> None:
    """With its type and text, or the exit code where there is none."""
    with pytest.raises(fresh.Failed, match=says):
        fresh.call(function)


def test_the_server_is_started_before_libraries_are_imported_here() -> None:
    """As it imports them beside this process, and not after it."""
    started = "fresh._LIBRARIES.clear(); fresh.warm_up()"  # which it is to import is no matter here, and takes seconds
    code = f"import sys; from harness.training import fresh; {started}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_no_step_is_timed_while_libraries_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is ready before the first step."""
    happened: list[str] = []
    monkeypatch.setattr(fresh, "wait", lambda: happened.append("ready"))
    wanted = case(save(tmp_path, BertModel), train={"steps": 2}, probes={"saved"})
    run(wanted, shelf=Shelf(ceilings=CEILINGS), root=tmp_path, progress=lambda *_: happened.append("step"))
    assert happened == ["ready", "step", "step"]


def test_a_collator_with_a_seed_works_there() -> None:
    """transformers' takes a process that is not called so for a worker of a loader, and finds none."""
    assert fresh.call(process_name) == "MainProcess"


def process_name() -> str:
    """Of the process that this runs in."""
    return multiprocessing.current_process().name
