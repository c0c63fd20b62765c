"""`torch.compile`: what it is asked for, what a machine lacks for it, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import Any

import torch

from harness.errors import Unavailable
from harness.record import Compilation
from harness.training.devices import Device

Declared = bool | str
"""``train.compile``: false, true, a mode of inductor's, or ``aot_eager``."""


def options(declared: Declared) -> dict[str, str]:
    """What `torch.compile` is called with: its backend, and its mode where that has several."""
    if declared == "aot_eager":
        return {"backend": "aot_eager"}
    return {"backend": "inductor", "mode": "default" if declared is True else str(declared)}


def compiled(model: Any, declared: Declared) -> Any:
    """The model to call: compiled, if that is declared. It shares its weights and hooks with `model`.

    Hooks on `model` itself run outside of what is compiled, and break no graph.
    """
    return torch.compile(model, **options(declared)) if declared else model


def require(declared: Declared, device: Device) -> None:
    """See to it that the machine has what inductor generates code with.

    Raises:
        Unavailable: it has not; says what is missing.
    """
    if not declared or declared == "aot_eager":
        return
    remedy = "train.compile: aot_eager needs none"
    if device.torch.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise Unavailable(f"no Triton, in which inductor writes its kernels for {device.name}; {remedy}")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise Unavailable(
            f"no C++ compiler, with which inductor makes its kernels (CXX names one); {remedy}"
        ) from error


@contextmanager
def afresh(declared: Declared) -> Iterator[None]:
    """Let what runs inside compile everything itself, and leave nothing compiled behind.

    Dynamo keeps what it has compiled by the code of a forward pass, whatever the model, and from its eighth version on
    goes back to eager without an error: trainings of one class would change each other's.
    """
    if not declared:
        yield
        return
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    try:
        yield
    finally:
        torch.compiler.reset()


def graphs() -> int:
    """Graphs that were compiled since `afresh`."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


class Compiling:
    """Follows what is compiled, between `watch` and `close`.

    To be watched from inside of `afresh`: Dynamo's reset also forgets who follows it.
    """

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        self._started = 0.0
        self.seconds = 0.0
        """Spent on compiling until now."""

    def watch(self) -> None:
        """Start from here. Where nothing is to be compiled there is nothing to follow, and Dynamo is not imported."""
        if self._declared:
            from torch._dynamo.callback import callback_handler

            callback_handler.register_start_callback(self._on_start)
            callback_handler.register_end_callback(self._on_end)

    def close(self) -> None:
        """Follow no longer."""
        if self._declared:
            from torch._dynamo.callback import callback_handler

            with suppress(ValueError):  # a reset has already forgotten them
                callback_handler.remove_start_callback(self._on_start)
                callback_handler.remove_end_callback(self._on_end)

    def outside(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook, which Dynamo leaves alone: it would trace it on its way to the model, and break graphs over it."""
        return torch.compiler.disable(hook) if self._declared else hook

    def found(self, eager_passes: int) -> Compilation | None:
        """What was compiled since; none where nothing was to be.

        Args:
            eager_passes: forward passes in training whose result came out of no compiled graph.
        """
        if not self._declared:
            return None
        from torch._dynamo.utils import counters

        said = options(self._declared)
        return Compilation(
            backend=said["backend"],
            mode=said.get("mode", ""),
            graphs=graphs(),
            breaks={str(reason).splitlines()[0][:200]: count for reason, count in counters["graph_break"].items()},
            eager_passes=eager_passes,
        )

    def _on_start(self, args: Any) -> None:
        self._started = perf_counter()

    def _on_end(self, args: Any) -> None:
        self.seconds += perf_counter() - self._started
