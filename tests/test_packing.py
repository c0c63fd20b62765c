"""Packing: a model that computes real tokens alone trains as it does on padded batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from trial import SEQUENCES, attempt, case, train

from harness.laws import judge
from harness.laws.law import Verdict
from harness.plan import Case
from harness.record import Record
from harness.training import packing
from harness.training.checkpoint import Shelf
from harness.training.faults.way import packed_sequences_see_each_other
from harness.training.loops import LOOPS
from harness.training.run import run

SAID = {"steps": 4, "batch_size": 3, "learning_rate": 5e-3}
QUIET = {"config": {"num_hidden_layers": 1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}


TINY = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"architecture": "llama", "size": "tiny"}
TEXTS = {"task": "causal-lm", "data": {"rows": [{"text": text} for text in SEQUENCES]}}


def law_of(found: Record) -> Verdict:
    """What the law says."""
    (verdict,) = (one for one in judge(found) if one.law == "packing_changes_nothing")
    return verdict


@pytest.mark.parametrize("kind", packing.ENCODERS)
def test_encoders_can_be_packed(kind: str) -> None:
    """Each of the types that packing is said to work for keeps its law."""
    found = train(case({"architecture": kind, "size": "tiny"}, train={**SAID, "packing": True}, probes=["packing"]))
    assert found.checkpoint is not None
    assert (found.checkpoint.attention, found.checkpoint.attention_reason) == (
        "sdpa_packed",
        "train.packing declares it",
    )
    assert law_of(found).outcome == "held", law_of(found).message


@pytest.mark.parametrize("kind", packing.DECODERS)
def test_decoders_can_be_packed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps the law as well, and its attention does go from sequence to sequence."""
    seen, right = [], packing.attend

    def attend(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("lengths", ()))
        return right(*args, **kwargs)

    monkeypatch.setattr(packing, "attend", attend)
    checkpoint = {"architecture": kind, "size": "tiny"}
    found = train(case(checkpoint, **TEXTS, train={**SAID, "steps": 1, "packing": True}, probes=["packing"]))
    assert len(seen[0]) == SAID["batch_size"]
    assert law_of(found).outcome == "held", law_of(found).message


def decoder(loop: str = "custom", **said: Any) -> Case:
    """A decoder without dropout, whose head reads the last token of each text."""
    checkpoint = {
        "architecture": "gpt2",
        "size": "tiny",
        "config": {"embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0},
    }
    return case(checkpoint, train={**SAID, "loop": loop, **said}, probes=["packing"])


@pytest.mark.parametrize("loop", LOOPS)
def test_packed_loops_train_the_same(loop: str) -> None:
    """Without dropout, to rounding, as on padded batches."""
    checkpoint = {"architecture": "bert", "size": "tiny", **QUIET}
    packed, padded = (train(case(checkpoint, train={**SAID, "loop": loop, "packing": on})) for on in (True, False))
    assert packed.steps.loss == pytest.approx(padded.steps.loss, abs=1e-5)


@pytest.mark.parametrize("loop", LOOPS)
def test_packed_decoders_train_the_same_in_every_loop(loop: str) -> None:
    """Their heads read each text's last token, layers are computed again, and yet losses are equal to rounding."""
    packed, padded = (train(decoder(loop, packing=on, gradient_checkpointing=True)) for on in (True, False))
    assert packed.steps.loss == pytest.approx(padded.steps.loss, abs=1e-5)


@pytest.mark.parametrize("loop", LOOPS)
def test_packed_decoders_learn_the_same_tokens_in_every_loop(loop: str) -> None:
    """Below adapters, too, and where a loop divides the loss itself."""
    said = {**SAID, "steps": 2, "batch_size": 2, "gradient_accumulation": 2, "loop": loop}
    cases = (case(LLAMA, **TEXTS, peft={"rank": 2}, train={**said, "packing": on}) for on in (True, False))
    packed, padded = map(train, cases)
    assert packed.steps.loss == pytest.approx(padded.steps.loss, abs=1e-5)
    assert packed.steps.gradient_norm == pytest.approx(padded.steps.gradient_norm, rel=1e-4)


@pytest.mark.parametrize("loop", ["custom", "trainer"])
def test_packed_decoders_break_no_law(loop: str) -> None:
    """The laws of loss and gradient look at the logits, which a packed decoder takes its loss from in another shape."""
    found = train(case(LLAMA, **TEXTS, train={**SAID, "loop": loop, "packing": True}, probes=["steps"]))
    judged = {verdict.law: verdict for verdict in judge(found)}
    assert judged["loss_is_the_declared_one"].outcome == judged["gradient_is_the_declared_one"].outcome == "held"
    assert not [verdict for verdict in judged.values() if verdict.outcome == "broken"]


def test_decoders_that_see_their_neighbours_are_caught() -> None:
    """A text that reads on from the one before it in the row is the law's business."""
    one = decoder(packing=True)
    found = run(one, shelf=Shelf(), root=one.path.parent, fault=packed_sequences_see_each_other)
    assert law_of(found).outcome == "broken"


def test_places_are_those_of_the_padded_row() -> None:
    """Whichever side is padded, and where a row is nothing but padding, logits are those of the padded model."""
    torch.manual_seed(0)
    padded, ids = LlamaForCausalLM(LlamaConfig(**TINY)).eval(), torch.randint(1, 50, (4, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    packed = copy.deepcopy(padded)
    packing.use(packed)
    own, plain = (model(ids, attention_mask=mask).logits for model in (packed, padded))
    torch.testing.assert_close(own[mask.bool()], plain[mask.bool()])
    assert not own[~mask.bool()].any()


def test_the_loss_of_a_decoder_is_over_real_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the padded batch, from the logits of fewer places; what the model gives has all of them."""
    rows, right = [], torch.nn.functional.cross_entropy

    def cross_entropy(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        rows.append(len(logits))
        return right(logits, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)
    padded, ids = LlamaForCausalLM(LlamaConfig(**TINY)), torch.randint(1, 50, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    packed, labels = copy.deepcopy(padded), ids.masked_fill(mask == 0, -100)
    packing.use(packed)
    packed = copy.deepcopy(packed)  # as probes do: the copy's loss is of its own batches
    own, plain = (model(ids, attention_mask=mask, labels=labels) for model in (packed, padded))
    torch.testing.assert_close(own.loss, plain.loss)
    assert (rows, own.logits.shape) == ([8, 12], plain.logits.shape)


def test_what_was_never_packed_is_not_held() -> None:
    """Batches longer than the window that a layer sees are computed as they are."""
    checkpoint = {"architecture": "mistral", "size": "tiny", "config": {"sliding_window": 4}}
    found = train(case(checkpoint, **TEXTS, train={**SAID, "steps": 1, "packing": True}, probes=["packing"]))
    assert law_of(found).outcome == "vacuous"


@pytest.mark.parametrize("said", [{"use_cache": True}, {"logits_to_keep": 1}])
def test_what_generates_is_not_packed_wrongly(said: dict[str, Any]) -> None:
    """No cache of a row is handed out; a head that is to see some places alone sees them."""
    model = LlamaForCausalLM(LlamaConfig(**TINY)).eval()
    packing.use(model)
    ids, mask = torch.ones(2, 4, dtype=torch.long), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    output = model(ids, attention_mask=mask, **said)
    assert output.past_key_values is None
    assert output.logits.shape[:2] == (2, said.get("logits_to_keep", 4))


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("opt", "no packing in OPTForSequenceClassification: only in encoders of bert"), ("fnet", "no packing in FNet")],
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


def test_answers_to_questions_are_not_packed() -> None:
    """The head scores each place of a row, those of padding included: their loss would be another one."""
    row = {"question": "Who met Alan?", "context": "Yesterday Grace met Alan in Paris.", "answer": "Grace"}
    said = {"task": "question-answering", "data": {"rows": [row]}, "train": {"steps": 1, "packing": True}}
    found = attempt(case(**said))
    assert found.outcome == "skipped"
    assert found.reason.startswith("no packing in BertForQuestionAnswering: its loss is over all places of a row")


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
    took = f"2 batches forward and backward in {seconds:g} s packed, 1 s padded (median of 5 turns)"
    assert found.checkpoint.attention_reason == f"train.packing is auto: {took}"
    assert law_of(found).outcome == ("held" if packs else "not applicable")


def test_measuring_changes_nothing() -> None:
    """Losses are those of the training that has nothing to choose, dropout included."""
    plain, chosen = (
        train(case({"architecture": "fnet", "size": "tiny"}, train={**SAID, "packing": on})) for on in (False, "auto")
    )
    assert plain.steps.loss == chosen.steps.loss
