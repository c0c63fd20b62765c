"""The laws of the loss where it is no number by chance, or cannot be expected to fall: on records written by hand."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import HEALTHY, LOSSES, PROBES, RATE, TWIN_STEP, case, record, steps

from harness.compare import loss as trajectories
from harness.laws import LAWS, Verdict, judge, judge_together
from harness.record import Masking, Record

NAN = math.nan
EVEN = [2.0, 1.98] * 8
PRETRAINED = {"pretrained": True, "missing": (), "mismatched": ()}


def verdict(law: str, *evidence: Record) -> Verdict:
    """What a law says of a record, or of several of one file."""
    laws = [one for one in LAWS if one.name == law]
    (only,) = judge(evidence[0], laws) if len(evidence) == 1 else judge_together(evidence, laws)
    return only


def drawn(
    losses: Any = LOSSES, empty: Any = (), words: int = 3, norm: float = 0.0, micro: int = 1, **columns: Any
) -> Record:
    """A masked language model's record: in `empty` steps no token of the last micro-batch was drawn."""
    count = len(losses)
    columns = {
        "terms": tuple((1,) * (micro - 1) + (0 if step in empty else 1,) for step in range(count)),
        "drawable": ((words,) * micro,) * count,
        "gradient_norm": tuple(norm if step in empty else 1.2 for step in range(count)),
    } | columns
    said = tuple(NAN if step in empty else loss for step, loss in enumerate(losses))
    masking = Masking(probability=0.15, token=4)
    return record(steps=steps(*said, **columns), settings={"train.steps": count}, masking=masking)


# No token was drawn


@pytest.mark.parametrize("empty", [(), (0,), (7,), (1, 4, 6)])
def test_a_loss_over_nothing_is_no_fault(empty: tuple[int, ...]) -> None:
    """Of few and short texts no token is drawn now and then; the verdict says in how many steps."""
    evidence = drawn(empty=empty)
    found = verdict("loss_finite", evidence)
    assert found.outcome == "held"
    assert f"{8 - len(empty)} losses, all finite" in found.message
    assert not empty or f"in {len(empty)} of 8 micro-batches no token was drawn, expected 4.91" in found.message
    assert len(evidence.steps.losses) == 8 - len(empty)
    assert verdict("gradient_is_the_declared_one", evidence).outcome == "held"


def test_one_of_several_micro_batches_makes_a_step_nan() -> None:
    """The Trainer adds up the means of a step's micro-batches, and one over nothing is NaN."""
    assert verdict("loss_finite", drawn(empty=(3,), micro=4)).outcome == "held"


@pytest.mark.parametrize(
    ("why", "evidence", "says"),
    [
        ("a token was drawn", drawn(empty=(3,), terms=((1,),) * 8), "loss is nan at step 4 of 8"),
        ("the gradient is NaN", drawn(empty=(3,), norm=NAN), "loss is nan at step 4 of 8"),
        ("infinite", drawn((*LOSSES[:3], math.inf, *LOSSES[4:]), terms=((0,),) * 8), "loss is inf at step 4"),
        ("texts are long", drawn(empty=(3,), words=200), "in step 4 that has a chance of 7.7e-15"),
        ("too often", drawn(LOSSES * 8, empty=range(8, 40), words=16), "32 of 64 micro-batches no token was drawn"),
        ("nothing is drawn", record(drawn(empty=(3,)), masking=None), "no token is declared to be drawn"),
        ("not known", drawn(empty=(3,), terms=(), drawable=()), "loss is nan at step 4"),
        ("no norm", drawn(empty=(3,), gradient_norm=()), "loss is nan at step 4"),
        ("a task that draws nothing", drawn(empty=(3,), drawable=((),) * 8), "loss is nan at step 4"),
    ],
)
def test_any_other_nan_is_broken(why: str, evidence: Record, says: str) -> None:
    """Only what chance explains is accepted, and only where it does no harm."""
    found = verdict("loss_finite", evidence)
    assert found.outcome == "broken", why
    assert says in found.message
    assert found.cause


def test_a_training_without_any_loss_is_no_evidence() -> None:
    """Where no step has a loss, none can be judged."""
    evidence = drawn(empty=range(8), words=1)
    assert verdict("loss_finite", evidence).outcome == verdict("loss_decreases", evidence).outcome == "invalid"


@given(st.integers(1, 12), st.floats(0.05, 0.5), st.integers(0, 2**32 - 1))
def test_what_chance_leaves_out_is_accepted(words: int, share: float, seed: int) -> None:
    """Whatever the masking probability and the texts' length: draws that are made as declared raise no alarm."""
    draw = random.Random(seed)
    empty = {step for step in range(40) if all(draw.random() > share for _ in range(words))}
    evidence = record(drawn(LOSSES * 5, empty, words), masking=Masking(probability=share, token=4))
    assert verdict("loss_finite", evidence).outcome == ("held" if len(empty) < 40 else "invalid")


def test_losses_over_nothing_are_left_out_of_comparisons() -> None:
    """Loops and revisions agree where neither has a loss, and where one has, what it says counts elsewhere."""
    evidence = drawn(empty=(2, 5))
    alike = [case(name, evidence) for name in ("cpu-custom", "cpu-trainer")]
    assert verdict("loops_agree", *alike).outcome == "held"
    assert trajectories.losses(*alike).outcome == "same"
    other = drawn((*LOSSES[:6], 0.9, LOSSES[7]), empty=(2, 5))
    found = verdict("loops_agree", alike[0], case("cpu-trainer", other))
    assert found.outcome == "broken"
    assert "loss differs first at step 7" in found.message


@pytest.mark.parametrize("law", ["loss_is_the_declared_one", "gradient_is_the_declared_one"])
def test_a_step_over_nothing_is_left_out_on_the_twin(law: str) -> None:
    """Its loss is NaN and its gradient 0; of no other step that is accepted."""
    nothing = {"loss": NAN, "reference_loss": NAN, "gradient": NAN, "gradient_norm": 0.0, "drawn": 0}
    right = {**TWIN_STEP, "drawn": 2}

    def said(*those: dict[str, Any]) -> Verdict:
        return verdict(law, record(probes={"steps": {**PROBES["steps"], "steps": list(those)}}))

    assert said(right, {**right, **nothing}, right).outcome == "held"
    assert said(*[{**right, **nothing}] * 3).outcome == "vacuous"
    for wrong in ({"drawn": 2}, {"gradient_norm": 0.1}, {"gradient_norm": NAN}):
        assert said(right, {**right, **nothing, **wrong}, right).outcome == "broken", wrong


# A loss that cannot be expected to fall by a tenth


def trained(losses: Any, **changes: Any) -> Record:
    """A record of as many steps as there are losses."""
    settings = {"train.steps": len(losses), **changes.pop("settings", {})}
    return record(steps=steps(*losses, **changes.pop("columns", {})), settings=settings, **changes)


@pytest.mark.parametrize(
    ("losses", "outcome", "says"),
    [
        ([*EVEN, *[one - 0.1 for one in EVEN]], "held", "below it beyond scatter"),
        (EVEN, "invalid", "no weight was new, and what they scatter leaves"),
        ([*EVEN, *[one + 0.1 for one in EVEN]], "broken", "it rises beyond scatter"),
        ([2.0, 1.0] * 8, "invalid", "no weight was new"),
        ([2.0] * 16, "broken", "expected at most"),
    ],
)
def test_a_model_without_new_weights_has_to_fall_beyond_scatter(losses: Any, outcome: str, says: str) -> None:
    """A language model that goes on learning has a low loss from the start: how much it falls, nobody can ask."""
    found = verdict("loss_decreases", trained(losses, checkpoint=PRETRAINED))
    assert found.outcome == outcome
    assert says in found.message


def test_a_new_head_has_to_learn() -> None:
    """The same losses are broken where a head is new, and where no weight moves."""
    assert verdict("loss_decreases", trained(EVEN)).outcome == "broken"
    still = tuple(one.model_copy(update={"change": 0.0}) for one in HEALTHY.parameters)
    found = verdict("loss_decreases", trained(EVEN, checkpoint=PRETRAINED, parameters=still))
    assert found.outcome == "broken"
    assert "no parameter moved" in found.cause


LOW = {"train.learning_rate": 1e-9}


@pytest.mark.parametrize(
    ("why", "settings", "columns", "outcome"),
    [
        ("too low", LOW, {}, "invalid"),
        ("too low for gradients of this size", {"train.learning_rate": RATE, "train.optimizer": "sgd"}, {}, "invalid"),
        ("the declared rate will do", {"train.learning_rate": RATE}, {}, "broken"),
        ("that of a group will do", {**LOW, "train.groups": [{"learning_rate": RATE}]}, {}, "broken"),
        ("gradients of 0", LOW, {"gradient_norm": (0.0,) * 16}, "broken"),
        ("norms unknown", LOW, {"gradient_norm": ()}, "broken"),
        ("norms are NaN", LOW, {"gradient_norm": (NAN,) * 16}, "broken"),
    ],
)
def test_a_rate_too_low_for_the_steps_is_no_evidence(
    why: str, settings: dict[str, Any], columns: dict[str, Any], outcome: str
) -> None:
    """What the declared rate cannot do to first order is not asked; what it can, is."""
    found = verdict("loss_decreases", trained([0.7] * 16, settings=settings, columns=columns))
    assert found.outcome == outcome, why
    assert outcome == "broken" or "16 steps at the declared rate can lower it by" in found.message


# Evidence of another task


def test_a_decoder_whose_labels_are_of_texts_is_left_alone() -> None:
    """decoder_inputs_shifted has nothing to say of one label for each text."""
    batches = tuple(
        one.model_copy(update={"tensors": {**one.tensors, "decoder_input_ids": one.tensors["labels"]}})
        for one in HEALTHY.batches
    )
    assert verdict("decoder_inputs_shifted", record(batches=batches)).outcome == "not applicable"


def test_a_model_that_reads_nothing_sees_no_future() -> None:
    """Where no token counts at all, that none behind counts is no evidence."""
    dead = {"own": [0.0] * 4, "dead": [[*range(length)] for length in PROBES["dependence"]["lengths"]]}
    evidence = record(probes={"dependence": {**PROBES["dependence"], **dead, "future": [0.0] * 4}})
    assert verdict("every_token_counts", evidence).outcome == "broken"
    assert verdict("future_unseen", evidence).outcome == verdict("examples_stay_apart", evidence).outcome == "invalid"


@pytest.mark.parametrize(("ends", "scatter", "broken"), [(0.8, 0.5, False), (1.0, 0.03, True), (1.5, 0.2, True)])
def test_a_noisy_loss_is_broken_only_where_it_is_sure(ends: float, scatter: float, broken: bool) -> None:
    """Of 200 trainings of 40 steps whose loss goes from 1 to where it ends, with normal noise: one that falls by less
    than its scatter is next to never broken, even where chance makes it rise; one that stays or rises nearly always is.
    """
    chance = random.Random(0)
    found = 0
    for _ in range(200):
        curve = tuple(max(0.001, 1 + (ends - 1) * step / 39 + chance.gauss(0, scatter)) for step in range(40))
        found += verdict("loss_decreases", record(steps=steps(*curve))).outcome == "broken"
    assert found >= 190 if broken else found <= 4
