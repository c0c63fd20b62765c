"""Another process: what happens there owes nothing to what a training has left in the memory of this one.

Imports no library itself, so that the server that does can be started first.
"""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

_LIBRARIES = ["harness.training.probes"]
"""Imported once, by a server from which every other process is forked; nothing is trained or loaded in it."""
_TRAINER = "harness.training.trainer"
"""Imported too where seeded faults have imported it here: each process that has their code needs it. For any other it
would be a fifth more to import."""
_FORKS = "forkserver"
USERS = frozenset({"saved", "resumed"})
"""Probes that need one."""
_WAIT = 0.2
"""Seconds between looks at whether the process is still there."""


class Failed(RuntimeError):
    """What was called in another process raised something there, or the process ended without an answer."""


def warm_up() -> None:
    """Begin to start the server, where there can be one: it takes the seconds that libraries take to import, best those
    in which this process imports them, too.
    """
    if _forks():
        from multiprocessing import forkserver  # not on Windows

        libraries = [*_LIBRARIES, *({_TRAINER} & sys.modules.keys())]
        multiprocessing.get_context(_FORKS).set_forkserver_preload(libraries)
        forkserver.ensure_running()


@cache
def wait() -> None:
    """Until the server has imported all: beside steps that are timed, it would take a processor from them. It does so
    once, and what shows it, a process that is forked, takes time: later cases have no need to ask again.
    """
    warm_up()
    if _forks():
        with suppress(OSError, EOFError):  # it does not start: who calls a function hears of it
            context: Any = multiprocessing.get_context(_FORKS)
            process = context.Process(target=int, daemon=True)
            process.start()  # returns once it was forked
            process.join()


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process that has imported libraries and done nothing else.

    Args:
        function: found there by its module and name.
        arguments: plain data; tensors go by way of files.

    Raises:
        Failed: with type and text of what it raised.
    """
    import torch

    warm_up()
    context: Any = multiprocessing.get_context(_FORKS if _forks() else "spawn")
    mine, theirs = context.Pipe(duplex=False)
    asked = (theirs, torch.get_num_threads(), function, arguments)
    # A collator with a seed takes a process of any other name for a worker of a loader.
    process = context.Process(target=_answer, name="MainProcess", args=asked, daemon=True)
    process.start()
    theirs.close()
    try:
        while not mine.poll(_WAIT) and process.is_alive():
            pass
        if not mine.poll():
            raise Failed(f"the process ended with exit code {process.exitcode}")
        answer, failed = mine.recv()
    except EOFError:
        process.join()
        raise Failed(f"the process ended with exit code {process.exitcode}") from None
    finally:
        mine.close()
        process.kill()  # it has answered, or is not waited for any longer
        process.join()
    if failed:
        raise Failed(failed)
    return answer


def _answer(answers: Connection, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Run the function as quietly and with as many threads as the process that asks."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        answers.send((function(*arguments), ""))
    except BaseException as error:
        answers.send((None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


def _forks() -> bool:
    return _FORKS in multiprocessing.get_all_start_methods()
