"""The whole case, from loading on, several times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness import experiment
from harness.training import checkpoint, workload
from harness.training.checkpoint import Loaded
from harness.training.workload import Workload

STEPS = 8


def determinism(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Digests of all weights after a few steps: twice with the declared seed, once with another.

    Nothing is seeded here: a case that leaves something to chance must show it.
    """
    return {
        "steps": min(STEPS, work.train.steps),
        "first": _train(work, 0),
        "second": _train(work, 0),
        "other_seed": _train(work, 1),
    }


def _train(work: Workload, more: int) -> str:
    """With every seed higher by so much."""
    from harness.training.loops import LOOPS  # the loops tell a watch; nobody watches this one

    declared = work.settings.train
    seeds = {name: getattr(declared, name) for name in ("seed", "weights_seed", "data_seed", "dropout_seed")}
    others = {name: seed + more for name, seed in seeds.items() if seed is not None}
    train = declared.model_copy(update={"steps": min(STEPS, work.train.steps), "epochs": None, **others})
    settings: experiment.Settings = work.settings.model_copy(update={"train": train})
    fresh = workload.prepare(checkpoint.load(settings), settings, work.device)
    LOOPS[train.loop](fresh, _Nobody())
    return checkpoint.digest(fresh.model.state_dict().items())


class _Nobody:
    """Is told of steps and does nothing."""

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """Nothing."""

    def kept(self) -> None:
        """No checkpoint is written."""

    def step_done(self, loss: Any, norm: Any = None) -> None:
        """Nothing."""

    def evaluate(self, evaluation: Callable[[], Any]) -> None:
        """As declared: what it does to the training shows."""
        evaluation()
