"""Rows in an experiment file: what each task reads, and every mistake at its line."""

from pathlib import Path

import pytest

from harness.errors import InvalidExperiment
from harness.experiment import Settings, problem_of, read, texts
from harness.experiment.row import classes_in
from harness.laws import LAWS

OPTIONS = {law.name: law.options for law in LAWS}


def mistakes(folder: Path, task: str, *lines: str) -> list[str]:
    """What is wrong with a file of this task whose data are these lines, the first of them on line 5."""
    file = folder / "a.yaml"
    body = "\n".join(f"  {line}" for line in lines)
    file.write_text(
        f"task: {task}\ncheckpoint: {{architecture: {ARCHITECTURES.get(task, 'bert')}}}\n#\ndata:\n{body}\n"
    )
    try:
        read(file, OPTIONS)
    except InvalidExperiment as error:
        return [str(mistake).removeprefix(f"{folder}/") for mistake in error.mistakes]
    return []


ARCHITECTURES = {"causal-lm": "gpt2", "seq2seq-lm": "t5"}
RIGHT = {
    "one class": ("sequence-classification", "{text: a, label: 1}"),
    "a pair": ("sequence-classification", "{text: a, text_pair: b, label: 1}"),
    "several classes": ("sequence-classification", "{text: a, label: [0, 2]}"),
    "no class": ("sequence-classification", "{text: a, label: []}"),
    "a number": ("sequence-classification", "{text: a, label: 0.5}"),
    "words": ("token-classification", "{words: [a, b], labels: [0, 1]}"),
    "a question": ("question-answering", "{question: a, context: b c, answer: c}"),
    "an answer that stands twice": ("question-answering", "{question: a, context: c c, answer: c, answer_start: 2}"),
    "choices": ("multiple-choice", "{text: a, choices: [b, c], label: 1}"),
    "hidden tokens": ("masked-lm", "{text: a}"),
    "a text": ("causal-lm", "{text: a}"),
    "prompt and answer": ("causal-lm", "{prompt: a, answer: b}"),
    "a chat": ("causal-lm", "{messages: [{role: user, content: a}, {role: assistant, content: b}]}"),
    "a target": ("seq2seq-lm", "{text: a, target: b}"),
}


@pytest.mark.parametrize(("task", "row"), RIGHT.values(), ids=RIGHT)
def test_right_rows(tmp_path: Path, task: str, row: str) -> None:
    """Each task's own roles."""
    assert mistakes(tmp_path, task, "rows:", f"  - {row}", f"  - {row}") == []


WRONG = {
    "no roles": (
        "masked-lm",
        "{}",
        "6: data.rows[0].text: found nothing, expected this key, which has no default",
    ),
    "a role of another task": (
        "masked-lm",
        "{text: a, label: 1}",
        "6: data.rows[0].label: found an unknown role, expected one of text",
    ),
    "a misspelt role": (
        "sequence-classification",
        "{text: a, text_par: b, label: 1}",
        (
            "6: data.rows[0].text_par: found an unknown role, expected one of text, text_pair, label; "
            "did you mean 'text_pair'?"
        ),
    ),
    "an empty text": ("masked-lm", "{text: ' '}", "6: data.rows[0].text: found ' ', expected text that is not empty"),
    "a number for a text": ("masked-lm", "{text: 5}", "6: data.rows[0].text: found 5, expected text; put it in quotes"),
    "a row that is a text": ("masked-lm", "hello", "6: data.rows[0]: found 'hello', expected a mapping"),
    "a label in words": (
        "sequence-classification",
        "{text: a, label: good}",
        (
            "6: data.rows[0].label: found 'good', expected a class (a whole number), a list of classes, or a number "
            "with a point; number the classes from 0, and name them in data.label_names"
        ),
    ),
    "a label below 0": (
        "sequence-classification",
        "{text: a, label: -1}",
        "6: data.rows[0].label: found -1, expected a number of at least 0",
    ),
    "a class twice": (
        "sequence-classification",
        "{text: a, label: [1, 1]}",
        "6: data.rows[0].label: found [1, 1], expected each class once",
    ),
    "too few labels": (
        "token-classification",
        "{words: [a, b], labels: [0]}",
        "6: data.rows[0].labels: found 1 label, expected 2, one for each word",
    ),
    "a choice that is none": (
        "multiple-choice",
        "{text: a, choices: [b, c], label: 2}",
        "6: data.rows[0].label: found 2, expected a choice from 0 to 1",
    ),
    "one choice": (
        "multiple-choice",
        "{text: a, choices: [b], label: 0}",
        "6: data.rows[0].choices: found a list, expected at least 2 items",
    ),
    "an answer that is not there": (
        "question-answering",
        "{question: a, context: b c, answer: d}",
        "6: data.rows[0].answer: found 'd', expected words as they stand in the context",
    ),
    "an answer that stands twice": (
        "question-answering",
        "{question: a, context: c c, answer: c}",
        (
            "6: data.rows[0].answer: found 'c', 2 times in the context, expected answer_start, the number of "
            "characters before the one that is meant"
        ),
    ),
    "an answer elsewhere": (
        "question-answering",
        "{question: a, context: c c, answer: c, answer_start: 1}",
        "6: data.rows[0].answer_start: found 1, where the answer does not stand, expected one of 0, 2",
    ),
    "a chat without an answer": (
        "causal-lm",
        "{messages: [{role: user, content: a}]}",
        "6: data.rows[0].messages: found no message of the assistant, expected at least one: there is nothing to learn",
    ),
    "a role of nobody": (
        "causal-lm",
        "{messages: [{role: robot, content: a}, {role: assistant, content: b}]}",
        "6: data.rows[0].messages[0].role: found 'robot', expected 'system', 'user' or 'assistant'",
    ),
    "prompt without answer": (
        "causal-lm",
        "{prompt: a}",
        "6: data.rows[0].answer: found nothing, expected this key, which has no default",
    ),
}


@pytest.mark.parametrize(("task", "row", "expected"), WRONG.values(), ids=WRONG)
def test_wrong_rows(tmp_path: Path, task: str, row: str, expected: str) -> None:
    """Each mistake is told once, at its line, with what is expected."""
    assert mistakes(tmp_path, task, "rows:", f"  - {row}") == [f"a.yaml:{expected}"]


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    """Of all rows, each at its own line."""
    found = mistakes(
        tmp_path,
        "sequence-classification",
        "num_labels: 2",
        "rows:",
        "  - {text: a, label: 1}",
        "  - {text: '', label: 1}",
        "  - {text: a, label: 2}",
        "  - {text: a, label: 0.5}",
        "  - {text: a}",
    )
    assert found == [
        "a.yaml:8: data.rows[1].text: found '', expected text that is not empty",
        "a.yaml:9: data.rows[2].label: found 2, expected a label from 0 to 1 (num_labels is 2)",
        "a.yaml:10: data.rows[3].label: found 0.5, expected a label as in the first row, which has a class",
        "a.yaml:11: data.rows[4].label: found nothing, expected this key, which has no default",
    ]


def test_rows_of_one_file_are_alike(tmp_path: Path) -> None:
    """The same roles in each, and as many choices."""
    assert mistakes(tmp_path, "causal-lm", "rows:", "  - {text: a}", "  - {prompt: a, answer: b}") == [
        "a.yaml:7: data.rows[1]: found a row with prompt, answer, expected text, as in the first row"
    ]
    rows = ("  - {text: a, choices: [b, c], label: 0}", "  - {text: a, choices: [b, c, d], label: 0}")
    assert mistakes(tmp_path, "multiple-choice", "rows:", *rows) == [
        "a.yaml:7: data.rows[1].choices: found 3 choices, expected 2, as in the first row"
    ]


def test_problem_type_and_labels_agree(tmp_path: Path) -> None:
    """A number is no class, and a class no list."""
    for problem, label, says in (
        ("regression", "[0, 1]", "found a list, expected a number (problem_type is regression)"),
        ("single_label_classification", "0.5", "found 0.5, expected a class (problem_type is single_label_class"),
        ("multi_label_classification", "1", "found 1, expected a list of classes (problem_type is multi_label_class"),
    ):
        rows = (f"problem_type: {problem}", "rows:", f"  - {{text: a, label: {label}}}")
        (found,) = mistakes(tmp_path, "sequence-classification", *rows)
        assert found.startswith(f"a.yaml:7: data.rows[0].label: {says}")


def test_numbers_may_be_whole(tmp_path: Path) -> None:
    """Where the problem is declared, 1 beside 0.5 is a number, and so is one below 0."""
    rows = ["rows:", *(f"  - {{text: a, label: {label}}}" for label in ("1", "0.5", "-2"))]
    assert mistakes(tmp_path, "sequence-classification", "problem_type: regression", *rows) == []


def test_a_turn_of_a_chat_has_keys(tmp_path: Path) -> None:
    """Which are listed."""
    answer = "{role: assistant, content: b}"
    for turn, says in (
        ("{role: user, content: a, name: x}", ".name: found an unknown key, expected one of role, content"),
        ("hello", ": found 'hello', expected a mapping with role, content"),
    ):
        (found,) = mistakes(tmp_path, "causal-lm", "rows:", f"  - {{messages: [{turn}, {answer}]}}")
        assert found == f"a.yaml:6: data.rows[0].messages[0]{says}"


def test_sequences_are_for_classification(tmp_path: Path) -> None:
    """Sugar for rows with a text and a label, of no use to other tasks, and not beside rows."""
    lines = ("sequences: [a]", "labels: [1]")
    assert mistakes(tmp_path, "sequence-classification", *lines) == []
    assert mistakes(tmp_path, "masked-lm", *lines) == [
        (
            "a.yaml:5: data.sequences: found sequences for masked-lm, expected rows: sequences and labels are for "
            "sequence-classification"
        )
    ]
    both = mistakes(tmp_path, "sequence-classification", *lines, "rows: [{text: a, label: 1}]")
    assert both == ["a.yaml:4: data: found sequences and rows, expected one of sequences, rows, files, dataset"]


def test_sequences_are_rows() -> None:
    """What trains sees rows, however the file writes them."""
    said = {"checkpoint": {"architecture": "bert"}, "data": {"sequences": ["a", "b"], "labels": [1, 0]}}
    assert Settings.model_validate(said).data.given == ({"text": "a", "label": 1}, {"text": "b", "label": 0})


def test_what_rows_say() -> None:
    """Texts at any depth, the problem and the classes of labels."""
    row = {"messages": [{"role": "user", "content": "a"}], "words": ["b", "c"], "label": 1}
    assert list(texts(row)) == ["user", "a", "b", "c"]
    assert problem_of([[0, 1]]) == "multi_label_classification"
    assert problem_of([1], "regression") == "regression"
    assert [classes_in([row]) for row in ({"label": 4}, {"labels": [0, 6]}, {"label": []}, {"text": "a"})] == [
        5,
        7,
        2,
        2,
    ]
