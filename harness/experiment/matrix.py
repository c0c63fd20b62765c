"""The matrix: lists of values, and the combinations they make."""

import itertools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from harness.errors import Mistake, meant, shown
from harness.experiment import source
from harness.experiment.key import FILE_KEYS, Laws, matrix_keys
from harness.experiment.source import Location, Node

MAX_POINTS = 10_000
"""More points than this in one matrix are a slip, not an experiment."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the matrix: where it was written, and how ids write it."""

    node: Node
    plain: Any
    name: str


Combination: TypeAlias = dict[str, Value]
"""A value for each dotted key of the matrix, or for some of them."""


def combinations(matrix: Node, laws: Laws, mistakes: list[Mistake]) -> list[Combination]:
    """The product of the lists, less `exclude`, and with `include`, as in a GitHub Actions workflow."""
    if not isinstance(matrix.value, dict) or not matrix.value:
        expected = "a mapping such as `train.loop: [custom, trainer]`"
        mistakes.append(matrix.mistake(("matrix",), shown(source.plain(matrix)), expected))
        return [{}]
    before = len(mistakes)
    lists = dict(matrix.value)
    included = _entries("include", lists.pop("include", None), mistakes)
    excluded = _entries("exclude", lists.pop("exclude", None), mistakes)
    keys = matrix_keys(laws)
    axes = {
        key: _axis(key, node, mistakes)
        for key, node in lists.items()
        if _is_key(key, node, ("matrix", key), keys, mistakes)
    }
    include = [_entry(entry, ("matrix", "include", i), i, axes, keys, mistakes) for i, entry in enumerate(included)]
    exclude = [_entry(entry, ("matrix", "exclude", i), i, axes, axes, mistakes) for i, entry in enumerate(excluded)]
    every = [(key, value) for key, values in axes.items() for value in values]
    for key, value in every + [each for entry in include for each in entry.items()]:
        if (axis := _replaced(key, value.node, axes)) is not None:
            found = f"{key}, which replaces the listed {axis}"
            mistakes.append(value.node.mistake(("matrix",), found, "dotted keys for what it holds"))
    size = math.prod(len(values) for values in axes.values())
    if size > MAX_POINTS:
        mistakes.append(matrix.mistake(("matrix",), f"{size:,} combinations", f"at most {MAX_POINTS:,}"))
        return [{}]
    points = extend([it for it in product(axes) if not any(agrees(it, entry) for entry in exclude)], include, axes)
    if len(mistakes) == before:
        _distinct(points, matrix, mistakes)
    # After a mistake, what could be read still gets its check.
    return points or [{}]


def product(axes: Mapping[str, Sequence[Value]]) -> list[Combination]:
    """Every combination of the lists' values, the first list outermost; none where there is no list."""
    if not axes:
        return []
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def agrees(combination: Combination, entry: Combination) -> bool:
    """Whether the combination has every value of the entry."""
    return all(key in combination and _same(combination[key].plain, value.plain) for key, value in entry.items())


def extend(points: list[Combination], include: Iterable[Combination], axes: Collection[str]) -> list[Combination]:
    """Add each entry's values to the points whose listed values it keeps, or the entry itself where it fits none.

    An entry may replace what an earlier entry added, and never joins a point that an earlier entry made. Keys that
    have a list keep the lists' order, so that ids line up.
    """
    original, added = [dict(point) for point in points], []
    for entry in include:
        pinned = {key: value for key, value in entry.items() if key in axes}
        fitting = [point for point in original if agrees(point, pinned)]
        for point in fitting:
            point.update({key: value for key, value in entry.items() if key not in axes})
        if not fitting:
            added.append({**{key: entry[key] for key in axes if key in entry}, **entry})
    return original + added


def identifying(point: Combination) -> Combination:
    """The values that tell a point from the others; what is expected of it to be broken does not."""
    return {key: value for key, value in point.items() if key.partition(".")[0] != "expect_broken"}


def name(key: str, value: Any, index: int = 0) -> str:
    """How ids write a value of the matrix: as its text, or for a list or mapping the key and its place."""
    match value:
        case None:
            text = "none"
        case bool():
            text = str(value).lower()
        case str() | int() | float():
            text = str(value)
        case _:
            text = f"{key.rpartition('.')[2]}{index}"
    # A colon stays where it can't become part of the `::` that separates a node id.
    return re.sub(r"[^A-Za-z0-9_.+:-]|:(?![A-Za-z0-9])|(?<![A-Za-z0-9]):", "_", text) or "_"


def _same(one: Any, other: Any) -> bool:
    """Equal, where true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _entries(key: str, node: Node | None, mistakes: list[Mistake]) -> list[Node]:
    """The mappings that `include` or `exclude` lists."""
    if node is None:
        return []
    if not isinstance(node.value, list) or not node.value:
        mistakes.append(node.mistake(("matrix", key), shown(source.plain(node)), "a list of mappings"))
        return []
    for index, entry in enumerate(node.value):
        if not isinstance(entry.value, dict) or not entry.value:
            found = shown(source.plain(entry))
            mistakes.append(entry.mistake(("matrix", key, index), found, "a mapping of dotted keys and values"))
    return [entry for entry in node.value if isinstance(entry.value, dict)]


def _entry(
    entry: Node,
    location: Location,
    index: int,
    axes: Mapping[str, Sequence[Value]],
    keys: Iterable[str],
    mistakes: list[Mistake],
) -> Combination:
    assert isinstance(entry.value, dict)
    return {
        key: _value(key, node, len(axes.get(key, ())) + index)
        for key, node in entry.value.items()
        if _is_key(key, node, (*location, key), keys, mistakes)
    }


def _axis(key: str, node: Node, mistakes: list[Mistake]) -> list[Value]:
    """The values of one list, each with a name of its own."""
    location = ("matrix", key)
    if not isinstance(node.value, list) or not node.value:
        mistakes.append(node.mistake(location, shown(source.plain(node)), "a list of at least 1 value"))
        return [_value(key, node, 0)] if node.value else []
    values = [_value(key, child, index) for index, child in enumerate(node.value)]
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        earlier = first.setdefault(value.name, index)
        if earlier != index:
            found = f"{shown(value.plain)}, which ids write {value.name!r} like {key}[{earlier}]"
            mistakes.append(value.node.mistake((*location, index), found, "values whose ids differ"))
    return values


def _replaced(key: str, node: Node, axes: Iterable[str]) -> str | None:
    """The listed key below `key` whose value this one would replace."""
    below = (axis for axis in axes if axis.startswith(f"{key}."))
    return next((axis for axis in below if _says(node, axis.removeprefix(f"{key}.").split("."))), None)


def _says(node: Node, path: Sequence[str]) -> bool:
    """Whether the node, laid over a mapping, decides what is at the path in it."""
    if not path or not isinstance(node.value, dict):
        return True
    return path[0] in node.value and _says(node.value[path[0]], path[1:])


def _value(key: str, node: Node, index: int) -> Value:
    value = source.plain(node)
    return Value(node, value, name(key, value, index))


def _is_key(key: str, node: Node, location: Location, keys: Iterable[str], mistakes: list[Mistake]) -> bool:
    # The config's fields are transformers' to know.
    if key in keys or (key.startswith("checkpoint.config.") and "checkpoint.config" in keys):
        return True
    expected = "a key of the matrix's lists" if location[1] == "exclude" else "a dotted key such as train.loop"
    if key in FILE_KEYS:
        expected = "a key of the settings"
    mistakes.append(node.mistake(location, "an unknown key", expected, meant(key, keys)))
    return False


def _distinct(points: Sequence[Combination], matrix: Node, mistakes: list[Mistake]) -> None:
    """Every point has an id of its own, and there is a point."""
    if not points:
        expected = "at least 1 that `exclude` leaves"
        mistakes.append(source.locate(matrix, ("exclude",)).mistake(("matrix",), "0 combinations", expected))
    first: dict[str, Combination] = {}
    for point in points:
        identity = "-".join(value.name for value in identifying(point).values())
        earlier = first.setdefault(identity, point)
        if earlier is not point:
            place = next(iter(point.values())).node
            found = f"{_said(point)} with the id {identity!r} of {_said(earlier)}"
            mistakes.append(place.mistake(("matrix",), found, "points whose ids differ"))


def _said(point: Combination) -> str:
    return "{" + ", ".join(f"{key}: {value.plain}" for key, value in point.items()) + "}"
