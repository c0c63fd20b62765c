"""A live process of one side: trains a case as it is told, a few steps at a time.

    python -m harness.ab.side [--device NAME] PATH...

It talks in lines of JSON, over what were its standard input and output. First it says which cases pytest collects from
the paths, with the project's own configuration and conftest.py, which stays imported. Then it is asked to `train` one
of them as declared, and answers with the record; or to `time` one, and then for `steps`, and answers with the seconds
of each. What `auto` has chosen on one side comes with the request, for both shall compute alike. Between steps it waits
for the next request, and the clock of the step stands still. It ends with its input.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.plan import Case
    from harness.plugin.node import Planned

LEFT_OUT = frozenset({"saved", "resumed", "exploration"})
"""Probes that start another process or search for texts: they take long, and say nothing of a step."""

ENDLESS = 1_000_000
"""Steps of a training that is stopped when enough is known."""


class Stopped(Exception):
    """Nobody asks for more steps."""


class Channel:
    """Lines of JSON from and to who started this process; when that one is gone, so is this process."""

    def __init__(self, incoming: IO[str], outgoing: IO[str]) -> None:
        self._outgoing = outgoing
        self._requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(incoming,), daemon=True).start()

    @classmethod
    def of_this_process(cls) -> Channel:
        """Over the standard streams; what libraries print goes to standard error from now on."""
        incoming, outgoing = (os.fdopen(os.dup(number), mode) for number, mode in ((0, "r"), (1, "w")))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        return cls(incoming, outgoing)

    def ask(self) -> dict[str, Any]:
        """The next request."""
        return self._requests.get()

    def say(self, **answer: Any) -> None:
        """Answer it."""
        self._outgoing.write(json.dumps(answer) + "\n")
        self._outgoing.flush()

    def _listen(self, incoming: IO[str]) -> None:
        for line in incoming:
            self._requests.put(json.loads(line))
        os._exit(0)  # at once, whatever is being trained: nobody is there to hear of it


class Pacer:
    """Lets a training go on by as many steps as it is asked for."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._laps: list[Any] = []
        self._left = 1

    def __call__(self, lap: Any) -> None:
        """A step is over, and this `Lap` is what the clock says of it; after the last that was asked for, wait.

        Raises:
            Stopped: no more are wanted.
        """
        self._laps.append(lap)
        self._left -= 1
        if self._left:
            return
        columns = ("seconds", "processor_seconds", "compile_seconds")
        self._channel.say(**{name: [getattr(each, name) for each in self._laps] for name in columns})
        self._laps.clear()
        self._left = self._channel.ask().get("steps", 0)
        if not self._left:
            raise Stopped


def main(arguments: Sequence[str]) -> None:
    """Say which cases there are, then do what is asked."""
    from harness.errors import HarnessError

    channel = Channel.of_this_process()
    try:
        planned = collect(arguments)
    except HarnessError as error:
        return channel.say(error=str(error))
    channel.say(cases=list(planned.cases), errors=planned.errors)
    while True:
        request = channel.ask()
        if (name := request.get("train", request.get("time"))) is None:
            continue
        case = settle(planned.cases[name], request.get("chosen", {}))
        if "train" in request:
            channel.say(record=train(case, planned.root), modules=imported())
        else:
            channel.say(ended=time(case, planned.root, channel))


def collect(arguments: Sequence[str]) -> Planned:
    """Let pytest collect the cases.

    Raises:
        HarnessError: it cannot.
    """
    import pytest

    from harness.errors import HarnessError
    from harness.plugin.node import Planned

    planned = Planned()
    status = pytest.main(["--collect-only", "-q", *arguments], plugins=[planned])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not planned.errors:
        raise HarnessError(f"pytest cannot collect {' '.join(arguments)}")
    return planned


def settle(case: Case, chosen: Mapping[str, Any]) -> Case:
    """The case with what was chosen, by key of `train`, wherever it says `auto`."""
    train = case.settings.train
    own = {name: value for name, value in chosen.items() if getattr(train, name) == "auto"}
    return replace(case, settings=case.settings.model_copy(update={"train": train.model_copy(update=own)}))


def train(case: Case, root: Path) -> str:
    """The case as declared, with the evidence that laws ask for: its record, as a line."""
    from harness.engines.inline import Inline
    from harness.laws import LAWS

    probes = {probe for law in LAWS if law.axis is None and not law.slow for probe in law.probes}
    engine = Inline(root)
    try:
        return engine.submit(replace(case, probes=frozenset(probes) - LEFT_OUT)).to_json()
    finally:
        engine.close()


def imported() -> list[str]:
    """The files of all modules that are imported, with links followed."""
    modules = [each for each in list(sys.modules.values()) if isinstance(each, ModuleType)]
    files = [vars(each).get("__file__") for each in modules]
    return [os.path.realpath(file) for file in files if isinstance(file, str)]


def time(case: Case, root: Path, channel: Channel) -> str:
    """Train on, at the pace that is asked for; says why it came to an end that nobody asked for."""
    from harness.engines.inline import Inline

    record = Inline(root, pace=Pacer(channel)).submit(endless(case))
    return "" if record.reason.startswith("Stopped") else record.reason or record.outcome


def endless(case: Case) -> Case:
    """The case without an end, and without what is done between steps: evaluations and checkpoints."""
    train = case.settings.train.model_copy(update={"steps": ENDLESS, "epochs": None, "resume_at": None})
    settings = case.settings.model_copy(update={"train": train, "evaluation": None})
    return replace(case, settings=settings, probes=frozenset())


if __name__ == "__main__":
    main(sys.argv[1:])
