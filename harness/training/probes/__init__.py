"""Active evidence: extra passes that only some laws need, each leaving plain data in the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.training.checkpoint import Loaded
from harness.training.probes.accumulation import accumulation
from harness.training.probes.adapted import adapted
from harness.training.probes.dependence import dependence
from harness.training.probes.determinism import determinism
from harness.training.probes.equivalence import attention, checkpointing, compilation, packing
from harness.training.probes.evaluation import evaluation
from harness.training.probes.overfit import overfit
from harness.training.probes.padding import padding
from harness.training.probes.prior import prior
from harness.training.probes.replay import replay
from harness.training.probes.resumed import resumed
from harness.training.probes.saved import saved
from harness.training.probes.steps import steps
from harness.training.workload import Workload

Probe = Callable[[Loaded, Workload], dict[str, Any]]
"""Gets the untouched checkpoint and the workload that was trained; leaves JSON."""

PROBES: dict[str, Probe] = {
    "adapted": adapted,
    "padding": padding,
    "dependence": dependence,
    "steps": steps,
    "accumulation": accumulation,
    "saved": saved,
    "evaluation": evaluation,
    "resumed": resumed,
    "prior": prior,
    "replay": replay,
    "overfit": overfit,
    "determinism": determinism,
    "checkpointing": checkpointing,
    "attention": attention,
    "compilation": compilation,
    "packing": packing,
}
