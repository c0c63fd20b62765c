"""Record files that somebody has changed, or that are something else: every command that reads them works with what is
whole, or says what is wrong; none ends with a traceback."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import record
from test_compare import trained

from harness.__main__ import main
from harness.compare import baseline
from harness.errors import HarnessError
from harness.record import Compilation, Counters, Efficiency, Flops, Operator, Profile

WHOLE = record(
    trained(noise=0.001),
    compilation=Compilation(backend="inductor", graphs=1, breaks={"call to item()": 2}),
    counters=Counters(step=20, operators=812, flops=10**9, moved_bytes=10**8),
    efficiency=Efficiency(flops=(Flops(shape=(2, 6), forward=10**9, backward=10**9),), ceiling=1e12, bandwidth=1e10),
    profile=Profile(steps=3, seconds=0.3, operators=(Operator(name="aten::mm", calls=3, seconds=0.1),)),
    invariants={"loss_decreases": {"by": 0.1}},
    expect_broken={"labels_in_range": "it is known"},
)
ACCEPTED = baseline.accept(
    baseline.Baselines(), [trained(noise=0.001)], "as it should be", datetime(2026, 1, 1, tzinfo=UTC)
)

READERS = (
    ("compare", "whole.jsonl", "FILE"),
    ("compare", "FILE", "whole.jsonl", "--format", "json"),
    ("compare", "whole.jsonl", "FILE", "--across", "train.loop", "--format", "markdown"),
    ("triage", "FILE", "whole.jsonl", "whole.jsonl"),
    ("triage", "whole.jsonl", "FILE", "whole.jsonl"),
    ("triage", "whole.jsonl", "whole.jsonl", "FILE"),
    ("report", "FILE"),
    ("report", "FILE", "--laws"),
    ("report", "FILE", "--output", "report.md"),
    ("export", "FILE", "--format", "bencher"),
    ("export", "FILE", "--format", "github-action-benchmark", "--better", "smaller"),
    ("baseline", "accept", "FILE", "--reason", "x"),
)

NUMBERS = [7, -1, 2**62, 2**70, 0.5, 1e-300, 1e300, "NaN", "-Infinity"]
VALUES = [None, True, *NUMBERS, "many", "", [], [1], ["a"], {}, {"a": 1}]


def read(arguments: tuple[str, ...], file: str) -> int:
    """The exit status of a command that reads this file."""
    return main([file if each == "FILE" else each for each in arguments])


@st.composite
def places(draw: st.DrawFn, inside: Any) -> list[Any]:
    """The way to a field at any depth."""
    way: list[Any] = []
    while isinstance(inside, dict | list) and inside and not (way and draw(st.integers(0, 3)) == 0):
        way.append(draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside)))))
        inside = inside[way[-1]]
    return way


def damaged(line: str, way: list[Any], values: list[Any]) -> str:
    """The line with something else, or nothing, in the place of a field."""
    whole = inside = json.loads(line)
    for place in way[:-1]:
        inside = inside[place]
    del inside[way[-1]]
    if values and isinstance(inside, dict):
        inside[way[-1]] = values[0]
    elif values:
        inside.insert(way[-1], values[0])
    return json.dumps(whole)


VALUE = st.lists(st.sampled_from(VALUES), max_size=1)
LINE, KEPT = WHOLE.to_json(), ACCEPTED.baselines.to_text()


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The working directory has a whole record."""
    path = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        Path("whole.jsonl").write_text(f"{LINE}\n")
        yield


@settings(max_examples=150, deadline=None)
@given(way=places(json.loads(LINE)), value=VALUE, arguments=st.sampled_from(READERS))
def test_a_record_with_anything_in_the_place_of_a_field(way: Any, value: Any, arguments: tuple[str, ...]) -> None:
    """Wherever it is, the record is used or named: an exit status, and no traceback."""
    Path("damaged.jsonl").write_text(damaged(LINE, way, value))

    assert read(arguments, "damaged.jsonl") in (0, 1, 2)


@settings(max_examples=50, deadline=None)
@given(way=places(json.loads(KEPT)), value=VALUE)
def test_a_baseline_with_anything_in_the_place_of_a_field(way: Any, value: Any) -> None:
    """`pytest --baseline` compares with it, or says which line of the file is wrong; `accept` renews it, or says so."""
    Path("baseline.jsonl").write_text(damaged(KEPT, way, value))

    with suppress(HarnessError):
        kept = baseline.read(Path("baseline.jsonl")).of(trained())
        if kept is not None:
            baseline.against(kept, trained(at=1))
    assert main(["baseline", "accept", "whole.jsonl", "--reason", "x"]) in (0, 1, 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "FILE: cannot be read: No such file or directory"),
        (lambda path: path.symlink_to("nowhere"), "FILE: cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "FILE: found no records, expected *.jsonl or records/*.jsonl"),
        (lambda path: path.write_bytes(b""), "FILE: "),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00"), "FILE:1: not JSON, expected a record"),
        (lambda path: path.write_bytes(LINE.encode("utf-16")), "FILE:1: not JSON, expected a record"),
        (lambda path: path.write_text('{"format": 9}'), "FILE:1: record of format 9, this harness reads up to 1"),
    ],
    ids=["missing", "link to nowhere", "folder", "empty", "binary", "UTF-16", "newer"],
)
@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_what_is_no_record_file_is_named(
    arguments: tuple[str, ...],
    make: Callable[[Path], Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With status 2 and nothing on standard output."""
    path = tmp_path / "file.jsonl"
    make(path)

    assert read(arguments, str(path)) == 2

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(said.replace("FILE", str(path)))
