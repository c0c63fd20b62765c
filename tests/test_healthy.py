"""Right set-ups of other kinds than those that are shipped: no law may be broken, but where it is truly so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)
from trial import case, train

from harness.laws import LAWS, judge
from harness.record import Record

pytestmark = pytest.mark.usefixtures("one_thread", "in_this_process")

TEXTS = (
    "The soup was warm.",
    "The soup was cold.",
    "We waited an HOUR for the bread and it was stale.",
    "Awful.",
    "naïve café 🙂 日本語のテキスト 👩‍👩‍👧",
    "The waiter remembered our table. " * 12,
)
"""Cases, accents, scripts, joined emoji, and one that is longer than any model's positions."""
LABELS = (1, 0, 0, 0, 1, 1)
LONGEST = 48
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
NAMES = {f"{name}_token": token for name, token in zip(("pad", "bos", "eos", "unk", "mask"), SPECIAL, strict=True)}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PLACES = {"max_position_embeddings": 64}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PROBES = sorted({probe for law in LAWS if law.axis is None and not law.slow for probe in law.probes})


def cased_wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's cased checkpoints have it."""
    words = Tokenizer(models.WordPiece(unk_token="<unk>"))
    words.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))
    return finished(words, "<s> $A </s>", "<s> $A </s> $B:1 </s>:1", cls_token="<s>", sep_token="</s>")


def bytes_of_text(**said: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 and RoBERTa have it; no special tokens of its own accord."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = SPECIAL if said.get("pad_token", "<pad>") else SPECIAL[1:]
    words.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    return finished(words, said.pop("template", "$A"), **said)


def pieces(**said: Any) -> PreTrainedTokenizerFast:
    """Unigram over words that begin with a mark, as T5 and XLNet have it."""
    words = Tokenizer(models.Unigram())
    words.normalizer = normalizers.NFKC()
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(TEXTS, trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>"))
    return finished(words, said.pop("template", "$A </s>"), **said)


def finished(words: Tokenizer, template: str, pair: str | None = None, **said: Any) -> PreTrainedTokenizerFast:
    """The tokenizer with its template, as transformers wants it."""
    ids = [(token, words.token_to_id(token)) for token in ("<s>", "</s>")]
    words.post_processor = processors.TemplateProcessing(single=template, pair=pair, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=LONGEST, **{**NAMES, **said})


def checkpoint(folder: Path, words: PreTrainedTokenizerFast, model: Any, config: PreTrainedConfig) -> Path:
    """Random weights in a folder, as `save_pretrained` leaves them, with the tokenizer."""
    config.vocab_size = len(words)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """An encoder with a cased WordPiece tokenizer."""
    return checkpoint(folder, cased_wordpiece(), BertForPreTraining, BertConfig(**SMALL, **PLACES, **IDS))


def roberta(folder: Path) -> Path:
    """An encoder with byte-level BPE."""
    words = bytes_of_text(template="<s> $A </s>", cls_token="<s>", sep_token="</s>")
    return checkpoint(folder, words, RobertaForMaskedLM, RobertaConfig(**SMALL, **PLACES, **IDS))


def gpt2(folder: Path, **said: Any) -> Path:
    """A decoder with byte-level BPE."""
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **IDS)
    words = bytes_of_text(**said)
    config.pad_token_id, config.eos_token_id = words.pad_token_id, words.eos_token_id
    return checkpoint(folder, words, GPT2LMHeadModel, config)


def without_pad(folder: Path) -> Path:
    """A decoder whose tokenizer has no pad token."""
    return gpt2(folder, pad_token=None)


def padding_first(folder: Path) -> Path:
    """A decoder with absolute positions, padded on the left."""
    return gpt2(folder, padding_side="left")


def llama(folder: Path) -> Path:
    """A decoder with relative positions, padded on the left."""
    words = bytes_of_text(padding_side="left")
    return checkpoint(folder, words, LlamaForCausalLM, LlamaConfig(**SMALL, **PLACES, **IDS))


def t5(folder: Path) -> Path:
    """An encoder and decoder with Unigram pieces."""
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, **IDS)
    return checkpoint(folder, pieces(), T5ForConditionalGeneration, config)


def xlnet(folder: Path) -> Path:
    """Unigram pieces, padded on the left, with the token that the head reads at the end."""
    config = XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, **IDS)
    words = pieces(template="$A </s> <s>", cls_token="<s>", sep_token="</s>", padding_side="left")
    return checkpoint(folder, words, XLNetLMHeadModel, config)


def trained(folder: Path, loop: str, task: str = "sequence-classification", **said: Any) -> Record:
    """A training long enough to learn these few texts."""
    rows = [{"text": text} | ({"target": text[:20]} if task == "seq2seq-lm" else {}) for text in TEXTS]
    data = {"sequences": list(TEXTS), "labels": list(LABELS)} if task == "sequence-classification" else {"rows": rows}
    # Nothing was pretrained, and one text is cut on purpose.
    off = {"texts_are_whole": False, "pretraining_shows": False, "labels_survive_truncation": False}
    said = {"data": data, **said}
    steps = {"steps": 40, "batch_size": 3, "learning_rate": 5e-3, "loop": loop, **said.pop("train", {})}
    return train(case(folder, task=task, train=steps, invariants=off, probes=PROBES, **said))


def broken(record: Record) -> dict[str, str]:
    """What is said of the laws that are broken, or that could not look."""
    return {one.law: one.message for one in judge(record) if one.outcome in ("broken", "invalid")}


@pytest.mark.parametrize(
    ("make", "loop", "task"),
    [
        (bert, "custom", "sequence-classification"),
        (roberta, "trainer", "masked-lm"),
        (without_pad, "trainer", "sequence-classification"),
        (without_pad, "custom", "causal-lm"),
        (llama, "trainer", "sequence-classification"),
        (t5, "custom", "seq2seq-lm"),
        (xlnet, "trainer", "sequence-classification"),
    ],
)
def test_a_right_set_up_raises_no_alarm(make: Any, loop: str, task: str, tmp_path: Path) -> None:
    """Whatever the tokenizer is like, which token pads, and on which side."""
    assert broken(trained(make(tmp_path), loop, task)) == {}


def test_absolute_positions_behind_padding_are_a_true_alarm(tmp_path: Path) -> None:
    """GPT-2 counts positions from the first column, and the Trainer gives it none: padded on the left, it is wrong."""
    found = broken(trained(padding_first(tmp_path), "trainer"))
    assert found.keys() == {"padding_changes_nothing"}


@pytest.mark.parametrize("loop", ["custom", "trainer"])
def test_batches_of_which_no_token_is_drawn_raise_no_alarm(loop: str) -> None:
    """A masked language model on very short texts has steps without a loss; they change nothing that is declared."""
    rows = [{"text": "sun"}, {"text": "the sun"}, {"text": "a"}]
    said = {"data": {"rows": rows}, "train": {"steps": 24, "batch_size": 2, "learning_rate": 1e-3}}
    record = trained(None, loop, "masked-lm", **said)
    assert 8 < len(record.steps.empty) < 24
    assert all(record.steps.gradient_norm[step] == 0 for step in record.steps.empty)
    assert broken(record).keys() <= {"loss_decreases"}, broken(record)
    (finite,) = (one for one in judge(record) if one.law == "loss_finite")
    assert "steps have none: in" in finite.message
