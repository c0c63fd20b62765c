"""What a fault is, and the stack that takes it back."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from harness import experiment
from harness.training import checkpoint, devices, workload
from harness.training.checkpoint import Loaded
from harness.training.workload import Workload

NO_REPORT = "no single report"
"""The source of mistakes that everybody has made. `DeepCrime` is the list of operators of Humbatova, Jahangirova and
Tonella, ISSTA 2021, drawn from real faults."""

EVERY = frozenset({"custom", "trainer", "accelerate"})

WHOLE_TEXTS = frozenset({"sequence-classification"})
"""Where there is one label for each text."""


class Patch(ExitStack):
    """Attributes that have another value until the run is over, however it ends."""

    def set(self, target: Any, name: str, value: Any) -> Any:
        """Give an attribute of a module, class or object another value; returns the one it had."""
        before = getattr(target, name)
        self.enter_context(mock.patch.object(target, name, value))
        return before


Seed = Callable[[Workload, Patch], Workload]
When = Callable[[experiment.Settings], bool]
Load = Callable[[Loaded, Patch], Loaded]


def always(settings: experiment.Settings) -> bool:
    """Under any settings."""
    return True


def nothing_loaded(loaded: Loaded, patch: Patch) -> Loaded:
    """Leave the checkpoint as it is."""
    return loaded


def nothing_seeded(work: Workload, patch: Patch) -> Workload:
    """Leave the workload as it is."""
    return work


@dataclass(frozen=True)
class Fault:
    """A mistake that real set-ups have made, ready to be made in a case.

    What it gets are copies of its own: it may change models and tokenizers in place. Anything else it changes through
    the patch. Probes copy the model, so what it hangs on a model must work on a copy.
    """

    name: str
    description: str
    """One sentence."""
    source: str
    """Public threads where it happened, or the published list of operators that it is taken from."""
    loops: frozenset[str] = EVERY
    """Where it can happen."""
    tasks: frozenset[str] = frozenset()
    """Of which it is a mistake; empty where it is one of every task."""
    evaluates: bool = False
    """It is a mistake of evaluations, and happens only where there are some."""
    when: When = always
    """Whether it can happen under what is declared: what is not chosen cannot be done wrong."""
    load: Load = nothing_loaded
    """Changes the checkpoint, before anything is made of it."""
    seed: Seed = nothing_seeded
    """Changes the workload, before the loop gets it."""

    def __reduce__(self) -> tuple[Callable[..., Fault], tuple[str, str]]:
        """Other processes find it where it was made, under its name."""
        made = self.seed if self.seed is not nothing_seeded else self.load
        return _found, (made.__module__, self.name)


def _found(module: str, name: str) -> Fault:
    found: Fault = getattr(importlib.import_module(module), name)
    return found


HEALTHY = Fault("none", "Nothing is wrong.", "")


@contextmanager
def begun(settings: experiment.Settings, fault: Fault | None) -> Iterator[tuple[Loaded, Workload]]:
    """A case as it is before its training, mistake included, in a process that has not made it yet."""
    with Patch() as patch:
        fault = fault or HEALTHY
        loaded = fault.load(checkpoint.load(settings), patch)
        device = devices.find(settings.device or "cpu")
        yield loaded, fault.seed(workload.prepare(loaded, settings, device), patch)


def fault(
    source: str,
    *,
    loops: frozenset[str] | set[str] = EVERY,
    tasks: frozenset[str] | set[str] = frozenset(),
    evaluates: bool = False,
    when: When = always,
) -> Callable[[Seed], Fault]:
    """Make a fault of a function ``(work, patch) -> work``: its name, and its docstring as the description."""
    return lambda seed: Fault(
        seed.__name__, _sentence(seed), source, frozenset(loops), frozenset(tasks), evaluates, when, seed=seed
    )


def loading_fault(
    source: str, *, tasks: frozenset[str] | set[str] = frozenset(), when: When = always
) -> Callable[[Load], Fault]:
    """Make a fault of a function ``(loaded, patch) -> loaded``."""
    return lambda load: Fault(load.__name__, _sentence(load), source, tasks=frozenset(tasks), when=when, load=load)


def _sentence(function: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(function) or "").split())
