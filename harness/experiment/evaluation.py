"""What a trained model is evaluated on, and by which metrics."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from harness.errors import shown
from harness.experiment.data import SOURCES, Data, Source, Wrong
from harness.experiment.model import problem, problems
from harness.experiment.row import mistakes, problem_of
from harness.experiment.source import Location

MetricName: TypeAlias = Literal[
    "accuracy",
    "f1_macro",
    "f1_micro",
    "f1_binary",
    "matthews",
    "pearson",
    "spearman",
    "exact_match",
    "token_f1",
    "entity_f1",
    "perplexity",
]

METRICS: dict[str, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "f1_macro", "f1_micro", "f1_binary", "matthews"),
    "multi_label_classification": ("f1_micro", "f1_macro", "exact_match"),
    "regression": ("pearson", "spearman"),
    "token-classification": ("accuracy", "entity_f1", "f1_macro", "f1_micro"),
    "question-answering": ("token_f1", "exact_match"),
    "multiple-choice": ("accuracy",),
    "masked-lm": ("perplexity", "accuracy"),
    "causal-lm": ("perplexity", "accuracy", "exact_match"),
    "seq2seq-lm": ("perplexity", "accuracy", "exact_match"),
}
"""By task, or by the problem that labels of whole texts pose: the metrics there are, the default first."""


_NO_LIMIT = problem("nothing", "a number of rows: a stream is read until there, before training")


class Evaluation(Source):
    """Rows that are not trained on, and how well the model does on them before and after training."""

    section = "evaluation"
    needs_source = False

    metrics: list[MetricName] | None = Field(
        default=None, min_length=1, description="What is measured; the first has to improve. Null: as the task has it."
    )
    batch_size: int | None = Field(default=None, ge=1, description="Rows in a batch; null: as in training.")
    every: int | None = Field(
        default=None, ge=1, description="Also evaluates after each so many steps; null: before and after training only."
    )
    resamples: int = Field(default=1000, ge=100, description="Of the bootstrap that gives each metric its interval.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.95, description="That the intervals hold what more rows of the same kind would show."
    )

    @field_validator("metrics")
    @classmethod
    def _once(cls, metrics: list[str] | None) -> list[str] | None:
        twice = next((name for place, name in enumerate(metrics or ()) if name in (metrics or ())[:place]), None)
        if twice is not None:
            raise problem(f"{shown(twice)} twice", "each metric once")
        return metrics

    def _mistakes(self) -> Iterator[Wrong]:
        yield from super()._mistakes()
        if self.labels is not None and not self.sources:
            yield ("labels",), problem("labels without sequences", "both, or neither")
        if self.streaming and self.limit is None:
            yield ("limit",), _NO_LIMIT

    def rows_beside(self, data: Data) -> Data:
        """The rows to evaluate on, as data of their own: with the classes of training, and from its source where none
        is named here.
        """
        said = Source.model_fields if self.sources else self.model_fields_set & Source.model_fields.keys() - {*SOURCES}
        own = {key: getattr(self, key) for key in said}
        labels = (row.get("label", 0) for row in data.given[:1])
        kind = problem_of(labels, data.problem_type)
        made = data.model_copy(
            update={
                **own,
                "split": self.split or ("validation" if (data.dataset and not self.files) or self.dataset else "train"),
                "num_labels": None if kind == "regression" else data.resolved_num_labels,
                "problem_type": kind,
            }
        )
        made._folder = self._folder if self.sources else data._folder
        return made


def check_evaluation(evaluation: Evaluation, task: str, data: Data) -> None:
    """Whether the rows are such as the task reads, and the metrics such as it has.

    Raises:
        pydantic.ValidationError: every mistake, located below ``evaluation``.
    """
    if not evaluation.sources and not (data.files or data.dataset):
        expected = "rows of its own (sequences, rows, files or dataset): those of data are written out"
        raise problems("Evaluation", [((), problem("no rows", expected))])
    beside = evaluation.rows_beside(data)
    if beside.streaming and beside.limit is None:
        raise problems("Evaluation", [(("limit",), _NO_LIMIT)])
    if evaluation.sequences is not None and task != "sequence-classification":
        expected = "rows: sequences and labels are for sequence-classification"
        raise problems("Evaluation", [(("sequences",), problem(f"sequences for {task}", expected))])
    if beside.rows is not None and (wrong := mistakes(task, beside.rows, beside.num_labels, beside.problem_type)):
        raise wrong
    found = [*_other_labels(evaluation.labels or (), beside.num_labels), *_unfit(evaluation, task, data)]
    if found:
        raise problems("Evaluation", found)


def _other_labels(labels: Sequence[int], classes: int | None) -> Iterator[Wrong]:
    for place, label in enumerate(labels):
        if classes is not None and label >= classes:
            yield ("labels", place), problem(str(label), f"a class of the training data, 0 to {classes - 1}")


def _unfit(evaluation: Evaluation, task: str, data: Data) -> Iterator[tuple[Location, PydanticCustomError]]:
    """Metrics that the task does not have, or the classes do not allow."""
    known = metrics_of(task, evaluation.rows_beside(data))
    for place, name in enumerate(evaluation.metrics or ()):
        if name not in known:
            yield ("metrics", place), problem(shown(name), f"one of {', '.join(known)}")
        elif name == "f1_binary" and data.resolved_num_labels not in (None, 2):
            yield ("metrics", place), problem(f"{name} of {data.resolved_num_labels} classes", "f1_macro or f1_micro")
        elif name == "entity_f1" and not data.label_names:
            expected = "data.label_names such as [O, B-PER, I-PER] beside it: they tell where an entity begins"
            yield ("metrics", place), problem(name, expected)


def metrics_of(task: str, data: Data) -> tuple[str, ...]:
    """The metrics there are for a task and the labels of its data, the default first."""
    if task != "sequence-classification":
        return METRICS[task]
    return METRICS[problem_of((row.get("label", 0) for row in data.given[:1]), data.problem_type)]
