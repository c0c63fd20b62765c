"""The reading of an experiment file: every point of its matrix with its settings, or every mistake at once."""

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness.errors import InvalidExperiment, Mistake, shown
from harness.experiment import source
from harness.experiment.key import Laws
from harness.experiment.matrix import Combination, combinations, identifying, name
from harness.experiment.mistake import mistake
from harness.experiment.settings import Settings
from harness.experiment.source import Node

_ROWS = ("data", "evaluation")
"""Sections that may name files, relative to the file that names them."""


@dataclass(frozen=True)
class Point:
    """One combination of the matrix, and the settings it makes."""

    values: tuple[tuple[str, Any], ...]
    """Keys of the matrix and this point's values, in the order written."""
    settings: Settings
    names: tuple[str, ...] = ()
    """How ids write each value; made from the values where not given."""

    def __post_init__(self) -> None:
        if len(self.names) != len(self.values):
            object.__setattr__(self, "names", tuple(itertools.starmap(name, self.values)))


@dataclass(frozen=True)
class Experiment:
    """A file, read and found right."""

    path: Path
    description: str
    points: tuple[Point, ...]


def read(path: Path, laws: Laws) -> Experiment:
    """Read an experiment file, over the bases that it extends.

    Args:
        path: The file; mistakes name it as it is given here.
        laws: What `invariants` may name.

    Raises:
        InvalidExperiment: every mistake of the file and of its bases.
    """
    tree, unreadable = source.read(path)
    mistakes: list[Mistake] = []
    assert isinstance(tree.value, dict)
    described, matrix = tree.value.pop("description", None), tree.value.pop("matrix", None)
    if described is not None and not isinstance(described.value, str):
        mistakes.append(described.mistake(("description",), shown(source.plain(described)), "text"))
    chosen = combinations(matrix, laws, mistakes) if matrix else [{}]
    points = [_point(tree, combination, laws, mistakes) for combination in chosen]
    # A value that could not be read is not also judged.
    unread = {(it.file, it.line, it.key) for it in unreadable}
    mistakes = unreadable + [it for it in mistakes if (it.file, it.line, it.key) not in unread]
    if mistakes:
        # What is wrong in several points, or in all, is one mistake. The file itself comes before its bases.
        raise InvalidExperiment(sorted(dict.fromkeys(mistakes), key=lambda it: (it.file != path, it.file, it.line)))
    description = described.value if described else ""
    return Experiment(path, str(description), tuple(point for point in points if point))


def _point(tree: Node, combination: Combination, laws: Laws, mistakes: list[Mistake]) -> Point | None:
    """The tree with the combination laid over it, validated; or None and more mistakes."""
    nested = (source.nest(key, value.node) for key, value in combination.items())
    tree = functools.reduce(source.overlay, nested, tree)
    data = source.plain(tree)
    written = ("checkpoint", "tokenizer", *(f"{section}.{key}" for section in _ROWS for key in ("files", "dataset")))
    folders = {key: source.locate(tree, tuple(key.split("."))).file.parent for key in written}
    try:
        settings, errors = Settings.model_validate(data, context={"folders": folders}), []
    except ValidationError as error:
        settings, errors = None, error.errors(include_url=False)
    errors += _law_errors("invariants", data, laws) + _law_errors("expect_broken", data, laws)
    mistakes += [mistake(error, tree, laws) for error in errors]
    if settings is None:
        return None
    told = identifying(combination)
    values = tuple((key, value.plain) for key, value in told.items())
    return Point(values, settings, tuple(value.name for value in told.values()))


def _law_errors(section: str, data: dict[str, Any], laws: Laws) -> list[ErrorDetails]:
    """What is wrong with the laws that a section names and with their options."""
    errors: list[ErrorDetails] = []
    named = data.get(section)
    for law, setting in named.items() if isinstance(named, dict) else ():
        location = (section, law)
        if law not in laws:
            errors.append({"type": "extra_forbidden", "loc": location, "msg": "", "input": setting})
        elif isinstance(setting, dict) and section == "invariants":
            try:
                laws[law].model_validate(setting)
            except ValidationError as error:
                errors += [{**it, "loc": (*location, *it["loc"])} for it in error.errors(include_url=False)]
    return errors
