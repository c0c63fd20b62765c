"""A search for texts on which a set-up breaks a law, as whoever runs a case is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """A small data set that may be hard to get right, and how it is cut into batches."""

    sequences: tuple[str, ...]
    batch_size: int

    def to_json(self, *, experiment: str) -> str:
        """One line, in ASCII: texts may hold any character."""
        return json.dumps({"experiment": experiment, "sequences": self.sequences, "batch_size": self.batch_size})

    @classmethod
    def from_json(cls, line: str | bytes, *, experiment: str) -> Trial | None:
        """Read a line of that experiment; none where it is another's, is torn, or is something else."""
        try:
            found = json.loads(line)
            other, sequences, size = found["experiment"] != experiment, tuple(found["sequences"]), found["batch_size"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if other or type(size) is not int or size < 1 or not sequences:
            return None
        return cls(sequences, size) if all(isinstance(text, str) and text.strip() for text in sequences) else None


@dataclass(frozen=True)
class Exploration:
    """What to search for."""

    trials: int
    """How many data sets are made up, at most."""
    known: tuple[Trial, ...]
    """Those that broke a law before: they are tried first, and do not count."""
    judge: Callable[[Any], Mapping[str, str]]
    """Outcome by law of the record that a trial leaves, such as ``{"padding_mask_correct": "broken"}``. A function of a
    module, so that it can be sent to another process."""
