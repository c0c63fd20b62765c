"""Step times of real trainings, round after round: what `verdicts.py` judges.

    $ python benchmarks/traces.py --minutes 60

Two workloads take turns for ten seconds each: `experiments/tiny.yaml`, whose steps take milliseconds, and
`experiments/course.yaml`, a pretrained MiniLM, whose steps take tenths of a second. A round is one training in the
harness's own custom loop, from fresh weights; after every eighth the process is another one.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, time

ROOT = Path(__file__).parent.parent
TRACES = ROOT / "benchmarks" / "results" / "traces.jsonl.xz"
EXPERIMENTS = {"tiny": "experiments/tiny.yaml", "MiniLM": "experiments/course.yaml"}
SECONDS = 10.0
"""Of a round."""
ROUNDS = 8
"""Of one process."""
WARM_UP = 3
"""First steps of a round that are left out."""


@dataclass(frozen=True)
class Round:
    """One training."""

    workload: str
    started: float
    """Seconds since 1970."""
    load: float
    """Processes that wanted a processor when it began, over a minute."""
    wall: tuple[float, ...]
    """Seconds of each step by the clock on the wall, the warm-up left out."""
    processor: tuple[float, ...]
    """Seconds that the process had a processor in it."""


def read(path: Path = TRACES) -> list[Round]:
    """What was recorded, in order."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [
        Round(
            line["workload"],
            line["started"],
            line["load"],
            tuple(each / 1e6 for each in line["wall_microseconds"][WARM_UP:]),
            tuple(each / 1e6 for each in line["processor_microseconds"][WARM_UP:]),
        )
        for line in lines
    ]


def main() -> None:
    """Processes one after the other, until the time is up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="of both workloads together (%(default)g)")
    parser.add_argument("--output", type=Path, default=TRACES, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds:
        return record(options.output, options.rounds)
    options.output.unlink(missing_ok=True)
    end = time() + options.minutes * 60
    while time() < end:
        command = [sys.executable, __file__, "--output", str(options.output), "--rounds", str(ROUNDS)]
        subprocess.run(command, cwd=ROOT, check=True)
    with lzma.open(options.output) as file:
        whole = file.read()
    options.output.write_bytes(lzma.compress(whole, preset=9))  # one stream instead of one a round
    return None


def record(output: Path, rounds: int) -> None:
    """Rounds of this process, a line each, the workloads in turn."""
    from harness import plan
    from harness.experiment import read
    from harness.laws import LAWS
    from harness.training import checkpoint
    from harness.training.run import run

    laws = {law.name: law.options for law in LAWS}
    shelf = checkpoint.Shelf()
    for number in range(rounds):
        name = list(EXPERIMENTS)[number % len(EXPERIMENTS)]
        (case, *_) = plan.cases(read(ROOT / EXPERIMENTS[name], laws), ["cpu"], root=ROOT, override=True)
        train = case.settings.train.model_copy(update={"steps": 100_000})
        case = replace(case, settings=case.settings.model_copy(update={"train": train}))
        began, load = time(), os.getloadavg()[0]
        found = run(case, shelf=shelf, root=ROOT, progress=_until(SECONDS))
        line = {
            "workload": name,
            "started": round(began, 1),
            "load": round(load, 2),
            "wall_microseconds": [round(second * 1e6) for second in found.steps.seconds],
            "processor_microseconds": [round(second * 1e6) for second in found.steps.processor_seconds],
        }
        with lzma.open(output, "at", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


def _until(seconds: float) -> Callable[[int, int, float, float], None]:
    """A progress that stops the training when the time is over; what was seen until then is in the record."""
    first: list[float] = []

    def stop(step: int, steps: int, loss: float, rate: float) -> None:
        first.append(perf_counter())
        if first[-1] - first[0] > seconds:
            raise TimeoutError("the round is over")

    return stop


if __name__ == "__main__":
    main()
