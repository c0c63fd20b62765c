"""Where rows come from, and the rows to train on."""

import re
from collections.abc import Iterable, Iterator, Sequence
from glob import escape, glob
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from harness.errors import count, shown
from harness.experiment.checkpoint import FOLDER, FolderCheckpoint, HubCheckpoint, PackageCheckpoint, parse_checkpoint
from harness.experiment.model import Declared, problem, problems
from harness.experiment.row import Problem, Row, classes_in, problem_of
from harness.experiment.source import Location

SOURCES = ("sequences", "rows", "files", "dataset")
"""The keys of `data` of which one says where the rows are."""
FILE_KINDS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
"""What is read as what, by the ending of a file's name."""
SPLIT = r"^\w[\w.-]*(\[[\d%:\s-]*\])?(\s*\+\s*\w[\w.-]*(\[[\d%:\s-]*\])?)*$"
_SOURCES_OF: dict[str, tuple[str, ...]] = {
    "labels": ("sequences",),
    "name": ("dataset",),
    "revision": ("dataset",),
    "split": ("files", "dataset"),
    "columns": ("files", "dataset"),
    "limit": ("files", "dataset"),
    "shuffle_seed": ("files", "dataset"),
    "streaming": ("files", "dataset"),
    "shuffle_buffer": ("files", "dataset"),
    "invalid_rows": ("files", "dataset"),
}

Wrong: TypeAlias = tuple[Location, PydanticCustomError]


def _file_names(value: Any) -> Any:
    listed = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(each, str) for each in listed):
        raise problem(shown(value), "the name of a file or a list of names")
    return value


def _split(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(SPLIT, value):
        raise problem(shown(value), "a split such as train, test[:10%] or train[100:200]+test")
    return value


_Sequence: TypeAlias = Annotated[str, Field(pattern=r"\S")]
_Files: TypeAlias = Annotated[str | list[str] | None, BeforeValidator(_file_names)]
_Split: TypeAlias = Annotated[str, Field(pattern=SPLIT), BeforeValidator(_split)]


class Source(Declared):
    """Rows: written out, in files, or in a dataset."""

    section: ClassVar[str] = ""
    """The key of a file that holds it."""
    needs_source: ClassVar[bool] = True
    """Whether it has to say where its rows are."""

    rows: list[dict[str, Any]] | None = Field(
        default=None, min_length=1, description="The rows written out, a mapping each; its roles are those of the task."
    )
    sequences: list[_Sequence] | None = Field(default=None, min_length=1, description="The texts, written out.")
    files: _Files = Field(
        default=None,
        description="Local files instead, as seen from this file, with `*` and `**`: csv, json, jsonl, parquet or txt.",
    )
    dataset: str | None = Field(
        default=None, description="A dataset instead: a Hub id (`OWNER/NAME`), or a folder with data files (`./NAME`)."
    )
    name: str | None = Field(default=None, description="Which of a dataset's configurations, such as `mrpc` of GLUE.")
    revision: str | None = Field(
        default=None, description="A branch, tag or commit of a dataset on the Hub; null: the default branch."
    )
    columns: dict[str, str] = Field(
        default={}, description="The column of each role: `{text: sentence1, text_pair: sentence2, label: label}`."
    )
    limit: int | None = Field(default=None, ge=1, description="Rows to take, from the first on; null: all.")
    shuffle_seed: int | None = Field(
        default=None, ge=0, le=2**32 - 1, description="Seeds a shuffle of the rows before `limit`; null: as they come."
    )
    streaming: bool = Field(
        default=False, description="Whether rows are read while training goes on instead of before; nothing is kept."
    )
    split: _Split | None = Field(
        default=None, description="Which rows of files or dataset: `train`, `test[:10%]`, `train[100:200]+test`."
    )
    invalid_rows: Literal["error", "drop"] = Field(
        default="error", description="Rows without a text, a token or a known label: an error, or dropped and counted."
    )
    labels: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, description="The class of each of the `sequences`, counted from 0."
    )
    _folder: Path = PrivateAttr(default_factory=Path)
    """What `files` and a `dataset` in a folder are relative to."""

    @property
    def given(self) -> tuple[Row, ...]:
        """The rows that the file itself holds; sequences and labels are rows with a `text` and a `label`."""
        if self.rows is not None:
            return tuple(self.rows)
        pairs = zip(self.sequences or (), self.labels or (), strict=True)
        return tuple({"text": text, "label": label} for text, label in pairs)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The local files that `files` names, sorted within each pattern, and each once; none where there are none."""
        found = (path for pattern in _listed(self.files) for path in _matching(pattern, self._folder))
        return tuple(dict.fromkeys(found))

    @property
    def place(self) -> Path | None:
        """The folder that `dataset` names; none where it is on the Hub."""
        text = self.dataset or ""
        return self._folder / Path(text).expanduser() if re.search(FOLDER, text) else None

    @field_validator("files")
    @classmethod
    def _find_files(cls, files: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        folder, kinds = cls._written_in(info) or Path(), set()
        if files == []:
            raise problem("an empty list", "at least 1 file")
        wrong: list[tuple[Location, PydanticCustomError]] = []
        for place, pattern in enumerate(_listed(files)):
            found = _matching(pattern, folder)
            if not found:
                expected = f"local files, named as seen from {folder.absolute()}"
                wrong.append(((place,), problem(f"{shown(pattern)}, which matches no file", expected)))
            unknown = next((path for path in found if path.suffix not in FILE_KINDS), None)
            if unknown is not None:
                wrong.append(((place,), problem(shown(unknown.name), f"files that end in {', '.join(FILE_KINDS)}")))
            kinds |= {FILE_KINDS[path.suffix] for path in found if path.suffix in FILE_KINDS}
        if not wrong and len(kinds) > 1:
            wrong.append(((), problem(f"files of the kinds {', '.join(sorted(kinds))}", "files of one kind")))
        if wrong:
            raise wrong[0][1] if isinstance(files, str) else problems(cls.__name__, wrong)
        return files

    @field_validator("dataset")
    @classmethod
    def _place_dataset(cls, dataset: str | None, info: ValidationInfo) -> str | None:
        if dataset is None:
            return None
        forms = "a Hub id (OWNER/NAME) or a folder (./NAME)"
        try:
            source = parse_checkpoint(dataset, cls._written_in(info))
        except ValueError:
            raise problem(shown(dataset), forms) from None
        if isinstance(source, PackageCheckpoint):
            raise problem(shown(dataset), forms)
        if isinstance(source, HubCheckpoint) and source.revision is not None:
            raise problem(shown(dataset), forms, f"the revision has a key of its own, {cls.section}.revision")
        if isinstance(source, FolderCheckpoint) and not source.path.is_dir():
            raise problem(f"{shown(dataset)}, but {source.path} is no folder", forms)
        return dataset

    @field_validator("labels")
    @classmethod
    def _require_labels(cls, labels: list[int] | None, info: ValidationInfo) -> list[int] | None:
        if labels is None and info.data.get("sequences") is not None:
            raise problem("nothing", "a list")
        return labels

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> Self:
        """One source, and no key that says nothing of it."""
        if wrong := list(self._mistakes()):
            raise problems(type(self).__name__, wrong)
        if self.sources:
            self._folder = (info.context or {}).get("folders", {}).get(f"{self.section}.{self.sources[0]}") or Path()
        return self

    @property
    def sources(self) -> list[str]:
        """The keys of those it has: one; none where it needs none."""
        return [name for name in SOURCES if getattr(self, name) is not None]

    def _mistakes(self) -> Iterator[Wrong]:
        """Keys that do not fit each other."""
        if len(self.sources) > 1 or (self.needs_source and not self.sources):
            yield (), problem(" and ".join(self.sources) or "no texts", f"one of {', '.join(SOURCES)}")
        elif self.sources:
            yield from _of_another_source(self, self.sources[0])
        if self.sequences is not None and self.labels is None:
            yield ("labels",), problem("nothing", "this key, which has no default")
        if self.sequences is not None and self.labels is not None and len(self.sequences) != len(self.labels):
            yield (
                ("labels",),
                problem(count(len(self.labels), "label"), f"{len(self.sequences)}, one for each sequence"),
            )
        if self.streaming and self.shuffle_seed is not None:
            expected = "nothing here: a stream is shuffled while it is read, by train.shuffle"
            yield ("shuffle_seed",), problem(str(self.shuffle_seed), expected)
        if self.streaming and self.split is not None and not re.fullmatch(r"\w[\w.-]*", self.split):
            expected = "the name of a split: a stream cannot be cut by percent or place"
            yield ("split",), problem(shown(self.split), expected, f"{self.section}.limit takes the first rows")

    @classmethod
    def _written_in(cls, info: ValidationInfo) -> Path | None:
        """The folder of the file that wrote the field; unknown where settings are made in Python."""
        folder: Path | None = (info.context or {}).get("folders", {}).get(f"{cls.section}.{info.field_name}")
        return folder


class Data(Source):
    """What to train on: texts and their labels or rows, written out, in files, or in a dataset."""

    section = "data"

    split: _Split = Field(
        default="train", description="Which rows of files or dataset: `train`, `test[:10%]`, `train[100:200]+test`."
    )
    shuffle_buffer: int = Field(
        default=1000, ge=1, description="Rows among which `train.shuffle` draws the next one of a stream."
    )
    label_names: list[Annotated[str, Field(pattern=r"\S")]] | None = Field(
        default=None,
        min_length=2,
        description="The classes in the order of their numbers; null: the dataset's own, or those in the data, sorted.",
    )
    num_labels: int | None = Field(
        default=None,
        ge=2,
        description="Number of classes; null: the highest label and one, and at least 2. Lists of classes in a file "
        "or a dataset have none of their own.",
    )
    problem_type: Problem | None = Field(
        default=None,
        description="How labels of whole texts are meant; null: a class is a single label, a list of classes several, "
        "a number with a point a regression; in a file or a dataset each is a class.",
    )
    mask_probability: float = Field(
        default=0.15, gt=0, lt=1, description="Share of the tokens that a masked language model has to predict."
    )

    @property
    def resolved_num_labels(self) -> int | None:
        """The number of classes, as far as the file tells it; 1 where the label is a number."""
        if problem_of((row.get("label", 0) for row in self.given[:1]), self.problem_type) == "regression":
            return 1
        return self.declared_num_labels or (classes_in(self.given) if self.given else None)

    @property
    def declared_num_labels(self) -> int | None:
        """The number of classes, or of their names, that the file writes; none where it writes neither."""
        return self.num_labels or len(self.label_names or ()) or None

    @field_validator("label_names")
    @classmethod
    def _require_distinct(cls, names: list[str] | None) -> list[str] | None:
        twice = next((name for place, name in enumerate(names or ()) if name in (names or ())[:place]), None)
        if twice is not None:
            raise problem(f"{shown(twice)} twice", "each class once")
        return names

    def _mistakes(self) -> Iterator[Wrong]:
        yield from super()._mistakes()
        yield from _beyond(self.labels or (), self.num_labels, self.label_names)
        if self.label_names and self.num_labels and len(self.label_names) != self.num_labels:
            expected = f"{self.num_labels}, as num_labels says"
            yield ("label_names",), problem(count(len(self.label_names), "name"), expected)


def _beyond(labels: Iterable[int], classes: int | None, names: Sequence[str] | None) -> Iterator[Wrong]:
    """Labels that are none of the declared classes."""
    key = "num_labels"
    if classes is None and names is not None:
        key, classes = "the number of label_names", len(names)
    for place, label in enumerate(labels):
        if classes is not None and label >= classes:
            yield ("labels", place), problem(str(label), f"a label from 0 to {classes - 1} ({key} is {classes})")


def _of_another_source(data: Source, source: str) -> Iterator[tuple[Location, PydanticCustomError]]:
    """Keys that are set although the source has no use for them."""
    for key, sources in _SOURCES_OF.items():
        if key in data.model_fields_set and getattr(data, key) is not None and source not in sources:
            value = getattr(data, key)
            yield (key,), problem(shown(value), f"nothing here: it belongs to {' and '.join(sources)}")
    place = data.place
    if source == "dataset" and place is not None and data.revision is not None:
        yield ("revision",), problem(shown(data.revision), "nothing here: a folder has no revisions")


def _listed(files: str | list[str] | None) -> list[str]:
    return [files] if isinstance(files, str) else files or []


def _matching(pattern: str, folder: Path) -> list[Path]:
    """The files that a pattern names, sorted."""
    try:
        whole = str(Path(escape(str(folder.absolute()))) / Path(pattern).expanduser())
        # Not Path.glob, which takes no absolute pattern.
        return sorted(Path(name) for name in glob(whole, recursive=True) if Path(name).is_file())  # noqa: PTH207
    # A NUL in the name, or a ~ that is nobody's home.
    except (ValueError, RuntimeError, OSError):
        return []
