"""What the harness costs beside a plain script that trains the same.

Processes: `pytest EXPERIMENT` against `python plain.py EXPERIMENT`, from start to end, in turn. Both read the same file,
load the same checkpoint, and take the same steps; their losses are compared, so that it is the same work.

Steps: the seconds that the record gives for the custom loop's steps against those of the plain loop, in turn, in one
process; also with the time that the harness takes between steps for evidence, which no step contains.

    python benchmarks/overhead.py --rounds 7 --threads 1
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import yaml
from measure import Comparison, compiled, environment, rotate
from tabulate import tabulate

HERE = Path(__file__).parent
PROCESS, STEP = 1.15, 1.02
WARM_UP = 3
"""Steps that are left out."""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of processes")
    parser.add_argument("--step-rounds", type=int, default=20, help="of loops in one process")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that torch may use")
    parser.add_argument("--laws", default="", help="what pytest selects with -k; nothing: every law")
    parser.add_argument("experiments", nargs="*", default=["course", "sentiment"])
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    print(environment())
    laws = f"laws: {asked.laws}" if asked.laws else "every law"
    print(f"{asked.threads} threads, {asked.rounds} rounds of processes, {asked.step_rounds} of steps, {laws}\n")
    rows = []
    with tempfile.TemporaryDirectory(prefix="harness-overhead-") as name, compiled() as environ:
        for experiment in asked.experiments:
            file = write(Path(name), experiment)
            rows.append(processes(file, environ, asked.rounds, asked.laws).row(f"{experiment}: process", PROCESS))
            bare, watched = steps(file, asked.step_rounds)
            rows.append(bare.row(f"{experiment}: step", STEP))
            rows.append(watched.row(f"{experiment}: step and its evidence", math.inf))
    print(tabulate(rows, headers=Comparison.HEADERS, disable_numparse=True))


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


def processes(file: Path, environ: Mapping[str, str], rounds: int, laws: str) -> Comparison:
    """Whole processes, after one of each that is not counted."""
    ours = Process(["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", laws, str(file)], file, environ)
    plain = Process([str(HERE / "plain.py"), str(file)], file, environ)
    ours.run()
    expected = [float(loss) for loss in plain.run().split()]
    found = losses(file.parent.parent)
    if len(found) != len(expected) or not all(map(math.isclose, found, expected, [1e-3] * len(found))):
        raise SystemExit(f"{file.stem}: the two do not train alike\n{found}\n{expected}")
    seconds = rotate({"ours": ours.seconds, "plain": plain.seconds}, rounds)
    return Comparison(seconds["ours"], seconds["plain"])


@dataclass(frozen=True)
class Process:
    """A Python process in the folder of an experiment."""

    arguments: Sequence[str]
    file: Path
    environ: Mapping[str, str]

    def seconds(self) -> float:
        """From start to end."""
        started = perf_counter()
        self.run()
        return perf_counter() - started

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


def steps(file: Path, rounds: int) -> tuple[Comparison, Comparison]:
    """Seconds a step of both loops, without the harness's evidence between the steps and with it."""
    import plain  # not above, where it would import torch before the number of threads is known

    from harness import plan
    from harness.experiment import read
    from harness.laws import LAWS
    from harness.training import checkpoint, devices, run, workload
    from harness.training.loops import LOOPS

    experiment = read(file, {law.name: law.options for law in LAWS})
    (case,) = plan.cases(experiment, ["cpu"], root=file.parent.parent)
    loaded = checkpoint.load(case.settings)
    said = yaml.safe_load(file.read_text())
    watched: list[float] = []

    def ours() -> float:
        work = workload.prepare(loaded, case.settings, devices.find("cpu"))
        watch = run._watch(loaded, work, None)
        try:
            LOOPS["custom"](work, watch)
        finally:
            watch.close()
        found = watch.steps()
        watched.append(median(map(sum, zip(found.seconds, found.watching_seconds, strict=True))))
        return median(found.seconds[WARM_UP:])

    def plainly() -> float:
        ends = [perf_counter()]
        plain.train(copy.deepcopy(loaded.model), loaded.tokenizer, said, lambda loss: ends.append(end_of(loss)))
        return median(after - before for before, after in zip(ends[WARM_UP:-1], ends[WARM_UP + 1 :], strict=True))

    ours(), plainly()
    watched.clear()
    seconds = rotate({"ours": ours, "plain": plainly}, rounds)
    return Comparison(seconds["ours"], seconds["plain"]), Comparison(watched, seconds["plain"])


def end_of(loss: Any) -> float:
    """The time at which its value is known."""
    loss.item()
    return perf_counter()


if __name__ == "__main__":
    main()
