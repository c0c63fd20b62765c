"""The laws of what a step does with its gradients, on records written by hand."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import HEALTHY, LOSSES, PROBES, RATE, case, parameter, record
from test_laws import Judged, check, each, verdict

from harness.laws import LAWS
from harness.record import Group, Record
from harness.schedule import declared_share

STEPS = len(LOSSES)
NAMES = ("accumulation_equivalent", "clipping_bounds", "scaler_used_right", "updates_not_lost", "frozen_stay")


def split(settings: dict[str, Any] | None = None, **changes: Any) -> Record:
    """A training with two micro-batches a step."""
    said = {"train.gradient_accumulation": 2, **(settings or {})}
    return record(settings=said, probes={"accumulation": {**PROBES["accumulation"], **changes}})


def clipped(
    before: float | None = 4.0, after: float | None = 1.0, limit: float | None = 1.0, at: int = 3, **settings: Any
) -> Record:
    """A training whose gradients are clipped to 1, but for one step."""
    norms = {"gradient_norm_before": [0.5 if limit else None] * STEPS, "gradient_norm": [0.5] * STEPS}
    norms["gradient_norm_before"][at], norms["gradient_norm"][at] = before, after
    said = {"train.max_grad_norm": limit, **settings}
    return record(settings=said, steps={name: tuple(column) for name, column in norms.items()})


def scaled(**steps: Any) -> Record:
    """A training in fp16, whose third step overflowed."""
    right = {
        "loss_scale": (65536.0,) * 3 + (32768.0,) * 5,
        "loss_weights": ((65536.0,),) * 3 + ((32768.0,),) * 5,
        "gradient_norm": (1.2, 1.2, None, 1.2, 1.2, 1.2, 1.2, 1.2),
        "learning_rate": (RATE, RATE, math.nan, *(RATE,) * 5),
    }
    return record(settings={"precision": "fp16"}, steps={**right, **steps}, probes={"steps": PROBES["steps"]})


def falling(first: float) -> Record:
    """A training in fp16 that leaves out every step, while the scale falls from there by half each time."""
    scales = tuple(first / 2**step for step in range(STEPS))
    still = tuple(one.model_copy(update={"change": 0.0, "furthest": 0.0}) for one in HEALTHY.parameters)
    found = scaled(loss_scale=scales, loss_weights=tuple((scale,) for scale in scales), gradient_norm=(None,) * STEPS)
    return record(found, parameters=still)


def rounded(*unmoved: float | None, **settings: Any) -> Record:
    """A training in bf16 of which such parts of the gradient moved nothing."""
    column = (*unmoved, *[unmoved[-1]] * STEPS)[:STEPS]
    return record(settings={"precision": "bf16-pure", **settings}, steps={"unmoved": column})


def kept(name: str = "", drifted: tuple[str, ...] = (), **changes: Any) -> Record:
    """A training of the head alone, but for what one parameter did."""
    still = {"change": 0.0, "trainable": False, "gradient": None}
    found = tuple(
        one if one.head else one.model_copy(update={**still, **(changes if one.name == name else {})})
        for one in HEALTHY.parameters
    )
    modes = HEALTHY.modes.model_copy(update={"drifted": drifted}) if HEALTHY.modes else None
    return record(settings={"train.freeze": ["backbone"]}, parameters=found, modes=modes)


def in_groups(head_rate: float = 10 * RATE, decay: float = 0.0, **steps: Any) -> Record:
    """A training with a rate of its own for the head, and no decay of what is no matrix."""
    parameters = (parameter("bert.layer.query.weight"), parameter("bert.layer.query.bias", shape=(2,)))
    parameters += (parameter("classifier.weight", furthest=60 * RATE),)
    said = {"betas": (0.9, 0.999), "eps": 1e-8, "parameters": 1}
    groups = (
        Group(names=("bert.layer.query.weight",), learning_rate=RATE, weight_decay=0.01, **said),
        Group(names=("bert.layer.query.bias",), learning_rate=RATE, weight_decay=decay, **said),
        Group(names=("classifier.weight",), learning_rate=head_rate, weight_decay=0.01, **said),
    )
    settings = {
        "train.groups": [{"parameters": ["head"], "learning_rate": 10 * RATE, "weight_decay": None}],
        "train.decay": "matrices",
    }
    rates = {"group_rates": ((RATE, RATE, 10 * RATE),) * STEPS, **steps}
    return record(settings=settings, parameters=parameters, optimizer={"groups": groups}, steps=rates)


def scheduled(schedule: str, **changes: float) -> Record:
    """A training under a schedule with two steps of warm-up, but for the rate of some steps, counted from 0."""
    rates = [RATE * declared_share(schedule, STEPS, 2, step) for step in range(STEPS)]
    for step, rate in changes.items():
        rates[int(step.removeprefix("at_"))] = rate
    settings = {"train.schedule": schedule, "train.warmup_ratio": 0.25}
    group = {"groups": (HEALTHY.optimizer.groups[0].model_copy(update={"learning_rate": 0.0}),)}  # type: ignore[union-attr]
    return record(settings=settings, steps={"learning_rate": tuple(rates)}, optimizer=group)


def loops(**steps: Any) -> tuple[Record, Record]:
    """Two loops that agree, but for columns of the second."""
    settings = {"train.gradient_accumulation": 2}
    return case("cpu-custom", settings=settings), case("cpu-trainer", settings=settings, steps=steps)


ACCEPTED = (
    Judged("accumulation_equivalent", "unequal parts", split(), "3 + 2 terms; gradients differ by 2e-07"),
    Judged("clipping_bounds", "one step reached it", clipped(), "1 of 8 steps reached the limit"),
    Judged(
        "clipping_bounds",
        "a step left out",
        clipped(after=None, at=2).model_copy(
            update={
                "steps": clipped().steps.model_copy(
                    update={"gradient_norm": (None, *clipped().steps.gradient_norm[1:])}
                )
            }
        ),
    ),
    Judged("clipping_bounds", "as near as bf16 is", clipped(after=0.99, precision="bf16-pure")),
    Judged("scaler_used_right", "one overflow", scaled(), "8 steps, 1 left out; last scale 32768"),
    Judged("scaler_used_right", "it grows", scaled(loss_scale=(65536.0,) * 3 + (32768.0,) * 4 + (65536.0,))),
    Judged("schedule_followed", "a step that overflowed has no rate", scaled()),
    Judged("updates_not_lost", "little", rounded(0.06), "6.0% of the gradient moves nothing"),
    Judged("updates_not_lost", "a step at the warm-up's rate of 0", rounded(1.0, 0.06)),
    Judged("frozen_stay", "the backbone", kept(), "3 of 5 parameters stay"),
    Judged("frozen_stay", "buffers of others drift", kept(drifted=("classifier.norm.running_mean",))),
    Judged("optimizer_covers_trainable", "groups", in_groups(), "3 parameters in 3 groups"),
    Judged("schedule_followed", "groups", in_groups()),
    Judged("schedule_followed", "linear", scheduled("linear")),
    Judged("schedule_followed", "cosine", scheduled("cosine")),
)

REJECTED = (
    Judged(
        "accumulation_equivalent",
        "added up",
        split(loss=[1.4, 0.7], gradient=1.0, scale=2.0),
        "micro-batches of 3 + 2 terms: loss 1.4, in one batch 0.7; gradients differ by 1 of their norm",
        "nobody divides by their number",
    ),
    Judged(
        "accumulation_equivalent",
        "mean of means",
        split(loss=[0.69, 0.7], gradient=0.05, scale=1.01),
        "allowed 0.001",
        "a mean of the micro-batches' means",
    ),
    Judged("accumulation_equivalent", "NaN", split(gradient="NaN")),
    Judged("accumulation_equivalent", "the last one", split(loss=[0.35, 0.7], gradient=0.5, scale=0.5), "", "twice"),
    Judged("accumulation_equivalent", "the Trainer", split({"train.loop": "trainer"}, gradient=1.0), "", "47688"),
    Judged(
        "clipping_bounds",
        "not at all",
        clipped(after=4.0),
        "step 4: the gradients had a norm of 4 before clipping, and of 4 when the optimizer stepped, expected 1",
        "the limit is not kept",
    ),
    Judged("clipping_bounds", "still scaled", clipped(before=65536.0, after=1 / 65536), "of 1.526e-05", "no unscale_"),
    Judged("clipping_bounds", "below the limit", clipped(before=0.5, after=0.25), "expected 0.5"),
    Judged("clipping_bounds", "NaN", clipped(before=math.nan, after=math.nan), "", "not finite"),
    Judged("clipping_bounds", "forgotten in a step", clipped(before=None), "step 4: the gradients were not clipped"),
    Judged("clipping_bounds", "not declared", clipped(limit=None), "expected 4", "nobody declared"),
    Judged("scaler_used_right", "no scaler", scaled(loss_scale=(None,) * 8), "step 1: the loss has no scale"),
    Judged(
        "scaler_used_right", "not scaled", scaled(loss_weights=((1.0,),) * 8), "is 1, the scale 65536", "not scaled"
    ),
    Judged(
        "scaler_used_right",
        "not unscaled",
        scaled(gradient_norm=(1.2 * 65536, 1.2 * 65536, None, *(1.2 * 32768,) * 5)),
        "on the twin 1.2",
        "does not go through the scaler",
    ),
    Judged("scaler_used_right", "infinite", scaled(gradient_norm=(math.inf,) * 8), "stepped with a norm of inf"),
    Judged("scaler_used_right", "NaN", scaled(gradient_norm=(math.nan,) * 8), "stepped with a norm of nan"),
    Judged("scaler_used_right", "no step at all", scaled(gradient_norm=(None,) * 8), "all 8 steps were left out"),
    Judged("scaler_used_right", "down to 1", falling(128.0), "all 8 steps were left out", "every gradient overflows"),
    Judged("scaler_used_right", "never updated", scaled(loss_scale=(65536.0,) * 8), "from 65536 to 65536", "update()"),
    Judged(
        "scaler_used_right",
        "stepped over an overflow",
        scaled(gradient_norm=(1.2,) * 8),
        "step 3: the optimizer stepped",
    ),
    Judged("updates_not_lost", "most", rounded(0.8), "80% of the gradient moves nothing, allowed 25%", "keep those in"),
    Judged(
        "frozen_stay",
        "trained",
        kept("bert.layer.query.weight", change=0.01, trainable=True),
        "bert.layer.query.weight is declared frozen, and moved by 0.01",
        "requires_grad is on",
    ),
    Judged("frozen_stay", "drifts", kept("bert.layer.query.weight", change=1e-5), "", "something writes into it"),
    Judged("frozen_stay", "NaN", kept("bert.layer.query.weight", change=math.nan), "moved by nan"),
    Judged("frozen_stay", "a gradient", kept("bert.layer.query.weight", gradient=0.1), "gets a gradient"),
    Judged("frozen_stay", "statistics", kept(drifted=("bert.layer.query.running_mean",)), "buffers", "train mode"),
    Judged("frozen_stay", "none is meant", record(settings={"train.freeze": ["embedings"]}), "no parameter is what"),
    Judged(
        "frozen_stay",
        "held",
        record(kept(), optimizer={"frozen": ("bert.embeddings.weight",)}),
        "the optimizer holds what is frozen: bert.embeddings.weight",
    ),
    Judged(
        "optimizer_covers_trainable", "the head's rate", in_groups(RATE), "of classifier.weight is 0.001, declared 0.01"
    ),
    Judged("optimizer_covers_trainable", "a bias decays", in_groups(decay=0.01), "of bert.layer.query.bias is 0.01"),
    Judged(
        "optimizer_covers_trainable",
        "another class",
        record(settings={"train.optimizer": "adafactor"}),
        "the optimizer is AdamW, declared Adafactor",
    ),
    Judged(
        "optimizer_covers_trainable",
        "momentum",
        record(settings={"train.optimizer": "sgd", "train.momentum": 0.9}),
        "momentum is None, declared 0.9",
    ),
    Judged(
        "schedule_followed",
        "a group apart",
        in_groups(group_rates=((RATE, RATE, 10 * RATE), *((RATE, RATE, RATE),) * 7)),
        "step 2: group 2 used a learning rate of 0.001, declared 0.01",
    ),
    Judged("schedule_followed", "linear, late", scheduled("linear", at_5=RATE), "step 6 of 8 used"),
    Judged("schedule_followed", "cosine, not to the end", scheduled("cosine", at_7=RATE / 2), "step 8 of 8 used"),
    Judged(
        "loops_agree",
        "loss normalisation",
        loops(loss=tuple(2 * loss for loss in LOSSES)),
        "first trace: loss at step 1, 0.7 and 1.4, 2 times",
        "loss normalisation: one is divided by the number of micro-batches, 2, and the other not",
    ),
    Judged(
        "loops_agree",
        "gradients that AdamW hides",
        loops(gradient_norm=(1.2, 0.4, *(1.2,) * 6)),
        "gradient norm differs first at step 2: 1.2 and 0.4, allowed 0.01; first trace: gradient norm at step 2",
        "clipped, scaled or changed",
    ),
    Judged(
        "loops_agree",
        "the trace comes before the loss",
        loops(loss=(*LOSSES[:4], *(0.9,) * 4), update=(RATE, RATE, 1.001 * RATE, *(RATE,) * 5)),
        ("loss differs first at step 5", "first trace: update at step 3"),
        "the same gradients move the weights otherwise",
    ),
    Judged("loops_agree", "NaN", loops(gradient_norm=(math.nan,) * 8), "gradient norm differs first at step 1"),
)


@each(*ACCEPTED)
def test_accepts(judged: Judged) -> None:
    """A right training keeps the law."""
    check(judged, "held")


@each(*REJECTED)
def test_rejects(judged: Judged) -> None:
    """A wrong training breaks the law, and the verdict names what, where, and the likely cause."""
    check(judged, "broken")


@each(
    Judged("accumulation_equivalent", "one micro-batch", split(terms=[3]), "no second micro-batch"),
    Judged("clipping_bounds", "never reached", clipped(before=0.5, after=0.5), "no step reached 1"),
)
def test_says_when_it_could_not_have_failed(judged: Judged) -> None:
    """Where nothing could have been found, finding nothing is not called held."""
    check(judged, "vacuous")


@pytest.mark.parametrize("law", NAMES)
def test_what_is_not_declared_is_not_judged(law: str) -> None:
    """A plain training in fp32 has no micro-batches, no limit, no scale, nothing in bf16 and nothing frozen."""
    assert verdict(law, HEALTHY).outcome == "not applicable"
    assert law in {one.name for one in LAWS}


@pytest.mark.parametrize(
    ("law", "evidence"),
    [
        ("clipping_bounds", record(clipped(), steps={"gradient_norm": ()})),
        ("scaler_used_right", record(scaled(), steps={"loss_scale": ()})),
        ("updates_not_lost", record(rounded(0.1), steps={"unmoved": ()})),
        ("updates_not_lost", rounded(None)),
        ("accumulation_equivalent", split().model_copy(update={"probes": {"accumulation": {"error": "no"}}})),
    ],
)
def test_missing_evidence_is_not_accepted(law: str, evidence: Record) -> None:
    """A record without the evidence cannot be judged, and is not called right."""
    assert verdict(law, evidence).outcome == "invalid"


@given(st.sampled_from(["constant", "linear", "cosine"]), st.integers(1, 200), st.integers(0, 50), st.integers(0, 199))
def test_shares_are_between_0_and_1(schedule: str, steps: int, rising: int, step: int) -> None:
    """Whatever is declared: up in the warm-up, never up after it."""
    rising, step = min(rising, steps - 1), min(step, steps - 1)
    share = declared_share(schedule, steps, rising, step)
    assert 0 <= share <= 1
    if step > rising:
        assert share <= declared_share(schedule, steps, rising, step - 1)


@given(st.lists(st.floats(1e-3, 1e3), min_size=STEPS, max_size=STEPS), st.floats(1e-2, 1e2), st.data())
def test_any_norm_that_is_not_the_clipped_one_is_rejected(
    norms: list[float], limit: float, data: st.DataObject
) -> None:
    """What clipping should give is accepted, whatever the norms; another norm at any step is not."""
    after = [min(norm, limit) for norm in norms]
    said = {"gradient_norm_before": tuple(norms), "gradient_norm": tuple(after)}
    right = record(settings={"train.max_grad_norm": limit}, steps=said)
    assert verdict("clipping_bounds", right).outcome in ("held", "vacuous")
    step, factor = data.draw(st.integers(0, STEPS - 1)), data.draw(st.sampled_from([0.5, 0.99, 1.01, 2.0, math.nan]))
    after[step] *= factor
    wrong = record(right, steps={"gradient_norm": tuple(after)})
    assert verdict("clipping_bounds", wrong).outcome == "broken"


def test_a_scale_that_still_falls_says_nothing_yet() -> None:
    """It begins at 65536, and the first steps are left out until nothing overflows: nothing can have moved."""
    check(Judged("scaler_used_right", "", falling(65536.0), "the scale still falls: 512"), "invalid")
    for law in ("head_changes", "backbone_changes"):
        check(Judged(law, "", falling(65536.0), "see scaler_used_right"), "not applicable")
