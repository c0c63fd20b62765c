"""What the models of an experiment file have in common: they are strict, and their validators name what was found."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from harness.errors import count, shown
from harness.experiment.source import Location

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


class Declared(BaseModel):
    """Part of a file: nothing but what is declared, of exactly the type that is declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def problem(found: str, expected: str, hint: str = "") -> PydanticCustomError:
    """What validators raise: pydantic adds the location."""
    context = {"found": found, "expected": expected, "hint": hint}
    text = "found {found}, expected {expected}" + ("; {hint}" if hint else "")
    return PydanticCustomError("mistake", text, context)


def problems(title: str, found: Iterable[tuple[Location, PydanticCustomError]]) -> ValidationError:
    """Several of them, each at its location below the value that is validated."""
    details = [InitErrorDetails(type=error, loc=location, input=None) for location, error in found]
    return ValidationError.from_exception_data(title, details)


def found_by(error: ErrorDetails) -> str:
    """What pydantic found."""
    return "nothing" if error["type"] == "missing" else shown(error["input"])


def expected_by(error: ErrorDetails) -> str:
    """What pydantic expected."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "too_short":
        return f"at least {count(context['min_length'], 'item')}"
    if kind == "string_pattern_mismatch" and context["pattern"] == r"\S":
        return "text that is not empty"
    if kind in _EXPECTED:
        return _EXPECTED[kind].format_map({name: _number(value) for name, value in context.items()})
    # Options of a law that somebody else wrote may use all of pydantic.
    return error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value
