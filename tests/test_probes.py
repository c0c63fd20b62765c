"""What the probes find in models that look tokens up, draw or learn in ways of their own."""

from typing import Any

import pytest
import torch
from trial import case

from harness.training import devices, workload
from harness.training.checkpoint import Loaded, Shelf
from harness.training.probes.dependence import dependence
from harness.training.probes.padding import padding
from harness.training.probes.result import features
from harness.training.probes.steps import steps
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload


def logits(model: Any, batch: Any) -> torch.Tensor:
    """What the model gives for a batch, its labels left out; the same each time."""
    with same_draws():
        found: torch.Tensor = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return found


SHORT = {"axial_pos_shape": [4, 8], "max_position_embeddings": 32}
"""A Reformer of 32 positions."""


def prepared(architecture: str, config: Any = None, **said: Any) -> tuple[Loaded, Workload]:
    """A tiny model of random weights, and what a loop would train it with."""
    settings = case({"architecture": architecture, "size": "tiny", "config": config or {}}, **said).settings
    loaded = Shelf().take(case().path, settings)
    return loaded, workload.prepare(loaded, settings, devices.find("cpu"))


ODD = {
    "xlnet": "looks up places x rows",
    "longformer": "pads the ids before it looks them up",
    "canine": "looks up hashes of the ids, a part of the width for each",
    "ibert": "has a lookup of its own, which gives a scale beside the vectors",
    "bigbird_pegasus": "makes positions of the batch's shape alone",
    "bart": "has positions that are given the ids, and a decoder with shifted ones",
}


@pytest.mark.parametrize("architecture", ODD)
def test_every_token_is_found(architecture: str) -> None:
    """However the model looks its tokens up, each of them counts, and no other example's does."""
    found = dependence(*prepared(architecture))
    assert found["dead"] == [[]] * len(found["lengths"])
    assert found["others"] == 0
    assert min(found["own"]) > 0


TEXTS = {"task": "causal-lm", "data": {"rows": [{"text": text} for text in ("it was cold", "a warm soup", "bread")]}}
"""Of a language model."""


def test_a_table_with_a_layer_of_its_own_is_found() -> None:
    """Inkling's embedding of tokens holds a norm: it looks them up all the same."""
    assert dependence(*prepared("inkling_text", **TEXTS))["dead"] == [[], [], []]


def test_a_model_that_computes_gradients_in_train_mode_only() -> None:
    """Reformer refuses them in eval mode: its twin, which drops nothing in either, is asked in train mode."""
    found = dependence(*prepared("reformer", SHORT))
    assert (found["others"], found["padding"], min(found["own"]) > 0) == (0, 0, True)


def test_what_a_module_keeps_of_a_forward_pass_can_be_copied() -> None:
    """RecurrentGemma keeps its last states, which hang on the graph: the copy has their values, the model its graph."""
    _, work = prepared("recurrent_gemma", **TEXTS)
    loss = work.model.train()(**work.collator()([features(work, 0)])).loss
    kept = [m.recurrent_states for m in work.model.modules() if hasattr(m, "recurrent_states")]
    copies = [m.recurrent_states for m in twin(work.model).modules() if hasattr(m, "recurrent_states")]
    assert any(one is not None and one.requires_grad for one in kept)
    assert all(one is None or torch.equal(one, other) for one, other in zip(kept, copies, strict=True))
    loss.backward()


def test_a_twin_stays_quiet_where_modules_are_made_anew() -> None:
    """BigBird makes another attention for short texts in its first forward pass, whose dropout the config says."""
    _, work = prepared("big_bird")
    model = twin(work.model)
    batch = work.collator()([features(work, 0)])
    model(**batch)
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0] == []
    assert work.model.config.attention_probs_dropout_prob > 0


@pytest.mark.parametrize("architecture", ["xlnet", "longformer", "bart"])
def test_an_ignored_token_is_found(architecture: str) -> None:
    """Positions that go on counting do not stand in for a word that is zeroed where it was looked up."""
    loaded, work = prepared(architecture)
    word = work.tokenizer("soup")["input_ids"][1]

    def ignore(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * (args[0] != word).unsqueeze(-1)

    tables = [one for one in work.model.modules() if isinstance(one, torch.nn.Embedding)]
    for table in tables:
        if table.num_embeddings == len(work.tokenizer):
            table.register_forward_hook(ignore)
    found = dependence(loaded, work)
    for index, dead in zip(found["examples"], found["dead"], strict=True):
        assert dead == [place for place, token in enumerate(work.examples[index]["input_ids"]) if token == word]
    assert any(found["dead"])


def test_a_model_that_is_flat_after_training_was_not_before() -> None:
    """Weights that no longer read a token do not make the input an ignored one: those of the start did."""
    loaded, work = prepared("bert")
    with torch.no_grad():
        work.model.classifier.weight.zero_()
        work.model.classifier.bias.fill_(1.0)
    found = dependence(loaded, work)
    assert min(found["own"]) > 0
    assert not any(found["dead"])


def test_padding_is_judged_before_and_after_training() -> None:
    """A model that has learnt its examples by heart moves no more without a mask; that of the start does."""
    loaded, work = prepared("bert")
    with torch.no_grad():
        work.model.classifier.weight.zero_()
        work.model.classifier.bias.fill_(1.0)
    found = padding(loaded, work)
    assert max(found["nothing_masked"]) > 1e-3
    assert max(*found["batch"], *found["more_padding"], *found["other_company"]) < 1e-5


def test_the_gradient_of_a_vanishing_loss_is_what_rounding_leaves() -> None:
    """A checkpoint that knows its examples by heart: a softmax in fp32 is 1 but for its last bits."""
    loaded, work = prepared("bert", data={"sequences": ["it was cold", "bread"], "labels": [1, 1]})
    with torch.no_grad():
        loaded.model.classifier.weight.zero_()
        loaded.model.classifier.bias.copy_(torch.tensor([-7.0, 7.0]))
    first = steps(loaded, work)["steps"][0]
    assert 0 < first["loss"] < 1e-5
    assert first["gradient"] < 1e-3
    assert first["logits_gradient"] < 1e-3


def test_a_batch_of_one_length_has_no_room_for_more_padding() -> None:
    """Reformer trains on the whole table of positions: all batches of both loops have that many columns."""
    loaded, work = prepared("reformer", SHORT)
    found = padding(loaded, work)
    assert work.fixed_length == 32
    assert {batch["input_ids"].shape[1] for batch in work.batches()} == {32}
    assert found["more_padding"] == found["batch"]
    assert max(found["batch"]) < 1e-5 < max(found["nothing_masked"])


def test_what_is_drawn_in_a_forward_pass_is_drawn_again() -> None:
    """Phi-MoE samples its experts in training: the reference takes the same ones."""
    found = steps(*prepared("phimoe", train={"batch_size": 4}))["steps"]
    assert max(step["gradient"] for step in found) < 1e-5


def test_a_gradient_that_a_layer_leaves_itself_is_seen() -> None:
    """Reformer's reversible layers put the gradients on their weights, without autograd's knowing."""
    (first, *_) = steps(*prepared("reformer", SHORT))["steps"]
    assert first["unreached"] == []
    assert first["gradient"] < 1e-5


def test_a_parameter_that_never_trains_is_found_among_those_without_a_part() -> None:
    """LayoutLMv3 looks its relative positions up without a gradient; the parts that see an image count for nothing."""
    (first, *_) = steps(*prepared("layoutlmv3"))["steps"]
    assert [name.rpartition("encoder.")[2] for name in first["unreached"]] == [
        "rel_pos_bias.weight",
        "rel_pos_x_bias.weight",
        "rel_pos_y_bias.weight",
    ]


def test_same_draws() -> None:
    """The same numbers each time inside, and outside as if nothing had been drawn."""
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with same_draws():
        one = torch.rand(3)
    with same_draws():
        two = torch.rand(3)
    assert torch.equal(one, two)
    assert torch.equal(torch.rand(2), expected)
    state = torch.get_rng_state()
    with same_draws(state):
        three = torch.rand(3)
    assert torch.equal(torch.rand(3), three)


def test_logits_are_the_same_each_time() -> None:
    """Reformer hashes at random in eval mode too."""
    loaded, work = prepared("reformer", SHORT)
    model = twin(loaded.model)
    batch = work.collator()([features(work, 0)])
    with torch.no_grad():
        assert torch.equal(logits(model, batch), logits(model, batch))
