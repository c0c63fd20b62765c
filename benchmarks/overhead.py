"""What the harness costs beside a plain script that trains the same.

Processes: `pytest EXPERIMENT` against `python plain.py EXPERIMENT`, from start to end, in turn. Both read the same
file, load the same checkpoint, and take the same steps; their losses are compared, so that it is the same work.
Laws that only read the record are held to the bar; some need probes, which do more work, and that is shown beside it.

Steps: the seconds that the record gives for the custom loop's steps against those of the plain loop, in one process,
a step of one and a step of the other in turn; also with what the harness does between steps to collect evidence.

    python benchmarks/overhead.py --rounds 7 --threads 1
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from measure import Comparison, adopt_orphans, compiled, environment, processor_seconds, rotate, wait_for_orphans
from tabulate import tabulate

HERE = Path(__file__).parent
PROCESS, STEP, EVERY_LAW = 1.15, 1.02, 2.0
WARM_UP = 3
"""Steps of each loop that are left out."""
NOT_OURS = ["-p", "no:hypothesispytest", "-p", "no:xdist"]
"""Plugins that come with the tests of the harness, not with the harness."""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of processes")
    parser.add_argument("--loops", type=int, default=5, help="in one process, for the steps")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that torch may use")
    parser.add_argument("experiments", nargs="*", default=["course", "sentiment"])
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    adopt_orphans()
    print(environment())
    print(f"{asked.threads} threads, {asked.rounds} rounds of processes, steps of {asked.loops} loops\n")
    rows = []
    with tempfile.TemporaryDirectory(prefix="harness-overhead-") as name, compiled() as environ:
        for row in measure(Path(name), environ, asked):
            print(*row, file=sys.stderr, flush=True)  # all of it takes minutes
            rows.append(row)
    print(tabulate(rows, headers=Comparison.HEADERS, disable_numparse=True))


def measure(folder: Path, environ: Mapping[str, str], asked: argparse.Namespace) -> Iterator[list[str]]:
    """A row at a time."""
    for experiment in asked.experiments:
        file = write(folder, experiment)
        for what, laws, bar in selections():
            whole, busy = processes(file, environ, asked.rounds, laws)
            yield whole.row(f"{experiment}: process, {what}", bar)
            yield busy.row(f"{experiment}: the same, processor time", None)
        bare, watched = steps(file, asked.loops)
        yield bare.row(f"{experiment}: step", STEP)
        yield watched.row(f"{experiment}: step and its evidence", None)


def selections() -> list[tuple[str, str, float | None]]:
    """What pytest selects with `-k`, and the bar for it."""
    from harness.laws import LAWS

    reading = [law.name for law in LAWS if not law.probes]
    selected = [("laws that read the record", " or ".join([*reading, "step_throughput"]), PROCESS)]
    return selected if len(reading) == len(LAWS) else [*selected, ("every law", "", EVERY_LAW)]


def write(folder: Path, name: str) -> Path:
    """A shipped experiment as one case: the custom loop on the CPU."""
    said = yaml.safe_load((HERE.parent / "experiments" / f"{name}.yaml").read_text())
    said.pop("matrix", None)
    said["train"]["loop"] = "custom"
    said["train"]["learning_rate"] = float(said["train"]["learning_rate"])
    (folder / "experiments").mkdir(exist_ok=True)
    (folder / "pytest.ini").write_text("[pytest]\ndevices = cpu\n")
    file = folder / "experiments" / f"{name}.yaml"
    file.write_text(yaml.safe_dump(said))
    return file


# Processes


def processes(file: Path, environ: Mapping[str, str], rounds: int, laws: str) -> tuple[Comparison, Comparison]:
    """Whole processes, after one of each that is not counted: from start to end, and the time that processors spent,
    which says more where other work was done beside it.
    """
    options = [*NOT_OURS, "-q", "-p", "no:cacheprovider", "-k", laws]
    ours = Process(["-m", "pytest", *options, str(file)], file, environ)
    plain = Process([str(HERE / "plain.py"), str(file)], file, environ)
    ours.run()
    expected = [float(loss) for loss in plain.run().split()]
    found = losses(file.parent.parent)
    if len(found) != len(expected) or any(abs(a - b) > 1e-4 for a, b in zip(found, expected, strict=True)):
        raise SystemExit(f"{file.stem}: the two do not train alike\n{found}\n{expected}")
    both = rotate({"ours": ours.seconds, "plain": plain.seconds}, rounds)
    (whole, busy), (plain_whole, plain_busy) = (zip(*both[name], strict=True) for name in ("ours", "plain"))
    return Comparison(whole, plain_whole), Comparison(busy, plain_busy)


@dataclass(frozen=True)
class Process:
    """A Python process in the folder of an experiment."""

    arguments: Sequence[str]
    file: Path
    environ: Mapping[str, str]

    def seconds(self) -> tuple[float, float]:
        """From start to end; and of processors, with those of the processes that it left behind."""
        spent, started = processor_seconds(), perf_counter()
        self.run()
        took = perf_counter() - started
        wait_for_orphans()
        return took, processor_seconds() - spent

    def run(self) -> str:
        """What it prints."""
        done = subprocess.run(
            [sys.executable, *self.arguments],
            cwd=self.file.parent.parent,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return done.stdout


def losses(folder: Path) -> list[float]:
    """Of the newest record."""
    newest = max((folder / "reports" / "records").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    return [float(loss) for loss in json.loads(newest.read_text().splitlines()[-1])["steps"]["loss"]]


# Steps


def steps(file: Path, loops: int) -> tuple[Comparison, Comparison]:
    """Seconds of steps of both loops, without the harness's evidence between the steps and with it."""
    import plain  # not above, where it would import torch before the number of threads is known

    from harness import plan
    from harness.experiment import read
    from harness.laws import LAWS
    from harness.training import checkpoint
    from harness.training.run import run

    experiment = read(file, {law.name: law.options for law in LAWS})
    (case,) = plan.cases(experiment, ["cpu"], root=file.parent.parent)
    loaded, shelf = checkpoint.load(case.settings), checkpoint.Shelf()
    said = yaml.safe_load(file.read_text())
    ours: list[float] = []
    watched: list[float] = []
    plainly: list[float] = []
    for _ in range(loops):
        others = plain.train(copy.deepcopy(loaded.model), loaded.tokenizer, said)
        took: list[float] = []

        def take_turns(*progress: Any, others: Iterator[Any] = others, took: list[float] = took) -> None:
            started = perf_counter()
            next(others).item()
            took.append(perf_counter() - started)

        record = run(case, shelf=shelf, root=file.parent.parent, progress=take_turns)
        if not record.finished:
            raise SystemExit(record.traceback or record.reason)
        found = record.steps
        whole = map(sum, zip(found.seconds, found.watching_seconds, strict=True))
        ours += found.seconds[WARM_UP:]
        watched += [seconds - other for seconds, other in zip(whole, took, strict=True)][WARM_UP:]
        plainly += took[WARM_UP:]
    return Comparison(ours, plainly), Comparison(watched, plainly)


if __name__ == "__main__":
    main()
