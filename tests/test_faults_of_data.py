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


def test_names_of_other_classes_are_told() -> None:
    """A model that is right in numbers is wrong in names."""
    data = {"sequences": TEXTS, "labels": LABELS, "label_names": ["bad", "good"]}
    trial = case(data=data, train={"steps": 2, "batch_size": 3})
    for fault, outcome in ((None, "held"), (BY_NAME["names_of_classes_exchanged"], "broken")):
        record = run(trial, shelf=Shelf(), root=trial.path.parent, fault=fault)
        (verdict,) = (one for one in judge(record) if one.law == "labels_in_range")
        assert verdict.outcome == outcome, verdict


def test_labels_counted_from_one_are_told() -> None:
    """The head gets a class that nothing teaches, unless somebody declares that there is one more."""
    for said, outcome in (({}, "broken"), ({"num_labels": 4}, "held")):
        labels = [1, 2, 3, 3, 2, 1]
        trial = case(data={"sequences": TEXTS, "labels": labels, **said}, train={"steps": 2, "batch_size": 3})
        (verdict,) = (one for one in judge(attempt(trial)) if one.law == "labels_in_range")
        assert verdict.outcome == outcome, verdict
