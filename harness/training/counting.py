"""What a step does, in numbers that no other process changes: counted in further steps of the loop, on a copy."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from harness.record import Counters
from harness.training import devices
from harness.training.further import Onlooker, further, take
from harness.training.workload import Workload

COUNTED = 1
"""The step that is counted, from 0: the first makes what all others use, such as the state of the optimizer."""

LAUNCHES = 2
"""The step in which kernels are counted, where there is a device that is launched on: a profiler is in the way of other
counts."""

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal")
"""Operators that hand a number of the device to the host, or make a tensor whose size only the device knows."""

_aten = torch.ops.aten
KIN = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _aten._scaled_dot_product_flash_attention_backward,
}
"""Operators that torch's formulas leave out, and those with the same arguments and products whose formula they have."""


def counters(work: Workload) -> Counters:
    """Operators, bytes and waits of the second step of the same loop over the same batches.

    What cannot be counted has its reason in the place of figures.
    """
    if work.fault is not None:
        return Counters(reason="not counted where a fault is seeded")
    if work.train.compile:
        return Counters(reason="not counted where steps are compiled: what is compiled dispatches no operators")
    try:
        return _counted(work)
    except Exception as error:  # whatever a model does under a dispatch mode: the training is not to blame
        return Counters(reason=f"{type(error).__name__}: {error}"[:500])


def _counted(work: Workload) -> Counters:
    own = further(work, (LAUNCHES if work.device.torch.type == "cuda" else COUNTED) + 1)
    counting = Counting(work.device, own.model)
    try:
        take(own, counting)
    finally:
        counting.close()
    return counting.found()


class Counting(Onlooker):
    """Told of the steps of a loop, counts what one of them does, and in another what is launched."""

    def __init__(self, device: devices.Device, model: Any) -> None:
        self._device = device
        self._dispatched = Dispatched(device.torch.type)
        self._saved = Saved(model)
        self._profile: Any = None
        self._step = 0
        self._counting = ExitStack()
        self._peak_bytes: int | None = None
        self._kernels: int | None = None

    def step_done(self, loss: Any, norm: Any = None) -> None:
        """End what counts the step, begin what counts the next."""
        self.close()
        self._step += 1
        if self._step == COUNTED:
            self._counting.callback(self._read_peak)
            self._reset_peak()
            self._counting.enter_context(self._saved.following(self._dispatched))
            self._counting.enter_context(self._dispatched)
        elif self._step == LAUNCHES and self._device.torch.type == "cuda":
            self._counting.callback(self._read_kernels)
            self._profile = self._counting.enter_context(_launches())

    def close(self) -> None:
        """Count no longer."""
        self._counting.close()

    def found(self) -> Counters:
        """All that was counted."""
        return Counters(
            step=COUNTED,
            operators=self._dispatched.operators,
            flops=self._dispatched.flops,
            moved_bytes=self._dispatched.moved_bytes,
            host_waits=self._dispatched.host_waits,
            saved_bytes=self._saved.bytes,
            kernels=self._kernels,
            peak_bytes=self._peak_bytes,
        )

    def _reset_peak(self) -> None:
        if self._device.torch.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device.torch)

    def _read_peak(self) -> None:
        if self._device.torch.type == "cuda":
            self._peak_bytes = torch.cuda.max_memory_allocated(self._device.torch)

    def _read_kernels(self) -> None:
        self._kernels = kernels(self._profile.events())


class Dispatched(TorchDispatchMode):
    """Counts operators below autograd: those of both passes, of the optimizer and of the loop itself.

    Args:
        device: kind of the one that the model is on.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self._device = device
        self.operators = 0
        self.flops = 0
        self.moved_bytes = 0
        """Read and written by operators, each by itself: what one leaves in a cache for the next is counted, too."""
        self.host_waits = 0
        """Operators after which the host has a number of the device; on a processor those that would wait elsewhere."""
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count it, and let it run."""
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            self.operators += 1
            self.flops += flops(func, args, kwargs or {}, result)
            if not func.is_view:
                self.moved_bytes += _bytes((args, kwargs)) + _bytes(result)
            self.host_waits += waits(func, args, kwargs or {}, result, self._device)
        return result


def flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Floating-point operations by torch's formulas: of products, convolutions and attention, and of nothing else."""
    packet = KIN.get(func.overloadpacket, func.overloadpacket)
    return int(flop_registry[packet](*args, **kwargs, out_val=result)) if packet in flop_registry else 0


def waits(func: Any, args: Any, kwargs: Any, result: Any, device: str = "cpu") -> bool:
    """Whether the host has to wait for the device to run it; a number that is on the host already it can just read."""
    if func.overloadpacket.__name__ in READS:
        return any(isinstance(one, torch.Tensor) and one.device.type == device for one in args)
    if kwargs.get("non_blocking") or not isinstance(result, torch.Tensor) or result.device.type != "cpu":
        return False
    return any(isinstance(one, torch.Tensor) and one.device.type not in ("cpu", "meta") for one in args)


class Saved:
    """Bytes that autograd keeps for the backward passes: each storage once, and none that the model has anyway."""

    def __init__(self, model: Any) -> None:
        self._known = {_storage(one): 0 for one in (*model.parameters(), *model.buffers())}

    @property
    def bytes(self) -> int:
        """Of all micro-batches of the step together."""
        return sum(self._known.values())

    def following(self, dispatched: Dispatched) -> saved_tensors_hooks:
        """What is saved while this is entered; it is no operator of the step."""

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            dispatched.paused = True
            # A reference to the storage that does not keep it alive, and lets no other be at its address.
            self._known.setdefault(_storage(tensor), tensor.untyped_storage().nbytes())
            kept = tensor.detach()  # itself would be a circle where it is the operator's own result
            dispatched.paused = False
            return kept

        return saved_tensors_hooks(pack, lambda tensor: tensor)


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _bytes(values: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tree_leaves(values) if isinstance(one, torch.Tensor))


def _launches() -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    return torch.profiler.profile(activities=activities)


def kernels(events: Any) -> int:
    """How many of a profiler's events are kernels that ran on a device: neither copies nor ranges that bear a name."""
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA  # no two of these are one object
        and not event.is_user_annotation
        and not event.name.startswith(("Memcpy", "Memset"))
        for event in events
    )
