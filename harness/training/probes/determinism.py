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
    """Losses of a few steps and the digest of all weights after them: twice with the declared seed, once with another.

    Nothing is seeded here: a case that leaves something to chance must show it.
    """
    first, second, other = _train(work, 0), _train(work, 0), _train(work, 1)
    return {
        "steps": min(STEPS, work.train.steps),
        "first": first.digest,
        "second": second.digest,
        "other_seed": other.digest,
        "losses": [first.losses, second.losses],
    }


def _train(work: Workload, more: int) -> _Listener:
    """With every seed higher by so much."""
    from harness.training.loops import LOOPS  # the loops tell a watch; this one only listens

    declared = work.settings.train
    seeds = {name: getattr(declared, name) for name in ("seed", "weights_seed", "data_seed", "dropout_seed")}
    others = {name: seed + more for name, seed in seeds.items() if seed is not None}
    train = declared.model_copy(update={"steps": min(STEPS, work.train.steps), "epochs": None, **others})
    settings: experiment.Settings = work.settings.model_copy(update={"train": train})
    fresh = workload.prepare(checkpoint.load(settings), settings, work.device)
    listener = _Listener()
    LOOPS[train.loop](fresh, listener)
    listener.digest = checkpoint.digest(fresh.model.state_dict().items())
    return listener


class _Listener:
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.digest = ""
        """Of all weights, after the last step."""

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """Nothing."""

    def kept(self) -> None:
        """No checkpoint is written."""

    def step_done(self, loss: Any, norm: Any = None) -> None:
        """Keep it."""
        self.losses.append(float(loss))

    def evaluate(self, evaluation: Callable[[], Any]) -> None:
        """As declared: what it does to the training shows."""
        evaluation()
