"""The laws of adapters, on records written by hand."""

from typing import Any

import pytest
from records import ADAPTED, HEALTHY, RATE, pair, parameter, record
from test_laws import Judged, check, each, verdict

from harness.laws import LAWS, judge
from harness.record import Record

HEAD = "base_model.model.classifier.modules_to_save.default.weight"


def beside(*parameters: Any, without: str = "") -> Record:
    """A right training of adapters with more parameters, and without those whose names hold a text."""
    kept = tuple(one for one in ADAPTED.parameters if not without or without not in one.name)
    return record(ADAPTED, parameters=(*kept, *parameters))


def changed(name: str, **changes: Any) -> Record:
    """A right training of adapters, in which the parameters whose names hold a text have other figures."""
    parameters = (one.model_copy(update=changes) if name in one.name else one for one in ADAPTED.parameters)
    return record(ADAPTED, parameters=tuple(parameters))


def probe(name: str, **changes: Any) -> Record:
    """A right training of adapters, but for what a probe left."""
    return record(ADAPTED, probes={name: {**ADAPTED.probes[name], **changes}})


def layer(**changes: Any) -> Record:
    """A right training of adapters, but for what a layer says of itself."""
    return probe("adapted", layers=[{**ADAPTED.probes["adapted"]["layers"][0], **changes}])


def one_step(base: Record) -> Record:
    """The same after one step."""
    return record(base, steps={"learning_rate": (RATE,), "loss": (0.7,)}, settings={"train.steps": 1})


UNUSED = pair("pooler", furthest=0.0, gradient=0.0)
EMBEDDING = (
    parameter("bert.word.lora_embedding_A.default", adapter=True, start=0.0, furthest=6 * RATE),
    parameter("bert.word.lora_embedding_B.default", adapter=True, start=1.0, furthest=RATE, gradient=0.0),
)

ACCEPTED = (
    Judged("adapters_as_declared", "right", ADAPTED, ("2 modules (query 1, value 1); whole: classifier", "33.33%")),
    Judged(
        "adapters_as_declared",
        "convolutions have no formula",
        probe("adapted", formula={}),
    ),
    Judged("adapters_start_at_zero", "right", ADAPTED, "2 pairs of matrices"),
    Judged("adapters_start_at_zero", "an embedding begins with A at 0", beside(*EMBEDDING), "3 pairs"),
    Judged("adapters_start_at_zero", "A has no gradient at all", changed("lora_A", gradient=None)),
    Judged("adapters_change", "right", ADAPTED, "2 of 2 adapters moved"),
    Judged("adapters_change", "a module without a part in the loss", beside(*UNUSED), "2 of 3 adapters moved"),
    Judged("adapters_change", "A needs two steps", one_step(changed("lora_A", furthest=0.0))),
    Judged("adapters_change", "an embedding", beside(*EMBEDDING), "3 of 3"),
    Judged(
        "adapters_change",
        "A hardly moves under SGD",
        record(changed("lora_A", furthest=0.0), settings={"train.optimizer": "sgd"}),
        "2 of 2 adapters moved",
    ),
    Judged("frozen_stay", "everything beside adapters", ADAPTED, "3 of 8 parameters stay"),
    Judged("head_changes", "the head is trained whole", ADAPTED, f"1 new parameters moved; least: {HEAD}"),
    Judged("save_reload_equal", "merged as well", ADAPTED, "merged adapters within 3e-07"),
)

REJECTED = (
    Judged("adapters_as_declared", "an empty target", record(ADAPTED, adapters={"targets": {"query": 2, "v": 0}}), "v"),
    Judged(
        "adapters_as_declared", "none", record(ADAPTED, adapters={"modules": 0}), "no module has an adapter for any"
    ),
    Judged(
        "adapters_as_declared", "a layer has none", layer(modules=1), "1 module with an adapter, and the targets mean 2"
    ),
    Judged("adapters_as_declared", "rank", layer(rank=8), "2 adapters with rank 8, declared 4", "another config"),
    Judged("adapters_as_declared", "scale", layer(scale=16.0), "scale 16, declared 4"),
    Judged("adapters_as_declared", "dropout", layer(dropout=0.0), "dropout 0, declared 0.1"),
    Judged(
        "adapters_as_declared",
        "switched off",
        probe("adapted", formula={"bert.layer.query": 1.0}),
        "what the adapter of bert.layer.query adds differs from alpha / rank * B A x by 1 of it, allowed 1e-05",
        "switched off",
    ),
    Judged("adapters_as_declared", "no number", probe("adapted", formula={"bert.layer.query": "NaN"}), "by nan"),
    Judged("adapters_as_declared", "frozen", changed("query.lora_B", trainable=False), "1 matrix of adapters do not"),
    Judged(
        "adapters_as_declared",
        "the weights under them train",
        changed("base_layer", trainable=True),
        "1 parameter beside the adapters are trained: base_model.model.bert.layer.query.base_layer.weight",
        "not frozen",
    ),
    Judged(
        "adapters_as_declared",
        "embeddings left out of modules_to_save",
        record(ADAPTED, settings={"peft.modules_to_save": ["word_embeddings"]}),
        "word_embeddings is not trained whole, as declared",
    ),
    Judged(
        "adapters_as_declared",
        "undeclared",
        record(ADAPTED, adapters=None),
        "the model has adapters, and none are declared",
    ),
    Judged("adapters_start_at_zero", "not at 0", changed("query.lora_B", start=0.1), "0.3", "init_lora_weights=False"),
    Judged("adapters_start_at_zero", "both at 0", changed("value.lora_A", start=0.0), "expected one", "neither will"),
    Judged(
        "adapters_start_at_zero",
        "A has a gradient",
        changed("query.lora_A", gradient=0.01),
        "the first gradient of base_model.model.bert.layer.query.lora_A.default.weight is 0.01, expected exactly 0",
        "was not 0 any more",
    ),
    Judged("adapters_start_at_zero", "none", beside(without="lora_"), "no parameter of the model belongs to an"),
    Judged("adapters_change", "B stays", changed("query.lora_B", furthest=0.0), "lora_B.default.weight moved by 0"),
    Judged("adapters_change", "A stays", changed("value.lora_A", furthest=1e-5), "lora_A", "not in the optimizer"),
    Judged("adapters_change", "no gradient", changed("lora_", gradient=None), "none of 2 adapters gets a gradient"),
    Judged("frozen_stay", "drifts", changed("base_layer", change=1e-6), "query.base_layer.weight is declared frozen"),
    Judged("head_changes", "frozen", changed(HEAD, trainable=False, furthest=0.0), f"{HEAD} moved by 0", "is frozen"),
    Judged("save_reload_equal", "merged", probe("saved", merged=0.3), "differ by 0.3 of the largest", "another scale"),
    Judged("save_reload_equal", "merged is no number", probe("saved", merged="NaN"), "differ by nan"),
)


@each(*ACCEPTED)
def test_accepts(judged: Judged) -> None:
    """A right training keeps the law."""
    check(judged, "held")


@each(*REJECTED)
def test_rejects(judged: Judged) -> None:
    """A wrong training breaks the law, and the verdict names what, where, and the likely cause."""
    check(judged, "broken")


def test_a_right_training_of_adapters_breaks_no_law() -> None:
    """Under adapters, laws of the backbone say that they have nothing to say."""
    found = {one.law: one.outcome for one in judge(ADAPTED)}
    assert "broken" not in found.values()
    assert found["backbone_changes"] == "not applicable"


@pytest.mark.parametrize("law", ["adapters_as_declared", "adapters_start_at_zero", "adapters_change"])
def test_without_adapters_there_is_nothing_to_say(law: str) -> None:
    """A training of all weights has none."""
    assert law in {each.name for each in LAWS}
    assert verdict(law, HEALTHY).outcome == "not applicable"
