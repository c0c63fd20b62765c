"""The training once more from its checkpoint on, in another process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import experiment
from harness.errors import CheckpointError
from harness.training import fresh, resume
from harness.training.checkpoint import Loaded
from harness.training.compilation import Compiling
from harness.training.fault import Fault, begun
from harness.training.resume import NOWHERE, Keeping
from harness.training.timing import StepClock
from harness.training.watch import Watch
from harness.training.workload import Workload

_COLUMNS = ("loss", "learning_rate", "digest", "random")
"""Of the steps; what is compared with those of the training that went through."""


def resumed(loaded: Loaded, work: Workload, keeping: Keeping = NOWHERE) -> dict[str, Any]:
    """What the steps after the checkpoint are in a process that goes on from it, which parts of the state are not as
    they were when it was written, and which weights are others at the end.
    """
    if not keeping.at:
        return {"reason": "no checkpoint is declared: see train.resume_at"}
    if not keeping.folder.exists():
        return {"reason": f"the training ended before step {keeping.at}, after which a checkpoint is declared"}
    found: dict[str, Any] = fresh.call(go_on, work.settings, work.fault, keeping.root, keeping.at)
    last = found.pop("last", {})
    if "steps" in found:
        found["ended"] = _differing(resume.weights(work.model), last)
    return {"at": keeping.at, **found}


def go_on(settings: experiment.Settings, fault: Fault | None, root: Path, at: int) -> dict[str, Any]:
    """The evidence, in the process that goes on."""
    from harness.training.loops import LOOPS  # the loops tell a watch, and this has one

    keeping = Keeping(root, at, resumes=True)
    with begun(settings, fault) as (loaded, work):
        try:
            expected = resume.check(keeping, work.settings)
        except CheckpointError as error:
            return {"refused": str(error)}
        watch = _Watch(
            expected,
            model=work.model,
            start=loaded.model,
            head=(),
            drawn=work.drawn,
            labels_kept=work.labels_kept,
            steps=work.train.steps,
            clock=StepClock(work.device.wait),
            compiling=Compiling(work.train.compile),
        )
        try:
            with work.products():
                LOOPS[work.train.loop](replace(work, keeping=keeping), watch)
        except Exception as error:  # whatever it is, there is no going on from what was written
            return {"failed": f"{type(error).__name__}: {error}"[:500]}
        finally:
            watch.close()
        steps = watch.steps().model_dump(mode="json", include=set(_COLUMNS))
        return {**watch.differs, "steps": steps, "last": resume.weights(work.model)}


class _Watch(Watch):
    """Also compares the state with that which was written, when the loop says that it begins."""

    def __init__(self, expected: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._expected = expected
        self.differs: dict[str, list[str]] = {}

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """Everything is loaded, and no step is taken yet."""
        found = resume.states(self._model, optimizer, scaler)
        self.differs = {name: _differing(self._expected[name], found[name]) for name in self._expected}
        super().begin(optimizer)


def _differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
