"""Any architecture made tiny by its own field names: built, run forward and backward on a padded batch."""

import math
import time
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, logging
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from harness.errors import HarnessError
from harness.training.tiny import InvalidConfig, UnknownConfigKey, configure, set_dropout, shrink
from harness.training.tokenizer import adopt, fixed_length, input_names, train

TEXTS = [
    "I've been waiting for a HuggingFace course my whole life.",
    "This course is amazing!",
    "No.",
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
]
LABELS = torch.tensor([0, 1, 2, 0])

# Encoders (absolute, relative, disentangled and two-stream positions), decoders (learned and rotary positions),
# mixtures of experts, encoder-decoders, pooled blocks, state spaces with attention, nested configs, hashing.
SAMPLE = [
    "bert",
    "roberta",
    "distilbert",
    "deberta-v2",
    "xlnet",
    "gpt2",
    "llama",
    "gemma2",
    "mixtral",
    "deepseek_v3",
    "t5",
    "bart",
    "funnel",
    "zamba",
    "qwen3_5",
    "reformer",
]

NEEDS = {"layoutlmv2": "detectron2"}
"""The package that an architecture can't be built without."""


@pytest.fixture(autouse=True)
def _quiet():
    """Warnings about defaults of configs that are replaced at once say nothing; threads that wait for a busy processor
    would count as work."""
    verbosity, threads = logging.get_verbosity(), torch.get_num_threads()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    yield
    logging.set_verbosity(verbosity)
    torch.set_num_threads(threads)


def tiny(model_type: str, **overrides: Any) -> Any:
    return configure(model_type, size="tiny", vocab_size=1000, overrides=overrides)


def check_trains(model_type: str) -> None:
    """Build the tiny model, and run it forward and backward on a padded batch of four texts."""
    tokenizer = train(TEXTS)
    config = adopt(tiny(model_type, num_labels=3), tokenizer)
    torch.manual_seed(0)
    start = time.process_time()
    model = AutoModelForSequenceClassification.from_config(config)
    tokenizer = train(TEXTS, model_input_names=input_names(type(model), config))
    length = fixed_length(config)
    batch = tokenizer(TEXTS, padding="max_length" if length else True, max_length=length, return_tensors="pt")
    output = model(**batch, labels=LABELS)
    output.loss.backward()
    seconds = time.process_time() - start

    assert output.logits.shape == (4, 3)
    assert math.isfinite(output.loss.item())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    assert seconds < 3  # of this process's own work, whatever else the machine does; measured 0.05 to 0.7


@pytest.mark.parametrize("model_type", SAMPLE)
def test_tiny_model_trains(model_type):
    """Architectures that have little in common are all tiny and all learn."""
    check_trains(model_type)


@pytest.mark.zoo
@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES))
def test_every_tiny_model_trains(model_type):
    """So is every architecture that transformers has a sequence-classification head for."""
    if model_type in NEEDS:
        pytest.importorskip(NEEDS[model_type])
    check_trains(model_type)


def test_leaves_its_argument_alone():
    """A shrunk config is a new one."""
    config = AutoConfig.for_model("gemma3")
    before = config.to_dict()
    shrink(config, vocab_size=100)
    assert config.to_dict() == before


@pytest.mark.parametrize("model_type", SAMPLE)
def test_keeps_what_is_no_size(model_type):
    """Dropout, activations, rates and switches are those of the architecture."""
    full = AutoConfig.for_model(model_type).to_dict()
    small = tiny(model_type).to_dict()
    kept = {name: value for name, value in full.items() if isinstance(value, float | bool | str)}
    assert {name: small[name] for name in kept} == kept


@pytest.mark.parametrize(
    ("model_type", "field", "kinds"),
    [
        ("gemma2", "layer_types", ["sliding_attention", "full_attention"] * 2),
        ("qwen3_next", "layer_types", ["linear_attention"] * 2 + ["full_attention"] * 2),
        ("axk1", "mlp_layer_types", ["dense", "sparse", "sparse"]),
        ("reformer", "attn_layers", ("local", "lsh") * 2),
        ("gpt_neo", "attention_layers", ["global", "local"] * 2),
        ("smollm3", "no_rope_layers", [1, 1, 0, 0]),
        ("zamba2", "hybrid_layer_ids", [2, 3]),
        ("funnel", "block_sizes", (1, 1)),
        ("jamba", "layers_num_experts", [1, 4]),
    ],
)
def test_keeps_every_kind_of_layer(model_type, field, kinds):
    """A few layers show every kind that the full model has."""
    config = tiny(model_type)
    assert getattr(config, field) == kinds


def test_fields_of_single_layers():
    """Gemma 4's layers of full attention have wider heads than the others, and the config tells no width of all."""
    config = configure("gemma4_text", size="tiny", vocab_size=100, overrides={})
    widths = {kind: config.per_layer_config[layer].head_dim for layer, kind in enumerate(config.layer_types)}
    assert widths["full_attention"] > 2 * widths["sliding_attention"] > 0
    model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) < 2_000_000


def test_widths_keep_their_ratios():
    """What adds up or divides in the full config still does."""
    reformer = tiny("reformer")
    assert sum(reformer.axial_pos_embds_dim) == reformer.hidden_size
    assert math.prod(reformer.axial_pos_shape) == reformer.max_position_embeddings
    layout = tiny("layoutlmv3")
    assert 4 * layout.coordinate_size + 2 * layout.shape_size == layout.hidden_size
    zamba = tiny("zamba")
    assert zamba.attention_hidden_size == 2 * zamba.hidden_size
    assert zamba.attention_head_dim * zamba.num_attention_heads == zamba.attention_hidden_size


def test_fewer_key_value_heads_stay_fewer():
    """Grouped attention stays grouped, and full attention full."""
    assert tiny("mistral").num_key_value_heads == 2
    assert tiny("llama").num_key_value_heads == 4
    assert tiny("gpt_bigcode").multi_query


def test_overrides_win():
    """A user's value is taken as it is, and what depends on it follows."""
    config = tiny("gemma2", num_hidden_layers=5, hidden_size=128, attention_dropout=0.25)
    assert (config.num_hidden_layers, config.hidden_size, config.attention_dropout) == (5, 128, 0.25)
    assert len(config.layer_types) == 5
    assert config.intermediate_size == 512


def test_dropout_of_every_part():
    """Every rate is set, in configs inside it too, but for those that follow another one and those asked for."""
    config = tiny("t5gemma")
    set_dropout(config, 0.2, keep={})
    assert (config.encoder.attention_dropout, config.encoder.dropout_rate, config.dropout_rate) == (0.2, 0.2, 0.2)
    gemma = tiny("gemma3", text_config={"attention_dropout": 0.3})
    set_dropout(gemma, 0.2, keep={"text_config": {"attention_dropout": 0.3}})
    assert (gemma.text_config.attention_dropout, gemma.vision_config.attention_dropout) == (0.3, 0.2)
    bert = tiny("bert")
    set_dropout(bert, 0.0, keep={})
    assert (bert.hidden_dropout_prob, bert.attention_probs_dropout_prob, bert.classifier_dropout) == (0.0, 0.0, None)


def test_override_by_synonym():
    """`hidden_size` and `n_embd` are the same field of GPT-2."""
    assert tiny("gpt2", hidden_size=32).n_embd == tiny("gpt2", n_embd=32).n_embd == 32


def test_list_of_layers_sets_their_number():
    """A user's list of layer types makes as many layers."""
    assert tiny("gemma2", layer_types=["full_attention"] * 3).num_hidden_layers == 3
    assert tiny("gpt_neo", attention_types=[[["local"], 3]]).num_layers == 3
    assert tiny("funnel", block_sizes=[2, 2, 2]).block_repeats == [1, 1, 1]


def test_nested_overrides():
    """A config inside is overridden by a mapping; the rest of it is tiny."""
    config = tiny("gemma3", text_config={"hidden_size": 48, "num_hidden_layers": 7})
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (48, 7)
    assert config.text_config.vocab_size == 1000
    assert config.vision_config.hidden_size <= 128


def test_shared_key_value_heads_divide_the_heads():
    """Where only the key-value heads are given, the heads are a multiple of them."""
    config = tiny("llama", num_key_value_heads=3)
    assert config.num_attention_heads % 3 == 0


def test_default_size_is_the_architectures_own():
    """Nothing shrinks, overrides are taken, and what the class derives from them is derived."""
    config = configure("gemma2", size="default", vocab_size=77, overrides={"num_hidden_layers": 3})
    assert (config.hidden_size, config.vocab_size, len(config.layer_types)) == (2304, 77, 3)


def test_number_of_labels():
    """The number of labels is an override like others, at either size."""
    assert tiny("bert", num_labels=5).num_labels == 5
    assert configure("bert", size="default", vocab_size=None, overrides={"num_labels": 5}).num_labels == 5


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        (
            "bert",
            {"hiden_size": 3},
            "config key 'hiden_size' is unknown to architecture 'bert'; did you mean 'hidden_size'",
        ),
        ("gemma3", {"text_config": {"hiden_size": 3}}, "did you mean 'text_config.hidden_size'"),
        ("gemma3", {"hidden_size": 3}, "did you mean 'text_config.hidden_size'"),
    ],
)
def test_unknown_key_names_the_nearest(model_type, overrides, message):
    """A key that the config class lacks is refused: the class itself would swallow it."""
    with pytest.raises(UnknownConfigKey) as caught:
        tiny(model_type, **overrides)
    assert message in str(caught.value)
    assert isinstance(caught.value, HarnessError)


@pytest.mark.parametrize("size", ["tiny", "default"])
@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("bert", {"hidden_size": "abc"}, "expected int, got str"),
        ("bert", {"num_hidden_layers": -1}, "'num_hidden_layers': found -1, expected 1 or more"),
        ("gpt2", {"n_head": 0}, "'n_head': found 0, expected 1 or more"),
        ("gemma2", {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 2}, "must be equal"),
        ("gemma3", {"text_config": 7}, "text_config"),
        ("no-such-thing", {}, "knows no architecture 'no-such-thing'"),
    ],
)
def test_values_that_cannot_be_are_refused(size, model_type, overrides, message):
    """What the config class refuses is one clear error."""
    with pytest.raises(InvalidConfig, match=message):
        configure(model_type, size=size, vocab_size=100, overrides=overrides)
