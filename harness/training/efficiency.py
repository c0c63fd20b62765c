"""How much a step computes, and how much the device could: outside of the timed steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.record import Batch, Efficiency, Flops, Steps
from harness.training.devices import Device
from harness.training.timing import HostMarks, marks_of
from harness.training.twin import copied
from harness.training.watch import shape_of
from harness.training.workload import Workload, keep_layers

MOST = 4
"""Shapes of batches that are counted, the commonest first: each takes a forward and a backward pass."""

SIZES = {"cpu": (256, 512, 1024), "cuda": (2048, 4096, 8192)}
"""Of the square matrices whose products are timed: where the largest is not the fastest, another is."""

BUDGET = 0.03
"""Seconds for the products of one size; the fastest counts, which other processes have least to do with."""

DTYPES = {"bf16": torch.bfloat16, "bf16-pure": torch.bfloat16, "fp16": torch.float16}
"""In which matrix products are computed; fp32 in other precisions."""


def efficiency(work: Workload, steps: Steps, batches: Sequence[Batch]) -> Efficiency:
    """Operations of a step by the shapes of its batches, and the most matrix products a second.

    What cannot be counted or timed has its reason in the place of figures.
    """
    dtype = DTYPES.get(work.precision, torch.float32)
    try:
        with work.products():
            return Efficiency(
                flops=_counted(work, _commonest(steps, batches)),
                ceiling=ceiling(work.device, dtype),
                dtype=str(dtype).removeprefix("torch."),
            )
    except Exception as error:  # whatever a model does under a counter: the training is not to blame
        return Efficiency(reason=f"{type(error).__name__}: {error}"[:500])


def _commonest(steps: Steps, batches: Sequence[Batch]) -> list[dict[str, torch.Tensor]]:
    """A kept batch of each shape, those of most micro-batches first."""
    often = Counter(shape for step in steps.shapes for shape in step)
    found: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
    for batch in batches:
        tensors = {name: torch.tensor(column) for name, column in batch.tensors.items()}
        found.setdefault(shape_of(tensors), tensors)
    return [found[shape] for shape, _ in often.most_common() if shape in found][:MOST]


def _counted(work: Workload, batches: Sequence[dict[str, torch.Tensor]]) -> tuple[Flops, ...]:
    model = copied(work.model)
    keep_layers(model)  # what is computed again in the backward pass is no work of the model
    devices = [work.device.torch] if work.device.torch.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), sdpa_kernel(SDPBackend.MATH):  # the counter knows its products
        return tuple(_count(work, model, batch) for batch in batches)


def _count(work: Workload, model: Any, batch: dict[str, torch.Tensor]) -> Flops:
    counter = FlopCounterMode(display=False)
    with counter:
        with work.autocast():
            output = model(**{name: tensor.to(work.device.torch) for name, tensor in batch.items()})
            loss = output.loss if output.loss is not None else output.logits.float().sum()
        forward = counter.get_total_flops()
        loss.backward()
    return Flops(shape=shape_of(batch), forward=forward, backward=counter.get_total_flops() - forward)


def ceiling(device: Device, dtype: torch.dtype) -> float | None:
    """The most operations a second of a product of matrices, of several sizes; none on devices of other kinds."""
    found = [_fastest(device, size, dtype) for size in SIZES.get(device.torch.type, ())]
    return max(found, default=None)


def _fastest(device: Device, size: int, dtype: torch.dtype) -> float:
    marks = marks_of(device.torch) or HostMarks()
    one, two = (torch.randn(size, size, device=device.torch).to(dtype) for _ in range(2))
    out = one @ two  # the first chooses a kernel
    device.wait()
    taken: list[float] = []
    while sum(taken) < BUDGET:
        first = marks.make()
        torch.matmul(one, two, out=out)
        taken.append(marks.between(first, marks.make()))
    return 2 * size**3 / min(taken)
