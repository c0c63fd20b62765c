"""Which kernel computes a model's attention, and why that one."""

from __future__ import annotations

from typing import Any

from harness.errors import Unavailable
from harness.training.devices import Device

_NOT_ON = {
    "flash_attention_2": ({"cpu", "mps"}, "its kernels are for CUDA devices"),
    "flex_attention": ({"cpu", "mps"}, "torch's flex_attention has a backward pass on CUDA devices alone"),
}
"""Kinds of device on which an implementation does not train, and why."""


def use(model: Any, declared: str | None, device: Device) -> None:
    """Let the model compute attention as declared; null leaves it as transformers has chosen.

    Raises:
        Unavailable: the model or the machine lacks it; says which.
    """
    if declared is None:
        return
    kinds, reason = _NOT_ON.get(declared, (set(), ""))
    if device.torch.type in kinds:
        raise Unavailable(f"no {declared} on {device.name}: {reason}")
    try:
        switch(model, declared)
    except ImportError as error:
        raise Unavailable(f"no {declared} on this machine: {_sentence(error)}") from error
    except (ValueError, NotImplementedError) as error:
        raise Unavailable(f"no {declared} in {type(model).__name__}: {_sentence(error)}") from error
    if declared == "flex_attention" and (name := _dropout(model)):
        raise Unavailable(f"no {declared} in training with {name} above 0: it has no dropout")


def switch(model: Any, kind: str) -> None:
    """Let the model compute attention by that implementation.

    Raises:
        ValueError: it has none of that kind.
        ImportError: what it needs is not installed.
    """
    if kind == chosen(model):
        return
    if not model._can_set_attn_implementation():  # else transformers warns, and changes nothing
        raise ValueError("its layers compute attention themselves")
    model.set_attn_implementation(kind)
    if chosen(model) != kind:
        raise ValueError(f"transformers keeps {chosen(model)}")


def on_cpu(model: Any) -> None:
    """Let a model that was moved to the CPU compute attention there, if its own implementation cannot."""
    if chosen(model) in _NOT_ON:
        switch(model, "sdpa")


def chosen(model: Any) -> str:
    """The implementation in use; empty where the model's configuration knows of none."""
    return getattr(model.config, "_attn_implementation", None) or ""


def reason(declared: str | None) -> str:
    """Why a model uses the one that it uses."""
    if declared is not None:
        return "train.attention declares it"
    return "transformers' choice: sdpa where the architecture has it, or else eager"


def _dropout(model: Any) -> str:
    """The name of the configuration's dropout of attention, if it is above 0."""
    rates = ((name, value) for name, value in vars(model.config).items() if "att" in name and "drop" in name)
    return next((name for name, value in rates if isinstance(value, float) and value > 0), "")


def _sentence(error: Exception) -> str:
    """The first sentence of what transformers has to say."""
    return f"{error}".split(". ")[0].split("\n")[0][:200].strip().rstrip(".")
