"""A device by name: is it here, wait for it, how much memory it held."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.errors import Unavailable
from harness.record import Memory


@dataclass(frozen=True)
class Device:
    """A device that this machine has."""

    name: str
    """As the experiment says it: ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    torch: torch.device

    @property
    def title(self) -> str:
        """The accelerator's own name; empty for a CPU."""
        return torch.cuda.get_device_name(self.torch) if self.torch.type == "cuda" else ""

    @property
    def runtime(self) -> str:
        """The libraries that torch drives the accelerator through; empty where it is part of torch itself."""
        if self.torch.type != "cuda":
            return ""
        kind = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return f"{kind}, cuDNN {torch.backends.cudnn.version()}"

    def wait(self) -> None:
        """Return when everything queued on the device is done; free on a CPU."""
        if self.torch.type == "cuda":
            torch.cuda.synchronize(self.torch)
        elif self.torch.type == "mps":
            torch.mps.synchronize()


def find(name: str) -> Device:
    """The device of that name; ``cuda`` is the current CUDA device.

    Raises:
        Unavailable: the machine, or this build of torch, lacks it; says which.
    """
    kind, _, index = name.partition(":")
    if kind == "cuda":
        _need_cuda(int(index) if index else 0)
        return Device(name, torch.device("cuda", int(index) if index else torch.cuda.current_device()))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise Unavailable(f"no mps device: torch {torch.__version__} finds none")
    return Device(name, torch.device(kind))


def clear(device: Device) -> None:
    """Give back what earlier cases have left on a GPU: the Trainer and its callbacks hold each other, and with them
    model and optimizer, until Python looks for such circles.
    """
    if device.torch.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def accelerate_on(device: torch.device) -> Iterator[None]:
    """Accelerate, also below the Trainer, takes the current GPU unless this variable names another. The Trainer changes
    which one that is; it is put back.
    """
    name = "ACCELERATE_TORCH_DEVICE"
    before = os.environ.get(name)
    if device.type == "cuda":
        os.environ[name] = str(device)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def _need_cuda(index: int) -> None:
    if torch.version.cuda is None and torch.version.hip is None:
        raise Unavailable(f"no CUDA device: torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise Unavailable(f"no CUDA device: torch {torch.__version__} finds none")
    if index >= torch.cuda.device_count():
        raise Unavailable(f"no CUDA device {index}: this machine has {torch.cuda.device_count()}")


def require(device: Device, precision: str, loop: str) -> None:
    """The device has the precision, and the loop can use it there.

    Raises:
        Unavailable: it has not, or cannot; says which.
    """
    kind = device.torch.type
    if precision == "tf32" and (kind != "cuda" or torch.cuda.get_device_capability(device.torch)[0] < 8):
        raise Unavailable(f"no tf32 on {device.name}: NVIDIA's GPUs have it from Ampere on")
    if precision == "fp16" and kind == "cpu" and loop != "custom":
        raise Unavailable(f"no fp16 on {device.name} in the loop {loop}: Accelerate's autocast leaves it in fp32 there")
    if precision.startswith("bf16") and kind == "cuda" and not _has_bf16(device):
        raise Unavailable(f"no {precision} on {device.name}: {device.title} has no such arithmetic")


def _has_bf16(device: Device) -> bool:
    with torch.cuda.device(device.torch):  # the current one is asked
        return torch.cuda.is_bf16_supported(including_emulation=False)


def here() -> tuple[tuple[str, str], ...]:
    """Name and title of every device of this machine."""
    found = [("cpu", "")]
    if torch.cuda.is_available():
        found += [(f"cuda:{index}", torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(("mps", ""))
    return tuple(found)


class PeakMemory:
    """The most memory held between `watch` and `read`.

    CUDA: bytes that torch's allocator had handed out, and those that it had taken from the device; what is kept of what
    came before is given back first, or it would count as this case's. CPU: resident bytes of this process,
    weights of other cases included, by the kernel's own high-water mark (``VmHWM``, set back through
    ``/proc/self/clear_refs``, Linux only: proc(5)).
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._reset = False

    def watch(self) -> None:
        """Start from here."""
        clear(self._device)
        if self._device.torch.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device.torch)
        elif self._device.torch.type == "cpu":
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
                self._reset = True

    def read(self) -> Memory:
        """What was held at most since `watch`."""
        if self._device.torch.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device.torch)
            reserved = torch.cuda.max_memory_reserved(self._device.torch)
            return Memory(peak_bytes=peak, reserved_bytes=reserved, kind="allocated on the device")
        if not self._reset:
            return Memory(kind=f"not measured: no high-water mark that can be reset for {self._device.name} here")
        lines = Path("/proc/self/status").read_text().splitlines()
        kibibytes = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
        if kibibytes is None:
            return Memory(kind="not measured: /proc/self/status has no VmHWM")
        return Memory(peak_bytes=kibibytes * 1024, kind="resident in the process")


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Compute products of fp32 matrices in full inside (``highest``), or in TF32 (``high``); put back what was set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
