"""A checkpoint in the middle of a training, and going on from it in another process."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import experiment
from harness.errors import CheckpointError
from harness.training.checkpoint import digest

MANIFEST = "harness.json"
"""Says what a checkpoint is of, and the digest of each of its files."""
_STATE = "state.pt"


@dataclass(frozen=True)
class Keeping:
    """Where a training writes its checkpoint, or goes on from it."""

    root: Path
    at: int
    """The step after which it is written; 0 where none is."""
    resumes: bool = False
    """This is the training that goes on from it."""

    @property
    def folder(self) -> Path:
        """Of the checkpoint; named as the Trainer names it."""
        return self.root / f"checkpoint-{self.at}"

    @property
    def done(self) -> int:
        """Steps that are behind a training which goes on."""
        return self.at if self.resumes else 0

    def due(self, step: int) -> bool:
        """Whether a checkpoint is written after this step, counted from 1."""
        return step == self.at and not self.resumes

    @contextmanager
    def place(self, prefix: str) -> Iterator[str]:
        """Where the Trainer may write: here, or where nothing is kept, in a folder that is gone afterwards."""
        if self.at:
            yield str(self.root)
            return
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            yield folder


NOWHERE = Keeping(Path(), at=0)
"""No checkpoint is written."""

# What the custom loop does by itself


def save(folder: Path, **parts: Any) -> None:
    """Write the state of a training: of everything that has a `state_dict`, and where the random numbers are."""
    folder.mkdir(parents=True)
    torch.save({**{name: part.state_dict() for name, part in parts.items()}, "random": random_state()}, folder / _STATE)


def load(folder: Path, **parts: Any) -> None:
    """Put the state of a training back, the random numbers last: nothing may be drawn in between."""
    state = torch.load(folder / _STATE, weights_only=True, map_location="cpu")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    set_random_state(state["random"])


def random_state() -> dict[str, Any]:
    """Where the generators of Python, numpy and torch are, on every device."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put them back there."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


# What a checkpoint is of


def states(model: Any, optimizer: Any, scaler: Any = None) -> dict[str, Any]:
    """Digests of the weights and of the optimizer's moments, by parameter, and the scaler of the loss."""
    enabled = scaler is not None and scaler.is_enabled()
    return {
        "weights": weights(model),
        "moments": _moments(model, optimizer),
        "scaler": dict(scaler.state_dict()) if enabled else {},
    }


def weights(model: Any) -> dict[str, str]:
    """A digest of each tensor of the model."""
    return {name: digest([("", tensor)]) for name, tensor in model.state_dict().items()}


def _moments(model: Any, optimizer: Any) -> dict[str, str]:
    kept = getattr(optimizer, "optimizer", optimizer).state  # Accelerate wraps it
    return {
        name: digest((key, torch.as_tensor(value)) for key, value in kept[parameter].items() if value is not None)
        for name, parameter in model.named_parameters()
        if parameter in kept
    }


def seal(keeping: Keeping, settings: experiment.Settings, found: dict[str, Any]) -> None:
    """Write down what the checkpoint is of, what its files are, and the state that it should bring back."""
    said = {"settings": _told(settings), "files": dict(_files(keeping.folder)), "states": found}
    (keeping.folder / MANIFEST).write_text(json.dumps(said), encoding="utf-8")


def check(keeping: Keeping, settings: experiment.Settings) -> dict[str, Any]:
    """The state that the checkpoint should bring back, if it is whole and one of this training.

    Raises:
        CheckpointError: it is not; says what differs.
    """
    try:
        said = json.loads((keeping.folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{keeping.folder.name}: no whole checkpoint: {error}") from error
    mine, files = _told(settings), dict(_files(keeping.folder))
    wrong = [
        *(f"{name} is missing" for name in said["files"].keys() - files.keys()),
        *(f"{name} is damaged" for name, bits in said["files"].items() if files.get(name, bits) != bits),
        *(
            f"{key} is {said['settings'].get(key)} there and {mine.get(key)} here"
            for key in sorted(said["settings"].keys() | mine.keys())
            if said["settings"].get(key) != mine.get(key)
        ),
    ]
    if wrong:
        raise CheckpointError(f"{keeping.folder.name} is refused: {'; '.join(wrong)}")
    found: dict[str, Any] = said["states"]
    return found


def _told(settings: experiment.Settings) -> dict[str, str]:
    """What two trainings have to agree in, of which one goes on where the other stopped."""
    kept = settings.model_dump(
        mode="json", exclude={"checkpoint", "invariants", "expect_broken", "benchmark", "device"}
    )
    kept["checkpoint"], train = repr(settings.checkpoint), kept.pop("train")
    rest = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for name, value in kept.items()
    }
    rest["data"] = hashlib.sha256(rest["data"].encode()).hexdigest()[:16]
    return {**rest, **{f"train.{name}": json.dumps(value) for name, value in train.items()}}


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                yield path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()
