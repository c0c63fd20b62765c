"""Laws over other ways of computing a training, on records written by hand and on any distances."""

import math
from typing import Any

import hypothesis
from hypothesis import given
from hypothesis import strategies as st
from records import HEALTHY, record
from test_laws import Judged, check, each
from test_laws_logic import probe

from harness.laws import judge
from harness.record import Record


def batches(name: str, *distances: dict[str, Any], **precision: Any) -> Record:
    """The healthy record, but for the distances that a probe found."""
    found = [{"batch": f"batch {place}", **one} for place, one in enumerate(distances)]
    return record(probe(name, batches=found), settings=precision)


def apart(**changes: Any) -> dict[str, Any]:
    """Distances of a right way, but for these."""
    return {"own": {"loss": 0.0, "logits": 2e-7, "gradient": 3e-7, **changes}}


def undeclared(key: str) -> Record:
    """The healthy record, but that one way was not declared."""
    return record(settings={f"train.{key}": False})


BF16 = {"loss": 1e-3, "logits": 5e-3, "gradient": 3e-2}
"""How far eager attention in bf16 was from itself in fp32, for one tiny model."""


PACKED_OF_OLD = record(probes={"packing": {"used": "sdpa_packed", "batches": []}})
"""What the probe left before it counted."""
ACCEPTED = (
    Judged("checkpointing_equals_plain", "bit for bit", HEALTHY, "22 modules ran again; gradients differ by 0"),
    Judged(
        "checkpointing_equals_plain",
        "on CUDA sums have no order",
        record(probe("checkpointing", loss=1e-7, gradient=2e-6), settings={"device": "cuda"}),
        "differ by 2e-06",
    ),
    Judged("attention_implementations_agree", "fp32", HEALTHY, "sdpa and eager: logits differ by at most 2e-07"),
    Judged(
        "attention_implementations_agree",
        "as far off as eager is in that precision",
        batches("attention", {**apart(logits=1.2e-2, gradient=7.5e-2), "plain": BF16}, precision="bf16"),
        "gradients by 0.07",
    ),
    Judged("compiled_equals_eager", "fp32", HEALTHY, "2 graphs by inductor, 0 breaks; logits differ by at most 3e-07"),
    Judged("packing_changes_nothing", "fp32", HEALTHY, "logits differ by at most 1e-07, gradients by 3e-07"),
    Judged(
        "packing_changes_nothing",
        "as far off as padded rows are in that precision",
        batches("packing", {**apart(logits=1.2e-2, gradient=7.5e-2), "plain": BF16}, precision="bf16"),
        "gradients by 0.07",
    ),
)


@each(*ACCEPTED)
def test_accepts(judged: Judged) -> None:
    """Two ways that differ by rounding alone keep the law."""
    check(judged, "held")


REJECTED = (
    Judged(
        "checkpointing_equals_plain",
        "other dropout",
        probe("checkpointing", gradient=0.06),
        "the gradient differs by 0.06 from that without checkpointing, allowed 0",
        "preserve_rng_state",
    ),
    Judged("checkpointing_equals_plain", "one bit", probe("checkpointing", gradient=1e-9), "allowed 0"),
    Judged("checkpointing_equals_plain", "NaN", probe("checkpointing", loss="NaN"), "the loss differs by nan"),
    Judged(
        "checkpointing_equals_plain",
        "on CUDA",
        record(probe("checkpointing", gradient=2e-3), settings={"device": "cuda:1"}),
        "allowed 0.001",
    ),
    Judged(
        "checkpointing_equals_plain",
        "never on",
        record(modes={"checkpointing": False}),
        "no layer had it on",
        "enabled",
    ),
    Judged("checkpointing_equals_plain", "not heeded", probe("checkpointing", recomputed=0), "no module ran again"),
    Judged(
        "attention_implementations_agree",
        "no mask",
        batches("attention", apart(), apart(logits=0.2)),
        "sdpa and eager attention, batch 1: logits off by 0.2, allowed 0.0001",
        "ignores the padding mask",
    ),
    Judged(
        "attention_implementations_agree", "NaN", batches("attention", apart(gradient="NaN")), "gradient off by nan"
    ),
    Judged(
        "attention_implementations_agree",
        "further off than rounding explains",
        batches("attention", {**apart(logits=0.2), "plain": apart(logits=1e-5)["own"], "loss": 3.0}),
        "logits off by 0.2",
    ),
    Judged(
        "attention_implementations_agree",
        "NaN where the loss has vanished",
        batches("attention", {**apart(gradient="NaN"), "plain": apart()["own"], "loss": 2e-6}),
        "gradient off by nan",
    ),
    Judged(
        "attention_implementations_agree",
        "further off than bf16 explains",
        batches("attention", {**apart(logits=0.1), "plain": BF16}, precision="bf16"),
        "logits off by 0.1, allowed 0.0301 (the plain way is off by 0.005 in this precision)",
    ),
    Judged(
        "attention_implementations_agree",
        "an empty softmax",
        probe("attention", finite={"a row that is nothing but padding": False}),
        "sdpa: a row that is nothing but padding makes a number NaN",
        "softmax",
    ),
    Judged(
        "compiled_equals_eager",
        "a wrong kernel",
        batches("compilation", apart(logits=0.01)),
        "compiled by inductor, batch 0: logits off by 0.01",
        "decomposition",
    ),
    Judged(
        "compiled_equals_eager",
        "not called",
        record(compilation={"graphs": 0, "eager_passes": 8}),
        "0 graphs compiled; 8 of 8 forward passes ended in code that was not",
        "another object",
    ),
    Judged(
        "packing_changes_nothing",
        "neighbours are seen",
        batches("packing", apart(), apart(logits=0.03)),
        "packed, batch 1: logits off by 0.03, allowed 0.0001",
        "attend to each other",
    ),
    Judged("packing_changes_nothing", "NaN", batches("packing", apart(loss="NaN")), "loss off by nan"),
    Judged(
        "packing_changes_nothing",
        "forgotten",
        probe("packing", used="sdpa"),
        "train.packing is declared, and attention is sdpa, not sdpa_packed",
        "another implementation",
    ),
    Judged("compiled_equals_eager", "gave up", record(compilation={"eager_passes": 5}), "5 of 8", "recompilations"),
)


@each(*REJECTED)
def test_rejects(judged: Judged) -> None:
    """What is not rounding breaks the law, and NaN is no rounding."""
    check(judged, "broken")


@each(
    Judged("checkpointing_equals_plain", "", undeclared("gradient_checkpointing"), "is not declared"),
    Judged("compiled_equals_eager", "", undeclared("compile"), "train.compile is not declared"),
    Judged("packing_changes_nothing", "", undeclared("packing"), "nothing is packed"),
    Judged("attention_implementations_agree", "eager", record(probes={"attention": {"used": "eager"}}), "is eager"),
    Judged(
        "attention_implementations_agree",
        "no eager",
        record(probes={"attention": {"used": "sdpa", "no_eager": "none"}}),
        "there is no eager attention to compare sdpa with: none",
    ),
)
def test_says_nothing_of_what_is_not_declared(judged: Judged) -> None:
    """A way that nobody asked for is not judged."""
    check(judged, "not applicable")


def test_padded_batches_say_nothing_of_packing() -> None:
    """A law that holds of what was not done would not be evidence."""
    check(Judged("packing_changes_nothing", "", probe("packing", packed=0), "none of the batches"), "vacuous")


@each(
    Judged("compiled_equals_eager", "no evidence", HEALTHY.model_copy(update={"compilation": None}), "is missing"),
    Judged("compiled_equals_eager", "nothing compared", probe("compilation", graphs=0), "nothing was compiled"),
    Judged("packing_changes_nothing", "no number", PACKED_OF_OLD, "how many batches were packed is missing"),
    Judged(
        "attention_implementations_agree",
        "rounding alone moves eager attention as far",
        batches("attention", {**apart(logits=0.2), "plain": apart(logits=1e-2)["own"], "loss": 3.0}),
        "logits off by 0.2, allowed 0.0001: the last bits of the weights move the plain way by 0.01",
    ),
    Judged(
        "attention_implementations_agree",
        "a loss that has vanished",
        batches("attention", {**apart(gradient=0.4), "plain": apart()["own"], "loss": 2e-6}),
        "gradient off by 0.4, allowed 0.001: the loss is 2e-06, and has no gradient to speak of",
    ),
)
def test_evidence_that_cannot_tell_is_no_verdict(judged: Judged) -> None:
    """Neither held nor broken."""
    check(judged, "invalid")


DISTANCE = st.floats(min_value=0) | st.just(math.nan) | st.floats(min_value=0, max_value=1e-3)


@hypothesis.settings(max_examples=50)
@given(DISTANCE, DISTANCE, DISTANCE, st.sampled_from(["attention", "compilation", "packing"]))
def test_distances_are_held_to_their_limits(loss: float, logits: float, gradient: float, name: str) -> None:
    """In fp32 a way is right exactly where all three distances are within their limits."""
    law = {
        "attention": "attention_implementations_agree",
        "compilation": "compiled_equals_eager",
        "packing": "packing_changes_nothing",
    }[name]
    evidence = batches(name, apart(), apart(loss=loss, logits=logits, gradient=gradient))
    (found,) = (one for one in judge(evidence) if one.law == law)
    right = loss <= 1e-4 and logits <= 1e-4 and gradient <= 1e-3
    assert found.outcome == ("held" if right else "broken")


@hypothesis.settings(max_examples=50)
@given(st.floats(min_value=0, max_value=0.5), DISTANCE, st.sampled_from(["bf16", "fp16"]))
def test_lower_precision_is_measured_by_the_plain_way(plain: float, own: float, precision: str) -> None:
    """A kernel may be three times as far from fp32 as eager attention is, and a little more; NaN never."""
    evidence = batches("attention", {**apart(logits=own), "plain": {"logits": plain}}, precision=precision)
    (found,) = (one for one in judge(evidence) if one.law == "attention_implementations_agree")
    assert found.outcome == ("held" if own <= 3 * plain + 1.5e-2 + 1e-4 else "broken")


@hypothesis.settings(max_examples=50)
@given(DISTANCE, DISTANCE)
def test_checkpointing_is_exact_on_a_cpu(loss: float, gradient: float) -> None:
    """Not a bit may differ."""
    (found,) = (
        one
        for one in judge(probe("checkpointing", loss=loss, gradient=gradient))
        if one.law == "checkpointing_equals_plain"
    )
    assert found.outcome == ("held" if loss == 0 and gradient == 0 else "broken")
