"""What pydantic reports, in the words of an experiment file."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails

from harness.errors import Mistake, count, meant, shown
from harness.experiment import source
from harness.experiment.key import SETTING_KEYS, Laws, known_keys, matrix_keys
from harness.experiment.row import NAMED_CLASS
from harness.experiment.source import Location, Node

_EXPECTED = {
    "missing": "this key, which has no default",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
}

_LAWS: tuple[Location, ...] = (("invariants",), ("expect_broken",))
"""Sections whose keys are laws: too many to list."""


def mistake(error: ErrorDetails, tree: Node, laws: Laws) -> Mistake:
    """Pydantic's error in the words of an experiment file, at the line that caused it."""
    location, kind, context = error["loc"], error["type"], error.get("ctx", {})
    node = source.locate(tree, location)
    match kind:
        case "mistake":
            return node.mistake(location, context["found"], context["expected"], context["hint"])
        case "missing":
            return node.mistake(location, "nothing", _EXPECTED[kind])
        case "extra_forbidden":
            keys = known_keys(location[:-1], laws)
            if location[:-1] in _LAWS:
                expected = "one that `harness explain` lists, or one of a conftest.py around the file"
                return node.mistake(location, "an unknown law", expected, meant(str(location[-1]), keys))
            expected = f"one of {', '.join(keys)}" if keys else "no options: this law has none"
            return node.mistake(location, "an unknown key", expected, _meant_key(str(location[-1]), location, keys))
    return node.mistake(location, shown(error["input"]), _expected(error, laws), _hint(error, laws))


def _expected(error: ErrorDetails, laws: Laws) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in ("model_type", "model_attributes_type"):
        return f"a mapping with {', '.join(known_keys(error['loc'], laws)) or 'nothing'}"
    if kind == "too_short":
        return f"at least {count(context['min_length'], 'item')}"
    if kind == "string_pattern_mismatch" and context["pattern"] == r"\S":
        return "text that is not empty"
    if kind in _EXPECTED:
        return _EXPECTED[kind].format_map({name: _number(value) for name, value in context.items()})
    # Options of a law that somebody else wrote may use all of pydantic.
    return error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


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


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
