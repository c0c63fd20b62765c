"""`harness triage`: noise, environment or code, with the evidence; and what it refuses."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_compare import HERE, STEPS, trained

from harness.__main__ import main
from harness.compare import NotComparable
from harness.compare.triage import Triage, triage
from harness.record import Record

LATEST = {"versions": {**HERE.versions, "transformers": "5.24.0", "torch": "2.14.0+cpu"}, "commit": "bbb"}
PINNED = {"commit": "bbb"}
BASE = {"commit": "aaa"}


def run(environment: dict[str, Any], **changes: Any) -> list[Record]:
    """One record of a run there."""
    return [trained(environment={**environment, **changes.pop("where", {})}, **changes)]


def judged(control: list[Record] | None = None, canary: list[Record] | None = None) -> Triage:
    """Against a healthy baseline; the others are healthy unless said otherwise."""
    return triage(run(BASE), control or run(PINNED), canary or run(LATEST))


@pytest.mark.parametrize(
    ("control", "canary", "cause"),
    [
        ({}, {}, "noise"),
        ({"times": 2.0}, {"times": 2.0}, "code"),
        ({}, {"times": 2.0}, "environment"),
        ({"times": 2.0}, {"times": 4.0}, "code and environment"),
        (
            {"times": 2.0, "where": {"commit": "aaa", "dirty": False}},
            {"times": 2.0, "where": {"commit": "aaa"}},
            "noise",
        ),
        ({"noise": 0.5}, {"noise": 0.5}, "undecided"),
        ({}, {"steps": {"loss": (0.7,) * STEPS}}, "environment"),
        ({"outcome": "crashed", "reason": "ValueError: no"}, {}, "code"),
    ],
)
def test_causes(control: dict[str, Any], canary: dict[str, Any], cause: str) -> None:
    """Each by the leg that shows it; the same commit with the same libraries cannot be the code."""
    base = run({**BASE, "dirty": False})
    found = triage(base, run(PINNED, **dict(control)), run(LATEST, **dict(canary)))
    assert [finding.cause for finding in found.findings] == [cause]
    assert found.fails == (cause not in ("noise", "undecided"))


def test_a_run_that_is_missing_is_no_noise() -> None:
    """Where the baseline did not finish there is nothing to compare with; nor where the same code crashed again."""
    crashed = {"outcome": "crashed", "reason": "ValueError: no"}
    for base, control, who in (
        (run(BASE, **dict(crashed)), run(PINNED), "baseline"),
        (run({**BASE, "dirty": False}), run({**BASE, "dirty": False}, **dict(crashed)), "control"),
    ):
        canary = run({**LATEST, "commit": control[0].environment.commit})
        found = triage(base, control, canary)
        assert [one.cause for one in found.findings] == ["undecided"]
        assert found.findings[0].reason == f"the run of the {who} did not finish: there is nothing to compare with"
        assert (found.fails, found.status) == (False, 2)


def test_what_changed_is_named() -> None:
    """Commits, and libraries with both versions."""
    (finding,) = judged().findings
    assert finding.changed == (
        "commit: aaa to bbb",
        "torch: 2.13.0+cpu to 2.14.0+cpu",
        "transformers: 5.23.0 to 5.24.0",
    )


@pytest.mark.parametrize(
    ("control", "canary", "said"),
    [
        (
            run({**PINNED, "versions": LATEST["versions"]}),
            None,
            "the control against the baseline\n  torch: 2.13.0 and",
        ),
        (None, run({**LATEST, "commit": "ccc"}), "the canary against the control\n  commit: bbb and ccc"),
        (
            None,
            run(LATEST, settings={"train.learning_rate": 1.0}),
            "the canary against the control\n  train.learning_rate",
        ),
        (run(PINNED, name="cpu-other"), None, "the control against the baseline\n  train.loop: custom and other"),
    ],
)
def test_unlike_runs_are_refused(control: list[Record] | None, canary: list[Record] | None, said: str) -> None:
    """With the leg, and what differs."""
    with pytest.raises(NotComparable) as caught:
        judged(control, canary)
    assert said in str(caught.value)


def test_each_machine_has_its_own_finding() -> None:
    """Of one case on two, each canary is held against the control of its own machine."""
    laptop = {"device": "Laptop", "processor": "Laptop"}
    sides = [[*run(each), *run({**each, **laptop})] for each in (BASE, PINNED)]
    canary = [*run(LATEST), *run({**LATEST, **laptop}, times=2.0)]
    found = {finding.case: finding.cause for finding in triage(*sides, canary).findings}
    assert found == {
        f"{run(BASE)[0].name} ({name})": cause for name, cause in (("Abacus 9", "noise"), ("Laptop", "environment"))
    }


Harness = Callable[..., tuple[int, str, str]]


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Harness:
    """Runs `harness triage` where there are records."""
    monkeypatch.chdir(tmp_path)
    sides = {"base": run(BASE), "control": run(PINNED), "canary": run(LATEST, times=2.0), "nan": _not_a_number()}
    for name, records in sides.items():
        Path(f"{name}.jsonl").write_text("".join(f"{record.to_json()}\n" for record in records))
    Path("torn.jsonl").write_text(run(PINNED)[0].to_json() + "\n" + run(PINNED)[0].to_json()[:90])
    Path("newer.jsonl").write_text('{"format": 999}\n')
    Path("empty").mkdir()

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(["triage", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def _not_a_number() -> list[Record]:
    return run(LATEST, steps={"loss": (0.7, *(math.nan,) * (STEPS - 1))})


def test_it_is_printed(harness: Harness) -> None:
    """As text and Markdown with the evidence, as JSON for programs; status 1 for the environment."""
    status, text, _ = harness("base.jsonl", "control.jsonl", "canary.jsonl")
    assert status == 1
    assert "environment" in text
    assert "changed: transformers: 5.23.0 to 5.24.0" in text
    assert "canary against control: step time +" in text
    assert "--across" not in harness("base.jsonl", "canary.jsonl", "canary.jsonl")[2]  # no option here
    assert "# Triage" in harness("base.jsonl", "control.jsonl", "canary.jsonl", "--format", "markdown")[1]
    said = json.loads(harness("base.jsonl", "control.jsonl", "canary.jsonl", "--format", "json")[1])
    assert (said["verdict"], said["cases"][0]["cause"]) == ("regressed", "environment")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("base.jsonl", "torn.jsonl", "canary.jsonl"), 1, "torn.jsonl:2: torn line, expected a record"),
        (
            ("base.jsonl", "newer.jsonl", "canary.jsonl"),
            2,
            "newer.jsonl:1: record of format 999, this harness reads up to",
        ),
        (("base.jsonl", "empty", "canary.jsonl"), 2, "empty: no records to compare"),
        (("nowhere", "control.jsonl", "canary.jsonl"), 2, "nowhere: cannot be read: No such file or directory"),
        (("base.jsonl", "control.jsonl", "nan.jsonl"), 1, "loss broken: the new loss is nan at step 2"),
    ],
)
def test_bad_input_has_a_clear_answer(harness: Harness, arguments: tuple[str, ...], status: int, said: str) -> None:
    """Whole lines are used, and everything else is named; none ends in a traceback."""
    found, out, err = harness(*arguments)
    assert found == status
    assert said in out + err
