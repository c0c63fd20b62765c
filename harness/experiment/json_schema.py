"""The JSON Schema of an experiment file, for editors."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from harness.experiment.checkpoint import FOLDER, HUB, PACKAGE
from harness.experiment.data import SOURCES
from harness.experiment.key import FILE_KEYS, SECTIONS, Laws, matrix_keys
from harness.experiment.settings import Settings

_REASON = "Why it is known to be broken."


class _Untitled(GenerateJsonSchema):
    """Pydantic's schema without titles that repeat each field's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


def schema(laws: Laws) -> dict[str, Any]:
    """The JSON Schema of a whole file, from which editors complete and check it.

    Draft 7, which every editor knows. A key without a default is required only where neither a base nor a matrix
    could give it.
    """
    models: list[type[BaseModel]] = [Settings, *laws.values()]
    refs, generated = models_json_schema([(model, "validation") for model in models], schema_generator=_Untitled)
    definitions = generated["$defs"]
    settings = definitions.pop(refs[Settings, "validation"]["$ref"].rpartition("/")[2])
    sources = [{"required": ["sequences", "labels"]}, *({"required": [source]} for source in SOURCES[1:])]
    required = {"required": settings["required"], "properties": {"data": {"anyOf": sources}}}
    for definition in definitions.values():
        definition.pop("title", None)
        definition.pop("required", None)
    definitions["ArchitectureCheckpoint"]["properties"].pop("kind")
    properties = settings["properties"]
    for section in ("data", "evaluation", "train", "benchmark"):
        # Draft 7 ignores what stands beside a $ref.
        reference = {"allOf": [{"$ref": f"#/$defs/{SECTIONS[section].__name__}"}]}
        properties[section] = {"description": Settings.model_fields[section].description, **reference}
    _spell_checkpoint(properties)
    properties["invariants"] = {
        "type": "object",
        "description": properties["invariants"]["description"],
        "properties": {law: _law_schema(refs[model, "validation"], model) for law, model in laws.items()},
        "additionalProperties": False,
    }
    properties["expect_broken"] = {
        "type": "object",
        "description": properties["expect_broken"]["description"],
        "properties": {law: {"type": "string", "pattern": r"\S", "description": _REASON} for law in laws},
        "additionalProperties": False,
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "pytest-finetune experiment",
        "type": "object",
        "properties": {
            "description": {"type": "string", "description": FILE_KEYS["description"]},
            "extends": {"type": "string", "minLength": 1, "description": FILE_KEYS["extends"]},
            **properties,
            "matrix": _matrix_schema(laws, definitions, refs),
        },
        "additionalProperties": False,
        "if": {"not": {"anyOf": [{"required": ["extends"]}, {"required": ["matrix"]}]}},
        "then": required,
        "$defs": definitions,
    }


def _spell_checkpoint(properties: dict[str, Any]) -> None:
    texts = [
        {"type": "string", "pattern": pattern, "description": text}
        for pattern, text in (
            (HUB, "On the Hugging Face Hub: OWNER/NAME or OWNER/NAME@REVISION."),
            (FOLDER, "A folder, as seen from this file: ./NAME, ../NAME, /NAME or ~/NAME."),
            (PACKAGE, "In an installed Python package: package:NAME/FOLDER."),
        )
    ]
    for field, others in (("checkpoint", {"$ref": "#/$defs/ArchitectureCheckpoint"}), ("tokenizer", {"type": "null"})):
        properties[field] = {"description": properties[field]["description"], "anyOf": [*texts, others]}


def _law_schema(ref: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    return {"description": (model.__doc__ or "").strip(), "anyOf": [{"type": "boolean"}, ref]}


def _matrix_schema(laws: Laws, definitions: dict[str, Any], refs: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    """Lists of what each dotted key may be; entries of `include` and `exclude` hold one value each."""
    values = {key: _pointer(key, laws, refs) for key in matrix_keys(laws)}
    config = r"^checkpoint\.config\..+$"
    definitions["MatrixEntry"] = {
        "type": "object",
        "properties": values,
        "patternProperties": {config: {}},
        "additionalProperties": False,
        "minProperties": 1,
    }
    entries = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/MatrixEntry"}}
    lists = {key: {"type": "array", "minItems": 1, "items": value} for key, value in values.items()}
    return {
        "type": "object",
        "description": FILE_KEYS["matrix"],
        "properties": {
            **lists,
            "include": {**entries, "description": "More: values for the combinations they fit, or more combinations."},
            "exclude": {**entries, "description": "Less: combinations that have all of these values."},
        },
        "patternProperties": {config: {"type": "array", "minItems": 1}},
        "additionalProperties": False,
        "minProperties": 1,
    }


def _pointer(key: str, laws: Laws, refs: Mapping[Any, dict[str, Any]]) -> dict[str, str]:
    """Where the schema of a dotted key's value stands."""
    match key.split("."):
        case [field]:
            return {"$ref": f"#/properties/{field}"}
        case ["invariants" | "expect_broken" as section, law]:
            return {"$ref": f"#/properties/{section}/properties/{law}"}
        case ["invariants", law, option]:
            return {"$ref": f"{refs[laws[law], 'validation']['$ref']}/properties/{option}"}
        case [section, field]:
            return {"$ref": f"#/$defs/{SECTIONS[section].__name__}/properties/{field}"}
    raise AssertionError(key)
