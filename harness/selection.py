"""Which parameters of a model an experiment means, and what it declares for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What there is to say of a parameter beside its name."""

    dimensions: int
    head: bool = False
    """Outside of the backbone."""
    embedding: bool = False
    """A table from which rows are looked up."""


def selected(pattern: str, name: str, kind: Kind) -> bool:
    """Whether an experiment's pattern means a parameter.

    `head`, `backbone` and `embeddings` are what they say; `layers:N` are the first N layers of the backbone, told by
    the first number in a parameter's name; anything else is a pattern of the whole name, with `*` and `?`.
    """
    if pattern in ("head", "backbone"):
        return kind.head == (pattern == "head")
    if pattern == "embeddings":
        return kind.embedding
    if first := re.fullmatch(r"layers:(\d+)", pattern):
        layer = re.search(r"(?:^|\.)(\d+)\.", name)
        return not kind.head and layer is not None and int(layer[1]) < int(first[1])
    return fnmatchcase(name, pattern)


def frozen(patterns: Iterable[str] | None, name: str, kind: Kind) -> bool:
    """Whether a parameter is declared to stay as it is."""
    return any(selected(pattern, name, kind) for pattern in patterns or ())


def rate_and_decay(train: Mapping[str, Any], name: str, kind: Kind) -> tuple[float, float]:
    """The highest learning rate and the weight decay that are declared for a parameter.

    Args:
        train: the section `train`: learning_rate, weight_decay, decay and groups.
        name: of the parameter.
        kind: of the parameter.
    """
    own: Mapping[str, Any] = _first(train["groups"], name, kind)
    rate, decay = own.get("learning_rate"), own.get("weight_decay")
    spared = train["decay"] == "matrices" and kind.dimensions < 2
    return (
        float(train["learning_rate"] if rate is None else rate),
        0.0 if spared else float(train["weight_decay"] if decay is None else decay),
    )


def _first(groups: Sequence[Mapping[str, Any]], name: str, kind: Kind) -> Mapping[str, Any]:
    fitting = (group for group in groups if any(selected(pattern, name, kind) for pattern in group["parameters"]))
    return next(fitting, {})
