"""How much a step computes, and how much the device could: outside of the timed steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.record import Batch, Efficiency, Flops, Steps
from harness.training.ceiling import Ceilings
from harness.training.twin import copied
from harness.training.watch import shape_of
from harness.training.workload import Workload, keep_layers

MOST = 4
"""Shapes of batches that are counted, the commonest first: each takes a forward and a backward pass."""

DTYPES = {"bf16": torch.bfloat16, "bf16-pure": torch.bfloat16, "fp16": torch.float16}
"""In which matrix products are computed; fp32 in other precisions."""


def efficiency(work: Workload, steps: Steps, batches: Sequence[Batch], ceilings: Ceilings) -> Efficiency:
    """Operations of a step by the shapes of its batches, and what the device does at most.

    What cannot be counted or measured has its reason in the place of figures.
    """
    dtype = DTYPES.get(work.precision, torch.float32)
    try:
        with work.products():
            flops = _counted(work, _commonest(steps, batches))
            return Efficiency(
                flops=flops,
                ceiling=_above(steps, flops, partial(ceilings.products, work.device, dtype)),
                dtype=str(dtype).removeprefix("torch."),
                bandwidth=_bandwidth(work, ceilings),
            )
    except Exception as error:  # whatever a model does under a counter: the training is not to blame
        return Efficiency(reason=f"{type(error).__name__}: {error}"[:500])


def _bandwidth(work: Workload, ceilings: Ceilings) -> float | None:
    """None where there is no memory left for its arrays: the other figures stand."""
    try:
        return ceilings.bandwidth(work.device)
    except (MemoryError, RuntimeError):  # torch's allocator on a processor raises the latter
        return None


def _above(steps: Steps, flops: Sequence[Flops], ceiling: Callable[..., float | None]) -> float | None:
    """The ceiling; measured again where a step was faster, for the machine may have been busy when it was measured."""
    known = {each.shape: each.forward + each.backward for each in flops}
    found = ceiling()
    for micro, seconds in zip(steps.shapes, steps.seconds, strict=True):
        if found is not None and sum(known.get(shape, 0) for shape in micro) > found * seconds:
            return ceiling(again=True)
    return found


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
    backward = counter.get_total_flops() - forward
    real = int(batch["attention_mask"].sum()) if "attention_mask" in batch else 0
    return Flops(shape=shape_of(batch), forward=forward, backward=backward, real_tokens=real)
