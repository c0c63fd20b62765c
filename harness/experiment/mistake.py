"""What pydantic reports, in the words of an experiment file."""

import re
from collections.abc import Iterable

from pydantic_core import ErrorDetails

from harness.errors import Mistake, meant
from harness.experiment import source
from harness.experiment.key import SETTING_KEYS, Laws, known_keys, matrix_keys
from harness.experiment.model import expected_by, found_by
from harness.experiment.row import NAMED_CLASS
from harness.experiment.source import Location, Node

_LAWS: tuple[Location, ...] = (("invariants",), ("expect_broken",))
"""Sections whose keys are laws: too many to list."""


def mistake(error: ErrorDetails, tree: Node, laws: Laws) -> Mistake:
    """Pydantic's error in the words of an experiment file, at the line that caused it."""
    location, kind, context = error["loc"], error["type"], error.get("ctx", {})
    node = source.locate(tree, location)
    match kind:
        case "mistake":
            return node.mistake(location, context["found"], context["expected"], context["hint"])
        case "extra_forbidden":
            keys = known_keys(location[:-1], laws)
            if location[:-1] in _LAWS:
                expected = "one that `harness explain` lists, or one of a conftest.py around the file"
                return node.mistake(location, "an unknown law", expected, meant(str(location[-1]), keys))
            expected = f"one of {', '.join(keys)}" if keys else "no options: this law has none"
            return node.mistake(location, "an unknown key", expected, _meant_key(str(location[-1]), location, keys))
    return node.mistake(location, found_by(error), _expected(error, laws), _hint(error, laws))


def _expected(error: ErrorDetails, laws: Laws) -> str:
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"a mapping with {', '.join(known_keys(error['loc'], laws)) or 'nothing'}"
    return expected_by(error)


def _hint(error: ErrorDetails, laws: Laws) -> str:
    kind, value = error["type"], error["input"]
    if isinstance(value, list) and kind != "too_short" and source.dotted(error["loc"]) in matrix_keys(laws):
        return "to run several, list them under `matrix`"
    if kind == "literal_error" and isinstance(value, str):
        return meant(value, re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(value, str) and _reads_as(kind, value):
        return "remove the quotes"
    if kind == "int_type" and isinstance(value, str) and "labels" in error["loc"]:
        return NAMED_CLASS
    return ""


def _reads_as(kind: str, text: str) -> bool:
    value = source.scalar(text)
    return type(value).__name__ == kind.removesuffix("_type") or (kind == "float_type" and type(value) is int)


def _meant_key(key: str, location: Location, keys: Iterable[str]) -> str:
    """A key spelled nearly so, or the same key in a section where it was written outside of one."""
    elsewhere = [known for known in SETTING_KEYS if known.endswith(f".{key}")] if len(location) == 1 else []
    return f"did you mean '{elsewhere[0]}'?" if elsewhere else meant(key, keys)
