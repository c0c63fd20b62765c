"""The rows that a model is evaluated on, and what evaluations have said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness import experiment
from harness.errors import DataError
from harness.training import data, encoding, metrics
from harness.training.checkpoint import Loaded
from harness.training.rows import Labels, Rows, Table, open_beside
from harness.training.tasks import Answer

_OPTIONAL = frozenset({"answer_start"})
"""Roles that only some rows need."""


@dataclass(frozen=True)
class Reported:
    """What a loop's evaluation says."""

    figures: dict[str, float]
    """The loss, and the metrics by name."""
    answers: tuple[Answer, ...]
    """Of each example, in order."""


@dataclass(frozen=True)
class Split:
    """Rows that are not trained on, encoded."""

    examples: data.Examples
    batch_size: int
    metrics: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    """Of the classes, by number."""
    every: int | None = None
    """Steps between evaluations in the midst of a training; none where there are none."""
    drawn: data.Drawn = field(default_factory=data.Drawn)
    """The examples of each batch of the last evaluation, in order."""


def prepare(loaded: Loaded, settings: experiment.Settings, encode: encoding.Encoder) -> Split | None:
    """The split that an experiment declares, with the classes of the rows that are trained on.

    Args:
        loaded: its rows tell the classes.
        settings: of the case.
        encode: as the training rows are encoded, for an evaluation.

    Raises:
        Unavailable: the rows are on the Hub, which cannot be reached.
        DataError: they cannot be had or used; says which and why.
    """
    said = settings.evaluation
    if said is None:
        return None
    metrics.require(settings.metrics)
    _require_labels(settings.metrics, loaded.rows.labels)
    rows = open_beside(said.rows_beside(settings.data), settings.task, loaded.rows.labels, said.section)
    _require_roles(rows, loaded.rows)
    examples = data.Examples(rows, encode)
    return Split(
        examples=examples,
        batch_size=said.batch_size or settings.train.batch_size,
        metrics=settings.metrics,
        label_names=loaded.rows.labels.names or (),
        every=said.every,
    )


def _require_labels(names: Sequence[str], labels: Labels) -> None:
    """The classes are such that the metrics can be taken of them: what a dataset has is known now."""
    if "f1_binary" in names and labels.count not in (None, 2):
        raise DataError(f"evaluation.metrics: f1_binary of {labels.count} classes, expected f1_macro or f1_micro")
    if "entity_f1" in names and labels.names is None:
        raise DataError("evaluation.metrics: entity_f1 needs names of the classes (data.label_names), such as B-PER")


def _require_roles(rows: Table, trained: Rows) -> None:
    """A row says as much as one that is trained on: a pair of texts is not one text."""
    own, theirs = (set(first[0]) - _OPTIONAL for first in (rows.first(1), trained.first(1)))
    if own != theirs:
        found, expected = (", ".join(sorted(roles)) for roles in (own, theirs))
        raise DataError(f"{rows.name}: rows with {found}, expected {expected}, as those of training")


def weighted(losses: Sequence[tuple[float, int]]) -> float:
    """The mean of a loss over all terms, from its mean over each batch and the number of terms there."""
    terms = sum(number for _, number in losses)
    return math.fsum(loss * number for loss, number in losses if number) / terms if terms else math.nan
