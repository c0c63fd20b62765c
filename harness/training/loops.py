"""The training loops, side by side, of one signature: ``loop(work, watch)`` trains ``work.train.steps`` steps.

All start from the same weights, draw the same batches in the same order and step the same optimizer; `workload.py`
says which. A loop tells the watch when it begins and when a step is done, and is otherwise left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial

import torch
from transformers import set_seed

from harness.training import compilation, evaluation, resume
from harness.training.devices import accelerate_on
from harness.training.workload import Watching, Workload

Loop = Callable[[Workload, Watching], None]


def custom(work: Workload, watch: Watching) -> None:
    """The loop of the textbook, in plain PyTorch."""
    train = work.train
    work.checkpoint_gradients(work.model)
    model = work.compiled(work.model)
    optimizer = work.optimizer()
    schedule = work.schedule(optimizer)
    scaler = work.scaler()
    set_seed(train.seed_of_dropout)  # dropout draws from here on
    model.train()  # from_pretrained returns a model in eval mode, with dropout off
    windows, state = work.windows(), {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    if done := work.keeping.done:  # it goes on from a checkpoint
        work.skip(windows, done)
        resume.load(work.keeping.folder, **state)  # last: nothing may be drawn after the random state is back

    watch.begin(optimizer, scaler)
    for step, window in enumerate(windows, start=done + 1):  # the micro-batches of one step
        step_loss, norm = torch.zeros((), device=work.device.torch), None
        for batch, share in zip(window, work.shares(window), strict=True):
            batch = batch.to(work.device.torch, non_blocking=True)
            with work.autocast():  # the backward pass runs outside: it uses the dtypes of the forward
                loss = work.loss(model(**batch), batch)
            if share == 0:
                continue  # nothing to learn from: a mean over nothing is no number
            loss = loss * share  # a mean over the whole step; a mean of means would weigh short micro-batches more
            scaler.scale(loss).backward()
            step_loss += loss.detach()
        if train.max_grad_norm is not None:
            scaler.unscale_(optimizer)  # else the limit would be on the scaled gradients
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.max_grad_norm)
        scale = scaler.get_scale()
        scaler.step(optimizer)  # left out where a gradient has overflowed
        scaler.update()
        if scaler.get_scale() >= scale:
            schedule.step()  # after the optimizer: the first update uses the first rate
        optimizer.zero_grad()
        watch.step_done(step_loss, norm)
        if work.evaluates_after(step):
            watch.evaluate(partial(evaluation.custom, work))
        if work.keeping.due(step):
            resume.save(work.keeping.folder, **state)
            watch.kept()


def trainer(work: Workload, watch: Watching) -> None:
    """`transformers.Trainer`, with its own data loader, autocast, accumulation, clipping and stepping.

    What differs from its defaults is what the experiment declares: the optimizer and schedule go in through
    ``optimizers``, the order of examples through the sampler, the task's collator.
    """
    from harness.training.accelerator import release  # a second of imports: only who uses it waits
    from harness.training.trainer import WatchedTrainer, arguments

    optimizer = work.optimizer()
    with work.keeping.place("harness-trainer-") as folder, accelerate_on(work.device.torch):
        run = WatchedTrainer(
            work=work,
            watch=watch,
            model=work.model,
            args=arguments(work, folder),
            train_dataset=work.examples,
            data_collator=work.collator(),
            processing_class=work.tokenizer,
            optimizers=(optimizer, work.schedule(optimizer)),
        )
        set_seed(work.train.seed_of_dropout)
        run.train(resume_from_checkpoint=str(work.keeping.folder) if work.keeping.done else None)
        release(work.model)


def accelerate(work: Workload, watch: Watching) -> None:
    """The loop of Accelerate's guides, with the loss divided by all that a step is to learn.

    Not with its ``accumulate``, which would count micro-batches, and take a mean of means: see "Gradient accumulation
    on training samples of variable size" at https://huggingface.co/docs/accelerate/usage_guides/gradient_accumulation.
    """
    from harness.training.accelerator import accelerator_for, release

    train = work.train
    with accelerate_on(work.device.torch):
        accelerator = accelerator_for(work)
        optimizer = work.optimizer()
        work.checkpoint_gradients(work.model)
        model, optimizer, loader, schedule = accelerator.prepare(
            work.model, optimizer, work.loader(), work.schedule(optimizer)
        )
        set_seed(train.seed_of_dropout)
        model.train()
        windows = work.windows(loader)
        if done := work.keeping.done:
            work.skip(windows, done)  # before the random state is loaded: an epoch that begins draws a number
            accelerator.load_state(work.keeping.folder)

        watch.begin(optimizer, accelerator.scaler)
        for step, window in enumerate(windows, start=done + 1):
            step_loss, norm = torch.zeros((), device=accelerator.device), None
            for batch, share in zip(window, work.shares(window), strict=True):
                loss = work.loss(model(**batch), batch)
                if share == 0:
                    continue
                loss = loss * share
                accelerator.backward(loss * accelerator.gradient_accumulation_steps)  # which divides by them
                step_loss += loss.detach()
            if train.max_grad_norm is not None:
                norm = accelerator.clip_grad_norm_(model.parameters(), train.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            watch.step_done(step_loss, norm)
            if work.evaluates_after(step):
                watch.evaluate(partial(evaluation.with_accelerator, work, accelerator, model))
            if work.keeping.due(step):
                accelerator.save_state(work.keeping.folder)
                watch.kept()
        release(work.model)


def _afresh(loop: Loop) -> Loop:
    """The loop, with nothing compiled before it."""

    @functools.wraps(loop)
    def run(work: Workload, watch: Watching) -> None:
        with compilation.afresh(work.train.compile):
            loop(work, watch)

    return run


LOOPS: dict[str, Loop] = {loop.__name__: _afresh(loop) for loop in (custom, trainer, accelerate)}
