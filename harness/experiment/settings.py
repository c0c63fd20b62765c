"""What an experiment may set: a model for each section of the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from harness.errors import meant, shown
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
from harness.experiment.data import Data
from harness.experiment.device import Device
from harness.experiment.evaluation import Evaluation, check_evaluation, metrics_of
from harness.experiment.model import Declared, problem, problems
from harness.experiment.peft import Peft
from harness.experiment.row import TaskName, mistakes, problem_of, roles
from harness.experiment.source import Location
from harness.experiment.train import Train

_NOT_SMOOTHED = ("multi_label_classification", "regression")


def _switch(value: Any) -> Any:
    if not isinstance(value, bool | dict):
        raise problem(shown(value), "true, false or a mapping of options")
    return value


_Switch: TypeAlias = Annotated[bool | dict[str, Any], BeforeValidator(_switch)]


class Benchmark(Declared):
    """Which steps are timed."""

    warmup_steps: int | None = Field(
        default=None, ge=0, description="First steps, which are left out of the timing; null: until steps are steady."
    )
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
    evaluation: Evaluation | None = Field(
        default=None, description="Rows to evaluate on before and after training, and the metrics; null: none."
    )
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
        if (wrong := mistakes(task, data.rows, data.declared_num_labels, data.problem_type)) is not None:
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

    @field_validator("evaluation")
    @classmethod
    def _fit_evaluation(cls, evaluation: Evaluation | None, info: ValidationInfo) -> Evaluation | None:
        if evaluation is not None and {"task", "data"} <= info.data.keys():
            check_evaluation(evaluation, info.data["task"], info.data["data"])
        return evaluation

    @field_validator("benchmark")
    @classmethod
    def _fit_steps(cls, benchmark: Benchmark, info: ValidationInfo) -> Benchmark:
        train = info.data.get("train")
        if train is None or benchmark.timed_steps is None or train.epochs is not None:
            return benchmark
        warmup = 1 if benchmark.warmup_steps is None else benchmark.warmup_steps
        left = train.steps - warmup
        if benchmark.timed_steps > left:
            less = f"less warmup_steps {warmup}" if benchmark.warmup_steps is not None else "less 1 of warm-up"
            expected = f"at most {max(left, 0)} (train.steps {train.steps} {less})"
            raise problems("Benchmark", [(("timed_steps",), problem(str(benchmark.timed_steps), expected))])
        return benchmark

    @property
    def metrics(self) -> tuple[str, ...]:
        """What the evaluation measures; the first has to improve."""
        if self.evaluation is None:
            return ()
        return tuple(self.evaluation.metrics or metrics_of(self.task, self.evaluation.rows_beside(self.data))[:1])

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
    if train.attention == "flash_attention_2" and settings.precision in ("fp32", "tf32"):
        expected = "bf16, fp16 or bf16-pure as precision, in which alone it computes"
        yield ("train", "attention"), problem(f"'flash_attention_2' with precision {settings.precision}", expected)
    if train.epochs is not None and settings.data.streaming:
        yield ("train", "epochs"), problem(f"{train.epochs:g} of a stream", "steps: a stream has no known length")


def _folder(info: ValidationInfo) -> Path | None:
    """The folder of the file that wrote the field; unknown where settings are made in Python."""
    folder: Path | None = (info.context or {}).get("folders", {}).get(info.field_name)
    return folder
