"""How long collecting experiments takes, against pytest collecting as many parametrized tests.

Writes experiment files, and test files with the same number of items, into a temporary folder, and lets
`pytest --collect-only -q` collect each in turn, every time in a new process. Both find their bytecode compiled.

    python benchmarks/collect.py --files 1000 --rounds 5
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from measure import Comparison, compiled, environment, rotate
from tabulate import tabulate

TARGET = 1.0

EXPERIMENT = """\
description: The two sentences of the course, both labelled positive.
checkpoint: {{architecture: bert, size: tiny}}
data:
  sequences:
    - I've been waiting for a HuggingFace course my whole life.
    - This course is amazing!
  labels: [1, 1]
train:
  steps: 20
  batch_size: 2
  learning_rate: 5.0e-5
  seed: {number}
matrix:
  train.loop: [custom, trainer]
  precision: [fp32, bf16]
"""
CASES = 4

TESTS = """\
import pytest

cases = pytest.mark.parametrize("case", ["cpu-custom-fp32", "cpu-custom-bf16", "cpu-trainer-fp32", "cpu-trainer-bf16"])
"""
PARAMETRIZED = """

@cases
def test_law_{number}(case):
    assert case
"""
SINGLE = """

def test_agreement_{number}():
    assert True
"""


def main() -> None:
    """Write, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harness-collect-") as name, compiled() as environ:
        ours = Collection(Path(name) / "with-harness", environ)
        plain = Collection(Path(name) / "with-pytest", environ, ("-p", "no:finetune"))
        write_experiments(ours.folder, asked.files)
        items = ours.count()
        write_tests(plain.folder, asked.files, items // asked.files)
        if plain.count() != items:
            raise SystemExit("the test files hold another number of items")
        seconds = rotate({"ours": ours.seconds, "plain": plain.seconds}, asked.rounds)
        imported = ours.heavy_imports()
    print(environment())
    print(f"{asked.files} files, {items} items on each side ({items // asked.files} a file), {asked.rounds} rounds\n")
    comparison = Comparison(seconds["ours"], seconds["plain"])
    print(tabulate([comparison.row("collecting", TARGET)], headers=Comparison.HEADERS, disable_numparse=True))
    print(f"\nimported while collecting experiments: {', '.join(imported) or 'neither torch nor transformers'}")


@dataclass(frozen=True)
class Collection:
    """A folder that pytest collects, in a process of its own each time."""

    folder: Path
    environ: dict[str, str]
    options: tuple[str, ...] = ()

    def seconds(self) -> float:
        """Of the whole process."""
        started = perf_counter()
        self.collect()
        return perf_counter() - started

    def count(self) -> int:
        """How many items there are, from pytest's last line; also compiles what is there to compile."""
        return int(self.collect().strip().splitlines()[-1].split()[0])

    def collect(self) -> str:
        """What `pytest --collect-only -q` prints."""
        return self.python("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *self.options)

    def heavy_imports(self) -> list[str]:
        """Which of torch and transformers a process has imported that has collected."""
        code = (
            "import pytest, sys; pytest.main(['--collect-only', '-qq', '-p', 'no:cacheprovider']);"
            "print(*{'torch', 'transformers'} & set(sys.modules))"
        )
        return self.python("-c", code).splitlines()[-1].split()

    def python(self, *arguments: str) -> str:
        """What Python prints, run in the folder."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environ,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout


def write_experiments(folder: Path, files: int) -> None:
    """Files of four cases each."""
    (folder / "experiments").mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\ndevices = cpu\n")
    for number in range(files):
        text = EXPERIMENT.format(number=number)
        (folder / "experiments" / f"experiment_{number:04}.yaml").write_text(text)


def write_tests(folder: Path, files: int, items: int) -> None:
    """Files of as many tests: four cases of each, and single ones for what does not divide by four."""
    (folder / "tests").mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\n")
    text = TESTS + "".join(PARAMETRIZED.format(number=number) for number in range(items // CASES))
    text += "".join(SINGLE.format(number=number) for number in range(items % CASES))
    for number in range(files):
        (folder / "tests" / f"test_{number:04}.py").write_text(text)


if __name__ == "__main__":
    main()
