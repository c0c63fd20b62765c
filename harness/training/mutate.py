"""Trains cases with a mistake made in them, for `harness mutate`."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path

from transformers.utils import logging

from harness.plan import Case
from harness.record import Record
from harness.training.checkpoint import Shelf
from harness.training.fault import Fault
from harness.training.run import run

Runs = Callable[[Case, Fault | None], Record]


def runner(root: Path) -> Runs:
    """A function that trains a case, with a fault or without, quietly: faults make libraries warn.

    Args:
        root: a folder of the repository that holds the experiments.
    """
    shelf = Shelf()

    def runs(case: Case, fault: Fault | None) -> Record:
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return run(case, shelf=shelf, root=root, fault=fault)
        finally:
            logging.set_verbosity(level)
            gc.collect()  # models hang in circles of hooks and classes, of which too few are made for Python to look
            gc.freeze()  # what is left, libraries for the most part, need not be looked through after the next fault

    return runs
