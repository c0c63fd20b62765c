"""What an experiment may set: a model for each section of the file."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from harness.errors import count, shown
from harness.experiment.checkpoint import (
    CHECKPOINT_FORMS,
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
from harness.experiment.row import Problem, Row, TaskName, classes_in, mistakes, problem_of
from harness.experiment.source import Location


def _pair(value: Any) -> Any:
    """YAML has no tuples: two items become one."""
    if not isinstance(value, list):
        return value
    if len(value) != 2:
        raise problem(count(len(value), "item"), "2 numbers")
    return tuple(value)


def _switch(value: Any) -> Any:
    if not isinstance(value, bool | dict):
        raise problem(shown(value), "true, false or a mapping of options")
    return value


_Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
_Betas: TypeAlias = Annotated[
    tuple[_Beta, _Beta],
    BeforeValidator(_pair),
    # Written out, for editors that do not know the newer `prefixItems`.
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "minItems": 2,
            "maxItems": 2,
        }
    ),
]
_Sequence: TypeAlias = Annotated[str, Field(pattern=r"\S")]
_Switch: TypeAlias = Annotated[bool | dict[str, Any], BeforeValidator(_switch)]


class Train(Declared):
    """How the checkpoint is trained. What is not said is as `torch.optim.AdamW` has it."""

    loop: Literal["custom", "trainer"] = Field(
        default="custom", description="The training loop: `custom`, written out, or transformers' `trainer`."
    )
    steps: int = Field(default=20, ge=1, description="Optimizer steps.")
    batch_size: int = Field(default=8, ge=1, description="Sequences in a batch.")
    learning_rate: float = Field(default=5e-5, gt=0, description="AdamW's learning rate, after the warm-up.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decoupled weight decay.")
    betas: _Betas = Field(default=(0.9, 0.999), description="AdamW's decay rates of its two running averages.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's term that keeps its division from 0.")
    # numpy, which transformers seeds too, takes 32 bits.
    seed: int = Field(default=42, ge=0, le=2**32 - 1, description="Seeds new weights, dropout and the order of data.")
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps in which the learning rate rises linearly from 0; it is constant then."
    )
    max_length: int | None = Field(
        default=None, ge=1, description="Tokens that a sequence is cut to; null: the tokenizer's own limit."
    )
    shuffle: bool = Field(default=True, description="Whether each epoch takes the data in another order.")


class Data(Declared):
    """What to train on: texts and their labels, or rows."""

    # Before the sequences and labels, which are not needed beside them.
    rows: list[dict[str, Any]] | None = Field(
        default=None, min_length=1, description="What to train on, a mapping each; its roles are those of the task."
    )
    sequences: list[_Sequence] | None = Field(
        default=None, validate_default=True, min_length=1, description="The texts to train on."
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
        default=None, validate_default=True, description="The class of each text, counted from 0."
    )

    @property
    def given(self) -> tuple[Row, ...]:
        """The rows that the file itself holds; sequences and labels are rows with a `text` and a `label`."""
        if self.rows is not None:
            return tuple(self.rows)
        pairs = zip(self.sequences or (), self.labels or (), strict=True)
        return tuple({"text": text, "label": label} for text, label in pairs)

    @property
    def resolved_num_labels(self) -> int:
        """The number of classes; 1 where the label is a number."""
        if problem_of((row.get("label", 0) for row in self.given[:1]), self.problem_type) == "regression":
            return 1
        return self.num_labels or classes_in(self.given)

    @field_validator("sequences")
    @classmethod
    def _required(cls, sequences: list[str] | None, info: ValidationInfo) -> list[str] | None:
        _require_unless_rows(sequences, info)
        return sequences

    @field_validator("labels")
    @classmethod
    def _fit(cls, labels: list[int] | None, info: ValidationInfo) -> list[int] | None:
        _require_unless_rows(labels, info)
        if labels is None:
            return None
        wrong: list[tuple[Location, PydanticCustomError]] = []
        sequences, classes = info.data.get("sequences"), info.data.get("num_labels")
        if sequences is not None and len(sequences) != len(labels):
            expected = f"{len(sequences)}, one for each sequence"
            wrong.append(((), problem(count(len(labels), "label"), expected)))
        if classes is not None:
            expected = f"a label from 0 to {classes - 1} (num_labels is {classes})"
            wrong += [((i,), problem(str(n), expected)) for i, n in enumerate(labels) if n >= classes]
        if wrong:
            raise problems("Data", wrong)
        return labels


def _require_unless_rows(value: Any, info: ValidationInfo) -> None:
    """Texts and labels are required without rows, and out of place beside them."""
    rows = info.data.get("rows")
    if value is not None and rows is not None:
        raise problem(f"{info.field_name} beside rows", "one of the two")
    if value is None and rows is None and "rows" in info.data:
        raise PydanticKnownError("missing")


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
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="The arithmetic of forward passes: `fp32`, or `bf16` under autocast."
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
        if data.rows is None:
            if task != "sequence-classification":
                expected = "rows: sequences and labels are for sequence-classification"
                raise problems("Data", [(("sequences",), problem(f"sequences for {task}", expected))])
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

    @field_validator("benchmark")
    @classmethod
    def _fit_steps(cls, benchmark: Benchmark, info: ValidationInfo) -> Benchmark:
        train = info.data.get("train")
        if train is None or benchmark.timed_steps is None:
            return benchmark
        left = train.steps - benchmark.warmup_steps
        if benchmark.timed_steps > left:
            expected = f"at most {max(left, 0)} (train.steps {train.steps} less warmup_steps {benchmark.warmup_steps})"
            raise problems("Benchmark", [(("timed_steps",), problem(str(benchmark.timed_steps), expected))])
        return benchmark


def _folder(info: ValidationInfo) -> Path | None:
    """The folder of the file that wrote the field; unknown where settings are made in Python."""
    folder: Path | None = (info.context or {}).get("folders", {}).get(info.field_name)
    return folder
