"""A small tokenizer trained on the experiment's own text, and a config that agrees with a tokenizer."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Ids 0 to 4, in this order."""
UNUSED = tuple(f"[unused{number}]" for number in range(8))
"""Ids 5 to 12: never in a text, so they can stand for images and whatever else a config needs an id for."""
VOCABULARY = 1000
"""Tokens at most."""


def train(
    texts: Iterable[str],
    *,
    model_input_names: Sequence[str] = ("input_ids", "attention_mask"),
    vocab_size: int = VOCABULARY,
    model_max_length: int = 254,
    padding_side: Literal["left", "right"] = "right",
) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer of at most `vocab_size` tokens that writes `[CLS] text [SEP]`, or a pair as
    `[CLS] text [SEP] text [SEP]` with token types 0 and 1.

    `model_max_length` is in tokens (every tiny config has positions for 254) and truncates only where the caller asks
    to. The same texts, in any order, give the
    same `tokenizer.json` byte for byte. Text that looks like a special token is read as plain text.
    """
    pieces = _vocabulary(texts, vocab_size)
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        # A decoder's text begins and ends with the tokens that an encoder's does.
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_input_names=list(model_input_names),
        model_max_length=model_max_length,
        padding_side=padding_side,
        # Heads that look for the end of the text count its tokens: one written by the user would be one too many.
        split_special_tokens=True,
    )


def _vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """The special tokens, the commonest characters, then the commonest words; ties in alphabetical order.

    The trainer of `tokenizers` numbers the pieces in the order of a hash map, another one in every process. A test
    or a digest that compares two runs needs the same ids in both.
    """
    normalize = BertNormalizer().normalize_str
    split = BertPreTokenizer().pre_tokenize_str
    words = Counter(word for text in texts for word, _ in split(normalize(text)))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        letters.update({word[0]: count})
        letters.update(dict.fromkeys((f"##{letter}" for letter in word[1:]), count))
    # Half of the room at most for characters: a text in many scripts still gets whole words.
    room = max(0, size - len(SPECIAL) - len(UNUSED))
    pieces = dict.fromkeys([*SPECIAL, *UNUSED, *_commonest(letters)[: room // 2], *_commonest(words)])
    return list(pieces)[: max(size, len(SPECIAL) + len(UNUSED))]


def _commonest(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda piece: (-counts[piece], piece))


def adopt(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Set the token ids in `config`, and in the configs inside it, to those of `tokenizer`; `config` is returned.

    A model built from it then finds padding and the end of a text where the tokenizer puts them. A decoder starts with
    the token that its architecture starts with (padding for T5, the end for BART). Ids of other things (images, audio)
    become tokens that are in no text, the same id for the same thing throughout; those that are None stay None. The
    number of embedding rows is not touched.
    """
    fields = [(name, value) for part in _parts(config) for name, value in vars(part).items()]
    others = dict.fromkeys(_thing(name) for name, value in fields if _is_other(name, value))
    spare = _unused(tokenizer)
    ids = {thing: spare[number % len(spare)] for number, thing in enumerate(others)}
    for part in _parts(config):
        start = _start_role(part)
        if start is not None:
            _set(part, "decoder_start_token_id", getattr(tokenizer, f"{start}_token_id"))
        for name, value in list(vars(part).items()):
            if (role := _role(name)) is not None:
                _set(part, name, getattr(tokenizer, f"{role}_token_id"))
            elif _is_other(name, value):
                _set(part, name, ids[_thing(name)])
    return config


def accepts_token_types(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Whether token types mean something to the model: its `forward` takes them and it has more than one to tell apart.

    GPT-2 looks them up among the words and XLNet compares them; neither has a table of types, so neither gets them.
    """
    takes = "token_type_ids" in inspect.signature(model_class.forward).parameters
    return takes and any((getattr(part, "type_vocab_size", None) or 0) > 1 for part in _parts(config))


def input_names(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[str, ...]:
    """The `model_input_names` of a tokenizer for this model."""
    types = ("token_type_ids",) if accepts_token_types(model_class, config) else ()
    return ("input_ids", *types, "attention_mask")


def longest(config: PreTrainedConfig) -> int | None:
    """The most tokens of one example that the position table holds; None where positions have no table.

    RoBERTa's kind begins to count behind the padding id, and MPNet behind 1 whatever the id: those rows are left out.
    """
    if (fixed := fixed_length(config)) is not None:
        return fixed
    rows = [rows for part in _parts(config) if (rows := getattr(part, "max_position_embeddings", None) or 0) > 0]
    return min(rows) - max(getattr(config, "pad_token_id", None) or 0, 1) - 1 if rows else None


def fixed_length(config: PreTrainedConfig) -> int | None:
    """The one length in tokens that every training batch must be padded to; None where any length will do.

    Reformer's positions are the sum of a row's and a column's, and only the whole table can be trained.
    """
    shape = getattr(config, "axial_pos_shape", None)
    return math.prod(shape) if shape and getattr(config, "axial_pos_embds", True) else None


def padding_side(model_type: str) -> Literal["left", "right"]:
    """The side on which the architecture's own tokenizer pads: left for XLNet and Gemma, right where it has none."""
    try:
        # Looking at the class of a tokenizer whose package is not installed raises ImportError.
        words = tokenizer_class_from_name(TOKENIZER_MAPPING_NAMES.get(model_type) or "")
        return "left" if getattr(words, "padding_side", None) == "left" else "right"
    except ImportError:
        return "right"


_ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def _parts(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The config and all configs inside it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(part for nested in inner for part in _parts(nested))]


def _role(name: str) -> str | None:
    """What the tokenizer calls the token whose id is in the field `name`: `eos` for `forced_eos_token_id`."""
    thing = _thing(name)
    if thing is None:
        return None
    if thing == "eod":  # end of document
        return "eos"
    last = thing.rpartition("_")[2]
    return last if last in _ROLES else None


def _thing(name: str) -> str | None:
    """The name of a token id's field without its ending; None for other fields."""
    found = re.fullmatch(rf"(\w+)_token_(?:id|index)|({'|'.join(_ROLES)})_index", name)
    return found and (found[1] or found[2])


def _is_other(name: str, value: object) -> bool:
    """Whether the field holds the id of something that is no part of a text."""
    return type(value) is int and _thing(name) not in (None, "decoder_start") and _role(name) is None


def _start_role(config: PreTrainedConfig) -> str | None:
    """The role of the token that the architecture's decoder starts with; None where it says that it needs none."""
    if not hasattr(config, "decoder_start_token_id"):
        # T5's class leaves it to the checkpoint, and all of them start with padding.
        return "pad" if config.is_encoder_decoder else None
    start = config.decoder_start_token_id
    roles = ("pad", "eos", "bos")
    same = (role for role in roles if getattr(config, f"{role}_token_id", None) == start)
    return None if start is None else next(same, "bos")


def _unused(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that occur in no text; the unknown token's where the vocabulary has none set apart."""
    vocabulary = tokenizer.get_vocab()
    unused = sorted(number for token, number in vocabulary.items() if re.fullmatch(r"\[unused\d+\]", token))
    instead = (tokenizer.mask_token_id, tokenizer.unk_token_id, 0)
    return unused or [next(number for number in instead if number is not None)]


def _set(config: PreTrainedConfig, name: str, value: int | None) -> None:
    if value is not None:
        setattr(config, name, value)
