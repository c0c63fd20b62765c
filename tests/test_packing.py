"""Packing: an encoder that computes real tokens alone trains as it does on padded batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from trial import attempt, case, train

from harness.laws import judge
from harness.training import packing
from harness.training.loops import LOOPS

SAID = {"steps": 4, "batch_size": 3, "learning_rate": 5e-3}
QUIET = {"config": {"num_hidden_layers": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}


@pytest.mark.parametrize("kind", packing.MODELS)
def test_models_can_be_packed(kind: str) -> None:
    """Each of the types that packing is said to work for keeps its law."""
    found = train(case({"architecture": kind, "size": "tiny"}, train={**SAID, "packing": True}, probes=["packing"]))
    assert found.checkpoint is not None
    assert (found.checkpoint.attention, found.checkpoint.attention_reason) == (
        "sdpa_packed",
        "train.packing declares it",
    )
    (verdict,) = (one for one in judge(found) if one.law == "packing_changes_nothing")
    assert verdict.outcome == "held", verdict.message


@pytest.mark.parametrize("loop", LOOPS)
def test_packed_loops_train_the_same(loop: str) -> None:
    """Without dropout, to rounding, as on padded batches."""
    checkpoint = {"architecture": "bert", "size": "tiny", **QUIET}
    packed, padded = (train(case(checkpoint, train={**SAID, "loop": loop, "packing": on})) for on in (True, False))
    assert packed.steps.loss == pytest.approx(padded.steps.loss, abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("gpt2", "no packing in GPT2ForSequenceClassification: only in encoders of bert"), ("fnet", "no packing in FNet")],
)
def test_what_cannot_be_packed_is_skipped_or_padded(architecture: str, reason: str) -> None:
    """A skip where packing is asked for; where it may be chosen, the reason why it is not."""
    checkpoint = {"architecture": architecture, "size": "tiny"}
    asked = attempt(case(checkpoint, train={"steps": 1, "packing": True}))
    assert (asked.outcome, asked.reason[: len(reason)]) == ("skipped", reason)
    chosen = train(case(checkpoint, train={"steps": 1, "packing": "auto"}))
    assert chosen.checkpoint is not None
    assert chosen.checkpoint.attention_reason.startswith(f"train.packing is auto: {reason}")
    assert chosen.settings["train.packing"] is False


@pytest.mark.parametrize(("seconds", "packs"), [(0.5, True), (0.95, False), (2.0, False)])
def test_auto_packs_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, seconds: float, packs: bool) -> None:
    """By a tenth at least; the record has both times, and what was chosen."""

    def timed(ways: dict[str, Callable[[], None]]) -> dict[str, tuple[float, int]]:
        for way in ways.values():
            way()
        return {"packed": (seconds, 5), "padded": (1.0, 5)}

    monkeypatch.setattr(packing, "in_turns", timed)
    found = train(case(train={**SAID, "packing": "auto"}, probes=["packing"]))
    assert found.settings["train.packing"] is packs
    assert found.checkpoint is not None
    assert found.checkpoint.attention == ("sdpa_packed" if packs else "sdpa")
    says = f"train.packing is auto: 2 batches forth and back in {seconds:g} s packed, 1 s padded (median of 5 turns)"
    assert found.checkpoint.attention_reason == says
    (verdict,) = (one for one in judge(found) if one.law == "packing_changes_nothing")
    assert verdict.outcome == ("held" if packs else "not applicable")


def test_measuring_changes_nothing() -> None:
    """Losses are those of the training that has nothing to choose, dropout included."""
    plain, chosen = (
        train(case({"architecture": "fnet", "size": "tiny"}, train={**SAID, "packing": on})) for on in (False, "auto")
    )
    assert plain.steps.loss == chosen.steps.loss
