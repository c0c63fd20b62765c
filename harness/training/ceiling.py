"""What a device does at most: measured once a session, for all cases that compute on it in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from harness.training.devices import Device
from harness.training.timing import HostMarks, marks_of

SIZES = {"cpu": (256, 512, 1024), "cuda": (2048, 4096, 8192)}
"""Of the square matrices whose products are timed: where the largest is not the fastest, another is."""

BUDGET = 0.03
"""Seconds for one thing that is timed; the fastest counts, which other processes have least to do with."""

FEWEST = 5
"""Runs of it, however long one takes."""

CACHES = Path("/sys/devices/system/cpu")
"""The kernel's list of processors, each with its caches (Linux, Documentation/ABI/testing/sysfs-devices-system-cpu)."""

BEYOND_CACHES = 4
"""By which an array is larger than all caches of the last level together, or they would be measured: as STREAM has it
(J. D. McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance Computers", 1995)."""

ARRAY_BYTES = (2**26, 2**28)
"""An array has at least and at most so many: caches of hundreds of MiB are partly measured, too."""


class Ceilings:
    """Those that were measured in this session. Whoever runs cases one after the other holds them."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], float] = {}

    def products(self, device: Device, dtype: torch.dtype, *, again: bool = False) -> float | None:
        """Floating-point operations a second in products of matrices, as the precision of products and threads are now.

        Args:
            device: that computes.
            dtype: of the matrices.
            again: measure it anew. The larger counts: a ceiling is what was reached at any time.
        """
        way = (dtype, torch.get_float32_matmul_precision(), torch.get_num_threads())
        return self._most(partial(products, device, dtype), device, way, again=again)

    def bandwidth(self, device: Device) -> float | None:
        """Bytes a second that its memory reads and writes."""
        return self._most(partial(bandwidth, device), device, (torch.get_num_threads(),))

    def _most(
        self, measure: partial[float], device: Device, way: tuple[object, ...], *, again: bool = False
    ) -> float | None:
        if device.torch.type not in SIZES:
            return None
        key = (measure.func, str(device.torch), *way)
        if again or key not in self._found:
            self._found[key] = max(self._found.get(key, 0.0), measure())
        return self._found[key]


def products(device: Device, dtype: torch.dtype) -> float:
    """The most floating-point operations a second of a product of matrices, of several sizes."""

    def rates() -> Iterator[float]:
        for size in SIZES[device.torch.type]:
            one, two = (torch.randn(size, size, device=device.torch).to(dtype) for _ in range(2))
            out = torch.empty_like(one)
            yield 2 * size**3 / _fastest(device, partial(torch.matmul, one, two, out=out))

    return max(rates())


def bandwidth(device: Device) -> float:
    """The most bytes a second of copying an array, and of adding one to another.

    Bytes are counted as STREAM counts those of its *Copy* and *Triad*: what the operation itself reads and writes, two
    and three words an element. What a cache fetches in order to write it over is not counted.
    """
    words = _array_bytes(device) // 4
    one, two = (torch.ones(words, device=device.torch) for _ in range(2))
    copied = 2 * 4 * words / _fastest(device, lambda: one.copy_(two))
    added = 3 * 4 * words / _fastest(device, lambda: torch.add(one, two, alpha=3.0, out=one))
    return max(copied, added)


def _fastest(device: Device, run: Callable[[], object]) -> float:
    """Seconds by the device's own clock, of the fastest of several runs after one that is not counted."""
    marks = marks_of(device.torch) or HostMarks()
    run()  # the first chooses a kernel, and loads it
    device.wait()
    taken: list[float] = []
    while sum(taken) < BUDGET or len(taken) < FEWEST:
        first = marks.make()
        run()
        taken.append(marks.between(first, marks.make()))
    return min(taken)


def _array_bytes(device: Device) -> int:
    least, most = ARRAY_BYTES
    if device.torch.type == "cuda":
        cached = int(torch.cuda.get_device_properties(device.torch).L2_cache_size)
    else:
        cached = cached_bytes()
    return min(most, max(least, BEYOND_CACHES * cached))


def cached_bytes(folder: Path = CACHES) -> int:
    """Bytes of all caches of the last level; 0 where the kernel does not say."""
    found: dict[str, int] = {}
    for processor in folder.glob("cpu[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            last = sorted(processor.glob("cache/index[0-9]*"))[-1]  # by level
            shared = (last / "shared_cpu_list").read_text().strip()
            found[shared] = int((last / "size").read_text().strip().removesuffix("K")) * 1024
    return sum(found.values())
