"""What is chosen by measuring: ways to compute the same, in turns, before a training begins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch

from harness.errors import Unavailable
from harness.training.devices import Device

GAIN = 0.1
"""Part of the time that a way must save to be chosen: less is within what a measurement of seconds can tell."""
TURNS, BUDGET = 5, 5.0
"""A measurement ends after so many turns, or after the first that ends later than so many seconds."""


@dataclass(frozen=True)
class Trial:
    """With what a way to compute is tried.

    Args:
        model: on the device, as it will be trained.
        device: where it is.
        autocast: the precision of the forward pass.
        batches: makes a few batches with labels, on the device.
    """

    model: Any
    device: Device
    autocast: Callable[[], AbstractContextManager[Any]]
    batches: Callable[[], list[Any]]

    def copied(self) -> Any:
        """The model, to try something on."""
        return copy.deepcopy(self.model).train()

    def passes(self, model: Any, batches: list[Any]) -> None:
        """A forward and a backward pass of each batch, whose gradients are thrown away."""
        for batch in batches:
            with self.autocast():
                loss = model(**batch).loss
            loss.backward()
            model.zero_grad()
        self.device.wait()


def settle(
    declared: bool | str,
    require: Callable[[], None],
    measure: Callable[[], tuple[bool, str]],
    *,
    cannot: str,
    so_declared: str,
) -> tuple[bool, str]:
    """Whether it is to be done, and why: as declared, or where that is ``auto``, as a measurement says.

    Args:
        declared: true, false or ``auto``.
        require: raises `Unavailable` where it cannot be done.
        measure: says whether it is worth it, and why; what it draws is drawn again by the training.
        cannot: begins the reason where ``auto`` cannot have it.
        so_declared: the reason where it is declared.
    """
    if declared != "auto":
        return bool(declared), so_declared if declared else ""
    try:
        require()
    except Unavailable as error:
        return False, f"{cannot}: {error}"
    with torch.random.fork_rng(devices=[]):
        return measure()


def in_turns(
    ways: Mapping[str, Callable[[], None]], ready: Callable[[str], None] = lambda name: None
) -> dict[str, tuple[float, int]]:
    """Median seconds of each, and the number of turns; the first is not counted, unless it takes too long alone.

    Args:
        ways: what is timed.
        ready: brings the process into the state that a way of this name leaves it in; not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    began = perf_counter()
    for _ in range(TURNS + 1):
        for name, way in ways.items():
            ready(name)
            started = perf_counter()
            way()
            seconds[name].append(perf_counter() - started)
        if perf_counter() - began > BUDGET:
            break
    return {name: (median(each[1:] or each), len(each[1:] or each)) for name, each in seconds.items()}
