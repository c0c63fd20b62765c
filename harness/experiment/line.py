"""The line of an experiment file that says something of a case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.experiment import source
from harness.experiment.source import Node


@dataclass(frozen=True)
class Lines:
    """A file in which keys are looked up. What its bases say has no line in it."""

    path: Path
    tree: Node

    @classmethod
    def read(cls, path: Path) -> Lines:
        """Read a file.

        Raises:
            InvalidExperiment: it cannot be read at all.
        """
        return cls(path, source.read(path)[0])

    def of(self, keys: Iterable[str], values: Mapping[str, Any]) -> int:
        """The line, counted from 1, of the first key that the file writes; else of what makes the case; else 1.

        Args:
            keys: dotted, the likeliest first.
            values: the case's keys of the matrix: where a key has several values, the line is that of the case's.
        """
        nodes = (node for key in (*keys, *values) for node in (*self._varied(key, values), *self._written(key)))
        return next((node.line for node in nodes if node.file == self.path), 1)

    def _written(self, key: str) -> Iterator[Node]:
        node = self.tree
        for part in key.split("."):
            if not isinstance(node.value, dict) or part not in node.value:
                return
            node = node.value[part]
        yield node

    def _varied(self, key: str, values: Mapping[str, Any]) -> Iterator[Node]:
        """Where the matrix says this key, or one below or above it."""
        top = self.tree.value
        matrix = top.get("matrix") if isinstance(top, dict) else None
        if matrix is None or not isinstance(matrix.value, dict):
            return
        axes = {axis: node for axis, node in matrix.value.items() if _related(axis, key)}
        for axis, node in axes.items():
            several = node.value if isinstance(node.value, list) else []
            yield from (one for one in several if axis in values and source.plain(one) == values[axis])
        include = matrix.value.get("include")
        for item in include.value if include is not None and isinstance(include.value, list) else ():
            yield from _included(item, key, values)
        yield from axes.values()


def _included(item: Node, key: str, values: Mapping[str, Any]) -> Iterator[Node]:
    for axis, node in item.value.items() if isinstance(item.value, dict) else ():
        if _related(axis, key) and axis in values and source.plain(node) == values[axis]:
            yield node


def _related(axis: str, key: str) -> bool:
    return axis == key or axis.startswith(f"{key}.") or key.startswith(f"{axis}.")
