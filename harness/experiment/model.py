"""What the models of an experiment file have in common: they are strict, and their validators name what was found."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from harness.experiment.source import Location


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
