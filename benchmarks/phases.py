"""What following the phases of a step costs: steps with it and without it, in turns, in one process.

Both are steps of one training in the custom loop, under the harness's own watch: one is followed, the next is clocked
at both ends alone, and in the next training the other way round. Processor time is compared, too, as others have less
to do with it. The last row has no noise: a step's phases are entered over and over without a step in them.

    python benchmarks/phases.py --rounds 15 --threads 1
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any
from unittest import mock

from measure import Comparison, environment
from overhead import write
from tabulate import tabulate

BAR = 1.01
CLOCKS = ("seconds", "processor_seconds")
WARM_UP = 4
"""Steps of each training that are left out: an even number, as they are taken in pairs."""
TIMES = 20_000
"""How often a step's phases are entered for the last row."""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="of trainings")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that torch may use")
    parser.add_argument("experiments", nargs="*", default=["tiny", "course"])
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    print(environment())
    print(f"{asked.threads} threads, {asked.rounds} rounds\n")
    rows = []
    with tempfile.TemporaryDirectory(prefix="harness-phases-") as folder:
        for name in asked.experiments:
            rows += measure(write(Path(folder), name), asked.rounds)
    print(tabulate(rows, headers=("", "with", "without", *Comparison.HEADERS[3:]), disable_numparse=True))


def measure(file: Path, rounds: int) -> Iterator[list[str]]:
    """A row for each clock, and one for the phases alone."""
    train = training(file)
    found: dict[str, tuple[list[float], list[float]]] = {clock: ([], []) for clock in CLOCKS}
    for number in range(rounds):
        steps = train(number % 2)
        for clock, sides in found.items():
            for place, seconds in enumerate(getattr(steps, clock)[WARM_UP:]):
                sides[(place + number) % 2].append(seconds)
    for clock, (followed, alone) in found.items():
        yield Comparison(followed, alone).row(f"{file.stem}: step, {clock}", BAR)
    own, step = phases_alone(), median(found["processor_seconds"][1])
    yield Comparison([step + own], [step]).row(f"{file.stem}: {1e6 * own:.1f} us of phases", BAR)


def training(file: Path) -> Callable[[int], Any]:
    """Trains the experiment, every other step followed, beginning with the one of that number: the record's steps."""
    from harness import plan
    from harness.experiment import read
    from harness.laws import LAWS
    from harness.training import checkpoint
    from harness.training.run import run
    from harness.training.timing import Lap, StepClock

    experiment = read(file, {law.name: law.options for law in LAWS})
    (case,) = plan.cases(experiment, ["cpu"], root=file.parent.parent)
    shelf = checkpoint.Shelf()
    enter, inside, stop = StepClock.enter, StepClock.inside, StepClock.stop

    def train(first: int) -> Any:
        done = 0

        def follows() -> bool:
            return done % 2 == first

        def maybe_enter(clock: StepClock, phase: Any) -> None:
            if follows():
                enter(clock, phase)

        def maybe_inside(clock: StepClock, phase: Any) -> AbstractContextManager[None]:
            return inside(clock, phase) if follows() else nullcontext()

        def counted(clock: StepClock) -> Lap:
            nonlocal done
            done += 1
            return stop(clock)

        methods = {"enter": maybe_enter, "inside": maybe_inside, "stop": counted}
        with mock.patch.multiple(StepClock, **methods):
            record = run(case, shelf=shelf, root=file.parent.parent)
        if not record.finished:
            raise SystemExit(record.traceback or record.reason)
        return record.steps

    return train


def phases_alone() -> float:
    """Processor time of entering all phases of a step once, and of reading their marks."""
    from harness.training.timing import StepClock

    clock = StepClock(lambda: None)

    def step(*phases: Any) -> float:
        started = process_time()
        for _ in range(TIMES):
            clock._started, clock._made = 0.0, [("other", 0.0)]
            for phase in phases:
                clock.enter(phase)
            if phases:
                with clock.inside("data"), clock.inside("transfer"):
                    pass
            clock._phases(clock._marks.make())
        return (process_time() - started) / TIMES

    return step("forward", "backward", "optimizer", "other") - step()


if __name__ == "__main__":
    main()
