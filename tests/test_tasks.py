"""Each task on random text and on tokenizers of the usual kinds: labels where they belong, and nowhere else."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast
from vocabulary import KINDS

from harness.errors import CheckpointError
from harness.experiment import Settings
from harness.experiment.row import ROLES
from harness.training.data import bare
from harness.training.tasks import IGNORED, TASKS, Task, task_of

TOKENIZERS = {name: make() for name, make in KINDS.items()}
KIND = st.sampled_from(sorted(TOKENIZERS))
TEXT = st.one_of(
    st.text(min_size=1, max_size=30),
    st.sampled_from(["the soup", "Paris.", "won't", "18th", "🙂", "日本語", "naïve café"]),
).filter(lambda text: bool(text.strip()))
LENGTH = st.integers(8, 60)


def task(name: str, *rows: dict[str, Any], **data: Any) -> Task:
    """The task of a case with these rows."""
    said = {"task": name, "checkpoint": {"architecture": "bert", "size": "tiny"}, "data": {"rows": list(rows), **data}}
    if name == "causal-lm":
        said["checkpoint"] = {"architecture": "gpt2", "size": "tiny"}
    if name == "seq2seq-lm":
        said["checkpoint"] = {"architecture": "t5", "size": "tiny"}
    return task_of(Settings.model_validate(said))


def words_of(text: str) -> list[str]:
    """A text split at white space, as a treebank's is."""
    return text.split()


ROWS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "sequence-classification": st.fixed_dictionaries({"text": TEXT, "text_pair": TEXT, "label": st.integers(0, 3)}),
    "token-classification": st.lists(TEXT.map(lambda text: "".join(text.split())), min_size=1, max_size=8).map(
        lambda words: {"words": words, "labels": [len(word) % 5 for word in words]}
    ),
    "question-answering": st.tuples(TEXT, TEXT, TEXT, TEXT).map(
        lambda parts: {
            "question": parts[0],
            "context": f"{parts[1]} {parts[2]} {parts[3]}",
            "answer": parts[2],
            "answer_start": len(parts[1]) + 1,
        }
    ),
    "multiple-choice": st.fixed_dictionaries(
        {"text": TEXT, "choices": st.lists(TEXT, min_size=3, max_size=3), "label": st.integers(0, 2)}
    ),
    "masked-lm": st.fixed_dictionaries({"text": TEXT}),
    "causal-lm": st.one_of(
        st.fixed_dictionaries({"text": TEXT}), st.fixed_dictionaries({"prompt": TEXT, "answer": TEXT})
    ),
    "seq2seq-lm": st.fixed_dictionaries({"text": TEXT, "target": TEXT}),
}


def test_every_task_is_tested() -> None:
    """A new one needs its rows here, and its roles in the experiment."""
    assert ROWS.keys() == TASKS.keys() == ROLES.keys()


@pytest.mark.parametrize("name", TASKS)
@given(data=st.data())
def test_features_are_what_is_declared(name: str, data: st.DataObject) -> None:
    """What the loops train on, and the reference that the laws compare it with, agree: two ways of computing it."""
    row, kind, length = data.draw(ROWS[name]), data.draw(KIND), data.draw(LENGTH)
    words, one = TOKENIZERS[kind], task(name, row)
    try:
        (found,) = one.encode([row], words, length)
    except CheckpointError as error:
        if name == "question-answering" and "no room beside the question" in str(error):
            return
        raise
    expected = one.expected(row, words, length)
    if name == "multiple-choice":
        assert found["input_ids"] == [choice["input_ids"] for choice in expected["choices"]]
        assert found["label"] == expected["labels"]
        return
    found = {"labels" if column == "label" else column: value for column, value in bare(found).items()}
    if name == "masked-lm":
        found["labels"] = expected["labels"]
    assert found == expected


# Words


@given(st.data())
def test_labels_of_words_can_be_read_back(data: st.DataObject) -> None:
    """The first token of each word has the word's label, so that labels of tokens give those of words again."""
    row, kind = data.draw(ROWS["token-classification"]), data.draw(KIND)
    words = TOKENIZERS[kind]
    (found,) = task("token-classification", row).encode([row], words, 254)
    encoded = words(row["words"], is_split_into_words=True)
    assert found["input_ids"] == encoded["input_ids"]
    have_tokens = [number for number in range(len(row["words"])) if number in encoded.word_ids()]
    assert [label for label in found["labels"] if label != IGNORED] == [row["labels"][n] for n in have_tokens]
    for place, (number, label) in enumerate(zip(encoded.word_ids(), found["labels"], strict=True)):
        first = number is not None and number not in encoded.word_ids()[:place]
        assert (label != IGNORED) == first


def test_a_word_that_is_cut_off_is_lost() -> None:
    """It is told, not left out without a word."""
    row = {"words": ["the", "soup", "was", "warm"], "labels": [0, 1, 0, 2]}
    one, words = task("token-classification", row), TOKENIZERS["word pieces"]
    whole, cut = (one.encode([row], words, length)[0] for length in (20, 4))
    assert (one.loses(row, whole, words), one.loses(row, cut, words)) == (False, True)


def test_a_tokenizer_that_takes_no_words_is_named() -> None:
    """One that has to be set up for it says how."""
    words = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["byte pairs"]._tokenizer)

    def refuse(*args: Any, **said: Any) -> Any:
        raise ValueError("add_prefix_space=True is needed")

    words._encode_plus = refuse
    row = {"words": ["the"], "labels": [0]}
    with pytest.raises(CheckpointError, match="takes no text that is split into words: add_prefix_space=True"):
        task("token-classification", row).encode([row], words, 9)


# The next token


@given(st.data())
def test_the_whole_text_and_its_end_are_learnt(data: st.DataObject) -> None:
    """Every token of the text has itself as label, and so has the end; the first one of all has none."""
    row, kind = {"text": data.draw(TEXT)}, data.draw(KIND)
    words = TOKENIZERS[kind]
    (found,) = task("causal-lm", row).encode([row], words, 254)
    assert found["input_ids"][-1] == words.eos_token_id
    assert found["labels"][-1] == words.eos_token_id
    plain = words(row["text"], add_special_tokens=False)["input_ids"]
    first = found["input_ids"][0]
    text = plain if first == words.cls_token_id else plain[1:]
    assert [token for token in found["labels"] if token != IGNORED] == [*text, words.eos_token_id]
    assert found["labels"][0] == IGNORED


@given(st.data())
def test_the_answer_and_not_the_prompt_is_learnt(data: st.DataObject) -> None:
    """No token of the prompt alone has a label; all tokens behind it have theirs, up to the end."""
    row, kind = data.draw(st.fixed_dictionaries({"prompt": TEXT, "answer": TEXT})), data.draw(KIND)
    words = TOKENIZERS[kind]
    (found,) = task("causal-lm", row).encode([row], words, 254)
    learnt = [label != IGNORED for label in found["labels"]]
    assert found["labels"][-1] == words.eos_token_id
    assert learnt == sorted(learnt), "labels end where the text does, without a gap"
    for token, label in zip(found["input_ids"], found["labels"], strict=True):
        assert label in (token, IGNORED)
    prompt = words(row["prompt"], add_special_tokens=False)["input_ids"]
    # The last token of the prompt may be another one with the answer behind it.
    assert sum(not mine for mine in learnt) >= len(prompt) - 2


def test_a_real_end_token_is_learnt_where_it_is_the_pad_token() -> None:
    """The library's collator for language models ignores it; ours does not, and both ignore padding."""
    words = KINDS["byte pairs"]()
    words.pad_token = words.eos_token
    rows = [{"text": "the soup"}, {"text": "we waited an hour for the soup"}]
    one = task("causal-lm", *rows)
    features = one.encode(rows, words, 254)
    ours = one.collator(words, None)([dict(row) for row in features])
    unlabelled = [{name: row[name] for name in row if name != "labels"} for row in features]
    theirs = DataCollatorForLanguageModeling(words, mlm=False)(unlabelled)
    end, short = words.eos_token_id, len(features[0]["input_ids"])
    assert ours["labels"][0, short - 1] == end
    assert theirs["labels"][0, short - 1] == IGNORED
    assert (ours["labels"][0, short:] == IGNORED).all()
    assert torch.equal(ours["labels"][:, 1:] != IGNORED, ours["attention_mask"][:, 1:] == 1)


MESSAGES = [
    {"role": "system", "content": "You answer in one word."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "the soup?"},
    {"role": "assistant", "content": "cold"},
]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_the_assistant_says_is_learnt(kind: str) -> None:
    """Its words in each turn, and what ends the turn, through the tokenizer's own template."""
    words = KINDS[kind]()
    words.chat_template = TASKS["causal-lm"].chat_template
    row = {"messages": MESSAGES}
    one = task("causal-lm", row)
    (found,) = one.encode([row], words, 254)
    learnt = words.decode([label for label in found["labels"] if label != IGNORED])
    rest = words.decode([t for t, label in zip(found["input_ids"], found["labels"], strict=True) if label == IGNORED])
    assert "paris" in learnt.lower()
    assert "cold" in learnt
    assert "paris" not in rest.lower()
    assert "france" in rest.lower()
    assert "france" not in learnt.lower()
    assert found["labels"].count(words.eos_token_id) == 2


def test_a_template_that_rewrites_the_chat_is_refused() -> None:
    """Where the beginning depends on the end, nobody can tell who says what."""
    words = KINDS["word pieces"]()
    words.chat_template = "{{ messages|length }}: {% for m in messages %}{{ m['content'] }} {% endfor %}"
    row = {"messages": MESSAGES}
    with pytest.raises(CheckpointError, match=r"messages\[2\]: the chat template writes it otherwise"):
        task("causal-lm", row).encode([row], words, 254)
    words.chat_template = None
    with pytest.raises(CheckpointError, match="has no chat template"):
        task("causal-lm", row).encode([row], words, 254)


def test_an_answer_without_its_end_is_lost() -> None:
    """Cut off in the middle, a model learns to stop nowhere; a plain text may be cut."""
    words = KINDS["byte pairs"]()
    words.chat_template = TASKS["causal-lm"].chat_template
    answered, plain = {"prompt": "the soup", "answer": "was cold"}, {"text": "the soup was cold"}
    chat = {"messages": [{"role": "assistant", "content": "soup"}, {"role": "assistant", "content": "was cold"}]}
    rows = (answered, 254, False), (answered, 3, True), (plain, 3, False), (plain, 1, True)
    for row, length, lost in (*rows, (chat, 254, False), (chat, 9, True)):
        one = task("causal-lm", row)
        (found,) = one.encode([row], words, length)
        assert one.loses(row, found, words) is lost, (row, length)


# Targets and answers


@given(st.data())
def test_targets_end(data: st.DataObject) -> None:
    """Whatever the tokenizer adds, the last label is the end token, once."""
    row, kind = data.draw(ROWS["seq2seq-lm"]), data.draw(KIND)
    words, one = TOKENIZERS[kind], task("seq2seq-lm", row)
    (found,) = one.encode([row], words, 254)
    assert found["labels"][-1] == words.eos_token_id
    assert not one.loses(row, found, words)
    (cut,) = one.encode([row], words, len(found["labels"]) - 1 or 1)
    assert one.loses(row, cut, words) == (len(cut["labels"]) < len(found["labels"]))


@given(st.data())
def test_answers_are_found_in_the_text(data: st.DataObject) -> None:
    """The characters of first to last token hold the answer, and no token more than it needs."""
    row, kind = data.draw(ROWS["question-answering"]), data.draw(KIND)
    words, one = TOKENIZERS[kind], task("question-answering", row)
    (found,) = one.encode([row], words, 254)
    encoded = words(row["question"], row["context"], return_offsets_mapping=True)
    assume(found["end_positions"] > 0)  # no token at all, such as a character that the tokenizer drops
    places = range(found["start_positions"], found["end_positions"] + 1)
    offsets = [encoded["offset_mapping"][place] for place in places]
    start, end = row["answer_start"], row["answer_start"] + len(row["answer"])
    assert encoded.sequence_ids()[places[0]] == encoded.sequence_ids()[places[-1]] == 1
    assert offsets[0][1] > start
    assert offsets[-1][0] < end
    assert not one.loses(row, found, words)


def test_an_answer_that_is_cut_off_is_lost() -> None:
    """Both places are 0 then, and the example is named."""
    row = {"question": "What?", "context": "the bread was fresh and the soup was warm", "answer": "warm"}
    one, words = task("question-answering", row), TOKENIZERS["word pieces"]
    (cut,) = one.encode([row], words, 10)
    assert (cut["start_positions"], cut["end_positions"]) == (0, 0)
    assert one.loses(row, cut, words)


def test_an_answer_without_a_token_is_lost() -> None:
    """A tokenizer may drop its characters; what stands before it is no answer."""
    row = {"question": "What?", "context": "soup \U000f0000", "answer": "\U000f0000", "answer_start": 5}
    one, words = task("question-answering", row), TOKENIZERS["word pieces"]
    (found,) = one.encode([row], words, 60)
    assert (found["start_positions"], found["end_positions"]) == (0, 0)


def test_a_token_that_holds_no_character_is_not_the_first_of_an_answer() -> None:
    """Byte pairs have tokens for spaces, which are trimmed to nothing."""
    row = {"question": "0", "context": "0  0 0", "answer": " 0", "answer_start": 2}
    one, words = task("question-answering", row), TOKENIZERS["byte pairs"]
    (found,) = one.encode([row], words, 60)
    assert found == one.expected(row, words, 60)


def test_an_answer_that_stands_twice_is_the_one_that_is_meant() -> None:
    """By the characters before it."""
    row = {"question": "What?", "context": "soup or soup", "answer": "soup", "answer_start": 8}
    words = TOKENIZERS["word pieces"]
    (found,) = task("question-answering", row).encode([row], words, 60)
    places = [place for place, token in enumerate(words.convert_ids_to_tokens(found["input_ids"])) if token == "soup"]
    assert found["start_positions"] == places[-1]


def test_examples_are_collated_without_being_changed() -> None:
    """A collator gives the same batch of the same examples twice; some of the library's take labels out of them."""
    rows = [{"text": "the soup", "choices": ["was warm", "waited an hour"], "label": 1}]
    choice = task("multiple-choice", *rows)
    words = TOKENIZERS["word pieces"]
    features = choice.encode(rows, words, 20)
    collate = choice.collator(words, None)

    assert collate(features)["labels"].tolist() == collate(features)["labels"].tolist() == [1]


# Losses


def test_formulas_are_those_of_torch() -> None:
    """Each declared loss beside torch's own operator, on random logits."""
    torch.manual_seed(0)
    z, y = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    y[0, 2:] = IGNORED
    tokens = {"labels": y}
    plain = functional.cross_entropy(z.flatten(0, 1), y.flatten())
    words = {"words": ["a"], "labels": [6]}
    assert float(task("token-classification", words).loss([z], tokens)) == pytest.approx(float(plain))
    assert float(task("masked-lm", {"text": "a"}).loss([z], tokens)) == pytest.approx(float(plain))
    assert float(task("seq2seq-lm", {"text": "a", "target": "b"}).loss([z], tokens)) == pytest.approx(float(plain))
    shifted = functional.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten())
    causal = task("causal-lm", {"text": "a"})
    assert float(causal.loss([z], tokens)) == pytest.approx(float(shifted))
    assert causal.terms(tokens) == int((y[:, 1:] != IGNORED).sum())
    hot = torch.randint(0, 2, (3, 7)).float()
    several = task("sequence-classification", {"text": "a", "label": [6]})
    binary = functional.binary_cross_entropy_with_logits(z[:, 0], hot)
    assert float(several.loss([z[:, 0]], {"labels": hot})) == pytest.approx(float(binary))
    number = task("sequence-classification", {"text": "a", "label": 0.5})
    squares = functional.mse_loss(z[:, 0, :1].squeeze(), hot[:, 0])
    assert float(number.loss([z[:, 0, :1]], {"labels": hot[:, 0]})) == pytest.approx(float(squares))
    span = task("question-answering", {"question": "a", "context": "b c", "answer": "c"})
    both = [functional.cross_entropy(z[:, 0], y[:, 0] % 7), functional.cross_entropy(z[:, 1], y[:, 1] % 7)]
    positions = {"start_positions": y[:, 0] % 7, "end_positions": y[:, 1] % 7}
    assert float(span.loss([z[:, 0], z[:, 1]], positions)) == pytest.approx(float(sum(both)) / 2)


@pytest.mark.parametrize(
    ("label", "said", "problem", "classes"),
    [
        (1, {}, "single_label_classification", 2),
        ([0, 3], {}, "multi_label_classification", 4),
        ([], {"num_labels": 3}, "multi_label_classification", 3),
        (0.5, {}, "regression", 1),
        (4, {"problem_type": "regression"}, "regression", 1),
    ],
)
def test_problem_is_that_of_the_labels(label: Any, said: dict[str, Any], problem: str, classes: int) -> None:
    """A class, a list of classes, a number; or what is said."""
    one = task("sequence-classification", {"text": "a", "label": label}, **said)
    head = one.configuration()
    assert head["num_labels"] == classes
    assert head.get("problem_type", "single_label_classification") == problem
