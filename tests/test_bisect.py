"""`harness bisect`: the search, with candidates that are good, bad, or cannot be told."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compare import trained

from harness.__main__ import main
from harness.ab.bisect import Culprit, search
from harness.ab.environment import releases
from harness.compare import Comparison, Losses, Measure, Pair
from harness.compare.statistic import Shift
from harness.errors import HarnessError


def comparison(ratio: float, half: float = 0.01, loss: str = "same") -> Comparison:
    """Of one case, with an interval that reaches so far to both sides."""
    low, high = ratio - half, ratio + half
    outcome = "slower" if low > 1 else "equivalent" if low > 0.97 and high < 1.03 else "undecided"
    measure = Measure("step time", outcome, 1.0, ratio, Shift(ratio, low, high, 0.001))
    return Comparison((Pair("a.yaml::cpu", (trained(),), (trained(),), (measure,), Losses(loss, "")),))


def searched(found: Sequence[Comparison | None]) -> Culprit:
    """The search over candidates that compare like that; those that are none cannot be run."""

    def attempt(name: str) -> Comparison:
        if (one := found[int(name)]) is None:
            raise HarnessError("its process ended\nImportError: no module")
        return one

    return search([str(place) for place in range(len(found))], attempt)


@given(st.integers(1, 40), st.data())
def test_the_first_bad_one_is_found(number: int, data: st.DataObject) -> None:
    """Wherever it is, in as many probes as halving takes; the good end is known beforehand."""
    first = data.draw(st.integers(0, number - 1))
    found = searched([comparison(1.0 if place < first else 1.05) for place in range(number)])
    assert found.suspects == (str(first),)
    assert len(found.probes) <= 2 + number.bit_length()
    assert found.certainty == pytest.approx(1 - 0.005 * len(found.probes))


@given(st.lists(st.sampled_from(["known", "undecided", "torn"]), min_size=1, max_size=12), st.data())
def test_what_cannot_be_told_is_passed_over(kinds: list[str], data: st.DataObject) -> None:
    """The first bad one is always among the suspects, and others are only where nothing is known of them."""
    first = data.draw(st.integers(0, len(kinds)))
    truth = [comparison(1.0 if place < first else 1.05) for place in range(len(kinds) + 1)]
    void = {"undecided": comparison(1.02, 0.04), "torn": None}
    seen = [one if kind == "known" else void[kind] for kind, one in zip(kinds, truth, strict=False)]
    suspects = [int(name) for name in searched([*seen, truth[-1]]).suspects]
    assert first in suspects
    assert all(place == suspects[-1] or kinds[place] != "known" for place in suspects)


def test_less_slow_than_the_bad_end_beyond_doubt_is_good() -> None:
    """It need not be equivalent for that; one that is slower itself is bad, however little."""
    assert searched([comparison(1.01, 0.025), comparison(1.10)]).suspects == ("1",)
    assert searched([comparison(1.03), comparison(1.10)]).suspects == ("0",)


def test_a_loss_that_is_worse_is_searched_for() -> None:
    """Where training is wrong at the bad end, right training is good, and times do not matter."""
    undecided = comparison(1.0, 0.2)
    assert searched([undecided, comparison(1.0, 0.2, "worse"), comparison(1.0, 0.2, "worse")]).suspects == ("1",)


def test_a_bad_end_that_is_not_bad_ends_the_search() -> None:
    """With what it is: there is nothing to search for."""
    found = searched([comparison(1.05), comparison(1.0)])
    assert (found.suspects, [probe.state for probe in found.probes]) == ((), ["good"])


def test_a_bad_end_of_which_a_case_cannot_be_compared_is_not_good() -> None:
    """What is wrong may be wrong in that case."""
    end = replace(comparison(1.0), refused=("not compared: b.yaml::cpu: its process\nended",))
    (probe,) = searched([end]).probes
    assert probe.state == "undecided"
    assert probe.reason.endswith("; not compared: b.yaml::cpu: its process ended")


def test_one_that_cannot_be_run_says_why() -> None:
    """The last line of the error is its reason."""
    probe = next(probe for probe in searched([None, comparison(1.05)]).probes if probe.state == "cannot be run")
    assert probe.reason == "ImportError: no module"


# Releases


def pip(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Answer what pip is asked."""
    monkeypatch.setattr("harness.ab.environment._call", lambda *arguments: said)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("5.20,5.22", ["5.20", "5.22"]),
        ("5.20..5.22", ["5.20", "5.21", "5.22"]),
        ("5.21..", ["5.21", "5.22", "5.23"]),
        ("..5.21", ["5.19", "5.20", "5.21"]),
        ("", ["5.19", "5.20", "5.21", "5.22", "5.23"]),
    ],
)
def test_releases_are_listed_or_found(monkeypatch: pytest.MonkeyPatch, wanted: str, found: list[str]) -> None:
    """A list is taken as it is; ends are looked up in pip's index."""
    pip(monkeypatch, "transformers (5.23)\nAvailable versions: 5.23, 5.22, 5.21, 5.20, 5.19\n  INSTALLED: 5.20\n")
    assert releases("transformers", wanted) == found


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("5.20", "transformers: found 5.20, expected two releases or more"),
        ("5.1..5.22", "transformers 5.1: found no such release, expected one of 5.22, 5.23"),
    ],
)
def test_releases_that_are_none_are_named(monkeypatch: pytest.MonkeyPatch, wanted: str, said: str) -> None:
    """With those that there are."""
    pip(monkeypatch, "Available versions: 5.23, 5.22\n")
    with pytest.raises(HarnessError, match=said):
        releases("transformers", wanted)


def test_an_index_that_knows_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip says is shown."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(HarnessError, match="no_such_library: pip knows no releases of it:\n"):
        releases("no_such_library")


Harness = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one"], "found no GOOD_REV or no BAD_REV, expected both, or --package"),
        (["--package", "x", "--releases", "1,2"], "--package: expected --requirements FILE with it, and no revisions"),
        (
            ["one", "two", "--releases", "1,2"],
            "found --releases or --requirements, expected --package with them",
        ),
        (["one", "one"], "one: found no commit after one, expected one that comes from it"),
        (["two", "one"], "one: found no commit after two, expected one that comes from it"),
        (["one", "three"], "three: found no such revision, expected a commit, branch or tag"),
    ],
)
def test_bad_input_has_a_clear_answer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    """With status 2, which is no verdict."""
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)
    who = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], *(["commit", "-q", "--allow-empty", "-m", name] for name in ("one", "two"))):
        subprocess.run([*who, *command], check=True)
    for tag, revision in (("one", "HEAD~"), ("two", "HEAD")):
        subprocess.run([*who, "tag", tag, revision], check=True)
    assert main(["bisect", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_interpreter_of_its_own_sees_no_path_of_this_one() -> None:
    """What is on the path here would hide what its environment holds."""
    from harness.ab.process import Side

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "/of/mine")
        assert "/of/mine" in Side("a", Path("/a"), Path(sys.executable)).environment()["PYTHONPATH"]
        assert "/of/mine" not in Side("a", Path("/a"), Path("/b/bin/python")).environment()["PYTHONPATH"]
