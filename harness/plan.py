"""From experiments to cases: each point of the matrix on each device. Nothing here asks what the machine has."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from harness.experiment import Data, Experiment, Point, Settings, name
from harness.exploration import Exploration

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Case:
    """One point of an experiment's matrix on one device: what is trained."""

    experiment: str
    """The file as the user sees it: relative to the root, with forward slashes."""
    path: Path
    id: str
    values: tuple[tuple[str, Any], ...]
    """Keys of the matrix and this case's values, in the order written."""
    settings: Settings
    """With the device set."""
    probes: frozenset[str] = frozenset()
    """What evidence to collect beyond that which every run leaves."""
    timed: bool = True
    """Whether figures of speed are wanted, too: what steps do is counted, what the device can do is measured."""
    trace: Path | None = None
    """Where the trace of a profiler goes; nothing is profiled without."""
    exploration: Exploration | None = None
    """What the probe `exploration` searches for; it does not run without."""

    @property
    def name(self) -> str:
        """File and id, as in a pytest node id."""
        return f"{self.experiment}::{self.id}"

    def declared(self) -> dict[str, Any]:
        """What a record keeps of the case: its name, its settings by dotted key, and what is said of laws.

        Sequences and labels stand as their number and digest: a record must not grow with the data.
        """
        stated = self.settings.model_dump(
            mode="json", exclude={"invariants", "expect_broken", "data", "checkpoint", "evaluation"}
        )
        settings = {
            "checkpoint": str(self.settings.checkpoint),
            **dict(_flat(stated)),
            "data.digest": hashlib.sha256(self.settings.data.model_dump_json().encode()).hexdigest(),
            **_data(self.settings.data),
            **_evaluation(self.settings),
        }
        if self.settings.tokenizer is not None and Path(self.settings.tokenizer).is_absolute():
            # A folder, which has another place in each checkout.
            settings["tokenizer"] = Path(os.path.relpath(self.settings.tokenizer, self.path.parent)).as_posix()
        return {
            "experiment": self.experiment,
            "case": self.id,
            "settings": settings,
            "invariants": dict(self.settings.invariants),
            "expect_broken": dict(self.settings.expect_broken),
        }


def _data(data: Data) -> dict[str, Any]:
    """What is declared of the data: the numbers of what is written out, or where else the rows are."""
    if data.given:
        return {"data.examples": len(data.given), "data.num_labels": data.resolved_num_labels}
    said = data.model_dump(mode="json", exclude={"sequences", "labels", "rows"}, exclude_defaults=True)
    return {f"data.{key}": value for key, value in said.items()}


def _evaluation(settings: Settings) -> dict[str, Any]:
    """What is declared of the evaluation: rows that are written out as their number and digest."""
    said = settings.evaluation
    if said is None:
        return {}
    stated = said.model_dump(mode="json", exclude={"sequences", "labels", "rows"}, exclude_defaults=True)
    stated |= {
        "digest": hashlib.sha256(said.model_dump_json().encode()).hexdigest(),
        "metrics": list(settings.metrics),
        "batch_size": said.batch_size or settings.train.batch_size,
        **({"examples": len(said.given)} if said.given else {}),
    }
    return {f"evaluation.{key}": value for key, value in stated.items()}


def cases(experiment: Experiment, devices: Sequence[str], *, root: Path, override: bool = False) -> tuple[Case, ...]:
    """Every case of an experiment, in the order in which they are run.

    Ids join the matrix's values in the order written. The device is one of them, and comes first where it is no key
    of the matrix.

    Args:
        experiment: What was read.
        devices: Where points without a device of their own run.
        root: What `Case.experiment` is relative to.
        override: `devices` also replace those that the file names; points that become equal are one.
    """
    file = Path(os.path.relpath(experiment.path, root)).as_posix()
    slots: dict[_Slot, Point] = {}
    for point in experiment.points:
        # Points with the same slot differ in nothing but the device that is overridden.
        slots.setdefault(_slot(point, devices, override), point)
    return tuple(
        _case(experiment.path, file, slot, device, slots[slot])
        # Devices go round outside of what follows them in the order, and inside of what comes before.
        for _, group in groupby(slots, key=lambda slot: (slot.before, slot.devices))
        for device, slot in _each_device(tuple(group))
    )


def expand(cases: Iterable[Case], cuda_count: Callable[[], int]) -> tuple[Case, ...]:
    """Put a case for each CUDA device in the place of each case on `cuda:all`.

    Args:
        cases: Of one experiment or of several.
        cuda_count: Asked at most once, and only if there is a `cuda:all`. Where it is 0, `cuda:0` stands for them, so
            that the case is seen and can be skipped with its reason.
    """
    every: tuple[str, ...] = ()
    expanded: dict[str, Case] = {}
    for case in cases:
        if case.settings.device == "cuda:all":
            every = every or tuple(f"cuda:{index}" for index in range(max(cuda_count(), 1)))
        # A file may name one of them beside `cuda:all`: the first is kept.
        for each in [_moved(case, device) for device in every] if case.settings.device == "cuda:all" else [case]:
            expanded.setdefault(each.name, each)
    return tuple(expanded.values())


def find(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The experiment files among the paths and below the folders among them, each once.

    Below a folder, names that begin with `_` (bases for others) or `.` are left out, and the order is sorted. A file
    that is named itself is always taken.
    """
    return tuple(dict.fromkeys(file for path in paths for file in (_below(path) if path.is_dir() else [path])))


@dataclass(frozen=True)
class _Slot:
    """Where a point's device goes: the names before and after it in the id, and the devices that take the place."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    devices: tuple[str, ...]


def _slot(point: Point, devices: Sequence[str], override: bool) -> _Slot:
    keys = [key for key, _ in point.values]
    place = keys.index("device") if "device" in keys else None
    before = point.names[: place or 0]
    after = point.names if place is None else point.names[place + 1 :]
    own = point.settings.device
    return _Slot(before, after, tuple(dict.fromkeys(devices)) if override or own is None else (own,))


def _each_device(slots: tuple[_Slot, ...]) -> Iterator[tuple[str, _Slot]]:
    return ((device, slot) for device in slots[0].devices for slot in slots)


def _case(path: Path, file: str, slot: _Slot, device: str, point: Point) -> Case:
    id = "-".join((*slot.before, name("device", device), *slot.after))
    values = tuple((key, device if key == "device" else value) for key, value in point.values)
    return Case(file, path, id, values, point.settings.model_copy(update={"device": device}))


def _moved(case: Case, device: str) -> Case:
    """The same case on another device; ids hold `cuda:all` once, for no other value may contain it."""
    values = tuple((key, device if key == "device" else value) for key, value in case.values)
    settings = case.settings.model_copy(update={"device": device})
    return replace(case, id=case.id.replace("cuda:all", device, 1), values=values, settings=settings)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _below(folder: Path) -> list[Path]:
    def shown(path: Path) -> bool:
        return not any(part.startswith(("_", ".")) for part in path.relative_to(folder).parts)

    return sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and shown(path) and path.is_file())
