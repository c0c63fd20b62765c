"""Real faults of the data, and the laws that look at what is in it: on small tables, and where rows are drawn."""

import pytest
from trial import attempt, case

from harness.laws import judge
from harness.training.checkpoint import Shelf
from harness.training.faults import FAULTS
from harness.training.run import run

TEXTS = [
    "The Soup Was Warm",
    "Bread",
    "We Waited An Hour For The Bread",
    "It Was Cold",
    "Never Again",
    "The Bread Was Cold",
]
LABELS = [1, 0, 1, 0, 0, 1]
SEEN_BY = {
    "all_labels_ignored_once": ("labels_in_range", "label -100: expected a label from 0 to 1"),
    "a_label_is_ignored": ("labels_in_range", "label -100, expected one from 0 to 1"),
    "texts_with_two_labels": (
        "no_conflicting_duplicates",
        "('The Soup Was Warm'): label 1; row 1 ('The Soup Was Warm'): label 0",
    ),
    "normaliser_lost": ("tokens_are_known", "tokens are unknown (allowed 5.0%): row "),
    "texts_cut_short": ("texts_are_whole", "6 rows are cut to 254 tokens (allowed 10.0%): row 2 ('We Waited"),
}
BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether rows are encoded before training, or ahead of the step."""
    if request.param == "large":
        monkeypatch.setattr("harness.training.data.WHOLE", 2)
    return str(request.param)


@pytest.mark.parametrize("loop", ["custom", "trainer"])
@pytest.mark.parametrize("name", SEEN_BY)
@pytest.mark.usefixtures("size")
def test_law_sees_the_fault(name: str, loop: str) -> None:
    """The law is broken by it, names the rows, and holds without it."""
    law, says = SEEN_BY[name]
    trial = case(data={"sequences": TEXTS, "labels": LABELS}, train={"loop": loop, "steps": 4, "batch_size": 3})
    record = run(trial, shelf=Shelf(), root=trial.path.parent, fault=BY_NAME[name])
    assert record.finished, record.traceback
    (verdict,) = (one for one in judge(record) if one.law == law)
    assert verdict.outcome == "broken", verdict
    assert says in verdict.message
    (verdict,) = (one for one in judge(attempt(trial)) if one.law == law)
    assert verdict.outcome == "held", verdict
