"""Real faults of what an experiment chooses, made in tiny trainings: each is led by exactly the law that is its own."""

from typing import Any

import pytest
from test_choices import CLASSES, LOOPS, PROBES, TEXT, TINY
from trial import case, train

from harness.laws import judge
from harness.laws.causes import findings
from harness.record import Record
from harness.training.checkpoint import Shelf
from harness.training.faults.choice import FAULTS
from harness.training.run import run

pytestmark = pytest.mark.usefixtures("one_thread")

ACCUMULATED: dict[str, Any] = {**TINY, "gradient_accumulation": 2, "max_grad_norm": 1.0}
SMOOTHED: dict[str, Any] = {**ACCUMULATED, "label_smoothing": 0.2, "schedule": "linear", "steps": 6}
GROUPS: dict[str, Any] = {**TINY, "decay": "matrices", "groups": [{"parameters": "head", "learning_rate": 5e-3}]}
FROZEN: dict[str, Any] = {**TINY, "freeze": ["layers:1", "embeddings"]}
SCALED: dict[str, Any] = {"precision": "fp16"}

LED_BY: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "only_the_last_micro_batch_counts": (TEXT, ACCUMULATED, "accumulation_equivalent"),
    "mean_of_means": (TEXT, ACCUMULATED, "accumulation_equivalent"),
    "micro_batches_added_up": (TEXT, ACCUMULATED, "accumulation_equivalent"),
    "last_step_of_an_epoch_too_weak": (
        TEXT,
        {**ACCUMULATED, "gradient_accumulation": 4, "max_grad_norm": None},
        "accumulation_equivalent",
    ),
    "last_step_of_an_epoch_left_out": (TEXT, ACCUMULATED, "every_example_once"),
    "smoothing_forgotten": (CLASSES, SMOOTHED, "loss_is_the_declared_one"),
    "clipping_forgotten": (CLASSES, {**TINY, "max_grad_norm": 0.1}, "clipping_bounds"),
    "clipped_while_scaled": (CLASSES, {**TINY, "max_grad_norm": 0.1}, "clipping_bounds"),
    "loss_not_scaled": (CLASSES, TINY, "scaler_used_right"),
    "stepped_past_the_scaler": (CLASSES, TINY, "scaler_used_right"),
    "rates_of_groups_forgotten": (CLASSES, GROUPS, "optimizer_covers_trainable"),
    "biases_and_norms_decay": (CLASSES, GROUPS, "optimizer_covers_trainable"),
    "momentum_forgotten": (
        CLASSES,
        {**TINY, "optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05},
        "optimizer_covers_trainable",
    ),
    "thawed": (CLASSES, FROZEN, "frozen_stay"),
    "frozen_decay": (CLASSES, FROZEN, "frozen_stay"),
    "schedule_stepped_by_micro_batches": (CLASSES, SMOOTHED, "schedule_followed"),
    "rate_stays": (CLASSES, SMOOTHED, "schedule_followed"),
}
"""By fault: the data, what is declared of the training, and the law under which the others stand."""

IN_FP16 = ("clipped_while_scaled", "loss_not_scaled", "stepped_past_the_scaler")
BY_NAME = {fault.name: fault for fault in FAULTS}
MADE = [(name, loop) for name in LED_BY for loop in LOOPS if loop in BY_NAME[name].loops]


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    """Keeps what is loaded between the trainings."""
    return Shelf()


def roots(record: Record) -> set[str]:
    """The broken laws that no other one explains; in so few steps no loss has to fall."""
    broken = [verdict for verdict in judge(record) if verdict.outcome == "broken" and verdict.law != "loss_decreases"]
    return {finding.verdict.law for finding in findings(broken)}


@pytest.mark.parametrize(("name", "loop"), MADE)
def test_fault_is_led_by_its_law(name: str, loop: str, shelf: Shelf) -> None:
    """In each loop where it can happen; whatever else is broken follows from it."""
    data, said, law = LED_BY[name]
    said = {key: value for key, value in {**said, "loop": loop}.items() if value is not None}
    precision = SCALED if name in IN_FP16 else {}
    planned = case(train=said, probes=PROBES, **data, **precision)
    assert BY_NAME[name].when(planned.settings)
    record = run(planned, shelf=shelf, root=planned.path.parent, fault=BY_NAME[name])
    assert record.finished, record.reason
    assert roots(record) == {law}


def test_every_fault_is_made() -> None:
    """None is there that no test makes."""
    assert LED_BY.keys() == BY_NAME.keys()


def test_faults_need_what_they_are_of() -> None:
    """Under settings that choose nothing, none of them can happen."""
    plain = case(train=TINY).settings
    assert [fault.name for fault in FAULTS if fault.when(plain)] == []


@pytest.mark.parametrize(("rate", "root"), [(1e-4, {"updates_not_lost"}), (2e-2, set())])
def test_a_rate_too_small_for_bf16_is_seen(rate: float, root: set[str]) -> None:
    """Most updates round to nothing at a usual rate; nothing is wrong in fp32, nor at a rate large enough."""
    said = {**TINY, "learning_rate": rate, "steps": 6}
    assert roots(train(case(precision="bf16-pure", train=said, **CLASSES))) == root
    assert roots(train(case(train=said, **CLASSES))) == set()
