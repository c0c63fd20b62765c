"""The seeded model, optimizer and batches that all loops share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch.utils.data import DataLoader
from transformers import get_scheduler

from harness import experiment
from harness.errors import CheckpointError, DataError, Unavailable
from harness.schedule import warmup
from harness.training import allocator, attention, compilation, data, encoding, optimizer, packing, split, tokenizer
from harness.training.checkpoint import Loaded
from harness.training.choice import Trial
from harness.training.devices import Device, matmul_precision
from harness.training.order import EpochOrder
from harness.training.resume import NOWHERE, Keeping
from harness.training.rows import Table
from harness.training.split import Reported, Split
from harness.training.tasks import Collator, Task, task_of

if TYPE_CHECKING:
    from harness.training.fault import Fault


MEASURED = 3
"""Batches on which a choice is measured."""


class Watching(Protocol):
    """Whoever is told of a loop's steps."""

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """The loop is about to fetch its first batch; `scaler` is that of the loss, if there is one."""

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """A step is over; `loss` is what was back-propagated, `norm` that of the gradients before they were clipped."""

    def evaluate(self, evaluation: Callable[[], Reported]) -> None:
        """Evaluate between two steps; the time it takes belongs to neither."""

    def kept(self) -> None:
        """The checkpoint of the step that is over has been written."""


@dataclass(frozen=True)
class Workload:
    """What a loop needs to train: it decides only how."""

    model: Any
    """On the device, in the weights' precision, untouched by any step."""
    task: Task
    tokenizer: Any
    examples: data.Examples | data.Ahead
    max_length: int
    settings: experiment.Settings
    """All that is declared; a probe may train under another `train` or `precision` than it says."""
    train: experiment.Train
    precision: str
    device: Device
    drawn: data.Drawn
    split: Split | None = None
    """What it is evaluated on; none where nothing is declared."""
    attention_reason: str = ""
    """Why attention is computed as it is."""
    memory_reason: str = ""
    """Why memory that a step frees is kept, or not."""
    compile_reason: str = ""
    """Why the model is compiled, or not; empty where that is declared."""
    keeping: Keeping = NOWHERE
    """Where the loop writes a checkpoint, or goes on from one."""
    fault: Fault | None = None
    """What is wrong on purpose: another process that goes on with the case makes the same mistake."""

    def optimizer(self) -> torch.optim.Optimizer:
        """The declared one, over every trainable parameter in its declared group."""
        return optimizer.make(self.train, self.precision, optimizer.groups(self.model, self.train))

    def schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        """Transformers' own of the declared name, over all steps."""
        name = _SCHEDULES[self.train.schedule]
        return get_scheduler(name, optimizer, self.warmup_steps, self.train.steps)

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return warmup(self.train.steps, self.train.warmup_steps, self.train.warmup_ratio)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small gradients of an fp16 loss from becoming 0; of any other precision it passes everything on."""
        return torch.amp.GradScaler(self.device.torch.type, enabled=self.precision == "fp16")

    def order(self) -> EpochOrder | None:
        """Which example comes when; none where the examples come in an order already."""
        if isinstance(self.examples, data.Ahead):
            return None
        return EpochOrder(
            len(self.examples),
            self.train.seed_of_data,
            self.train.shuffle,
            batch_size=self.train.batch_size,
            lengths=self.examples.lengths if self.train.batching == "grouped" else None,
            drop_last=self.train.drop_last,
        )

    @property
    def padding(self) -> dict[str, Any]:
        """How batches are padded, as tokenizers say it; empty where it is to the longest row."""
        said: dict[str, Any] = {}
        if self.train.padding == "max_length":
            said |= {"padding": "max_length", "max_length": self.max_length}
        if self.train.pad_to_multiple_of is not None:
            said["pad_to_multiple_of"] = self.train.pad_to_multiple_of
        return {**said, **self._fixed}

    @property
    def _fixed(self) -> dict[str, Any]:
        return {} if self.fixed_length is None else {"padding": "max_length", "max_length": self.fixed_length}

    def collator(self) -> Collator:
        """Pads as declared: a new one each time, in the state in which a training begins."""
        return _padding(self.task.collator(self.tokenizer, self.model), self.padding)

    def plain_collator(self, *, longest: bool = False) -> Collator:
        """The same without anything random; it may leave out the labels.

        Args:
            longest: pad to the longest row, whatever is declared, if the model can take that.
        """
        plain = self.task.plain_collator(self.tokenizer, self.model) or self.task.collator(self.tokenizer, self.model)
        return _padding(plain, self._fixed if longest else self.padding)

    @property
    def fixed_length(self) -> int | None:
        """The one length in tokens that every batch must be padded to; None where any length will do."""
        return tokenizer.fixed_length(self.model.config)

    def loader(self) -> DataLoader[Any]:
        """Batches on the CPU, padded as declared: an epoch each time it is gone through."""
        order, collate = self.order(), self.drawn.noting(self.collator())
        options: dict[str, Any] = {} if order is None else {"sampler": order}
        options["pin_memory"] = self.device.torch.type == "cuda"  # for a copy that nobody waits for
        return DataLoader(self.examples, batch_size=self.train.batch_size, collate_fn=collate, **options)

    def windows(self, loader: Any = None) -> Iterator[list[Any]]:
        """The micro-batches of each step, epoch after epoch; the last step of an epoch has those that are left.

        Args:
            loader: that of `loader`, perhaps wrapped; by default a new one.
        """
        loader = self.loader() if loader is None else loader
        turns: Any = self.examples if isinstance(self.examples, data.Ahead) else loader.sampler
        turns = loader if hasattr(loader, "set_epoch") else turns  # Accelerate's hands it on
        made = 0
        for epoch in count():
            turns.set_epoch(epoch)
            batches = self.drawn.timing(iter(loader))
            while window := list(islice(batches, self.train.gradient_accumulation)):
                yield window
                made += 1
                if made == self.train.steps:
                    return

    def skip(self, windows: Iterator[list[Any]], steps: int) -> None:
        """Leave out the first steps: what they were trained on is drawn again, as it was, and not used."""
        for _ in range(steps):
            for _ in next(windows):
                self.drawn.queue.popleft()  # not all of them: Accelerate's loader is a batch ahead

    def first_batches(self) -> list[Any]:
        """A few batches on the device, to measure with: the first of the training, or of rows that it encodes on its
        way the first in the order of the source. Nothing that is drawn is noted.
        """
        size, collate, order = self.train.batch_size, self.collator(), self.order()
        indices = range(len(self.examples.lengths)) if order is None else order
        rows = [encoding.bare(self.examples[index]) for index in islice(indices, MEASURED * size)]
        lots = (rows[start : start + size] for start in range(0, len(rows), size))
        return [collate(lot).to(self.device.torch) for lot in lots]

    @property
    def trial(self) -> Trial:
        """With what ways to compute are tried."""
        return Trial(self.model, self.device, self.autocast, self.first_batches)

    def batches(self) -> Iterator[Any]:
        """The micro-batches of all steps, one after the other."""
        return chain.from_iterable(self.windows())

    def shares(self, window: list[Any]) -> list[float]:
        """The part of a step's loss that each micro-batch has: of the terms that the loss is a mean over."""
        terms = [self.task.terms(batch) for batch in window]
        whole = sum(terms)
        return [own / whole if whole else 1.0 for own in terms]

    def terms(self, batch: Mapping[str, torch.Tensor]) -> int:
        """What a batch gives to learn: the terms that its loss is a mean over; 0 where its labels are lost."""
        return self.task.terms(batch) if all(name in batch for name in self.task.labels) else 0

    @property
    def labels_kept(self) -> bool:
        """Whether the loss is taken from the logits; the Trainer then keeps the labels from the model."""
        return self.train.label_smoothing > 0 or self.train.compute_loss_func

    def loss(self, outputs: Any, batch: Any) -> torch.Tensor:
        """The mean over a micro-batch: the model's own, or where labels are smoothed, torch's."""
        if not self.train.label_smoothing:
            return outputs.loss
        return self.task.torch_loss(outputs, batch["labels"], "mean")

    def evaluation_collator(self, *, longest: bool = False) -> Collator:
        """Pads batches of the split, as declared for training; or to the longest row, if the model can take that."""
        collator = self.task.evaluation_collator(self.tokenizer, self.model)
        return _padding(collator, self._fixed if longest else self.padding)

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation is declared in the midst of the training, after so many steps."""
        return bool(self.split and self.split.every and step % self.split.every == 0 and step < self.train.steps)

    @property
    def checkpointing(self) -> dict[str, Any]:
        """What torch's `checkpoint` is called with; dropout is drawn again from the state that it was drawn from."""
        return {"use_reentrant": False}

    def checkpoint_gradients(self, model: Any) -> None:
        """Let layers be computed again in the backward pass, if that is declared."""
        if self.train.gradient_checkpointing:
            checkpoint_layers(model, self.checkpointing)

    def compiled(self, model: Any) -> Any:
        """The model to call in the loop."""
        return compilation.compiled(model, self.train.compile)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass; weights stay as they are."""
        if self.precision in _AUTOCAST:
            return torch.autocast(self.device.torch.type, dtype=_AUTOCAST[self.precision])
        return nullcontext()

    def products(self) -> AbstractContextManager[Any]:
        """The precision of matrix products in fp32: in full, unless `tf32` is declared."""
        return matmul_precision("high" if self.precision == "tf32" else "highest")

    def memory(self) -> AbstractContextManager[Any]:
        """What becomes of the memory that steps free."""
        return allocator.kept() if self.train.keep_memory else nullcontext()


_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""As transformers names them."""


def _padding(collator: Collator, said: dict[str, Any]) -> Collator:
    """The collator, told how to pad; one that pads to a multiple alone is told that length, for no row is longer."""
    if "max_length" in said and not hasattr(collator, "max_length") and hasattr(collator, "pad_to_multiple_of"):
        said = {"pad_to_multiple_of": said["max_length"]}
    for name, value in said.items():
        if not hasattr(collator, name):
            raise CheckpointError(f"train.{name}: {type(collator).__name__}, which collates for the task, cannot")
        setattr(collator, name, value)
    return collator


def checkpoint_layers(model: Any, how: dict[str, Any]) -> None:
    """Let layers be computed again in the backward pass.

    Raises:
        Unavailable: the model has no layers that can be.
    """
    # As it was called until transformers 5.20.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable(how)
    except ValueError as error:
        raise Unavailable(f"no gradient checkpointing: {error}") from error


def keep_layers(model: Any) -> None:
    """Let layers be computed once, and what they gave be kept for the backward pass."""
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    disable()


def prepare(loaded: Loaded, settings: experiment.Settings, device: Device) -> Workload:
    """A fresh copy of the weights on the device, and the examples encoded."""
    max_length = encoding.longest(settings.train.max_length, loaded.tokenizer, loaded.model)
    task = task_of(settings)
    encode = encoding.encoder(task, loaded.tokenizer, max_length, encoding.positions(loaded.model))
    model = start(loaded.model, settings.precision).to(device.torch)
    attention.use(model, settings.train.attention, device)
    _require(settings.train, model, device)
    optimizer.freeze(model, settings.train.freeze)
    examples = data.examples(loaded.rows, encode, settings.train, settings.data.shuffle_buffer)
    settings = settings.model_copy(update={"train": with_steps(settings.train, examples)})
    work = Workload(
        model=model,
        task=task,
        tokenizer=loaded.tokenizer,
        examples=examples,
        max_length=max_length,
        settings=settings,
        train=settings.train,
        precision=settings.precision,
        device=device,
        drawn=data.Drawn(),
        split=split.prepare(loaded, settings, replace(encode, evaluating=True)),
        attention_reason=attention.reason(settings.train.attention),
    )
    return _keeping(_compiled(_packed(work)))


def _require(train: experiment.Train, model: Any, device: Device) -> None:
    """See to it that what is declared can be had, before a row is encoded.

    Raises:
        Unavailable: it cannot; says what is missing.
    """
    if train.gradient_checkpointing:
        checkpoint_layers(model, {})  # whether it can; the loop is who does it
        keep_layers(model)
    if train.packing is True:
        packing.require(model, device)
    if train.compile != "auto":
        compilation.require(train.compile, device, train.gradient_accumulation)
    if train.keep_memory is True:
        allocator.require(device)


def _packed(work: Workload) -> Workload:
    """The workload, whose model is packed if that is declared or faster; from here on it is declared, or not."""
    packs, reason = packing.settle(work.train.packing, work.trial)
    if packs:
        packing.use(work.model)
    return replace(_declaring(work, packing=packs), attention_reason=reason or work.attention_reason)


def _compiled(work: Workload) -> Workload:
    """The workload, whose model is compiled as declared, or if that pays within its steps."""
    passes, packed = work.train.steps * work.train.gradient_accumulation, bool(work.train.packing)
    said, reason = compilation.settle(work.train.compile, work.trial, passes=passes, packed=packed)
    return replace(_declaring(work, compile=said), compile_reason=reason)


def _keeping(work: Workload) -> Workload:
    """The workload, which keeps freed memory if that is declared or faster."""
    keeps, reason = allocator.settle(work.train.keep_memory, work.trial)
    return replace(_declaring(work, keep_memory=keeps), memory_reason=reason)


def _declaring(work: Workload, **chosen: bool | str) -> Workload:
    """The workload, as if what was chosen had been declared."""
    train = work.train.model_copy(update=chosen)
    return replace(work, train=train, settings=work.settings.model_copy(update={"train": train}))


def start(model: Any, precision: str) -> Any:
    """A copy of the weights as a loop gets them: in bf16-pure, all but what is computed anew at each start.

    As `from_pretrained(dtype=torch.bfloat16)` does: buffers that are not saved, such as the frequencies of rotary
    positions, stay in fp32.
    """
    model = copy.deepcopy(model)
    if precision == "bf16-pure":
        saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        for tensor in (*model.parameters(), *model.buffers()):
            if id(tensor) in saved and tensor.is_floating_point():
                tensor.data = tensor.data.bfloat16()
    return model


def with_steps(train: experiment.Train, examples: data.Examples | data.Ahead) -> experiment.Train:
    """The same with epochs counted in steps."""
    if train.epochs is None:
        return train
    if isinstance(examples, data.Ahead) and not isinstance(examples.rows, Table):
        raise DataError("train.epochs: a stream has no known length; say train.steps")
    rows = len(examples) if isinstance(examples, data.Examples) else len(cast(Table, examples.rows))
    whole = train.drop_last and rows >= train.batch_size
    batches = rows // train.batch_size if whole else math.ceil(rows / train.batch_size)
    steps = math.ceil(batches / train.gradient_accumulation)
    return train.model_copy(update={"steps": max(1, math.ceil(train.epochs * steps))})
