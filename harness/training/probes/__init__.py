"""Active evidence: extra passes that only some laws need, each leaving plain data in the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.training.checkpoint import Loaded
from harness.training.probes.replay import replay
from harness.training.workload import Workload

Probe = Callable[[Loaded, Workload], dict[str, Any]]
"""Gets the untouched checkpoint and the workload that was trained; leaves JSON."""

PROBES: dict[str, Probe] = {"replay": replay}
