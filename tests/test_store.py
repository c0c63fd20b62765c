"""Records on disk: one line a case, flushed at once; every whole line is used, every other one is named."""

import json
import math
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import HEALTHY, case, record, steps

from harness import store
from harness.exploration import Trial
from harness.record import FORMAT, Record
from harness.store import Store, latest_run, new_run, read

RUN = "20260131T120000Z-3f9a"


def write(folder: Path, name: str, *lines: str | bytes) -> Path:
    """A record file of these lines, the last one without its end."""
    path = folder / "records" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
    return path


def problems(folder: Path, *lines: str | bytes) -> list[str]:
    """What is said of lines that stand between two whole records, both of which are used."""
    path = write(folder, f"{RUN}.jsonl", HEALTHY.to_json(), *lines, HEALTHY.to_json())
    reading = read([path])
    assert reading.records == (HEALTHY, HEALTHY)
    return [problem.removeprefix(f"{path}:") for problem in reading.problems]


# What exploring found


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1),
    st.integers(1),
)
def test_texts_that_were_found_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int) -> None:
    """Whatever characters they hold, each once and in order, for their own experiment."""
    kept, trial, other = Store(tmp_path_factory.mktemp("found")), Trial(tuple(texts), size), Trial(("a",), 9)

    for one in (trial, other, trial):
        kept.remember("a.yaml", one)

    assert kept.trials("a.yaml") == tuple(dict.fromkeys((trial, other)))
    assert kept.trials("b.yaml") == ()


@pytest.mark.parametrize(
    "line",
    [
        pytest.param('{"experiment": "a.yaml", "sequences": ["a"], "batch_s', id="torn"),
        pytest.param('{"experiment": "a.yaml", "sequences": ["a"], "batch_size": 0}', id="no batch"),
        pytest.param('{"experiment": "a.yaml", "sequences": [" "], "batch_size": 1}', id="a blank text"),
        pytest.param('{"experiment": "a.yaml", "sequences": [], "batch_size": 1}', id="no text"),
        pytest.param('{"experiment": "a.yaml", "sequences": [1], "batch_size": 1}', id="a number"),
        pytest.param("[]", id="a list"),
        pytest.param("\xff", id="not ASCII"),
    ],
)
def test_what_is_no_find_is_not_used(tmp_path: Path, line: str) -> None:
    """A line that somebody has broken does not keep the others from being tried."""
    kept = Store(tmp_path)
    (tmp_path / "explored.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    kept.remember("a.yaml", Trial(("a",), 1))

    assert kept.trials("a.yaml") == (Trial(("a",), 1),)


# Writing


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    """Everything of a record survives the way to disk and back, in the order written."""
    records = (HEALTHY, case("cpu-trainer"), record(outcome="crashed", reason="ö\n\u2028\x00 \U0001f600"))
    kept = Store(tmp_path)

    for one in records:
        kept.append(one)

    assert kept.read().records == records
    assert kept.read().problems == ()
    assert len(kept.path.read_bytes().split(b"\n")) == len(records) + 1


def test_numbers_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    """NaN and the infinities are spelled out, in columns and in free evidence, and come back as numbers."""
    odd = (math.nan, math.inf, -math.inf)
    kept = Store(tmp_path)
    kept.append(record(steps=steps(*odd), probes={"replay": {"loss": list(odd)}}))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    line = json.loads(kept.path.read_text(), parse_constant=refuse)

    assert line["steps"]["loss"] == ["NaN", "Infinity", "-Infinity"]
    assert line["probes"]["replay"]["loss"] == ["NaN", "Infinity", "-Infinity"]
    assert list(map(str, kept.read().records[0].steps.loss)) == ["nan", "inf", "-inf"]


def test_a_line_is_on_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole line is handed to the disk: what crashes afterwards takes nothing with it."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    kept = Store(tmp_path)

    for count in (1, 2):
        kept.append(HEALTHY)

        assert len(synced) == count
        assert synced[-1] == kept.path.stat().st_size


def test_a_line_after_a_torn_one_is_whole(tmp_path: Path) -> None:
    """Where a full disk cut a line off, the next record starts on a line of its own."""
    path = write(tmp_path, f"{RUN}.jsonl", HEALTHY.to_json()[:100])
    kept = Store(tmp_path, RUN)

    kept.append(HEALTHY)
    kept.append(HEALTHY)

    assert kept.read() == store.Reading((HEALTHY, HEALTHY), (f"{path}:1: torn line, expected a record",))


def test_parts_of_a_run_are_files_of_their_own(tmp_path: Path) -> None:
    """Writers that are apart do not share a file; reading the run gathers them, and nothing of another run."""
    parts = [Store(tmp_path, RUN, part) for part in ("gw1", "gw0")]
    parts[0].append(case("cpu-one"))
    parts[1].append(case("cpu-two"))
    Store(tmp_path, "20260131T120000Z-ffff").append(case("cpu-other"))

    assert [part.path.name for part in parts] == [f"{RUN}.gw1.jsonl", f"{RUN}.gw0.jsonl"]
    assert [one.case for one in Store(tmp_path, RUN).read().records] == ["cpu-two", "cpu-one"]


def test_names_of_runs_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is called after its second, in UTC, with something that tells two of one second apart."""
    times = [datetime(2025, 2, 3, 4, 5, 6, micro, tzinfo=UTC) for micro in (70, 900_000)]
    times += [datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)]

    class Clock:
        now = iter(times).__next__

        @classmethod
        def at(cls, zone: object) -> datetime:
            assert zone is UTC
            return cls.now()

    monkeypatch.setattr(store, "datetime", type("datetime", (), {"now": Clock.at}))

    names = [new_run(), new_run(), new_run()]

    assert names == sorted(names)
    assert re.fullmatch(r"20250203T040506Z-[0-9a-f]{4}", names[0])


# Reading


def changed(key: str, value: object) -> str:
    """The line of a record with another value in a setting."""
    return record(settings={key: value}).to_json()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (changed("train.steps", "many"), "not a record: settings.train.steps: found 'many', expected a whole number"),
        (changed("train.steps", True), "not a record: settings.train.steps: found true, expected a whole number"),
        (changed("train.betas", 0.9), "not a record: settings.train.betas: found 0.9, expected a list"),
        (
            changed("benchmark.warmup_steps", {"a": 1}),
            "not a record: settings.benchmark.warmup_steps: found a mapping, expected a whole number or nothing",
        ),
        (
            HEALTHY.model_copy(update={"settings": {}}).to_json(),
            "not a record: settings: found nothing, expected what the experiment declares, as it finished",
        ),
        (
            HEALTHY.to_json().replace('"steps":{"loss":[0.7', '"steps":{"loss":["high"'),
            "not a record: steps.loss[0]: found 'high', expected a valid number, unable to parse string as a number",
        ),
        (HEALTHY.to_json().replace('"parameters":40', f'"parameters":{10**30}'), "torn line, expected a record"),
        (HEALTHY.to_json()[:-1], "torn line, expected a record"),
        (HEALTHY.to_json()[:200], "torn line, expected a record"),
        (b'{"format": 1, "experiment": "\xff\xfe"}', "torn line, expected a record"),
        (b"\x00" * 8, "not JSON, expected a record"),
        ("[" * 100_000, "not JSON, expected a record"),
        ("[]", "not a record: found no number under 'format', expected a JSON object with one"),
        ('{"format": "1"}', "not a record: found no number under 'format', expected a JSON object with one"),
        ('{"experiment": "a.yaml"}', "not a record: found no number under 'format', expected a JSON object with one"),
        ('{"format": 1}', "not a record: experiment: found nothing, expected this field"),
        (
            json.dumps({"format": FORMAT + 1, "all": "is new"}),
            f"record of format {FORMAT + 1}, this harness reads up to {FORMAT}; upgrade pytest-finetune",
        ),
    ],
    ids=[
        "text for a number",
        "true for a number",
        "a number for a list",
        "a mapping",
        "no settings",
        "text in a column",
        "beyond 64 bits",
        "one byte short",
        "half",
        "not UTF-8",
        "zeros",
        "deep",
        "list",
        "text",
        "no format",
        "empty",
        "newer",
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str | bytes, said: str) -> None:
    """File, line and reason are given, and the records around it are used."""
    assert problems(tmp_path, line) == [f"2: {said}"]


def test_settings_of_another_version_are_read(tmp_path: Path) -> None:
    """Keys that are not known here, and values that a key may not have here, are no reason to lose a record."""
    other = record(settings={"train.mood": {"good": 1}, "train.loop": "lightning", "train.learning_rate": 1})

    assert read([write(tmp_path, f"{RUN}.jsonl", other.to_json())]).records == (other,)


def test_a_torn_last_line_leaves_the_others(tmp_path: Path) -> None:
    """A process that was killed while it wrote loses that record only."""
    path = write(tmp_path, f"{RUN}.jsonl", HEALTHY.to_json(), HEALTHY.to_json()[:300])

    assert read([path]) == store.Reading((HEALTHY,), (f"{path}:2: torn line, expected a record",))


def test_a_file_of_something_else_is_named_once(tmp_path: Path) -> None:
    """Not line by line: a report, or an experiment, has many."""
    path = write(tmp_path, "latest.md", "# Report", "", "| case |", "|---|")

    assert read([path]).problems == (f"{path}:1: not JSON, expected a record", f"{path}: 2 more such lines")


def test_empty_lines_are_nothing(tmp_path: Path) -> None:
    """Blank lines are neither records nor problems."""
    assert problems(tmp_path, "", "  ", "\r") == []


def test_fields_of_the_future_are_skipped(tmp_path: Path) -> None:
    """A record of this format with fields that this harness does not know is read without them, at every depth."""
    data = json.loads(HEALTHY.to_json())
    data["mood"] = "good"
    data["steps"]["mood"] = [1]

    (path,) = [write(tmp_path, f"{RUN}.jsonl", json.dumps(data))]

    assert read([path]).records == (HEALTHY,)


def test_fields_that_a_record_lacks_are_empty() -> None:
    """What was not seen need not be written: the least record has a case, an outcome and a time."""
    least = {"experiment": "a", "case": "b", "outcome": "crashed", "started": "2026-01-31T12:00:00Z", "seconds": 1}

    assert Record.from_json(json.dumps(least)).steps.loss == ()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file and a folder in the place of one are problems, not tracebacks."""
    reading = read([tmp_path / "none.jsonl", tmp_path])

    assert reading.records == ()
    assert reading.problems == (
        f"{tmp_path / 'none.jsonl'}: cannot be read: No such file or directory",
        f"{tmp_path}: cannot be read: Is a directory",
    )


def test_the_latest_run_is_all_of_its_parts(tmp_path: Path) -> None:
    """Of several runs the newest is taken, with each of its files."""
    for name in ("20250101T000000Z-ffff.gw0", "20260101T000000Z-aaaa.gw0", "20260101T000000Z-aaaa.gw1"):
        write(tmp_path, f"{name}.jsonl", HEALTHY.to_json())
    write(tmp_path, "notes.txt", "not a record file")

    assert [path.name for path in latest_run(tmp_path)] == [
        "20260101T000000Z-aaaa.gw0.jsonl",
        "20260101T000000Z-aaaa.gw1.jsonl",
    ]


def test_a_folder_without_a_run_has_no_latest(tmp_path: Path) -> None:
    """A missing folder, and one without records, are no error here."""
    assert latest_run(tmp_path / "nowhere") == ()
    assert latest_run(tmp_path) == ()


def test_a_store_that_was_not_written_to_is_empty(tmp_path: Path) -> None:
    """Nothing is made before the first record."""
    kept = Store(tmp_path / "reports")

    assert kept.files == ()
    assert kept.read() == store.Reading(())
    assert not kept.folder.exists()
