"""What an experiment may say of adapters."""

from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema

from harness.errors import shown
from harness.experiment.model import Declared, problem

ALL_LINEAR = "all-linear"
"""Stands for every linear layer but those of the head."""


def _targets(value: Any) -> Any:
    named = isinstance(value, list) and value and all(isinstance(name, str) and name.strip() for name in value)
    if named or value is None or value == ALL_LINEAR:
        return value
    raise problem(shown(value), f"a list of names of modules, or {ALL_LINEAR}")


_Targets: TypeAlias = Annotated[
    list[str] | str | None,
    BeforeValidator(_targets),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"\S"}},
                {"enum": [ALL_LINEAR, None]},
            ]
        }
    ),
]
_Name: TypeAlias = Annotated[str, Field(pattern=r"\S")]


class Peft(Declared):
    """Low-rank adapters (LoRA), trained in the place of the weights that they are beside, through the peft library."""

    rank: int = Field(default=8, ge=1, description="Width of what is between the two matrices of an adapter.")
    alpha: int = Field(default=16, ge=1, description="What an adapter adds is multiplied by `alpha / rank`.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout of what an adapter reads.")
    targets: _Targets = Field(
        default=None,
        description="Modules that get an adapter: a list of the last parts of their names, or `all-linear`; null: what "
        "peft takes for the architecture, and `all-linear` where it knows none.",
    )
    modules_to_save: list[_Name] = Field(
        default=[],
        description="Modules that are trained whole and saved beside the adapters, by the last parts of their names. "
        "The new head always is.",
    )
