"""The first steps once more, without dropout, so that devices can be compared."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice
from typing import Any

from harness.training.checkpoint import Loaded
from harness.training.data import Drawn
from harness.training.workload import Workload

STEPS = 4
"""Enough for a wrong gradient or update to show in the loss, few enough not to amplify rounding."""


def replay(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """Loss of each of the first steps from the untouched weights, on the device, in the case's precision.

    The model stays in eval mode: every dropout is off, also those that are not modules.
    """
    model = copy.deepcopy(loaded.model).to(work.device.torch).eval()
    work = replace(work, model=model, drawn=Drawn())
    optimizer = work.optimizer()
    schedule = work.schedule(optimizer)
    losses = []
    for batch in islice(work.batches(), STEPS):
        with work.autocast():
            loss = model(**batch.to(work.device.torch)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"loss": losses}
