"""Tokenizers of the usual kinds, trained in the test: word pieces, byte pairs, unigrams."""

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from harness.training import tokenizer

TEXTS = (
    "the soup was warm and the bread was fresh",
    "we waited an hour for the soup and it was cold",
    "What is the capital of France? Paris.",
    "naïve café, 18th of May, won't — 日本語 🙂",
    "Never again!",
)


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, `[CLS] text [SEP]`, the ends of words marked."""
    return tokenizer.train(TEXTS)


def byte_pairs() -> PreTrainedTokenizerFast:
    """As GPT-2's: any byte has a token, nothing is added to a text, and there is no pad token."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    words.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=end,
        bos_token=end,
        unk_token=end,
        model_max_length=254,
        add_prefix_space=True,
    )


def unigrams() -> PreTrainedTokenizerFast:
    """As T5's: spaces are part of tokens, and `</s>` ends a text."""
    words = Tokenizer(models.Unigram())
    words.normalizer = normalizers.NFKC()
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    words.train_from_iterator(TEXTS, trainer)
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", words.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=254
    )


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "word pieces": word_pieces,
    "byte pairs": byte_pairs,
    "unigrams": unigrams,
}
