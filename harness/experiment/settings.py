"""What an experiment may set: a model for each section of the file."""

import re
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from harness.errors import count, meant, shown
from harness.experiment.checkpoint import (
    CHECKPOINT_FORMS,
    FOLDER,
    ArchitectureCheckpoint,
    Checkpoint,
    FolderCheckpoint,
    HubCheckpoint,
    PackageCheckpoint,
    parse_checkpoint,
    require_tokenizer,
    require_weights,
)
from harness.experiment.device import Device
from harness.experiment.model import Declared, problem, problems
from harness.experiment.peft import Peft
from harness.experiment.row import Problem, Row, TaskName, classes_in, mistakes, problem_of, roles
from harness.experiment.source import Location
from harness.experiment.train import Train

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
_NOT_SMOOTHED = ("multi_label_classification", "regression")
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


def _switch(value: Any) -> Any:
    if not isinstance(value, bool | dict):
        raise problem(shown(value), "true, false or a mapping of options")
    return value


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
_Switch: TypeAlias = Annotated[bool | dict[str, Any], BeforeValidator(_switch)]


class Data(Declared):
    """What to train on: texts and their labels or rows, written out, in files, or in a dataset."""

    rows: list[dict[str, Any]] | None = Field(
        default=None, min_length=1, description="What to train on, a mapping each; its roles are those of the task."
    )
    sequences: list[_Sequence] | None = Field(default=None, min_length=1, description="The texts to train on.")
    files: _Files = Field(
        default=None,
        description="Local files instead, as seen from this file, with `*` and `**`: csv, json, jsonl, parquet or txt.",
    )
    dataset: str | None = Field(
        default=None, description="A dataset instead: a Hub id (`OWNER/NAME`), or a folder with data files (`./NAME`)."
    )
    name: str | None = Field(default=None, description="Which of a dataset's configurations, such as `mrpc` of GLUE.")
    split: _Split = Field(
        default="train", description="Which rows of files or dataset: `train`, `test[:10%]`, `train[100:200]+test`."
    )
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
    shuffle_buffer: int = Field(
        default=1000, ge=1, description="Rows among which `train.shuffle` draws the next one of a stream."
    )
    invalid_rows: Literal["error", "drop"] = Field(
        default="error", description="Rows without a text, a token or a known label: an error, or dropped and counted."
    )
    label_names: list[Annotated[str, Field(pattern=r"\S")]] | None = Field(
        default=None,
        min_length=2,
        description="The classes in the order of their numbers; null: the dataset's own, or those in the data, sorted.",
    )
    # Before the labels, whose check looks at both.
    num_labels: int | None = Field(
        default=None, ge=2, description="Number of classes; null: the highest label and one, and at least 2."
    )
    problem_type: Problem | None = Field(
        default=None,
        description="How labels of whole texts are meant; null: a class is a single label, a list of classes several, "
        "a number with a point a regression.",
    )
    mask_probability: float = Field(
        default=0.15, gt=0, lt=1, description="Share of the tokens that a masked language model has to predict."
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
    def resolved_num_labels(self) -> int | None:
        """The number of classes, as far as the file tells it; 1 where the label is a number."""
        if problem_of((row.get("label", 0) for row in self.given[:1]), self.problem_type) == "regression":
            return 1
        if self.num_labels or self.label_names:
            return self.num_labels or len(self.label_names or ())
        return classes_in(self.given) if self.given else None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The local files that `files` names, sorted within each pattern; none where there are none."""
        return tuple(path for pattern in _listed(self.files) for path in _matching(pattern, self._folder))

    @property
    def place(self) -> Path | None:
        """The folder that `dataset` names; none where it is on the Hub."""
        text = self.dataset or ""
        return self._folder / Path(text).expanduser() if re.search(FOLDER, text) else None

    @field_validator("files")
    @classmethod
    def _find_files(cls, files: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        folder, kinds = _folder(info) or Path(), set()
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
            raise wrong[0][1] if isinstance(files, str) else problems("Data", wrong)
        return files

    @field_validator("dataset")
    @classmethod
    def _place_dataset(cls, dataset: str | None, info: ValidationInfo) -> str | None:
        if dataset is None:
            return None
        forms = "a Hub id (OWNER/NAME) or a folder (./NAME)"
        try:
            source = parse_checkpoint(dataset, _folder(info))
        except ValueError:
            raise problem(shown(dataset), forms) from None
        if isinstance(source, PackageCheckpoint):
            raise problem(shown(dataset), forms)
        if isinstance(source, HubCheckpoint) and source.revision is not None:
            raise problem(shown(dataset), forms, "the revision has a key of its own, data.revision")
        if isinstance(source, FolderCheckpoint) and not source.path.is_dir():
            raise problem(f"{shown(dataset)}, but {source.path} is no folder", forms)
        return dataset

    @field_validator("label_names")
    @classmethod
    def _require_distinct(cls, names: list[str] | None) -> list[str] | None:
        twice = next((name for place, name in enumerate(names or ()) if name in (names or ())[:place]), None)
        if twice is not None:
            raise problem(f"{shown(twice)} twice", "each class once")
        return names

    @field_validator("labels")
    @classmethod
    def _fit(cls, labels: list[int] | None, info: ValidationInfo) -> list[int] | None:
        if labels is None:
            if info.data.get("sequences") is None:
                return None
            raise problem("nothing", "a list")
        wrong: list[tuple[Location, PydanticCustomError]] = []
        sequences, names = info.data.get("sequences"), info.data.get("label_names")
        key, classes = "num_labels", info.data.get("num_labels")
        if classes is None and names is not None:
            key, classes = "the number of label_names", len(names)
        if sequences is not None and len(sequences) != len(labels):
            expected = f"{len(sequences)}, one for each sequence"
            wrong.append(((), problem(count(len(labels), "label"), expected)))
        if classes is not None:
            expected = f"a label from 0 to {classes - 1} ({key} is {classes})"
            wrong += [((i,), problem(str(n), expected)) for i, n in enumerate(labels) if n >= classes]
        if wrong:
            raise problems("Data", wrong)
        return labels

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> "Data":
        """One source, and no key that says nothing of it."""
        sources = [name for name in SOURCES if getattr(self, name) is not None]
        wrong: list[tuple[Location, PydanticCustomError]] = []
        if len(sources) != 1:
            found = " and ".join(sources) or "no texts"
            wrong.append(((), problem(found, f"one of {', '.join(SOURCES)}")))
        else:
            wrong += _of_another_source(self, sources[0])
        if self.sequences is not None and self.labels is None:
            wrong.append((("labels",), problem("nothing", "this key, which has no default")))
        if self.label_names and self.num_labels and len(self.label_names) != self.num_labels:
            expected = f"{self.num_labels}, as num_labels says"
            wrong.append((("label_names",), problem(count(len(self.label_names), "name"), expected)))
        if self.streaming and self.shuffle_seed is not None:
            expected = "nothing here: a stream is shuffled while it is read, by train.shuffle"
            wrong.append((("shuffle_seed",), problem(str(self.shuffle_seed), expected)))
        if self.streaming and not re.fullmatch(r"\w[\w.-]*", self.split):
            expected = "the name of a split: a stream cannot be cut by percent or place"
            wrong.append((("split",), problem(shown(self.split), expected, "data.limit takes the first rows")))
        if wrong:
            raise problems("Data", wrong)
        folders = (info.context or {}).get("folders", {})
        self._folder = folders.get(sources[0]) or Path()
        return self


def _of_another_source(data: Data, source: str) -> Iterator[tuple[Location, PydanticCustomError]]:
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
        whole = str(folder.absolute() / Path(pattern).expanduser())
        # Not Path.glob, which takes no absolute pattern.
        return sorted(Path(name) for name in glob(whole, recursive=True) if Path(name).is_file())  # noqa: PTH207
    # A NUL in the name, or a ~ that is nobody's home.
    except (ValueError, RuntimeError, OSError):
        return []


class Benchmark(Declared):
    """Which steps are timed."""

    warmup_steps: int = Field(default=3, ge=0, description="First steps, which are left out of the timing.")
    timed_steps: int | None = Field(default=None, ge=1, description="Steps timed after them; null: all the rest.")


class Settings(Declared):
    """Everything that decides what one case does."""

    task: TaskName = Field(
        default="sequence-classification", description="What is trained; it decides the head on top of the backbone."
    )
    checkpoint: Checkpoint = Field(
        description="The start: a Hub id (`OWNER/NAME`, `OWNER/NAME@REVISION`), a folder (`./NAME`, as seen from this "
        "file), `package:NAME/FOLDER` in an installed Python package, or `{architecture: NAME}` for random weights."
    )
    tokenizer: str | None = Field(
        default=None,
        description="A Hub id, folder or package as for `checkpoint`; null: the checkpoint's own, and for random "
        "weights one trained on the experiment's text.",
    )
    data: Data = Field(description="What to train on: texts and their labels, or rows.")
    train: Train = Field(default=Train(), description="The loop, its length and its optimizer.")
    peft: Peft | None = Field(
        default=None, description="Trains low-rank adapters (LoRA) and the new head in the place of all weights."
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16", "bf16-pure"] = Field(
        default="fp32",
        description="The arithmetic: `fp32`; `tf32` in matrix products; `bf16` or `fp16` under autocast, fp16 with a "
        "loss scaler; or `bf16-pure`, weights and optimizer in bf16, too.",
    )
    device: Device | None = Field(
        default=None,
        description="`cpu`, `cuda` (the current one), `cuda:N`, `cuda:all` (a case for each) or `mps`; null: each of "
        "the devices that pytest is configured with.",
    )
    invariants: dict[str, _Switch] = Field(
        default={}, description="Laws by name: false turns one off, a mapping sets its options."
    )
    expect_broken: dict[str, Annotated[str, Field(pattern=r"\S")]] = Field(
        default={},
        description="Laws that are known to be broken here, each with the reason. One that is not broken is reported.",
    )
    benchmark: Benchmark = Field(default=Benchmark(), description="Which steps are timed.")

    @field_validator("checkpoint", mode="plain", json_schema_input_type=str | ArchitectureCheckpoint)
    @classmethod
    def _parse_checkpoint(cls, value: Any, info: ValidationInfo) -> Checkpoint:
        match value:
            case HubCheckpoint() | FolderCheckpoint() | PackageCheckpoint() | ArchitectureCheckpoint():
                return value
            case str():
                checkpoint = parse_checkpoint(value, _folder(info))
                if not isinstance(checkpoint, HubCheckpoint):
                    require_weights(checkpoint)
                return checkpoint
            case dict():
                return ArchitectureCheckpoint.model_validate(value, context={"task": info.data.get("task", "")})
        raise problem(shown(value), CHECKPOINT_FORMS)

    @field_validator("data")
    @classmethod
    def _fit_task(cls, data: Data, info: ValidationInfo) -> Data:
        """The rows are such as the task reads."""
        task = info.data.get("task")
        if task is None:
            return data
        if data.sequences is not None and task != "sequence-classification":
            expected = "rows: sequences and labels are for sequence-classification"
            raise problems("Data", [(("sequences",), problem(f"sequences for {task}", expected))])
        if data.rows is None:
            return data
        if (wrong := mistakes(task, data.rows, data.num_labels, data.problem_type)) is not None:
            raise wrong
        return data

    @field_validator("tokenizer")
    @classmethod
    def _place_tokenizer(cls, value: str | None, info: ValidationInfo) -> str | None:
        """A relative folder is resolved here, where it is known which file wrote it."""
        if value is None:
            return None
        tokenizer = parse_checkpoint(value, _folder(info))
        if not isinstance(tokenizer, HubCheckpoint):
            require_tokenizer(tokenizer)
        return str(tokenizer.path.absolute()) if isinstance(tokenizer, FolderCheckpoint) else value

    @field_validator("data")
    @classmethod
    def _fit_columns(cls, data: Data, info: ValidationInfo) -> Data:
        """Columns have the roles that the task knows."""
        known = roles(info.data["task"]) if "task" in info.data else ()
        wrong: list[tuple[Location, PydanticCustomError]] = [
            (("columns", role), problem("an unknown role", f"one of {', '.join(known)}", meant(role, known)))
            for role in data.columns
            if known and role not in known
        ]
        if wrong:
            raise problems("Data", wrong)
        return data

    @field_validator("benchmark")
    @classmethod
    def _fit_steps(cls, benchmark: Benchmark, info: ValidationInfo) -> Benchmark:
        train = info.data.get("train")
        if train is None or benchmark.timed_steps is None or train.epochs is not None:
            return benchmark
        left = train.steps - benchmark.warmup_steps
        if benchmark.timed_steps > left:
            expected = f"at most {max(left, 0)} (train.steps {train.steps} less warmup_steps {benchmark.warmup_steps})"
            raise problems("Benchmark", [(("timed_steps",), problem(str(benchmark.timed_steps), expected))])
        return benchmark

    @model_validator(mode="after")
    def _fit_train(self) -> "Settings":
        """The choices of the training go together with task, data and precision."""
        wrong = list(_unfit(self))
        if wrong:
            raise problems("Settings", wrong)
        return self


def _unfit(settings: Settings) -> Iterator[tuple[Location, PydanticCustomError]]:
    train, problem_type = settings.train, str(settings.data.problem_type)
    if settings.data.given and settings.task == "sequence-classification":
        problem_type = problem_of((row.get("label", 0) for row in settings.data.given[:1]), settings.data.problem_type)
    if train.label_smoothing and (settings.task == "question-answering" or problem_type in _NOT_SMOOTHED):
        what = problem_type if problem_type in _NOT_SMOOTHED else settings.task
        expected = "0: smoothing spreads a label over classes, of which one is right"
        yield ("train", "label_smoothing"), problem(f"{train.label_smoothing:g} for {what}", expected)
    if train.compute_loss_func and settings.task == "question-answering":
        expected = "false: the Trainer hands on no labels but those called labels"
        yield ("train", "compute_loss_func"), problem("true for question-answering", expected)
    if train.fused and settings.precision == "fp16":
        expected = "false or null: with a loss scaler, Accelerate cannot see that a fused step was left out"
        yield ("train", "fused"), problem("true for fp16", expected)
    if train.epochs is not None and settings.data.streaming:
        yield ("train", "epochs"), problem(f"{train.epochs:g} of a stream", "steps: a stream has no known length")


def _folder(info: ValidationInfo) -> Path | None:
    """The folder of the file that wrote the field; unknown where settings are made in Python."""
    folder: Path | None = (info.context or {}).get("folders", {}).get(info.field_name)
    return folder
