"""`harness export`: the formats of github-action-benchmark and of Bencher, and records that have no figures."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from records import HEALTHY, record
from test_compare import HERE, STEPS, trained

from harness.__main__ import main
from harness.record import Record

Harness = Callable[..., tuple[int, str, str]]

# As bencher.dev publishes it: https://bencher.dev/bmf.json; additionalProperties are refused beyond that.
NUMBER = {"type": "number"}
METRIC = {
    "type": "object",
    "properties": {"value": NUMBER, "lower_value": NUMBER, "upper_value": NUMBER},
    "required": ["value"],
    "additionalProperties": False,
}
BMF = {
    "type": "object",
    "patternProperties": {".+": {"type": "object", "patternProperties": {".+": METRIC}}},
}

# `BenchmarkResult` in src/extract.ts of github-action-benchmark.
TEXT = {"type": "string", "minLength": 1}
ENTRIES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": TEXT, "unit": TEXT, "value": NUMBER, "range": TEXT, "extra": TEXT},
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Harness:
    """Exports records in a folder of their own: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["export", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def write(*records: Record, torn: str = "") -> str:
    """A file of records."""
    Path("some.jsonl").write_text("".join(f"{one.to_json()}\n" for one in records) + torn)
    return "some.jsonl"


def exported(harness: Harness, *records: Record, format: str = "bencher", more: tuple[str, ...] = ()) -> Any:
    """What is exported of them, in its schema, with nothing to say about it."""
    status, out, err = harness(write(*records), "--format", format, *more)
    assert (status, err) == (0, "")
    found = json.loads(out)
    jsonschema.validate(found, BMF if format == "bencher" else ENTRIES)
    return found


SECONDS = (9.0, 9.0, 9.0, *(0.5, 0.25, 1.0) * 10)


def plain(times: float = 1.0) -> Record:
    """Two samples and eight tokens in half a second, between a quarter and a whole one, after a warm-up of three."""
    count = len(SECONDS)
    columns = {
        **{name: (number,) * count for name, number in (("samples", 2), ("real_tokens", 8), ("padded_tokens", 12))},
        "seconds": tuple(times * each for each in SECONDS),
        "loss": (0.5, *(0.25,) * (count - 1)),
        "compile_seconds": (0.0,) * count,
        "processor_seconds": (),
    }
    return record(trained(), settings={"train.steps": count}, steps=columns)


PLAIN = plain()


def test_bencher(harness: Harness) -> None:
    """Every figure of a case under its name; the lowest and the highest step beside the median."""
    assert exported(harness, PLAIN) == {
        PLAIN.name: {
            "samples-per-second": {"value": 4.0, "lower_value": 2.0, "upper_value": 8.0},
            "tokens-per-second": {"value": 16.0, "lower_value": 8.0, "upper_value": 32.0},
            "latency": {"value": 5e8, "lower_value": 2.5e8, "upper_value": 1e9},
            "last-loss": {"value": 0.25},
            "peak-memory": {"value": 400.0 * 2**20},
        }
    }


def test_github_action_benchmark(harness: Harness) -> None:
    """A file has one direction: rates, or what should be small."""
    bigger = exported(harness, PLAIN, format="github-action-benchmark")
    assert bigger == exported(harness, PLAIN, format="github-action-benchmark", more=("--better", "bigger"))
    assert bigger == [
        {"name": f"{PLAIN.name} samples-per-second", "unit": "samples/s", "value": 4.0, "range": "2 to 8"},
        {"name": f"{PLAIN.name} tokens-per-second", "unit": "tokens/s", "value": 16.0, "range": "8 to 32"},
    ]
    assert exported(harness, PLAIN, format="github-action-benchmark", more=("--better", "smaller")) == [
        {"name": f"{PLAIN.name} latency", "unit": "ns", "value": 5e8, "range": "2.5e+08 to 1e+09"},
        {"name": f"{PLAIN.name} last-loss", "unit": "loss", "value": 0.25},
        {"name": f"{PLAIN.name} peak-memory", "unit": "bytes", "value": 400.0 * 2**20},
    ]


def test_runs_of_a_case_are_one_figure(harness: Harness) -> None:
    """The median of the runs, and the lowest and highest step of all of them."""
    found = exported(harness, PLAIN, plain(times=4.0))[PLAIN.name]
    assert found["tokens-per-second"] == {"value": 10.0, "lower_value": 2.0, "upper_value": 32.0}
    assert found["last-loss"] == {"value": 0.25, "lower_value": 0.25, "upper_value": 0.25}


def test_two_machines_are_two_cases(harness: Harness) -> None:
    """Figures of one case on several machines are never mixed: their names say where they are of."""
    other = HERE.model_copy(update={"device": "NVIDIA H100"})
    found = exported(harness, PLAIN, record(PLAIN, environment=other))
    assert set(found) == {f"{PLAIN.name} (Abacus 9)", f"{PLAIN.name} (NVIDIA H100, Abacus 9)"}


def test_what_has_no_figure_is_named(harness: Harness) -> None:
    """NaN is no JSON, a crash and a single step have no rates: they are left out, and why is said."""
    diverged = record(PLAIN, case="nan", steps={"loss": (0.5, *(math.nan,) * (len(SECONDS) - 1))})
    crashed = record(PLAIN, case="crashed", outcome="crashed", reason="ValueError: no")
    single = record(trained(), case="single", settings={"benchmark.warmup_steps": STEPS - 1})
    newer = json.dumps({"format": 99}) + "\n"
    path = write(diverged, crashed, single, torn=newer + PLAIN.to_json()[:300])
    status, out, err = harness(path, "--format", "bencher")
    assert status == 0
    found = json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert {name.partition("::")[2]: set(measures) for name, measures in found.items()} == {
        "nan": {"samples-per-second", "tokens-per-second", "latency", "peak-memory"},
        "single": {"last-loss", "peak-memory"},
    }
    said = err.splitlines()
    assert said[:2] == [
        "some.jsonl:4: record of format 99, this harness reads up to 1; upgrade pytest-finetune",
        "some.jsonl:5: torn line, expected a record",
    ]
    assert said[2] == "experiments/a.yaml::crashed: crashed: ValueError: no"
    assert said[3] == "experiments/a.yaml::nan: the last loss is not finite, and no number in JSON"
    assert said[4].startswith("experiments/a.yaml::single: throughput is invalid: 1 timed step after")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: "none.jsonl",
            "none.jsonl: cannot be read: No such file or directory\nnone.jsonl: no figures to export",
        ),
        (lambda: Path("empty").mkdir() or "empty", "empty: found no records, expected *.jsonl or records/*.jsonl\n"),
        (lambda: write(torn="{"), "some.jsonl:1: torn line, expected a record\nsome.jsonl: no figures to export"),
        (
            lambda: write(record(HEALTHY, outcome="skipped", reason="no CUDA")),
            "experiments/a.yaml::cpu-custom: skipped: ",
        ),
    ],
    ids=["missing", "empty", "torn", "skipped"],
)
def test_nothing_to_export_is_an_error(harness: Harness, make: Callable[[], str], said: str) -> None:
    """Status 2 and the reason: an empty chart must not pass for a measurement."""
    status, out, err = harness(make(), "--format", "bencher", "--output", "page.json")
    assert (status, out) == (2, "")
    assert err.startswith(said)
    assert not Path("page.json").exists()


def test_a_direction_belongs_to_one_format(harness: Harness) -> None:
    """Bencher's thresholds know the direction themselves."""
    assert harness(write(PLAIN), "--format", "bencher", "--better", "smaller")[::2] == (
        2,
        "--better: found with --format bencher, whose files hold all figures\n",
    )


def test_figures_go_to_a_file(harness: Harness) -> None:
    """The same, with nothing on stdout."""
    printed = harness(write(PLAIN), "--format", "bencher")[1]
    assert harness("some.jsonl", "--format", "bencher", "--output", "page.json") == (0, "", "")
    assert Path("page.json").read_text(encoding="utf-8") == printed
