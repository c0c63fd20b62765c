"""`torch.compile`: what it is asked for, what a machine lacks for it, and what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from time import perf_counter
from typing import Any

import torch

from harness.errors import Unavailable
from harness.record import Compilation
from harness.training import choice
from harness.training.choice import GAIN, Trial, in_turns
from harness.training.devices import Device

Declared = bool | str
"""``train.compile``: false, true, a mode of inductor's, or ``aot_eager``; before it is settled, also ``auto``."""
GRAPHED = ("reduce-overhead", "max-autotune")
"""Modes that replay CUDA graphs."""
EXPECTED = 25.0
"""Seconds that compiling for a length is expected to take: processor time on two layers of BERT, the least that was
measured, with nothing in inductor's cache; six layers took up to twice as long (benchmarks/README.md)."""


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


def require(declared: Declared, device: Device, accumulation: int = 1) -> None:
    """See to it that the machine has what inductor generates code with, and that its CUDA graphs can be used.

    Args:
        declared: ``train.compile``.
        device: of the case.
        accumulation: micro-batches in a step.

    Raises:
        Unavailable: it has not, or they cannot; says what is missing.
    """
    if not declared or declared == "aot_eager":
        return
    if declared in GRAPHED and accumulation > 1 and device.torch.type == "cuda":
        raise Unavailable(
            f"no {declared} with train.gradient_accumulation on {device.name}: the CUDA graph of a micro-batch "
            "overwrites the gradients of the one before (pytorch#169545)"
        )
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


def settle(declared: Declared, trial: Trial, *, passes: int, packed: bool) -> tuple[Declared, str]:
    """How the model is to be compiled, and why that was chosen.

    Args:
        declared: ``train.compile``; `require` has been asked of any other than ``auto``.
        trial: of the model.
        passes: micro-batches of the whole training.
        packed: whether they are, so that each is of another shape.
    """
    if declared != "auto":
        return declared, ""
    if packed:
        return False, "not compiled: sequences are packed, and each batch would be of another shape"
    return choice.settle(
        declared,
        lambda: require(True, trial.device),
        lambda: _measured(trial, passes),
        cannot="not compiled",
        so_declared="",
    )


def _measured(trial: Trial, passes: int) -> tuple[bool, str]:
    """It has to save a tenth of all that the training computes, itself included; and it is tried where trying is
    expected to cost no more than that tenth.
    """
    batches = trial.batches()
    whole, said = uncompiled(trial, batches) * passes, f"{passes} micro-batches"
    expected = EXPECTED * min(_lengths(batches), 2)  # from the second on it is compiled for any
    if GAIN * whole < expected:
        said = f"{said} take about {whole:.3g} s uncompiled, compiling {expected:g} s or more"
        return False, f"not compiled, nor is it tried: {said}"
    try:
        took = compared(trial, batches)
    except Exception as error:  # whatever a compiler makes of a model: nobody has asked for it
        return False, f"not compiled: it was tried, and failed: {type(error).__name__}: {error}".splitlines()[0][:300]
    if took is None:
        return False, "not compiled: it was tried, and each length is compiled anew, or nothing at all"
    compiling, fast, slow = took
    pays = compiling + fast * passes < (1 - GAIN) * slow * passes
    said = f"{compiling:.3g} s, and then {fast:.3g} s a micro-batch instead of {slow:.3g} s, for {said}"
    return pays, f"{'compiled' if pays else 'not compiled'}, by a measurement: compiling takes {said}"


def uncompiled(trial: Trial, batches: list[Any]) -> float:
    """Seconds of a forward and a backward pass, after one that warms up."""
    model = trial.copied()
    trial.passes(model, batches[:1])
    started = perf_counter()
    trial.passes(model, batches)
    return (perf_counter() - started) / len(batches)


def compared(trial: Trial, batches: list[Any]) -> tuple[float, float, float] | None:
    """Seconds of compiling, of a pass then, and of one uncompiled, in turns; none where nothing is compiled, or a third
    length once more.
    """
    following = Compiling(True)
    with afresh(True):
        following.watch()
        own = compiled(trial.copied(), True)
        trial.passes(own, batches)
        compiling = following.seconds
        if _lengths(batches) > 1:
            trial.passes(own, [_shorter(batches[0])])
        ways = {"own": own, "plain": trial.copied()}
        took = in_turns({name: partial(trial.passes, way, batches) for name, way in ways.items()})
        following.close()
        if not graphs() or following.seconds > compiling:
            return None
    fast, slow = (took[name][0] / len(batches) for name in ways)
    return compiling, fast, slow


def _lengths(batches: list[Any]) -> int:
    return len({batch["input_ids"].shape[-1] for batch in batches})


def _shorter(batch: Any) -> dict[str, torch.Tensor]:
    """The batch without its last column, laid out as a collator does: else it would be compiled for its strides."""
    columns = batch["input_ids"].shape[-1]
    cut = {name: one.dim() > 1 and one.shape[-1] == columns for name, one in batch.items()}
    return {name: one[..., :-1].contiguous() if cut[name] else one for name, one in batch.items()}


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


@contextmanager
def beside(declared: Declared) -> Iterator[None]:
    """What is compiled inside is none of the training's: an evaluation has graphs of its own."""
    if not declared:
        yield
        return
    from torch._dynamo.utils import counters

    before = {name: Counter(each) for name, each in counters.items()}
    try:
        yield
    finally:
        counters.clear()
        counters.update(before)


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

    def found(self, eager_passes: int, reason: str = "") -> Compilation | None:
        """What was compiled since; none where nothing was to be.

        Args:
            eager_passes: forward passes in training whose result came out of no compiled graph.
            reason: why it was chosen to compile, or not.
        """
        if not self._declared:
            return Compilation(reason=reason) if reason else None
        from torch._dynamo.utils import counters

        said, breaks = options(self._declared), Counter[str]()
        for why, times in counters["graph_break"].items():  # of several reasons the first line may be the same
            breaks[str(why).partition("\n")[0][:200]] += times
        return Compilation(
            backend=said["backend"],
            mode=said.get("mode", ""),
            graphs=graphs(),
            breaks=breaks,
            eager_passes=eager_passes,
            reason=reason,
        )

    def _on_start(self, args: Any) -> None:
        self._started = perf_counter()

    def _on_end(self, args: Any) -> None:
        self.seconds += perf_counter() - self._started
