"""The training loops, side by side, of one signature: ``loop(work, watch)`` trains ``work.train.steps`` steps.

All start from the same weights, draw the same batches in the same order and step the same optimizer; `workload.py`
says which. A loop tells the watch when it begins and when a step is done, and is otherwise left alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import set_seed

from harness.training.workload import Watching, Workload

Loop = Callable[[Workload, Watching], None]


def custom(work: Workload, watch: Watching) -> None:
    """The loop of the textbook, in plain PyTorch."""
    model = work.model
    optimizer = work.optimizer()
    schedule = work.schedule(optimizer)
    set_seed(work.train.seed)  # dropout draws from here on
    model.train()  # from_pretrained returns a model in eval mode, with dropout off

    watch.begin(optimizer)
    for batch in work.batches():
        batch = batch.to(work.device.torch)
        with work.autocast():  # the backward pass runs outside: it uses the dtypes of the forward
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()  # after the optimizer: the first update uses the first rate
        optimizer.zero_grad()
        watch.step_done(loss)


def trainer(work: Workload, watch: Watching) -> None:
    """`transformers.Trainer`, with its own data loader, collator, autocast and stepping.

    What differs from its defaults is what the experiment declares: the optimizer and schedule go in through
    ``optimizers``, the order of examples through the sampler; gradients are not clipped.
    """
    from harness.training.trainer import WatchedTrainer, arguments  # a second of imports: only who uses it waits

    optimizer = work.optimizer()
    with tempfile.TemporaryDirectory(prefix="harness-trainer-") as folder, _accelerate_on(work.device.torch):
        run = WatchedTrainer(
            work=work,
            watch=watch,
            model=work.model,
            args=arguments(work, folder),
            train_dataset=work.examples,
            processing_class=work.tokenizer,
            # Its own pads to the longest of the batch.
            data_collator=work.collator() if work.fixed_length else None,
            optimizers=(optimizer, work.schedule(optimizer)),
        )
        set_seed(work.train.seed)
        run.train()


LOOPS: dict[str, Loop] = {"custom": custom, "trainer": trainer}


@contextmanager
def _accelerate_on(device: torch.device) -> Iterator[None]:
    """Accelerate, below the Trainer, takes the first GPU unless this variable names another."""
    name = "ACCELERATE_TORCH_DEVICE"
    before = os.environ.get(name)
    if device.type == "cuda" and device.index:
        os.environ[name] = str(device)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
