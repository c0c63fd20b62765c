"""What may change a case's numbers without a change of the experiment."""

from __future__ import annotations

import functools
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from harness.record import Environment
from harness.training.devices import Device
from harness.training.machine import usable

DISTRIBUTIONS = (
    "pytest-finetune",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "numpy",
    "datasets",
    "peft",
)

DRIVER = Path("/proc/driver/nvidia/version")
"""Where NVIDIA's kernel module names itself: ``NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue ...``."""


def describe(folder: Path) -> Environment:
    """Versions, machine, and the commit of the repository around `folder`."""
    commit = _git(folder, "rev-parse", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    processor = _processor()
    return Environment(
        versions={"python": platform.python_version(), **{name: _version(name) for name in DISTRIBUTIONS}},
        platform=platform.platform(),
        processor=processor,
        device=processor,
        threads=torch.get_num_threads(),
        processors=usable(),
        commit=commit,
        dirty=None if status is None else bool(status),
    )


def on(device: Device, found: Environment) -> Environment:
    """The same, of a training on that device."""
    known = {"device": device.title or found.processor, "driver": _driver(device), "runtime": device.runtime}
    return found.model_copy(update=known)


def _driver(device: Device) -> str:
    if device.torch.type != "cuda" or not DRIVER.exists():
        return ""
    found = re.search(r"\d+\.\d+(\.\d+)*", DRIVER.read_text(errors="replace"))
    return found.group() if found else ""


@functools.cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
