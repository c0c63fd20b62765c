"""Evaluation in each of the training loops, side by side, of one signature: ``evaluate(work) -> Reported``.

Each does it as its users do, and leaves the model as it was.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from harness.training.devices import accelerate_on
from harness.training.metrics import measure
from harness.training.split import Reported, Split, weighted
from harness.training.tasks import Answer
from harness.training.workload import Workload

Evaluate = Callable[[Workload], Reported]


def custom(work: Workload) -> Reported:
    """The evaluation of the textbook, in plain PyTorch."""
    model, split, task = work.model, split_of(work), work.task
    losses: list[tuple[float, int]] = []
    answers: list[Answer] = []
    with as_found(model), torch.no_grad():
        model.eval()
        for number, batch in enumerate(batches(work)):
            batch = batch.to(work.device.torch)
            with work.autocast():
                output = model(**batch)
            labels = {name: batch[name] for name in task.labels}
            losses.append((work.loss(output, batch).item(), task.terms(labels)))  # a mean weighs as much as it is over
            kept = task.kept([getattr(output, name) for name in task.outputs], labels)
            features = split.drawn.queue[number].features
            answers += task.answers([one.cpu() for one in kept], _on_cpu(labels), features, work.tokenizer)
    return _reported(split, losses, answers)


def trainer(work: Workload) -> Reported:
    """`transformers.Trainer.evaluate`, with its own loss, and metrics through ``compute_metrics``."""
    from harness.training.accelerator import release  # a second of imports: only who uses it waits
    from harness.training.trainer import EvaluatingTrainer, arguments

    with tempfile.TemporaryDirectory(prefix="harness-trainer-") as folder, accelerate_on(work.device.torch):
        with _as_drawn():  # the Trainer seeds every generator when it is made
            run = EvaluatingTrainer(work=work, model=work.model, args=arguments(work, folder))
        run.evaluate()
        release(work.model)
    return run.reported


def accelerate(work: Workload) -> Reported:
    """The evaluation of Accelerate's guides, with ``gather_for_metrics``."""
    from harness.training.accelerator import accelerator_for, release

    with accelerate_on(work.device.torch):
        accelerator = accelerator_for(work)
        model = accelerator.prepare_model(work.model, evaluation_mode=True)
        reported = with_accelerator(work, accelerator, model)
        release(work.model)
    return reported


def with_accelerator(work: Workload, accelerator: Any, model: Any) -> Reported:
    """The same in the midst of a training, with its own accelerator and the model as that has prepared it."""
    split, task = split_of(work), work.task
    losses: list[tuple[float, int]] = []
    answers: list[Answer] = []
    prepared = accelerator.prepare_data_loader(loader(work, split.drawn.noting(work.evaluation_collator())))
    with as_found(model):
        model.eval()
        for number, batch in enumerate(prepared):
            with torch.no_grad():
                output = model(**batch)
            labels = {name: batch[name] for name in task.labels}
            losses.append((work.loss(output, batch).item(), task.terms(labels)))
            kept = task.kept([getattr(output, name) for name in task.outputs], labels)
            kept, labels = accelerator.gather_for_metrics((kept, labels))
            features = split.drawn.queue[number].features
            answers += task.answers([one.cpu() for one in kept], _on_cpu(labels), features, work.tokenizer)
    return _reported(split, losses, answers)


EVALUATIONS: dict[str, Evaluate] = {"custom": custom, "trainer": trainer, "accelerate": accelerate}


def _reported(split: Split, losses: list[tuple[float, int]], answers: list[Answer]) -> Reported:
    return Reported({"loss": weighted(losses), **measure(split.metrics, answers, split.label_names)}, tuple(answers))


def split_of(work: Workload) -> Split:
    """The split; who evaluates knows that there is one."""
    assert work.split is not None
    return work.split


def batches(work: Workload) -> Iterator[Any]:
    """The batches of the split on the CPU, in its order."""
    return iter(loader(work, split_of(work).drawn.noting(work.evaluation_collator())))


def loader(work: Workload, collate: Any) -> DataLoader[Any]:
    """A loader of the split, each example once.

    It has a generator of its own: a loader draws from one whenever it begins, and the dropout of the training draws
    from torch's.
    """
    split = split_of(work)
    split.drawn.queue.clear()
    return DataLoader(
        split.examples, batch_size=split.batch_size, collate_fn=collate, generator=torch.Generator().manual_seed(0)
    )


@contextmanager
def as_found(model: Any) -> Iterator[None]:
    """Put every module back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _as_drawn() -> Iterator[None]:
    """Put every random generator back to where it was."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _on_cpu(labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in labels.items()}
