"""Several broken laws, one reason: the report leads with it."""

from dataclasses import replace
from graphlib import TopologicalSorter

import pytest
from records import record

from harness.laws import LAWS, Verdict
from harness.laws.causes import EXPLAINED_BY, findings
from harness.report import summarise

CASE, OTHER = "a.yaml::cpu-custom", "a.yaml::cpu-trainer"


def broken(law: str, about: str = CASE) -> Verdict:
    """A verdict that it is broken."""
    return Verdict("broken", f"{law} is broken", "", law, about)


def test_laws_are_known_and_explain_no_circle() -> None:
    """Each name is a law's, and following causes comes to an end."""
    names = {law.name for law in LAWS}
    assert names >= {*EXPLAINED_BY, *(cause for causes in EXPLAINED_BY.values() for cause in causes)}
    assert tuple(TopologicalSorter(EXPLAINED_BY).static_order())


def test_consequences_stand_under_their_root() -> None:
    """Over several links: the mask moves the logits, and both keep the loss up."""
    moved, up = broken("padding_changes_nothing"), broken("loss_decreases")
    (found,) = findings([up, moved, broken("padding_mask_correct")])
    assert found.verdict.law == "padding_mask_correct"
    assert found.consequences == (up, moved)


def test_another_case_explains_nothing() -> None:
    """What is wrong in one loop is not the reason of what is wrong in the other."""
    found = findings([broken("loss_decreases"), broken("head_is_new", OTHER)])
    assert [one.verdict.law for one in found] == ["loss_decreases", "head_is_new"]


def test_cases_explain_why_they_disagree() -> None:
    """An agreement of a file is put under the broken law of one of the cases that differ, and of no other."""
    agreement = replace(broken("loops_agree", "a.yaml"), between=(CASE, OTHER))
    (found,) = findings([broken("schedule_followed", OTHER)], [agreement])
    assert found.consequences == (agreement,)
    assert len(findings([broken("schedule_followed", "a.yaml::cuda")], [agreement])) == 2
    assert findings([], [agreement])[0].verdict is agreement


def test_costs_are_summed_over_cases() -> None:
    """By the evidence that laws read, the dearest first, with what is seen of each step."""
    one = record(steps={"watching_seconds": (0.1,) * 8}).model_copy(
        update={"probe_seconds": {"steps": 0.5, "saved": 1.0}}
    )
    costs = summarise([one, one.model_copy(update={"case": "other"})]).costs
    assert [(cost.evidence, cost.seconds) for cost in costs] == [
        ("saved", 2.0),
        ("watching", pytest.approx(1.6)),
        ("steps", 1.0),
    ]
    assert costs[0].laws == ("save_reload_equal",)
    assert "loss_finite" in costs[1].laws
