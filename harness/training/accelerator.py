"""`accelerate.Accelerator` as the `accelerate` loop uses it."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, TorchDynamoPlugin

from harness.training.compilation import options
from harness.training.workload import Workload


def accelerator_for(work: Workload) -> Accelerator:
    """What the experiment declares, in Accelerate's words."""
    # Its state is one for the whole process; the Trainer also forgets it before it begins.
    AcceleratorState._reset_state(reset_partial_state=True)
    with work.products():  # where it compiles, it turns TF32 on
        return Accelerator(
            cpu=work.device.torch.type == "cpu",
            mixed_precision=work.precision if work.precision in ("bf16", "fp16") else "no",
            gradient_accumulation_steps=work.train.gradient_accumulation,
            dynamo_plugin=TorchDynamoPlugin(**options(work.train.compile)) if work.train.compile else None,
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),  # one process fetches its own
        )


def release(model: Any) -> None:
    """Take off a model what Accelerate, or the Trainer through it, has hung on it: its autocast, and its mark.

    ``unwrap_model`` leaves the mark, and a model that bears it is taken for prepared: the next training would be in
    fp32, and not compiled.
    """
    hung = vars(model)
    original = hung.pop("_original_forward", None)
    if original is not None:
        hung.pop("forward", None)
        if original != model.forward:  # it was another than that of its class before
            model.forward = original
    hung.pop("_is_accelerate_prepared", None)
