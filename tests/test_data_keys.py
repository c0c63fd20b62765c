"""What an experiment may say of its data, and where each mistake of it is."""

from pathlib import Path

import pytest

from harness import experiment, plan
from harness.errors import InvalidExperiment
from harness.laws import LAWS

KNOWN = {law.name: law.options for law in LAWS}
SOURCES = "one of sequences, rows, files, dataset"
ENDINGS = ".csv, .json, .jsonl, .parquet, .txt"


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> Path:
    """A folder with a few files in it."""
    for name in ("a.csv", "b.csv", "c.jsonl", "notes.md", "sub/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text,label\ngood,1\n")
    return tmp_path


def read(folder: Path, data: str, train: str = "") -> experiment.Data:
    """The data section of a file that says this."""
    path = folder / "x.yaml"
    path.write_text(f"checkpoint: gpt2\ndata:\n  {data}\n{train}")
    return experiment.read(path, KNOWN).points[0].settings.data


def mistakes(folder: Path, data: str) -> list[str]:
    """What is wrong with it."""
    with pytest.raises(InvalidExperiment) as caught:
        read(folder, data)
    return [str(one).replace(f"{folder}/", "").replace(str(folder), "HERE") for one in caught.value.mistakes]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("a.csv", ["a.csv"]),
        ("'*.csv'", ["a.csv", "b.csv"]),
        ("'**/*.csv'", ["a.csv", "b.csv", "sub/d.csv"]),
        ("[b.csv, a.csv]", ["b.csv", "a.csv"]),
        ("./sub/d.csv", ["sub/d.csv"]),
    ],
)
def test_files_are_seen_from_the_experiment(files: Path, said: str, found: list[str]) -> None:
    """Patterns are sorted, lists keep their order, and the working directory has no part in it."""
    data = read(files, f"files: {said}")
    assert [str(path.relative_to(files)) for path in data.paths] == found


def test_files_of_a_base_are_seen_from_the_base(files: Path) -> None:
    """Who extends a file in another folder gets that folder's files."""
    (files / "sub" / "base.yaml").write_text("checkpoint: gpt2\ndata:\n  files: d.csv\n")
    (files / "x.yaml").write_text("extends: sub/base.yaml\ndata:\n  limit: 3\n")
    (point,) = experiment.read(files / "x.yaml", KNOWN).points
    assert point.settings.data.paths == (files / "sub" / "d.csv",)
    assert point.settings.data.limit == 3


def test_dataset_is_a_name_or_a_folder(files: Path) -> None:
    """A name is the Hub's; a folder is seen from the file."""
    assert read(files, "dataset: nyu-mll/glue\n  name: mrpc\n  split: 'train[:10%]+test'").place is None
    assert read(files, "dataset: ./sub").place == files / "sub"


MISTAKES = {
    "no source": ("limit: 3", f"2: data: found no texts, expected {SOURCES}"),
    "two sources": ("files: a.csv\n  dataset: acme/x", f"2: data: found files and dataset, expected {SOURCES}"),
    "no such file": (
        "files: z.csv",
        "3: data.files: found 'z.csv', which matches no file, expected local files, named as seen from HERE",
    ),
    "one of several": (
        "files:\n  - a.csv\n  - z*.csv",
        "5: data.files[1]: found 'z*.csv', which matches no file, expected local files, named as seen from HERE",
    ),
    "a folder is no file": (
        "files: sub",
        "3: data.files: found 'sub', which matches no file, expected local files, named as seen from HERE",
    ),
    "no files": ("files: []", "3: data.files: found an empty list, expected at least 1 file"),
    "kind": ("files: notes.md", f"3: data.files: found 'notes.md', expected files that end in {ENDINGS}"),
    "kinds": (
        "files: [a.csv, c.jsonl]",
        "3: data.files: found files of the kinds csv, json, expected files of one kind",
    ),
    "number": ("files: 5", "3: data.files: found 5, expected the name of a file or a list of names"),
    "address": (
        "files: https://example.org/a.csv",
        (
            "3: data.files: found 'https://example.org/a.csv', which matches no file, "
            "expected local files, named as seen from HERE"
        ),
    ),
    "no name": ("dataset: a b", "3: data.dataset: found 'a b', expected a Hub id (OWNER/NAME) or a folder (./NAME)"),
    "package": (
        "dataset: package:json/x",
        "3: data.dataset: found 'package:json/x', expected a Hub id (OWNER/NAME) or a folder (./NAME)",
    ),
    "no folder": (
        "dataset: ./nowhere",
        (
            "3: data.dataset: found './nowhere', but nowhere is no folder, "
            "expected a Hub id (OWNER/NAME) or a folder (./NAME)"
        ),
    ),
    "revision in the name": (
        "dataset: acme/x@v1",
        (
            "3: data.dataset: found 'acme/x@v1', expected a Hub id (OWNER/NAME) or a folder (./NAME); "
            "the revision has a key of its own, data.revision"
        ),
    ),
    "revision of a folder": (
        "dataset: ./sub\n  revision: v1",
        "4: data.revision: found 'v1', expected nothing here: a folder has no revisions",
    ),
    "revision of files": (
        "files: a.csv\n  revision: v1",
        "4: data.revision: found 'v1', expected nothing here: it belongs to dataset",
    ),
    "labels of files": (
        "files: a.csv\n  labels: [1]",
        "4: data.labels: found a list, expected nothing here: it belongs to sequences",
    ),
    "columns of texts": (
        "sequences: [a]\n  labels: [0]\n  columns: {text: a}",
        "5: data.columns: found a mapping, expected nothing here: it belongs to files and dataset",
    ),
    "role": (
        "files: a.csv\n  columns: {txt: sentence}",
        "4: data.columns.txt: found an unknown role, expected one of text, text_pair, label; did you mean 'text'?",
    ),
    "split": (
        "files: a.csv\n  split: 'train[:10'",
        "4: data.split: found 'train[:10', expected a split such as train, test[:10%] or train[100:200]+test",
    ),
    "split of a stream": (
        "files: a.csv\n  streaming: true\n  split: 'train[:10]'",
        (
            "5: data.split: found 'train[:10]', expected the name of a split: a stream cannot be cut by percent or "
            "place; data.limit takes the first rows"
        ),
    ),
    "shuffled stream": (
        "files: a.csv\n  streaming: true\n  shuffle_seed: 1",
        "5: data.shuffle_seed: found 1, expected nothing here: a stream is shuffled while it is read, by train.shuffle",
    ),
    "limit": ("files: a.csv\n  limit: 0", "4: data.limit: found 0, expected a number of at least 1"),
    "one class": ("files: a.csv\n  label_names: [a]", "4: data.label_names: found a list, expected at least 2 items"),
    "class twice": (
        "files: a.csv\n  label_names: [a, b, a]",
        "4: data.label_names: found 'a' twice, expected each class once",
    ),
    "classes and their number": (
        "files: a.csv\n  label_names: [a, b]\n  num_labels: 3",
        "4: data.label_names: found 2 names, expected 3, as num_labels says",
    ),
    "label beyond the names": (
        "sequences: [a]\n  label_names: [x, y]\n  labels: [2]",
        "5: data.labels[0]: found 2, expected a label from 0 to 1 (the number of label_names is 2)",
    ),
}


@pytest.mark.parametrize(("data", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_one_mistake(files: Path, data: str, expected: str) -> None:
    """Each is told once, at its own line."""
    assert mistakes(files, data) == [f"x.yaml:{expected}"]


def test_a_record_says_where_the_rows_are_and_not_where_the_machine_keeps_them(files: Path) -> None:
    """What is declared stands in the settings as the file has it; the digest is the same in any folder."""
    other = files / "sub" / "copy"
    other.mkdir()
    (other / "a.csv").write_text("text,label\ngood,1\n")
    digests = set()
    for folder in (files, other):
        read(folder, "files: a.csv\n  limit: 7")
        (case,) = plan.cases(experiment.read(folder / "x.yaml", KNOWN), ["cpu"], root=folder)
        said = case.declared()["settings"]
        assert {key: value for key, value in said.items() if key.startswith("data.") and key != "data.digest"} == {
            "data.files": "a.csv",
            "data.limit": 7,
        }
        digests.add(said["data.digest"])
        assert str(files) not in str(case.declared())
    assert len(digests) == 1


def test_classes_of_rows_are_those_that_have_names(files: Path) -> None:
    """As those of sequences are."""
    said = "rows: [{text: a, label: 5}, {text: b, label: 0}]\n  label_names: [x, y]"
    assert mistakes(files, said) == [
        "x.yaml:3: data.rows[0].label: found 5, expected a label from 0 to 1 (num_labels is 2)"
    ]
