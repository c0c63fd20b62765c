"""Settings as a record states them, by dotted key: of which type each is."""

from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from harness.errors import shown
from harness.experiment.key import SECTIONS
from harness.experiment.model import problem
from harness.experiment.settings import Settings
from harness.experiment.source import Location

_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    NoneType: "nothing",
}


def _json_types(annotation: Any) -> set[type]:
    """What values of an annotation are in JSON."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {type(each) for each in arguments}
    if origin is Annotated:
        return _json_types(arguments[0])
    if origin in (Union, UnionType):
        return {each for one in arguments for each in _json_types(one)}
    return {list if origin is tuple else origin or annotation}


_MODELS: dict[str, type[BaseModel]] = {"": Settings, **{f"{name}.": model for name, model in SECTIONS.items()}}
_TYPES = {
    f"{section}{name}": _json_types(field.annotation)
    for section, model in _MODELS.items()
    for name, field in model.model_fields.items()
    if name not in SECTIONS
}


def mistyped(settings: Mapping[str, Any]) -> Iterator[tuple[Location, PydanticCustomError]]:
    """The settings that are of another type than their key ever has. Which values a key may have, and which keys there
    are, differs from version to version: of both a record may hold others.
    """
    for key, value in settings.items():
        types = _TYPES.get(key, {type(value)})
        if type(value) not in types and not (float in types and type(value) is int):
            yield (key,), problem(shown(value), " or ".join(_NAMES[each] for each in _NAMES if each in types))
