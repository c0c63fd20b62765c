"""Rows of the evaluation split that are trained on, too."""

from __future__ import annotations

import re
from typing import Any

from harness import experiment, record
from harness.training.data import Examples
from harness.training.rows import SHOWN, Row
from harness.training.tasks import Features

_ANSWERS = frozenset({"label", "labels", "answer", "answer_start", "target"})
"""Roles of what is to be said; the rest is what is asked."""


class Leakage:
    """Compares what each row asks with the rows of the split: word for word, and by its words alone."""

    def __init__(self, examples: Examples) -> None:
        self._exact: dict[str, list[Features]] = {}
        self._alike: dict[str, list[Features]] = {}
        for features in map(examples.__getitem__, range(len(examples))):
            asked = _asked(features["row"])
            self._exact.setdefault(asked, []).append(features)
            self._alike.setdefault(_words(asked), []).append(features)
        self._leaked: dict[int, record.Row] = {}
        self._likened: dict[int, record.Row] = {}

    def look(self, features: Features) -> None:
        """Look at a row that is trained on."""
        asked = _asked(features["row"])
        for other in self._exact.get(asked, ()):
            self._leaked.setdefault(other["index"], _note(other, features))
        for other in self._alike.get(_words(asked), ()):
            if other["index"] not in self._leaked:
                self._likened.setdefault(other["index"], _note(other, features))

    def found(self) -> dict[str, Any]:
        """As the record has it."""
        likened = [row for index, row in self._likened.items() if index not in self._leaked]
        leaks = tuple(self._leaked.values())
        return {
            "leaked": len(leaks), "leaks": leaks[:SHOWN], "alike": len(likened), "likenesses": tuple(likened[:SHOWN])
        }  # fmt: skip


def _asked(row: Row) -> str:
    """Every text of a row that is no answer; of a chat, what the assistant does not say."""
    said = {role: value for role, value in row.items() if role not in _ANSWERS}
    if "messages" in said:
        said["messages"] = [turn for turn in said["messages"] if turn["role"] != "assistant"]
        said["messages"] = [turn["content"] for turn in said["messages"]]
    if "words" in said:
        said["words"] = " ".join(said["words"])
    return "\0".join(experiment.texts(said))


def _words(text: str) -> str:
    """The words of a text in lower case; the text itself where it has none."""
    return "\0".join(" ".join(re.findall(r"\w+", part.casefold())) or part.strip() for part in text.split("\0"))


def _note(own: Features, other: Features) -> record.Row:
    text = _asked(own["row"]).replace("\0", " | ")
    return record.Row(row=own["place"], text=text[:60], note=f"row {other['place']} of the training data")
