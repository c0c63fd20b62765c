"""Live trials of `harness ab`: equal code, and code that is made slower on purpose by 3 and by 5 percent.

    $ python benchmarks/ab_live.py --trials 20 | tee benchmarks/results/ab_live.txt

Each trial is a whole job of its own, as a user starts it: worktrees of two revisions of a project made for it, two
fresh processes, the case trained as declared and judged, then turns. All revisions have a hook that measures a
whole step, from optimizer to optimizer, by the processor's time; in the slower ones it then keeps the processor busy
for that share of it. The kinds of trial take turns, so that all see the same machine. Of equal code, an alarm is false
in either direction. What was found is kept in a journal as it comes; a run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, stdev
from time import perf_counter, time_ns

from measure import environment
from tabulate import tabulate

from harness.ab.job import Job, compare_sides
from harness.ab.revision import Repository

ROOT = Path(__file__).parent.parent
EXPERIMENTS = {"tiny": "experiments/tiny.yaml", "MiniLM": "experiments/course.yaml"}
SLOWER = {"equal": 0.0, "slower-3": 0.03, "slower-5": 0.05}
CONFTEST = """
from time import process_time

from torch.optim.optimizer import register_optimizer_step_post_hook

SHARE = {share}
last = [None, 0.0]


def end(optimizer, *arguments):
    now = process_time()
    if last[0] == id(optimizer):
        until = now + SHARE * (now - last[1])
        while process_time() < until:
            pass
    last[:] = id(optimizer), process_time()


register_optimizer_step_post_hook(end)
"""


def main() -> None:
    """Trials until there are enough of each kind, or the time is over; then what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", choices=EXPERIMENTS, default="tiny", help="(%(default)s)")
    parser.add_argument("--trials", type=int, default=20, help="of each kind (%(default)s)")
    parser.add_argument("--budget", type=float, default=120, help="seconds of turns a trial at most (%(default)g)")
    parser.add_argument("--minutes", type=float, default=600, help="in which a trial may begin (%(default)g)")
    parser.add_argument("--journal", type=Path, help="where what was found is kept, and what is there goes on from")
    options = parser.parse_args()
    end = perf_counter() + 60 * options.minutes
    found = _read(options.journal)
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder), options.workload)
        for _ in range(options.trials):
            for kind in SLOWER:
                if sum(each["kind"] == kind for each in found) < options.trials and perf_counter() < end:
                    found.append(trial(project, kind, options))
                    _keep(options.journal, found[-1])
    print(environment())
    print(f"{options.workload}, at most {options.budget:g} seconds of turns a trial, both sides together\n")
    print(table(found))


def make_project(folder: Path, workload: str) -> Path:
    """A repository with a tag for each kind of revision."""
    experiments = folder / "experiments"
    experiments.mkdir()
    shutil.copy(ROOT / EXPERIMENTS[workload], experiments)
    (folder / "pytest.ini").write_text("[pytest]\ndevices = cpu\naddopts = -p no:hypothesispytest\n")
    _git(folder, "init", "-q")
    for tag, share in {"base": 0.0, **SLOWER}.items():
        (folder / "conftest.py").write_text(CONFTEST.format(share=share))
        _git(folder, "add", ".")
        _git(folder, "commit", "-q", "--allow-empty", "-m", tag)
        _git(folder, "tag", tag)
    return folder


def trial(project: Path, kind: str, options: argparse.Namespace) -> dict[str, object]:
    """One job: what it says, and what it took."""
    began, repository = perf_counter(), Repository(project)
    job = Job(("experiments",), options=("-k", "custom", "--device=cpu"), budget=options.budget, seed=time_ns())
    with repository.checked_out("base") as base, repository.checked_out(kind) as new:
        (pair,) = compare_sides(base, new, job).pairs
    times = {one.name: one.shift for one in pair.measures if one.shift is not None}
    return {
        "kind": kind,
        "verdict": pair.verdict,
        "ratios": {name: [each.ratio, each.low, each.high, each.turns] for name, each in times.items()},
        "evidence": pair.evidence,
        "load": os.getloadavg()[0],
        "seconds": perf_counter() - began,
    }


def table(found: Sequence[dict]) -> str:
    """A line for each kind of trial."""
    rows = []
    for kind in SLOWER:
        trials = [each for each in found if each["kind"] == kind]
        verdicts = [each["verdict"] for each in trials]
        row = [kind, len(trials), *(verdicts.count(one) for one in ("slower", "faster", "equivalent", "undecided"))]
        for clock in ("step time", "processor time"):
            ratios = [each["ratios"][clock][0] - 1 for each in trials if clock in each["ratios"]]
            row.append(f"{median(ratios):+.1%} +- {stdev(ratios):.1%}" if len(ratios) > 1 else "-")
        loads, seconds = [each["load"] for each in trials], [each["seconds"] for each in trials]
        row += [f"{min(loads):.1f} to {max(loads):.1f}", f"{median(seconds):.0f}"] if trials else ["-", "-"]
        rows.append(row)
    verdicts = ["slower", "faster", "equivalent", "undecided"]
    return tabulate(rows, headers=["code", "trials", *verdicts, "step time", "processor time", "load", "seconds"])


def _read(journal: Path | None) -> list[dict]:
    if journal is None or not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


def _keep(journal: Path | None, found: dict) -> None:
    if journal is not None:
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def _git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    main()
