"""What becomes of the memory that a step on a processor frees.

glibc gives large blocks back to the kernel: a block above 32 MiB at once, the end of its heap as soon as it is large
enough. The next step gets them anew, page by page, each page cleared by the kernel: gradients of an embedding alone
can be a fifth of the time of a small model's step, and whether the end of the heap is free is chance. Kept, the same
pages are used again (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from harness.errors import Unavailable, count
from harness.training import choice
from harness.training.choice import GAIN, Trial, in_turns
from harness.training.devices import Device

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""As malloc.h numbers them."""
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}
"""No block of its own from the kernel, and the end of the heap is never given back."""
_RETURNED = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}
"""Where glibc's own adjusting of its thresholds ends; that it adjusts them cannot be asked for again."""


def require(device: Device) -> None:
    """See to it that the device's memory is what glibc allocates.

    Raises:
        Unavailable: it is not; says why.
    """
    if device.torch.type != "cpu":
        raise Unavailable(f"no train.keep_memory on {device.name}: torch keeps what is freed there as it is")
    if platform.libc_ver()[0] != "glibc":
        raise Unavailable("no train.keep_memory here: it is for glibc")


@contextmanager
def kept() -> Iterator[None]:
    """Let what is freed inside stay with the process, and give it back afterwards."""
    _tell(_KEPT)
    try:
        yield
    finally:
        _give_back()


def settle(declared: bool | str, trial: Trial) -> tuple[bool, str]:
    """Whether freed memory is to be kept, and why.

    Args:
        declared: ``train.keep_memory``; where that is true, `require` has been asked.
        trial: of the model.
    """
    return choice.settle(
        declared,
        lambda: require(trial.device),
        lambda: _measured(partial(trial.passes, trial.copied(), trial.batches())),
        cannot="freed memory is not kept",
        so_declared="freed memory is kept, as declared",
    )


def _measured(passes: Callable[[], None]) -> tuple[bool, str]:
    def ready(name: str) -> None:
        """As after a step: a heap that has grown to what is kept, or one that has nothing of it left."""
        if name == "kept":
            _tell(_KEPT)
            passes()  # in gaps of the heap that were given back; the next may find others
        else:
            _give_back()
        passes()

    try:
        took = in_turns({"kept": passes, "returned": passes}, ready)
    finally:
        _give_back()  # or it would count as held by the training
    (fast, turns), (slow, _) = took["kept"], took["returned"]
    keeps = fast < (1 - GAIN) * slow
    said = f"{fast:.3g} s a turn with it kept, {slow:.3g} s with it given back (median of {count(turns, 'turn')})"
    return keeps, f"freed memory is {'kept' if keeps else 'not kept'}, by a measurement: {said}"


def _give_back() -> None:
    """All that is free, now and from now on."""
    _tell(_RETURNED)
    ctypes.CDLL(None).malloc_trim(0)


def _tell(said: dict[int, int]) -> None:
    glibc = ctypes.CDLL(None)
    for name, value in said.items():
        glibc.mallopt(name, value)
