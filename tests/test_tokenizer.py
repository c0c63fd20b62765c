"""A tokenizer from the experiment's own text, and a config that agrees with it."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    XLNetForSequenceClassification,
)

from harness.training.tokenizer import (
    SPECIAL,
    UNUSED,
    accepts_token_types,
    adopt,
    fixed_length,
    longest,
    padding_side,
    train,
)

TEXTS = ["I've been waiting for a HuggingFace course my whole life.", "This course is amazing!"]


def test_writes_the_sentence_between_its_ends():
    """A known word is one token, and the template is BERT's."""
    tokenizer = train(TEXTS)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("This course is AMAZING!")["input_ids"])
    assert tokens == ["[CLS]", "this", "course", "is", "amazing", "!", "[SEP]"]


def test_spells_an_unseen_word():
    """A word that the texts lack is spelled from their characters; a character that they lack is unknown."""
    tokenizer = train(TEXTS)
    assert tokenizer.tokenize("line") == ["l", "##i", "##n", "##e"]
    assert tokenizer.tokenize("Ж") == ["[UNK]"]


def test_pair_has_two_token_types():
    """A pair is one sequence with an end after each part."""
    tokenizer = train(TEXTS, model_input_names=("input_ids", "token_type_ids", "attention_mask"))
    batch = tokenizer("this", "course is")
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"]) == ["[CLS]", "this", "[SEP]", "course", "is", "[SEP]"]
    assert batch["token_type_ids"] == [0, 0, 0, 1, 1, 1]


def test_gives_only_the_declared_inputs():
    """Token types are there only if the model takes them."""
    assert sorted(train(TEXTS)(TEXTS)) == ["attention_mask", "input_ids"]


def test_special_tokens_have_fixed_ids():
    """Padding is 0, and the ends of a text serve decoders as well."""
    tokenizer = train(TEXTS)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 2, 3)


@pytest.mark.parametrize("text", ["", " \t\n", "\u200b", "\x00"])
def test_text_without_content_is_its_ends(text):
    """Nothing readable leaves nothing between the ends."""
    assert train([text])(text)["input_ids"] == [2, 3]


def test_no_texts_at_all():
    """Without text there are the special tokens."""
    assert len(train([])) == len(SPECIAL) + len(UNUSED)


@settings(max_examples=60)
@given(st.lists(st.text(), max_size=5), st.text())
def test_any_text_is_encoded_between_its_ends(texts, other):
    """Whatever the text, seen in training or not, it begins with [CLS], ends with [SEP] and has no other of them."""
    tokenizer = train(texts)
    for text in [*texts, other, "[SEP] [CLS] [PAD] [unused0]"]:
        ids = tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (2, 3)
        assert not {0, 2, 3, 4, *range(5, 13)} & set(ids[1:-1])
        assert max(ids) < len(tokenizer)


@settings(max_examples=30)
@given(st.lists(st.text(), max_size=5))
def test_own_text_is_known(texts):
    """No character of the training text is unknown while there is room for all of them."""
    tokenizer = train(texts, vocab_size=5000)
    assert all(1 not in tokenizer(text)["input_ids"] for text in texts)


def test_vocabulary_is_limited():
    """Many words, in many scripts, still make a small vocabulary that holds words too."""
    texts = [f"word{number} {chr(0x4E00 + number)}" for number in range(3000)]
    tokenizer = train(texts, vocab_size=300)
    assert len(tokenizer) == 300
    assert any(len(token) > 4 and token.startswith("word") for token in tokenizer.get_vocab())


def test_is_the_same_in_every_process(tmp_path):
    """The same texts give the same file byte for byte in a process with other hashes."""
    texts = ["The quick brown fox, the lazy dog.", "éü 中文 🙂 naïve"] * 3
    script = (
        f"from harness.training.tokenizer import train; train({texts!r}).save_pretrained({str(tmp_path / 'other')!r})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    train(texts).save_pretrained(tmp_path / "own")
    own, other = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("own", "other"))
    assert own == other


def test_order_of_texts_does_not_matter():
    """The vocabulary depends on how often words occur, not on where."""
    assert train(TEXTS).get_vocab() == train(TEXTS[::-1]).get_vocab()


def test_survives_saving(tmp_path):
    """A saved tokenizer encodes as before, text that looks like a special token included."""
    tokenizer = train(TEXTS, model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    probes = [*TEXTS, "a [SEP] b", "Ж"]
    assert loaded(probes)["input_ids"] == tokenizer(probes)["input_ids"]
    assert loaded.model_max_length == 77


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "t5gemma", "qwen3_5", "xlm", "hunyuan_v1_moe"])
def test_adopted_config_finds_padding_and_ends(model_type):
    """The config and every config inside it name the tokenizer's own tokens."""
    tokenizer = train(TEXTS)
    config = adopt(AutoConfig.for_model(model_type), tokenizer)
    text = config.get_text_config()
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id) == (0, 2, 3)


@pytest.mark.parametrize(("model_type", "start"), [("t5", 0), ("mt5", 0), ("bart", 3), ("mbart", None)])
def test_decoder_starts_as_its_architecture_does(model_type, start):
    """T5 starts with padding, BART with the end of a text, mBART leaves it to the text."""
    config = adopt(AutoConfig.for_model(model_type), train(TEXTS))
    assert config.decoder_start_token_id == start
    assert adopt(config, train(TEXTS)).decoder_start_token_id == start


def test_ids_of_images_stay_inside_the_vocabulary():
    """Each thing that is no text has an id of its own, and no text has it."""
    tokenizer = train(TEXTS)
    config = adopt(AutoConfig.for_model("qwen3_5"), tokenizer)
    ids = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    assert len(set(ids)) == 4
    assert set(ids) <= set(range(5, 13))


def test_ids_agree_between_nested_configs():
    """The same thing has the same id in the config and in those inside it."""
    config = adopt(AutoConfig.for_model("t5gemma2"), train(TEXTS))
    assert config.image_token_index == config.encoder.image_token_index


def test_token_types_only_where_they_mean_something():
    """BERT has a table of two types; a BERT with one, GPT-2 and XLNet have none."""
    assert accepts_token_types(BertForSequenceClassification, AutoConfig.for_model("bert"))
    assert not accepts_token_types(BertForSequenceClassification, AutoConfig.for_model("bert", type_vocab_size=1))
    assert not accepts_token_types(GPT2ForSequenceClassification, AutoConfig.for_model("gpt2"))
    assert not accepts_token_types(XLNetForSequenceClassification, AutoConfig.for_model("xlnet"))


@pytest.mark.parametrize(
    ("model_type", "tokens"), [("bert", 510), ("roberta", 510), ("reformer", 4096), ("t5", None), ("xlnet", None)]
)
def test_longest_text(model_type, tokens):
    """A text of that length is within the position table, also where counting begins behind padding."""
    assert longest(AutoConfig.for_model(model_type)) == tokens


@pytest.mark.parametrize(
    ("model_type", "side"),
    [("bert", "right"), ("gpt2", "right"), ("gemma", "left"), ("xlnet", "left"), ("no-such", "right")],
)
def test_pads_on_the_side_of_the_architecture(model_type, side):
    """XLNet and Gemma pad on the left, and a saved tokenizer still does."""
    assert padding_side(model_type) == side
    assert train(TEXTS, padding_side=side).init_kwargs["padding_side"] == side


def test_fixed_length():
    """Only the product of axial positions can be trained, unless they are switched off."""
    assert fixed_length(AutoConfig.for_model("reformer", axial_pos_shape=[4, 8])) == 32
    assert fixed_length(AutoConfig.for_model("reformer", axial_pos_embds=False)) is None
    assert fixed_length(AutoConfig.for_model("bert")) is None
