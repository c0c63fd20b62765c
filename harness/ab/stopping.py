"""Being stopped without leaving anything behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""From a keyboard, from another process, and from a terminal that is closed."""


@contextmanager
def stopped_once() -> Iterator[None]:
    """Any of the signals stops what is done in the block; while that is put away, more of them are not heard. What who
    started this process has made it deaf to (`nohup`) it stays deaf to.

    Raises:
        KeyboardInterrupt: one of them came.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    heard = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, stop) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def end(process: subprocess.Popen[str]) -> int:
    """Kill a process that leads a session of its own, and what it has started: workers of a loader or of a compiler.

    Returns:
        Its exit status.
    """
    if process.returncode is None and os.name == "posix":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    return process.wait()
