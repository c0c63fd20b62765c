"""Texts that set-ups get wrong, as strategies of hypothesis; each shrinks to a short and plain one."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from harness.exploration import Trial

SPELT = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<pad>", "<unk>", "<s>", "</s>", "<mask>", "<bos>", "<eos>"),
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_id_0>", "<n>", "##s", "\u2581", "\u0120"),
)
"""Special tokens as a text may spell them, and the marks of words and of their pieces."""

HARD = (
    *("\n", "\r\n", "\t", "\x00", "\x1b[0m", "\u00a0", "\u200b", "\ufeff", "\u202e", "\u2028", "\ufffd"),  # unseen
    *(
        "e\u0301",
        "\u00e9",
        "\u0130",
        "\u00df",
        "\ufb01",
        "\u01c4",
        "a\u0316\u0317\u0318",
        "\u212b",
        "\u00bd",
    ),  # NFC, NFKC, case
    *(
        "\u4f60\u597d",
        "\u0e20\u0e32\u0e29\u0e32",
        "\u05e9\u05dc\u05d5\u05dd",
        "\u0645\u0631\u062d\u0628\u0627",
        "\u0939\u093f",
        "\ud55c",
    ),
    *(
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\U0001f1e9\U0001f1ea",
        "\U0001f44d\U0001f3fd",
        "\u2764\ufe0f",
        "\U0001d4b3",
    ),
    *(
        "\uff21\uff22",
        "\uff11",
        "1,234.50",
        "a",
        "I",
        ".",
        "...",
        "it's",
        "\u2019",
        '"',
        "<br />",
        "&amp;",
        "https://a.b/c?d=e#f",
    ),
)
"""Line ends and marks that are not seen, letters with several encodings, scripts without spaces or from right to left,
emoji of several code points, full-width letters, digits, quotes, markup."""

PIECES = 8
"""Pieces of a short text, at most."""
BEYOND = 4
"""Words of a long text beyond `max_length`, at most."""


def trials(tokenizer: Any, words: tuple[str, ...], max_length: int) -> st.SearchStrategy[Trial]:
    """Up to eight texts, of which some may be the same, in batches of 1 to 6.

    Args:
        tokenizer: whose special tokens are spelt in the texts.
        words: that the experiment's own texts hold, so that not every word is unknown to the tokenizer.
        max_length: in tokens: some texts are as long, or a little longer.
    """
    own = st.sampled_from(words)
    special = st.sampled_from(tuple(dict.fromkeys((*map(str, tokenizer.all_special_tokens), *SPELT))))
    any_characters = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
    piece = st.one_of(own, own, special, st.sampled_from(HARD), any_characters)
    short = st.builds(str.join, st.sampled_from((" ", "")), st.lists(piece, min_size=1, max_size=PIECES))
    several = st.builds(_repeated, own, st.integers(1, min(32, max_length)))
    long = st.builds(_repeated, own, st.integers(1, max_length + BEYOND))
    letters = st.builds(str.__mul__, own, st.integers(1, 40))  # one word, very long
    # Each has the same chance: a long text costs as much as many short ones.
    texts = st.one_of(short, short, short, several, several, letters, long).filter(_is_written)
    return _trials(st.lists(texts, min_size=1, max_size=5), st.integers(1, 6))


@st.composite
def _trials(draw: st.DrawFn, lists: st.SearchStrategy[list[str]], sizes: st.SearchStrategy[int]) -> Trial:
    texts = draw(lists)
    again = draw(st.lists(st.sampled_from(texts), max_size=3))
    return Trial((*texts, *again), draw(sizes))


def _repeated(word: str, count: int) -> str:
    return " ".join([word] * count)


def _is_written(text: str) -> bool:
    """Whether an experiment may hold it: not blank."""
    return bool(text.strip())
