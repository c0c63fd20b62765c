"""What the machine does while a case is timed: whether it had its processors and its GPU for itself, at full speed, and
the energy they took.

What cannot be read is none, and never 0.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from harness.record import Machine
from harness.training.devices import Device

STAT = Path("/proc/stat")
"""Ticks of all processors by what they did, since the machine started (proc(5))."""

POWERCAP = Path("/sys/class/powercap")
"""Linux's counters of energy, one for each socket: ``intel-rapl:0/energy_uj``; AMD's processors have them, too
(Documentation/power/powercap/powercap.rst). Most systems let root alone read them."""

CGROUPS, CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Control groups, and the one that this process is in, as ``0::/system.slice/ci.service`` (cgroups(7)); in a container
its own is the root."""

TICKS = 100
"""Below which a share of them says nothing: a second of one processor."""

SLOWED = {0x08: "hardware slowdown", 0x20: "too hot", 0x40: "too hot", 0x80: "power brake"}
"""Bits of NVML's clocks event reasons that mean a clock below what the card is made for. Capped power (0x04)
is how a card works at its limit (nvml.h, nvmlClocksEventReasons)."""


class Meter(Protocol):
    """Of a device, read between steps."""

    def joules(self) -> float | None:
        """Taken since some moment; none where nobody counts."""

    def slowed(self) -> str | None:
        """Why the device is slower than it is made for, right now; empty where it is not, none where nobody says."""


class Rapl:
    """Energy of the processors' sockets, whoever used them.

    Args:
        folder: where the kernel has its counters.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last = dict(self._read())
        self._sum = 0

    def joules(self) -> float | None:
        """Of all sockets together; a counter that has wrapped goes on."""
        found = dict(self._read())
        if not found or found.keys() != self._last.keys():
            return None
        for zone, now in found.items():
            more = now - self._last[zone]
            with suppress(OSError, ValueError):
                more += 0 if more >= 0 else int((zone / "max_energy_range_uj").read_text())
            self._sum += more
        self._last = found
        return self._sum / 1e6

    def slowed(self) -> str | None:
        """Nobody says."""
        return None

    def _read(self) -> Iterator[tuple[Path, int]]:
        for zone in self._zones:
            with suppress(OSError, ValueError):
                yield zone, int((zone / "energy_uj").read_text())


class Gpu:
    """An NVIDIA GPU, asked through NVML.

    Args:
        nvml: the module `pynvml`, initialised.
        handle: of the device.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._since = int(time.time() * 1e6)

    def joules(self) -> float | None:
        """Since the driver was loaded; from Volta on."""
        found = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else found / 1000

    def slowed(self) -> str | None:
        """Hot, braked, or held back by the hardware."""
        mask = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        mask = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons") if mask is None else mask  # its name until 535
        if mask is None:
            return None
        return ", ".join(dict.fromkeys(why for bit, why in SLOWED.items() if mask & bit))

    def celsius(self) -> int | None:
        """Now."""
        return self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU)

    def shared(self) -> float | None:
        """Share of the time since this object was made in which other processes computed on it; none where that cannot
        be told.

        In a container NVML may show processes by numbers of the host. Where this one is not among them nobody can say
        which of them are others.
        """
        running = self._ask("nvmlDeviceGetComputeRunningProcesses") or ()
        if os.getpid() not in {one.pid for one in running}:
            return None
        samples = self._ask("nvmlDeviceGetProcessUtilization", self._since)
        if samples is None:
            return None if len(running) > 1 else 0.0
        found = defaultdict[int, list[int]](list)
        for sample in samples:
            if sample.pid not in (0, os.getpid()):
                found[sample.pid].append(sample.smUtil)
        return min(1.0, sum(sum(each) / len(each) for each in found.values()) / 100)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What NVML says; none where the driver or the library does not know."""
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except (AttributeError, self._nvml.NVMLError):
            return None


def gpu(device: Device) -> Gpu | None:
    """The GPU of a CUDA device; none without the extra `gpu`, or where NVML does not know it."""
    if device.torch.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By its own number: that of CUDA depends on CUDA_VISIBLE_DEVICES.
        uuid = torch.cuda.get_device_properties(device.torch).uuid
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except (pynvml.NVMLError, AttributeError):
        return None


def meter(device: Device) -> Meter | None:
    """That of the device; none where nobody counts."""
    return Rapl() if device.torch.type == "cpu" else gpu(device)


class Conditions:
    """What is to be seen of a machine between `watch` and `read`.

    Args:
        meter: of the device that is timed.
        stat: the kernel's account of its processors.
    """

    def __init__(self, meter: Meter | None, stat: Path = STAT) -> None:
        self._gpu = meter if isinstance(meter, Gpu) else None
        self._stat = stat
        self._before: tuple[int, int] | None = None

    def watch(self) -> None:
        """Start from here."""
        self._before = ticks(self._stat)

    def read(self) -> Machine:
        """What there was since."""
        return Machine(
            processors=os.cpu_count(),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            stolen=self._stolen(),
            shared=self._gpu.shared() if self._gpu else None,
            celsius=self._gpu.celsius() if self._gpu else None,
        )

    def _stolen(self) -> float | None:
        after = ticks(self._stat)
        if after is None or self._before is None:
            return None
        stolen, wanted = (now - before for now, before in zip(after, self._before, strict=True))
        return stolen / wanted if wanted >= TICKS else None


def usable(groups: Path = CGROUPS, own: Path = CGROUP) -> float | None:
    """Processors that this process may use: those that it may run on, or as many as its control groups may take time of
    (``cpu.max``, Documentation/admin-guide/cgroup-v2.rst), which torch does not ask for; none where nobody says.
    """
    found = [float(len(os.sched_getaffinity(0)))] if hasattr(os, "sched_getaffinity") else []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            group = groups / line.removeprefix("0::/")
            for each in (group, *group.parents) if line.startswith("0::/") else ():
                with suppress(OSError, ValueError):  # "max 100000" is no limit
                    quota, period = map(int, (each / "cpu.max").read_text().split())
                    found.append(quota / period)
    return min(found, default=None)


def ticks(stat: Path) -> tuple[int, int] | None:
    """Ticks that the host of this virtual machine gave to others while it had work to do, and those of all its work."""
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    except (OSError, ValueError):
        return None
    return steal, user + nice + system + irq + softirq + steal
