"""What makes two runs alike: everything that has to be equal before their figures mean anything together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from harness.errors import HarnessError, meant
from harness.experiment import Settings
from harness.record import Environment, Record

ALIASES = {
    "device": ("device", "device model", "processor", "driver", "runtime", "threads", "torch build", "attention"),
    "torch": ("torch", "torch build", "runtime"),
    "loop": ("train.loop",),
    "precision": ("precision", "dtype"),
    "train.packing": ("train.packing", "attention"),
    "train.attention": ("train.attention", "attention"),
}
"""Axes that are several fields: another device brings another driver, and another build of torch its CUDA."""

ABSENT = "not there"


@dataclass(frozen=True)
class Difference:
    """A field in which two runs differ that are to be compared."""

    case: str
    field: str
    base: str
    new: str


class NotComparable(HarnessError):
    """The runs are not alike, and what differs is not what was asked about."""

    def __init__(self, differences: Sequence[Difference], reason: str = "") -> None:
        """Keep all differences; `str()` is a line a field, with the cases it concerns."""
        self.differences = tuple(differences)
        self.reason = reason
        super().__init__(differences, reason)

    def __str__(self) -> str:
        if not self.differences:
            return self.listed
        field = self.differences[0].field
        return f"{self.listed}\nIf one of them is what you ask about, name it: --across '{field}'"

    @property
    def listed(self) -> str:
        """Each field with both values, and the cases that differ in it."""
        cases: dict[tuple[str, str, str], list[str]] = {}
        for one in self.differences:
            cases.setdefault((one.field, one.base, one.new), []).append(one.case)
        lines = [f"NOT COMPARABLE{': ' if self.reason else ''}{self.reason}"]
        for (field, base, new), names in cases.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"  {field}: {base} and {new} ({names[0]}{more})")
        return "\n".join(lines)


def fields(record: Record) -> dict[str, Any]:
    """Everything that has to be equal, by the name that `--across` knows it by.

    Where the weights and the batches are known, what they were made from is not asked: a folder may have another name
    on another machine.
    """
    environment, checkpoint = record.environment, record.checkpoint
    torch, _, build = environment.versions.get("torch", "").partition("+")
    versions = {name: each for name, each in environment.versions.items() if name != "peft" or record.adapters}
    known: dict[str, Any] = {**_settings(record), **versions, "torch": torch, "torch build": build}
    known |= {name: getattr(environment, name) for name in ("driver", "runtime", "threads", "processor")}
    known["device model"] = environment.device
    known["steps trained"] = len(record.steps.loss)
    if any(record.steps.digest):
        known["batches"] = _digest([record.steps.digest, record.steps.samples])
        for name in ("tokenizer", "data.files", "data.dataset", "data.revision"):
            known.pop(name, None)
    if checkpoint is not None:
        known |= {"weights": checkpoint.digest[:16], "architecture": checkpoint.architecture}
        known |= {"dtype": checkpoint.dtype, "attention": checkpoint.attention}
        if checkpoint.digest:
            known.pop("checkpoint", None)
        elif checkpoint.revision:
            known["checkpoint revision"] = checkpoint.revision
    return known


def hardware(environment: Environment) -> dict[str, str]:
    """What a figure belongs to: the model of the device, and of the processor beside it."""
    return {"device model": environment.device, "processor": environment.processor}


Key = tuple[str, str, str]
"""Case, model of the device, processor."""


def key(record: Record) -> Key:
    """What its figures are figures of."""
    return record.name, record.environment.device, record.environment.processor


def machine(key: Key) -> str:
    """The hardware of a key, for people."""
    return ", ".join(dict.fromkeys(filter(None, key[1:])))


def told_apart(names: Sequence[str], records: Sequence[Record]) -> list[str]:
    """Each name, with the hardware of its record where several have it."""
    return [
        name if names.count(name) == 1 else f"{name} ({machine(key(record))})"
        for name, record in zip(names, records, strict=True)
    ]


def differences(base: Record, new: Record, across: Iterable[str] = ()) -> list[Difference]:
    """The fields that differ and are not asked about.

    A field that one of the two does not have is no difference where it is a setting with its default: older records
    lack what could not be set then.
    """
    waived, one, two = waive(across), fields(base), fields(new)
    libraries = base.environment.versions.keys() | new.environment.versions.keys()  # also peft, which is a key, too
    if any("." in name or name in Settings.model_fields for name in waived - {"device"} - libraries):
        waived |= {"batches", "steps trained"}  # they follow from settings
    if "dtype" in waived and one.get("dtype") != two.get("dtype"):  # other bits of the same weights
        waived |= {"weights"}
        one["checkpoint"], two["checkpoint"] = (side.settings.get("checkpoint") for side in (base, new))
    defaults = _defaults()
    found = []
    for name in sorted(one.keys() | two.keys()):
        first, second = (side.get(name, defaults.get(name, ABSENT)) for side in (one, two))
        if first != second and name not in waived:
            found.append(Difference(new.name, name, _shown(first), _shown(second)))
    return found


def waive(across: Iterable[str]) -> set[str]:
    """The fields that axes stand for."""
    return {field for axis in across for field in ALIASES.get(axis, (axis,))}


def check_axes(across: Sequence[str], records: Iterable[Record]) -> None:
    """Raise for an axis that no record knows.

    Raises:
        HarnessError: with the nearest name.
    """
    known = {*ALIASES, *_defaults(), *(name for record in records for name in fields(record))}
    for axis in across:
        if axis not in known:
            hint = meant(axis, known)
            raise HarnessError(
                f"--across: found '{axis}', expected device, torch, loop, a key of experiments or a library"
                + (f"; {hint}" if hint else "")
            )


def place(record: Record, across: Iterable[str]) -> str:
    """What cases have in common that differ along the axes alone: the experiment, and its other settings."""
    waived = waive(across)
    rest = {name: value for name, value in {**_defaults(), **_settings(record)}.items() if name not in waived}
    return record.experiment + " " + _digest(rest)


def value(record: Record, across: Sequence[str]) -> str:
    """Where a record stands on the axes."""
    known = {**_defaults(), **fields(record)}
    names = {"device": "device model", "loop": "train.loop"}
    return ", ".join(_shown(known.get(names.get(axis, axis), ABSENT)) for axis in across)


def _settings(record: Record) -> dict[str, Any]:
    return dict(record.settings)


def _defaults() -> dict[str, Any]:
    """What settings are where nothing is said, by dotted key."""
    return dict(_flat(Settings.model_fields.items()))


def _flat(items: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for name, field in items:
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from ((f"{name}.{key}", each) for key, each in default.model_dump(mode="json").items())
        elif name not in ("checkpoint", "data", "invariants", "expect_broken"):
            yield name, default


def _digest(value: Mapping[str, Any] | Sequence[Any]) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple | dict | bool) or value is None:
        return json.dumps(value)
    return str(value) or "nothing"
