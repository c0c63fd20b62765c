"""Rows of every source, and what becomes of those that hold nothing to train on."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from trial import attempt, case, save

from harness.errors import DataError
from harness.experiment import FolderCheckpoint, Settings
from harness.record import Record
from harness.training import data as training_data
from harness.training import rows as rows_module
from harness.training.checkpoint import load
from harness.training.rows import Rows, Stream, Table, open_beside, open_rows

TEXTS = ["warm soup", "cold bread", "fresh bread", "stale soup", "a long wait for warm bread", "never again"]
NAMES = ["good", "bad", "good", "bad", "good", "bad"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library keeps its tables away from the person's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(folder: Path, name: str, texts: list[Any] = TEXTS, labels: list[Any] = NAMES) -> Path:
    """A file with two columns, of the kind that its name says."""
    path = folder / name
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    match path.suffix:
        case ".parquet":
            Dataset.from_list(rows).to_parquet(path)
        case ".jsonl" | ".json":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            Dataset.from_list(rows).to_csv(path, index=False)
    return path


def declared(folder: Path, task: str = "sequence-classification", **said: Any) -> Settings:
    """Settings of an experiment in that folder with this data."""
    folders = {"data.files": folder, "data.dataset": folder}
    checkpoint = {"architecture": "gpt2" if task == "causal-lm" else "bert", "size": "tiny"}
    return Settings.model_validate(
        {"task": task, "checkpoint": checkpoint, "device": "cpu", "data": said}, context={"folders": folders}
    )


def opened(folder: Path, **said: Any) -> Rows:
    """The rows of that data."""
    return open_rows(declared(folder, **said).data, "sequence-classification")


def every(rows: Rows) -> list[tuple[Any, ...]]:
    """Text and label of each row, in order."""
    found = rows.get(range(len(rows))) if isinstance(rows, Table) else [row for _, row in rows]
    return [tuple(row[role] for role in ("text", "text_pair", "label") if role in row) for row in found]


def trained(folder: Path, how: dict[str, Any] | None = None, model: Path | None = None, **said: Any) -> Record:
    """The record of a few steps on that data, however they end; from a checkpoint's folder or random weights."""
    trial = case(model, train=how or {"steps": 2, "batch_size": 2})
    settings = trial.settings.model_copy(update={"data": declared(folder, **said).data})
    return attempt(replace(trial, settings=settings))


# Sources


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_kind_of_file_has_the_same_rows(tmp_path: Path, name: str, streaming: bool) -> None:
    """Names become numbers in alphabetical order, whatever holds them, read as a whole or as a stream."""
    write(tmp_path, name)
    said = {"streaming": True, "label_names": ["bad", "good"]} if streaming else {}
    rows = opened(tmp_path, files=name, **said)
    assert isinstance(rows, Stream if streaming else Table)
    assert every(rows) == [(text, int(label == "good")) for text, label in zip(TEXTS, NAMES, strict=True)]
    assert (rows.labels.count, rows.labels.names) == (2, ("bad", "good"))


def test_several_files_are_one_after_the_other(tmp_path: Path) -> None:
    """In the order of the list, each pattern sorted."""
    for number, name in enumerate(("2.csv", "1.csv", "0.csv")):
        write(tmp_path, name, [f"text {name}"], [number])
    assert every(opened(tmp_path, files=["2.csv", "[01].csv"])) == [
        ("text 2.csv", 0),
        ("text 0.csv", 2),
        ("text 1.csv", 1),
    ]


def test_a_file_that_two_patterns_name_is_read_once(tmp_path: Path) -> None:
    """Its rows would count twice in an epoch."""
    write(tmp_path, "a.csv")
    write(tmp_path, "b.csv", ["more", "and more"], ["bad", "good"])
    assert len(every(opened(tmp_path, files=["b.csv", "*.csv"]))) == 8


def test_folder_is_a_dataset(tmp_path: Path) -> None:
    """Its files' names say which split they are."""
    (tmp_path / "reviews").mkdir()
    write(tmp_path / "reviews", "train.csv")
    write(tmp_path / "reviews", "test.csv", ["only this", "and this"], ["bad", "good"])
    assert len(every(opened(tmp_path, dataset="./reviews"))) == 6
    assert every(opened(tmp_path, dataset="./reviews", split="test")) == [("only this", 0), ("and this", 1)]
    assert len(every(opened(tmp_path, dataset="./reviews", split="train[:50%]+test"))) == 5


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_get_their_roles(tmp_path: Path, streaming: bool) -> None:
    """Columns are renamed, also where two names change places; others are left alone."""
    table = {"label": ["a", "b"], "sentence1": ["c", "d"], "text": [1, 0], "more": [0.5, 0.6]}
    Dataset.from_dict(table).to_parquet(tmp_path / "a.parquet")
    columns = {"text": "label", "text_pair": "sentence1", "label": "text"}
    rows = opened(tmp_path, files="a.parquet", columns=columns, streaming=streaming, num_labels=2)
    assert every(rows) == [("a", "c", 1), ("b", "d", 0)]


def test_rows_are_limited_and_shuffled_by_seed(tmp_path: Path) -> None:
    """A seed chooses which rows there are; their places stay those of the source."""
    write(tmp_path, "a.csv")
    assert every(opened(tmp_path, files="a.csv", limit=2)) == [("warm soup", 1), ("cold bread", 0)]
    one, same, other = (opened(tmp_path, files="a.csv", limit=4, shuffle_seed=seed) for seed in (1, 1, 2))
    assert every(one) == every(same) != every(other)
    assert isinstance(one, Table)
    assert [TEXTS[one.place(index)] for index in range(4)] == [text for text, _ in every(one)]
    stream = opened(tmp_path, files="a.csv", limit=2, streaming=True, num_labels=2, label_names=["bad", "good"])
    assert every(stream) == [("warm soup", 1), ("cold bread", 0)]


def test_words_that_csv_readers_take_for_nothing_are_words(tmp_path: Path) -> None:
    """`NA`, `null` and `None` are texts like others."""
    (tmp_path / "a.csv").write_text("text,label\nNA,0\nnull,1\nNone,0\n")
    assert every(opened(tmp_path, files="a.csv")) == [("NA", 0), ("null", 1), ("None", 0)]


def test_without_the_library_the_case_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra that is not installed is named, as what a machine lacks is; texts that are written out need none."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    write_nothing = tmp_path / "a.csv"
    write_nothing.write_text("text,label\na,0\n")
    record = trained(tmp_path, files="a.csv")
    assert record.outcome == "skipped"
    assert record.reason.endswith(": pip install 'pytest-finetune[data]'")
    assert every(opened(tmp_path, sequences=["a"], labels=[0])) == [("a", 0)]


# Labels


def test_features_name_the_classes(tmp_path: Path) -> None:
    """A dataset's own names keep their order, also of a stream, and also those that no row has."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "y", "x"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [2, 0]}, features=features).to_parquet(tmp_path / "a.parquet")
    for streaming in (False, True):
        rows = opened(tmp_path, files="a.parquet", streaming=streaming)
        assert (rows.labels.names, every(rows)) == (("z", "y", "x"), [("a", 2), ("b", 0)])
        rows = opened(tmp_path, files="a.parquet", streaming=streaming, label_names=["x", "y", "z"])
        assert (rows.labels.names, every(rows)) == (("x", "y", "z"), [("a", 0), ("b", 2)])
        with pytest.raises(DataError, match=r"the labels are 'z', 'y', 'x', and data.label_names has 'x', 'y', 'w'"):
            opened(tmp_path, files="a.parquet", streaming=streaming, label_names=["x", "y", "w"])


@pytest.mark.parametrize(
    ("labels", "said", "count"),
    [([0, 2], {}, 3), ([0, 0], {}, 2), ([0, 1], {"num_labels": 5}, 5), ([True, False], {}, 2)],
)
def test_numbers_are_counted(tmp_path: Path, labels: list[int], said: dict[str, Any], count: int) -> None:
    """As for texts that are written out: the highest and one, at least 2, or what is declared."""
    write(tmp_path, "a.parquet", ["a", "b"], labels)
    rows = opened(tmp_path, files="a.parquet", **said)
    assert (rows.labels.count, rows.labels.names) == (count, None)
    assert [type(label) for _, label in every(rows)] == [int, int]


def test_true_and_false_may_be_names(tmp_path: Path) -> None:
    """Readers of csv files make numbers of them; the names decide which."""
    (tmp_path / "a.csv").write_text("text,label\na,true\nb,false\n")
    assert every(opened(tmp_path, files="a.csv", label_names=["true", "false"])) == [("a", 0), ("b", 1)]
    assert every(opened(tmp_path, files="a.csv", label_names=["no", "yes"])) == [("a", 1), ("b", 0)]


@pytest.mark.parametrize("pretrained", [False, True])
def test_model_gets_the_names(tmp_path: Path, pretrained: bool) -> None:
    """The head has as many classes as the data, and the config says what they are called."""
    write(tmp_path, "a.csv", [*TEXTS, "so so"], [*NAMES, "fair"])
    settings = declared(tmp_path, files="a.csv")
    if pretrained:
        settings = settings.model_copy(update={"checkpoint": FolderCheckpoint(path=save(tmp_path / "model"))})
    config = load(settings).model.config
    assert config.num_labels == 3
    assert config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert config.label2id == {"bad": 0, "fair": 1, "good": 2}


def test_record_says_what_was_read(tmp_path: Path) -> None:
    """Rows, classes and their counts stand in the record, and what the loop waited for in each step."""
    write(tmp_path, "a.csv")
    record = trained(tmp_path, files="a.csv")
    assert record.finished, record.traceback
    assert record.data is not None
    assert (record.data.source, record.data.rows, record.data.seen) == ("a.csv", 6, 6)
    assert (record.data.label_names, record.data.labels) == (("bad", "good"), {"0": 3, "1": 3})
    assert all(
        0 <= waited <= whole for waited, whole in zip(record.steps.data_seconds, record.steps.seconds, strict=True)
    )


# Bad input

BAD: dict[str, tuple[str, bytes, dict[str, Any], str]] = {
    "missing column": (
        "a.csv",
        b"sentence,label\ngood,1\n",
        {},
        "a.csv: no column 'text', it has 'sentence', 'label'; data.columns says which column is what",
    ),
    "missing columns": (
        "a.csv",
        b"a,b\ngood,1\n",
        {"columns": {"text": "c"}},
        "a.csv: no columns 'c' and 'label', it has 'a', 'b'; data.columns says which column is what",
    ),
    "column of numbers": (
        "a.csv",
        b"text,label\n5,1\n6,0\n",
        {},
        "a.csv: column 'text' holds int64, expected text for the role text",
    ),
    "floats": (
        "a.csv",
        b"text,label\na,0.5\nb,1.5\n",
        {},
        "a.csv: column 'label' holds float64, expected classes as names or whole numbers",
    ),
    "no rows": ("a.csv", b"text,label\n", {}, "a.csv: split train has no rows"),
    "no split": ("a.csv", b"text,label\na,0\n", {"split": "test"}, "a.csv: cannot be read: Unknown split"),
    "nothing": ("a.csv", b"", {}, "a.csv: cannot be read: "),
    "null": (
        "a.jsonl",
        b'{"text": "a", "label": 0}\n{"text": null, "label": 1}\n',
        {},
        "a.jsonl: row 1: text is missing (null)",
    ),
    "empty": (
        "a.jsonl",
        b'{"text": "a", "label": 0}\n{"text": " ", "label": 1}\n',
        {},
        "a.jsonl: row 1: text is empty (' '), expected text",
    ),
    "empty cell": ("a.csv", b"text,label\na,0\n,1\nb,0\n", {}, "a.csv: row 1: text is missing (null), expected text"),
    "short row": ("a.csv", b"label,text\n0,a\n1\n0,c\n", {}, "a.csv: row 1: text is missing (null), expected text"),
    "ragged row": (
        "a.csv",
        b"text,label\na,0\nb,1,2\n",
        {},
        "a.csv: cannot be read: Error tokenizing data. C error: Expected 2 fields in line 3, saw 3",
    ),
    "not UTF-8": (
        "a.csv",
        b"text,label\na,0\ncaf\xe9,1\n",
        {},
        "a.csv: a.csv, line 3: not UTF-8: byte 0xe9 in b'caf\\xe9,1\\n'",
    ),
    "not JSON": ("a.jsonl", b'{"text": "a", "label": 0}\n{"text": \n', {}, "a.jsonl: cannot be read: "),
    "label beyond": (
        "a.csv",
        b"text,label\na,0\nb,2\nc,1\n",
        {"num_labels": 2},
        "a.csv: row 1: the label 2 is not from 0 to 1",
    ),
    "negative label": ("a.csv", b"text,label\na,0\nb,-1\n", {}, "a.csv: row 1: the label -1 is not from 0 to 1"),
    "unknown label": (
        "a.csv",
        b"text,label\na,good\nb,fair\nc,bad\nd,poor\n",
        {"label_names": ["bad", "good"]},
        "a.csv: row 1: the label 'fair' is none of 'bad', 'good'; row 3: the label 'poor' is none of 'bad', 'good'",
    ),
    "no label": (
        "a.csv",
        b"text,label\na,good\nb,\nc,bad\n",
        {},
        "a.csv: row 1: the label is missing (null), expected a whole number or one of 'bad', 'good'",
    ),
    "one class": (
        "a.csv",
        b"text,label\na,good\nb,good\n",
        {},
        "a.csv: every row has the label 'good'; data.label_names says which others there are",
    ),
    "no label at all": ("a.jsonl", b'{"text": "a", "label": null}\n', {}, "a.jsonl: no row has a label"),
    "too few names": (
        "a.csv",
        b"text,label\na,x\nb,y\nc,z\n",
        {"num_labels": 2},
        "a.csv: 3 labels ('x', 'y', 'z'), and num_labels is 2",
    ),
    "no token": (
        "a.csv",
        "text,label\na,0\n\u200b,1\n".encode(),
        {},
        "a.csv: row 1: the tokenizer makes no token of the text '\\u200b'",
    ),
    "one column for two": (
        "a.csv",
        b"text,label\na,0\nb,1\n",
        {"columns": {"text": "text", "text_pair": "text"}},
        "column 'text' has two roles in data.columns, expected one column for each",
    ),
    "classes of a stream": (
        "a.csv",
        b"text,label\na,0\nb,1\n",
        {"streaming": True},
        "a.csv: the labels of a stream are not known before its end: data.label_names or num_labels",
    ),
}
IN_STREAMS = (
    "missing column",
    "no rows",
    "null",
    "empty cell",
    "ragged row",
    "label beyond",
    "unknown label",
    "no token",
    "not UTF-8",
)


def crashes(folder: Path, name: str, content: bytes, said: dict[str, Any], expected: str) -> None:
    """Training on that file ends before the first step, and says so in a sentence, without a traceback."""
    (folder / name).write_bytes(content)
    record = trained(folder, files=name, **said)
    assert record.outcome == "crashed"
    assert record.reason.startswith(f"DataError: {expected}"), record.reason
    assert "Traceback" not in record.traceback
    assert record.steps.loss == ()


@pytest.mark.parametrize(("name", "content", "said", "expected"), BAD.values(), ids=BAD)
def test_bad_input_is_named(tmp_path: Path, name: str, content: bytes, said: dict[str, Any], expected: str) -> None:
    """Column, line or row, what was found, and what is expected."""
    crashes(tmp_path, name, content, said, expected)


@pytest.mark.parametrize("case_", IN_STREAMS)
def test_bad_input_of_a_stream_is_named(tmp_path: Path, case_: str) -> None:
    """The same, where rows are read while training goes on."""
    name, content, said, expected = BAD[case_]
    expected = expected.partition(";")[0] if "row" in expected else expected
    crashes(tmp_path, name, content, {"num_labels": 2, **said, "streaming": True}, expected)


@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_types_in_a_row_are_named(tmp_path: Path, streaming: bool) -> None:
    """JSON may hold anything: a list is no text."""
    (tmp_path / "a.jsonl").write_text('{"text": ["a"], "label": 0}\n{"text": ["b"], "label": 1}\n')
    record = trained(tmp_path, files="a.jsonl", streaming=streaming, num_labels=2)
    assert record.outcome == "crashed"
    assert "DataError: a.jsonl: " in record.reason
    assert "expected text" in record.reason


DROPPED = "text,label\ngood soup,good\n,bad\nbad soup,bad\nsoup,fair\n\u200b,good\nmore soup,\nfine bread,good\n"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("loop", ["custom", "trainer"])
def test_dropped_rows_are_counted(tmp_path: Path, streaming: bool, loop: str) -> None:
    """With `invalid_rows: drop` the others train, and the record says how many are missing, which and why."""
    (tmp_path / "a.csv").write_text(DROPPED)
    said = {"invalid_rows": "drop", "label_names": ["bad", "good"], "streaming": streaming}
    record = trained(tmp_path, {"loop": loop, "steps": 4, "batch_size": 2}, files="a.csv", **said)
    assert record.finished, record.traceback
    assert record.data is not None
    assert (record.data.rows, record.data.dropped) == (3, 4)
    notes = {row.row: row.note for row in record.data.dropped_rows}
    assert notes.keys() == {1, 3, 4, 5}
    assert notes[1] == "text is missing (null), expected text"
    assert notes[3] == "the label 'fair' is none of 'bad', 'good'"
    assert notes[4] == "the tokenizer makes no token of the text '\\u200b'"
    assert sorted(example.text for example in record.examples) == ["bad soup", "fine bread", "good soup"]


def test_nothing_is_left(tmp_path: Path) -> None:
    """All rows dropped is an error and not an empty training."""
    (tmp_path / "a.csv").write_text("text,label\n,good\n,bad\n")
    record = trained(tmp_path, files="a.csv", invalid_rows="drop", label_names=["good", "bad"])
    assert record.reason.startswith("DataError: a.csv: ")
    assert record.outcome == "crashed"


def test_emoji_are_trained_on_and_counted(tmp_path: Path) -> None:
    """Unknown characters are the unknown token, and the record says how many."""
    (tmp_path / "a.csv").write_text("text,label\nwarm soup,0\n\U0001f642\U0001f642 \U0001f642,1\n", encoding="utf-8")
    record = trained(tmp_path, model=save(tmp_path / "model"), files="a.csv")
    assert record.finished, record.traceback
    assert record.data is not None
    assert record.data.unknown_tokens == 2
    assert [row.row for row in record.data.most_unknown] == [1]


def test_texts_beyond_the_models_positions_are_cut_and_counted(tmp_path: Path) -> None:
    """A tokenizer that knows no limit takes the model's; the record says how much was cut off."""
    write(tmp_path, "a.csv", ["soup", "bread " * 100], [0, 1])
    record = trained(tmp_path, model=save(tmp_path / "model"), files="a.csv")
    assert record.finished, record.traceback
    assert record.data is not None
    assert record.tokenizer is not None
    assert record.tokenizer.max_length == 64
    assert [(row.row, row.note) for row in record.data.most_cut] == [(1, "38 of 102 tokens cut off")]


def test_declared_length_beyond_the_models_positions_is_an_error(tmp_path: Path) -> None:
    """Where `max_length` lets a text through that has no positions, the row is named before a step is begun."""
    write(tmp_path, "a.csv", ["soup", "bread " * 100], [0, 1])
    how = {"steps": 1, "batch_size": 2, "max_length": 80}
    record = trained(tmp_path, how, save(tmp_path / "model"), files="a.csv")
    assert record.outcome == "crashed"
    assert (
        record.reason == "DataError: a.csv: row 1: 80 tokens, and the model has positions for 64; see train.max_length"
    )


# Large tables


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts as large begins at three rows."""
    monkeypatch.setattr(rows_module, "WHOLE", 3)
    monkeypatch.setattr(training_data, "WHOLE", 3)


@pytest.mark.usefixtures("small_limits")
def test_large_table_is_checked_as_it_is_drawn(tmp_path: Path) -> None:
    """Opening looks at no row; the one that is drawn and bad is named."""
    write(tmp_path, "a.jsonl", [*TEXTS, None], [*NAMES, "good"])
    rows = opened(tmp_path, files="a.jsonl", label_names=["bad", "good"])
    assert len(rows.get([0, 5])) == 2 if isinstance(rows, Table) else pytest.fail("no table")
    with pytest.raises(DataError, match=r"a.jsonl: row 6: text is missing \(null\)"):
        rows.get([6])


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("batching", ["in_order", "grouped"])
@pytest.mark.parametrize("streaming", [False, True])
def test_loops_see_the_same_batches_of_large_data(tmp_path: Path, streaming: bool, batching: str) -> None:
    """Tables and streams that are read while training goes on, over several epochs."""
    write(tmp_path, "a.csv")
    said = {"files": "a.csv", "streaming": streaming, "label_names": ["bad", "good"]}
    how = {"steps": 8, "batch_size": 4, "batching": batching}
    custom, trainer = (trained(tmp_path, {**how, "loop": loop}, **said) for loop in ("custom", "trainer"))
    assert custom.finished, custom.traceback
    assert trainer.finished, trainer.traceback
    assert custom.steps.examples == trainer.steps.examples
    assert custom.steps.digest == trainer.steps.digest
    assert custom.steps.loss == trainer.steps.loss
    assert [len(batch) for batch in custom.steps.examples] == [4, 2] * 4
    epochs = [sum(custom.steps.examples[step : step + 2], ()) for step in range(0, 8, 2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 4
    assert len(set(epochs)) > 1
    assert custom.data is not None
    assert (custom.data.rows, custom.data.seen) == (6, 6)


def test_the_library_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No progress bar is drawn into the report, and bars are on again afterwards."""
    write(tmp_path, "a.csv")
    opened(tmp_path, files="a.csv")
    assert "Generating" not in capfd.readouterr().err
    assert not datasets.are_progress_bars_disabled()


def test_nothing_of_a_table_is_held_in_memory(tmp_path: Path) -> None:
    """Rows of files are memory-mapped from the library's cache."""
    write(tmp_path, "a.parquet", ["words " * 50] * 20_000, [0, 1] * 10_000)
    rows = opened(tmp_path, files="a.parquet", num_labels=2)
    assert isinstance(rows, Table)
    assert sum(Path(file["filename"]).stat().st_size for file in rows.rows.cache_files) > 5e6


# Labels that are no single class


def several(tmp_path: Path, labels: list[Any], **said: Any) -> Rows:
    """Rows of a file whose label is a list."""
    write(tmp_path, "a.jsonl", TEXTS[: len(labels)], labels)
    return opened(tmp_path, files="a.jsonl", problem_type="multi_label_classification", **said)


def test_classes_of_a_row_are_a_list(tmp_path: Path) -> None:
    """Of numbers, or of names that are declared."""
    found = several(tmp_path, [[0, 2], [], [1]], num_labels=3)
    assert [label for _, label in every(found)] == [[0, 2], [], [1]]
    named = several(tmp_path, [["warm"], ["cold", "stale"], []], label_names=["warm", "cold", "stale"])
    assert [label for _, label in every(named)] == [[0], [1, 2], []]
    record = trained(
        tmp_path, files="a.jsonl", problem_type="multi_label_classification", label_names=["warm", "cold", "stale"]
    )
    assert record.finished, record.reason
    assert record.batches[0].tensors["labels"][0] in ([1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("labels", "said", "why"),
    [
        ([[0, 1, 0]], {"num_labels": 3}, "row 0: label: found [0, 1, 0], expected each class once; list the classes"),
        ([[1], [3]], {"num_labels": 3}, "row 1: label.0: found 3, expected a label from 0 to 2"),
        ([[0], None], {"num_labels": 3}, "row 1: label: found nothing, expected a class"),
        ([["hot"]], {"label_names": ["warm", "cold"]}, "row 0: the label 'hot' is none of 'warm', 'cold'"),
        ([["hot"]], {"num_labels": 3}, "row 0: label is ['hot'], expected numbers, or names that are in data.label_n"),
        ([[0]], {}, "how many classes there are is not known: data.label_names or num_labels"),
    ],
)
def test_lists_that_are_no_classes_are_refused(
    tmp_path: Path, labels: list[Any], said: dict[str, Any], why: str
) -> None:
    """They would be other labels, or none."""
    with pytest.raises(DataError) as caught:
        several(tmp_path, labels, **said)
    assert why in str(caught.value)


def test_a_row_without_a_number_can_be_dropped(tmp_path: Path) -> None:
    """A score that is missing is named, or left out."""
    write(tmp_path, "whole.jsonl", TEXTS[:2], [-2, 1])
    assert [label for _, label in every(opened(tmp_path, files="whole.jsonl", problem_type="regression"))] == [-2, 1]
    write(tmp_path, "a.jsonl", TEXTS[:3], [0.5, None, 1.5])
    with pytest.raises(DataError, match="row 1: label: found nothing"):
        opened(tmp_path, files="a.jsonl", problem_type="regression")
    rows = opened(tmp_path, files="a.jsonl", problem_type="regression", invalid_rows="drop")
    assert [label for _, label in every(rows)] == [0.5, 1.5]


@pytest.mark.parametrize(
    ("labels", "kind"), [([0.5, 1.5], "regression"), ([[0], [1]], "multi_label_classification")], ids=["float", "list"]
)
def test_the_problem_of_a_file_has_to_be_said(tmp_path: Path, labels: list[Any], kind: str) -> None:
    """With the value that fits."""
    write(tmp_path, "a.jsonl", TEXTS[:2], labels)
    with pytest.raises(DataError, match=f"say data.problem_type: {kind}"):
        opened(tmp_path, files="a.jsonl")


def of_words(tmp_path: Path, labels: list[list[Any]], **said: Any) -> Rows:
    """Rows of words from a file."""
    rows = [{"words": ["warm", "soup"][: len(each)], "labels": each} for each in labels]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_rows(declared(tmp_path, files="w.jsonl", **said).data, "token-classification")


def test_classes_of_words_have_to_be_known(tmp_path: Path) -> None:
    """The head would have too few of them; a label beyond the last is named."""
    with pytest.raises(DataError, match="how many classes there are is not known"):
        of_words(tmp_path, [[0, 2]])
    with pytest.raises(DataError, match=r"row 1: labels\.0: found 3, expected a label from 0 to 2"):
        of_words(tmp_path, [[0, 2], [3]], num_labels=3)
    rows = of_words(tmp_path, [["O", "B-FOOD"], ["O"]], label_names=["O", "B-FOOD"])
    assert isinstance(rows, Table)
    assert [row["labels"] for row in rows.first(2)] == [[0, 1], [0]]
    assert rows.labels.among == 2


def test_classes_of_words_may_be_those_of_the_dataset(tmp_path: Path) -> None:
    """As its features name them; other names, or another order, would mean other classes."""
    features = Features({"words": List(Value("string")), "labels": List(ClassLabel(names=["O", "B-FOOD"]))})
    Dataset.from_list([{"words": ["warm", "soup"], "labels": [0, 1]}], features=features).to_parquet(
        tmp_path / "w.parquet"
    )

    def rows(**said: Any) -> Rows:
        return open_rows(declared(tmp_path, files="w.parquet", **said).data, "token-classification")

    assert (rows().labels.names, rows().labels.among) == (("O", "B-FOOD"), 2)
    with pytest.raises(DataError, match=r"the labels are 'O', 'B-FOOD', and data\.label_names has 'B-FOOD', 'O'"):
        rows(label_names=["B-FOOD", "O"])


def test_lists_of_classes_have_the_numbers_of_training(tmp_path: Path) -> None:
    """Where a split numbers the same names in another order, whole or as a stream, of words or of texts."""
    for task, roles, other in (
        ("token-classification", {"words": List(Value("string"))}, {"words": ["warm", "soup"]}),
        ("sequence-classification", {"text": Value("string")}, {"text": "warm soup"}),
    ):
        role = "labels" if "words" in roles else "label"
        for file, names in (("train", ["O", "PER", "LOC"]), ("eval", ["O", "LOC", "PER"]), ("odd", ["O", "ORG"])):
            features = Features({**roles, role: List(ClassLabel(names=names))})
            Dataset.from_list([{**other, role: [0, 1]}], features=features).to_parquet(tmp_path / f"{file}.parquet")
        many = {"label_names": ["O", "PER", "LOC"], "problem_type": "multi_label_classification"}
        said = {} if role == "labels" else many
        known = open_rows(declared(tmp_path, files="train.parquet", **said).data, task).labels
        for stream in ({}, {"streaming": True, "limit": 1}):
            beside = open_beside(
                declared(tmp_path, files="eval.parquet", **said, **stream).data, task, known, "evaluation"
            )
            assert beside.first(1)[0][role] == [0, 2]
            with pytest.raises(DataError, match=r"the labels are 'O', 'ORG', and those of training 'O', 'PER', 'LOC'"):
                open_beside(declared(tmp_path, files="odd.parquet", **said, **stream).data, task, known, "evaluation")


# Roles


@pytest.mark.parametrize("streaming", [False, True])
def test_declared_columns_say_which_kind_of_row_it_is(tmp_path: Path, streaming: bool) -> None:
    """Also beside a column that has the name of another kind's role, as in tables of instructions."""
    row = {"instruction": "say soup", "input": "", "output": "soup", "text": "say soup: soup"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    columns = {"prompt": "instruction", "answer": "output"}
    said = declared(tmp_path, "causal-lm", files="a.jsonl", columns=columns, streaming=streaming)
    rows = open_rows(said.data, "causal-lm")
    assert rows.first(1) == [{"prompt": "say soup", "answer": "soup"}]


def test_rows_of_files_are_refused_in_words(tmp_path: Path) -> None:
    """With what was found and what is expected, as in an experiment file."""
    (tmp_path / "a.txt").write_text("soup\n\nbread\n")
    with pytest.raises(DataError, match=r"a\.txt: row 1: text: found '', expected text that is not empty"):
        open_rows(declared(tmp_path, files="a.txt").data, "masked-lm")
    row = {"question": "a?", "context": "b", "answer": {"text": ["b"]}}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"row 0: answer: found .*, expected text"):
        open_rows(declared(tmp_path, files="a.jsonl").data, "question-answering")


def test_rows_of_one_batch_have_as_many_choices(tmp_path: Path) -> None:
    """Else some would be left out, or be missing."""
    rows = [{"text": "warm", "choices": list("abcd")[:number], "label": 0} for number in (3, 4)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = case(task="multiple-choice", data={"rows": rows[:1]}, train={"steps": 1, "batch_size": 2})
    settings = made.settings.model_copy(update={"data": declared(tmp_path, files="a.jsonl").data})
    record = attempt(replace(made, settings=settings))
    assert "rows of 3 and of 4 choices in one batch, expected as many choices in each row" in record.reason


def test_columns_of_another_kind_of_row_are_left_alone(tmp_path: Path) -> None:
    """A table with a text to learn may have prompts as well; a question's optional column is read."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "warm soup", "prompt": "soup?", "answer": None}) + "\n")
    rows = open_rows(declared(tmp_path, files="a.jsonl").data, "causal-lm")
    assert isinstance(rows, Table)
    assert rows.first(1) == [{"text": "warm soup"}]
    question = {"question": "what?", "context": "soup and soup", "answer": "soup", "answer_start": 9}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    rows = open_rows(declared(tmp_path, files="q.jsonl").data, "question-answering")
    assert isinstance(rows, Table)
    assert rows.first(1) == [question]


def test_folders_may_have_any_name(tmp_path: Path) -> None:
    """Also one that would be a pattern."""
    folder = tmp_path / "thesis [final] *"
    folder.mkdir()
    write(folder, "a.csv")
    assert len(every(opened(folder, files="*.csv"))) == len(TEXTS)
