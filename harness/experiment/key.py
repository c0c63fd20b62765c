"""Every key that an experiment file may hold, as a mapping has it and as the matrix spells it."""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from pydantic import BaseModel

from harness.experiment.checkpoint import ArchitectureCheckpoint
from harness.experiment.data import Data
from harness.experiment.evaluation import Evaluation
from harness.experiment.peft import Peft
from harness.experiment.row import Message
from harness.experiment.settings import Benchmark, Settings
from harness.experiment.source import Location
from harness.experiment.train import ParameterGroup, Train

Laws: TypeAlias = Mapping[str, type[BaseModel]]
"""The name of each law, and the model of its options."""

FILE_KEYS = {
    "description": "What the experiment is for, in a sentence or two.",
    "extends": "A base file, as seen from this one: mappings are merged with its own, anything else replaces it.",
    "matrix": "Several cases: a dotted key such as `train.loop`, and its values. Every combination is run.",
}
"""What stands at the top of a file beside the settings, and its description."""

SECTIONS: dict[str, type[BaseModel]] = {
    "data": Data,
    "evaluation": Evaluation,
    "train": Train,
    "peft": Peft,
    "benchmark": Benchmark,
    "checkpoint": ArchitectureCheckpoint,
}
"""The settings that are mappings."""


def matrix_keys(laws: Laws) -> tuple[str, ...]:
    """Every dotted key that a matrix may set, beside those below `checkpoint.config`."""
    options = (f"invariants.{law}.{option}" for law, model in laws.items() for option in model.model_fields)
    by_law = (f"{section}.{law}" for section in ("invariants", "expect_broken") for law in laws)
    return (*SETTING_KEYS, *by_law, *options)


def known_keys(location: Location, laws: Laws) -> list[str]:
    """What the mapping at the location may hold."""
    match location:
        case ():
            return [*_fields(Settings), *FILE_KEYS]
        case (str(section),) if section in SECTIONS:
            return _fields(SECTIONS[section])
        case ("train", "groups", int()):
            return _fields(ParameterGroup)
        case ("data" | "evaluation", "rows", int(), "messages", int()):
            return _fields(Message)
        case ("invariants" | "expect_broken",):
            return list(laws)
        case ("invariants", str(law)) if law in laws:
            return _fields(laws[law])
    return []


def _setting_keys() -> Iterator[str]:
    for field in Settings.model_fields:
        yield field
        yield from (f"{field}.{key}" for key in _fields(SECTIONS[field])) if field in SECTIONS else ()


def _fields(model: type[BaseModel]) -> list[str]:
    """The keys of a mapping; `kind` is what tells checkpoints apart once they are read."""
    return [field for field in model.model_fields if field != "kind"]


SETTING_KEYS = tuple(_setting_keys())
"""Every dotted key of the settings, laws and fields of a config left out."""
