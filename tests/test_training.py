"""Training: both loops do the same, and what they leave is what happened."""

import os
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

import pytest
import torch
import trial
from hypothesis import given
from hypothesis import strategies as st
from transformers import BatchEncoding, DataCollatorWithPadding, Trainer
from transformers.utils import logging
from trial import CEILINGS, LABELS, SEQUENCES, case

from harness.account import phases
from harness.plan import Case
from harness.record import Record
from harness.training import data, encoding, environment, loops, run, watch
from harness.training.checkpoint import Shelf
from harness.training.data import Drawn
from harness.training.devices import Device
from harness.training.order import EpochOrder
from harness.training.timing import StepClock
from harness.training.watch import Watch
from harness.training.workload import Workload

pytestmark = pytest.mark.usefixtures("one_thread")

LOOPS = ("custom", "trainer", "accelerate")
SHELF = Shelf(ceilings=CEILINGS)
train, attempt = partial(trial.train, shelf=SHELF), partial(trial.attempt, shelf=SHELF)


def each(**said: Any) -> tuple[Record, Record, Record]:
    """The records of the custom loop, the Trainer and Accelerate's loop, of what is otherwise the same case."""
    settings = said.pop("train", {})
    custom, trainer, accelerate = (train(case(train={**settings, "loop": loop}, **said)) for loop in LOOPS)
    return custom, trainer, accelerate


# All loops


@pytest.mark.parametrize(
    "said",
    [
        pytest.param({"steps": 9, "batch_size": 2}, id="a partial batch ends each epoch"),
        pytest.param({"steps": 7, "batch_size": 5}, id="a batch an epoch"),
        pytest.param({"steps": 3, "batch_size": 64}, id="a batch larger than the data"),
        pytest.param({"steps": 1, "batch_size": 2}, id="one step"),
        pytest.param({"steps": 6, "batch_size": 1}, id="one example a batch"),
        pytest.param({"steps": 8, "batch_size": 2, "shuffle": False}, id="in the order of the file"),
        pytest.param({"steps": 6, "batch_size": 2, "warmup_steps": 4}, id="warm-up"),
        pytest.param({"steps": 6, "batch_size": 3, "seed": 0, "learning_rate": 0.01}, id="another seed"),
    ],
)
def test_loops_are_bitwise_alike(said: dict[str, Any]) -> None:
    """On a CPU in fp32, with dropout on, all loops see the same batches and have the same loss to the last bit."""
    custom, *others = each(train=said)
    assert len(custom.steps.loss) == said["steps"]
    for other in others:
        assert custom.checkpoint == other.checkpoint
        for column in ("loss", "learning_rate", "samples", "real_tokens", "padded_tokens", "digest", "examples"):
            assert getattr(custom.steps, column) == getattr(other.steps, column), column
        assert custom.batches == other.batches
        assert custom.parameters == other.parameters


def test_trainer_loop_is_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer's own data loader, collator and training step do the work, one call a step."""
    called: Counter[str] = Counter()
    for owner, name in (
        (Trainer, "get_train_dataloader"),
        (Trainer, "training_step"),
        (DataCollatorWithPadding, "__call__"),
    ):
        monkeypatch.setattr(owner, name, counting(called, name, getattr(owner, name)))
    train(case(train={"loop": "trainer", "steps": 4, "batch_size": 2}))
    assert called["get_train_dataloader"] == 1
    assert called["training_step"] == 4
    assert called["__call__"] >= 4
    called.clear()
    train(case(train={"loop": "custom", "steps": 4, "batch_size": 2}))
    assert called == {"__call__": 4}


def counting(called: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which counts its calls."""

    def counted(*arguments: Any, **said: Any) -> Any:
        called[name] += 1
        return function(*arguments, **said)

    return counted


def test_loops_are_bitwise_alike_in_bf16() -> None:
    """Under autocast too, which changes the numbers and leaves the weights in fp32."""
    custom, *others = each(precision="bf16", train={"steps": 6, "batch_size": 2})
    assert [other.steps.loss for other in others] == [custom.steps.loss] * 2
    assert [other.parameters for other in others] == [custom.parameters] * 2
    full = train(case(train={"steps": 6, "batch_size": 2}))
    assert custom.steps.loss != full.steps.loss
    assert custom.steps.loss == pytest.approx(full.steps.loss, rel=0.02)
    assert (custom.checkpoint, custom.steps.digest) == (full.checkpoint, full.steps.digest)


def test_precision_does_not_stick() -> None:
    """A case in fp32 is the same before and after one in bf16, in either loop: no setting outlives its case."""
    for loop in LOOPS:
        before = train(case(train={"loop": loop, "steps": 3}))
        train(case(precision="bf16", train={"loop": loop, "steps": 3}))
        assert train(case(train={"loop": loop, "steps": 3})).steps.loss == before.steps.loss


def test_dropout_is_on() -> None:
    """The loss of a first step depends on dropout: without it, the same weights and batch give another."""
    first = train(case(train={"steps": 1})).steps
    off = {"architecture": "bert", "size": "tiny", "config": {"hidden_dropout_prob": 0.0}}
    assert train(case(off, train={"steps": 1})).steps.digest == first.digest
    assert train(case(off, train={"steps": 1})).steps.loss != first.loss


@pytest.mark.parametrize("loop", LOOPS)
def test_every_epoch_takes_every_example_once(loop: str) -> None:
    """Each epoch is a permutation in batches, the last of which holds what is left."""
    examples = train(case(train={"loop": loop, "steps": 9, "batch_size": 2})).steps.examples
    assert [len(batch) for batch in examples] == [2, 2, 1] * 3
    epochs = [[index for batch in examples[start : start + 3] for index in batch] for start in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("loop", LOOPS)
def test_without_shuffling_the_order_is_the_file_s(loop: str) -> None:
    """Every epoch then takes the examples as they are written."""
    said = {"loop": loop, "steps": 6, "batch_size": 2, "shuffle": False}
    assert train(case(train=said)).steps.examples == ((0, 1), (2, 3), (4,)) * 2


@pytest.mark.parametrize("loop", LOOPS)
def test_steps_count_what_was_in_the_batch(loop: str) -> None:
    """Samples, real tokens and padded tokens are those of each batch as the tokenizer wrote it."""
    record = train(case(train={"loop": loop, "steps": 3, "batch_size": 2}))
    lengths = {example.index: len(example.input_ids) for example in record.examples}
    assert lengths.keys() == set(range(len(SEQUENCES)))
    for step, examples in enumerate(record.steps.examples):
        real = [lengths[index] for index in examples]
        assert record.steps.samples[step] == len(examples)
        assert record.steps.real_tokens[step] == sum(real)
        assert record.steps.padded_tokens[step] == len(examples) * max(real)
    assert [example.label for example in record.examples] == LABELS
    assert [example.text for example in record.examples] == SEQUENCES


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("warmup", [0, 1, 3, 10])
def test_warm_up_is_linear_from_zero(loop: str, warmup: int) -> None:
    """The rate that each step used rises from 0 in equal parts and then stays."""
    said = {"loop": loop, "steps": 6, "warmup_steps": warmup, "learning_rate": 1e-3}
    rates = train(case(train=said)).steps.learning_rate
    assert rates == pytest.approx([1e-3 * min(1, step / warmup if warmup else 1) for step in range(6)])


@pytest.mark.parametrize("loop", LOOPS)
def test_settings_reach_the_optimizer(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer that steps is AdamW with what the experiment declares, over every parameter at once."""
    begun: list[Any] = []
    begin = Watch.begin

    def note(self: Watch, optimizer: Any, scaler: Any = None) -> None:
        begun.append(getattr(optimizer, "optimizer", optimizer))
        begin(self, optimizer, scaler)

    monkeypatch.setattr(Watch, "begin", note)
    said = {"weight_decay": 0.3, "betas": [0.7, 0.8], "eps": 1e-3, "learning_rate": 2e-4}
    record = train(case(train={"loop": loop, "steps": 2, **said}))
    (optimizer,) = begun
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (2e-4, 0.3, (0.7, 0.8), 1e-3)
    assert len(group["params"]) == len(record.parameters)
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "said", [{"weight_decay": 0.5}, {"betas": [0.1, 0.2]}, {"eps": 0.1}, {"learning_rate": 1e-3}], ids=str
)
def test_each_setting_of_the_optimizer_changes_the_training(loop: str, said: dict[str, Any]) -> None:
    """None of them is read and then forgotten: the same start ends elsewhere."""
    usual, changed = (train(case(train={"loop": loop, "steps": 3, **each})) for each in ({}, said))
    assert usual.checkpoint == changed.checkpoint
    assert usual.steps.loss[0] == changed.steps.loss[0]
    assert usual.parameters != changed.parameters


# Length


@pytest.mark.parametrize("loop", LOOPS)
def test_long_text_is_cut(loop: str) -> None:
    """A text longer than `max_length` keeps its first tokens and its end token; shorter ones are as they were."""
    whole = {each.index: each.input_ids for each in train(case(train={"steps": 1})).examples}
    cut = train(case(train={"loop": loop, "steps": 1, "max_length": 5}))
    assert cut.tokenizer is not None
    assert cut.tokenizer.max_length == 5
    for example in cut.examples:
        ids = whole[example.index]
        assert example.input_ids == (ids if len(ids) <= 5 else (*ids[:4], ids[-1]))
    assert {len(row) for batch in cut.batches for row in batch.tensors["input_ids"]} == {5}


def test_without_a_limit_of_its_own_text_is_cut_to_what_the_model_takes() -> None:
    """A text of thousands of tokens trains: it is cut to what both tokenizer and model take."""
    said = {"sequences": ["the soup was warm " * 1000, "bread"], "labels": [1, 0]}
    record = train(case(data=said, train={"steps": 1}))
    assert record.tokenizer is not None
    assert max(record.steps.padded_tokens) == 2 * record.tokenizer.max_length


@pytest.mark.parametrize("loop", LOOPS)
def test_length_that_leaves_no_room_is_refused(loop: str) -> None:
    """A tokenizer that can't cut to `max_length` leaves texts whole: that is said, and not trained on."""
    record = attempt(case(train={"loop": loop, "steps": 1, "max_length": 1}))
    assert record.outcome == "crashed"
    assert record.reason.startswith("CheckpointError: max_length 1: ")


def test_text_without_words_trains() -> None:
    """Punctuation and characters that no other text has still make an example."""
    said = {"sequences": ["!", "\u4e00", "\U0001f642"], "labels": [0, 1, 1]}
    record = train(case(data=said, train={"steps": 2, "batch_size": 3}))
    assert all(len(example.input_ids) >= 3 for example in record.examples)


def test_text_that_is_no_token_is_named() -> None:
    """A character that is not shown leaves special tokens alone: nothing to learn from, and it says which row it is."""
    record = attempt(case(data={"sequences": ["soup", "\u200b"], "labels": [0, 1]}))
    assert record.outcome == "crashed"
    expected = r"DataError: data.sequences: row 1: the tokenizer makes no token of the text '\u200b'"
    assert record.reason == expected


# What is kept


def test_distinct_batches_are_kept_once() -> None:
    """Epochs in the same order repeat their batches; the record holds each once, with its first step."""
    record = train(case(train={"steps": 9, "batch_size": 2, "shuffle": False}))
    assert [batch.step for batch in record.batches] == [0, 1, 2]
    assert [batch.examples for batch in record.batches] == [(0, 1), (2, 3), (4,)]
    assert record.steps.digest == record.steps.digest[:3] * 3


def test_kept_batches_have_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are kept until they hold `BATCH_TOKENS`; digests are kept of all."""
    free = train(case(train={"steps": 6, "batch_size": 2, "shuffle": False}))
    sizes = [free.steps.padded_tokens[batch.step] for batch in free.batches]
    monkeypatch.setattr(watch, "BATCH_TOKENS", sum(sizes[:2]))
    capped = train(case(train={"steps": 6, "batch_size": 2, "shuffle": False}))
    assert capped.batches == free.batches[:2]
    assert capped.steps.digest == free.steps.digest
    assert {example.index for example in capped.examples} == {0, 1, 2, 3}
    monkeypatch.setattr(watch, "BATCH_TOKENS", 0)
    none = train(case(train={"steps": 6, "batch_size": 2, "shuffle": False}))
    assert (none.batches, none.examples) == ((), ())


def test_digest_of_a_batch_is_of_what_it_holds() -> None:
    """Two steps have one digest only where their tensors are the same in dtype, shape and bits."""
    digest = watch._digest
    tensor = torch.tensor([[1, 2], [3, 4]])
    others = [tensor + 1, tensor.T, tensor.reshape(4), tensor.int(), tensor.float()]
    assert len({digest(each) for each in (tensor, *others)}) == 1 + len(others)
    assert digest(tensor) == digest(tensor.clone())


@pytest.mark.parametrize("loop", LOOPS)
def test_parameters_say_how_far_each_moved(loop: str) -> None:
    """Every parameter is there with its start, its way and its first gradient; of the head also the furthest point."""
    record = train(case(train={"loop": loop, "steps": 4, "learning_rate": 1e-3}))
    assert record.checkpoint is not None
    assert {parameter.name for parameter in record.parameters if parameter.head} == set(record.checkpoint.head)
    for parameter in record.parameters:
        assert parameter.trainable
        assert parameter.change > 0
        assert (parameter.furthest is not None) == parameter.head
        if parameter.furthest is not None:
            assert parameter.furthest >= parameter.change * 0.999
        assert parameter.gradient is not None
    count = sum(torch.Size(parameter.shape).numel() for parameter in record.parameters)
    assert count == record.checkpoint.parameters


@pytest.mark.parametrize("loop", LOOPS)
def test_peak_memory_is_recorded(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a step holds for a moment is in the peak of its case, and not in that of the next."""
    held = 256 * 2**20
    usual = train(case(train={"loop": loop, "steps": 2})).memory
    if usual.peak_bytes is None:
        assert usual.kind.startswith("not measured: ")
        pytest.skip(usual.kind)
    forward_of(monkeypatch, at=1, do=lambda: torch.ones(held, dtype=torch.uint8))
    heavy = train(case(train={"loop": loop, "steps": 2})).memory
    monkeypatch.undo()
    after = train(case(train={"loop": loop, "steps": 2})).memory
    assert usual.kind == heavy.kind == "resident in the process"
    assert heavy.peak_bytes is not None
    assert after.peak_bytes is not None
    assert heavy.peak_bytes - usual.peak_bytes > 0.9 * held
    assert heavy.peak_bytes - after.peak_bytes > 0.9 * held


# Time


class Clock:
    """Time passes only when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("loop", LOOPS)
def test_watching_is_no_part_of_a_step(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward of 2 seconds and evidence of 30 make steps of exactly 2, and 30 of watching beside each."""
    clock = Clock()
    monkeypatch.setattr(run, "StepClock", partial(StepClock, now=clock))
    take = Watch._note

    def take_long(self: Watch, *arguments: Any) -> None:
        take(self, *arguments)
        clock.pass_(30)

    monkeypatch.setattr(Watch, "_note", take_long)
    forward_of(monkeypatch, do=lambda: clock.pass_(2))
    steps = train(case(train={"loop": loop, "steps": 4})).steps
    assert steps.seconds == (2.0,) * 4
    assert steps.watching_seconds == (30.0,) * 4


@pytest.mark.parametrize("loop", LOOPS)
def test_phases_are_those_of_the_loop(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each phase has what happens in it, whoever writes the loop; together they are the step."""
    clock = Clock()
    monkeypatch.setattr(run, "StepClock", partial(StepClock, now=clock, second=clock))
    collate, move, backward = encoding.bare, BatchEncoding.to, torch.Tensor.backward
    clip, step, zero_grad = torch.nn.utils.clip_grad_norm_, torch.optim.AdamW.step, torch.optim.AdamW.zero_grad

    def taking(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def taken(*arguments: Any, **named: Any) -> Any:
            clock.pass_(seconds)
            return call(*arguments, **named)

        return taken

    monkeypatch.setattr(data, "bare", taking(1, collate))  # of each example
    monkeypatch.setattr(BatchEncoding, "to", taking(100, move))
    forward_of(monkeypatch, do=lambda: clock.pass_(1_000))
    monkeypatch.setattr(torch.Tensor, "backward", taking(10_000, backward))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", taking(100_000, clip))
    monkeypatch.setattr(torch.optim.AdamW, "step", taking(200_000, step))
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", taking(1_000_000, zero_grad))
    said = {"loop": loop, "steps": 3, "batch_size": 2, "gradient_accumulation": 2, "max_grad_norm": 1.0}
    steps = train(case(train=said)).steps
    micro = [len(each) for each in steps.micro_batches]
    assert micro == [2, 1, 2]
    assert steps.forward_seconds == tuple(1_000.0 * each for each in micro)
    assert steps.backward_seconds == tuple(10_000.0 * each for each in micro)
    assert steps.optimizer_seconds == (300_000.0,) * 3
    if loop != "trainer":  # which clears the gradients of the model itself
        assert min(steps.other_seconds) >= 1_000_000
    if loop == "custom":  # the others fetch one batch ahead
        assert steps.transfer_seconds == tuple(100.0 * each for each in micro)
        assert steps.data_seconds == tuple(float(each) for each in steps.samples)
    assert sum(steps.transfer_seconds) >= 500
    assert sum(steps.data_seconds) >= sum(steps.samples)
    for place, seconds in enumerate(steps.seconds):
        assert sum(phases(steps, place).values()) == seconds
    assert torch.Tensor.backward is not backward  # ours: the harness has put back what it found


@pytest.mark.parametrize("loop", LOOPS)
def test_steps_and_watching_account_for_the_loop(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the loop's first batch to the end of its last step nearly all the time is a step's or the watch's."""
    marks: list[float] = []
    begin, step_done = Watch.begin, Watch.step_done

    def timed_begin(self: Watch, optimizer: Any, scaler: Any = None) -> None:
        begin(self, optimizer, scaler)
        marks.append(perf_counter())

    def timed_step(self: Watch, loss: torch.Tensor, norm: Any = None) -> None:
        step_done(self, loss, norm)
        marks.append(perf_counter())

    monkeypatch.setattr(Watch, "begin", timed_begin)
    monkeypatch.setattr(Watch, "step_done", timed_step)
    forward_of(monkeypatch, do=lambda: sleep(0.005))
    steps = train(case(train={"loop": loop, "steps": 20})).steps
    accounted = sum(steps.seconds) + sum(steps.watching_seconds)
    assert len(marks) == 21
    assert 0.8 < accounted / (marks[-1] - marks[0]) < 1.01


def test_device_is_waited_for_on_both_sides_of_a_step() -> None:
    """The clock waits before it starts and before it stops, so queued work counts where it was queued."""
    clock, events = Clock(), []

    def wait() -> None:
        events.append(clock.now)
        clock.pass_(5)

    step = StepClock(wait, now=clock)
    step.start()
    clock.pass_(1)
    assert step.stop().seconds == 1 + 5
    assert events == [0, 6]
    with pytest.raises(RuntimeError, match="without start"):
        step.stop()


def test_processor_time_leaves_out_what_others_take() -> None:
    """A step that waits takes no processor time, one that computes takes about as much as the clock says at most."""
    step = StepClock(lambda: None)
    step.start()
    sleep(0.05)
    lap = step.stop()
    assert lap.seconds >= 0.05
    assert lap.processor_seconds < 0.02
    step.start()
    until = process_time() + 0.02
    while process_time() < until:
        pass
    lap = step.stop()
    assert 0.02 <= lap.processor_seconds <= lap.seconds + 0.002


def test_processor_time_leaves_out_what_reading_a_meter_takes() -> None:
    """Which is read before the step and after it."""

    class Busy:
        def joules(self) -> None:
            until = process_time() + 0.02
            while process_time() < until:
                pass

        def slowed(self) -> None:
            self.joules()

    step = StepClock(lambda: None, meter=Busy())
    step.start()
    assert step.stop().processor_seconds < 0.01


@pytest.mark.parametrize("loop", LOOPS)
def test_graphs_that_are_gone_are_forgotten(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a long training would look at those of all its steps after each."""
    left: list[int] = []
    close = Watch.close

    def counting(self: Watch) -> None:
        left.append(len(self._graphs))
        close(self)

    monkeypatch.setattr(Watch, "close", counting)
    steps = train(case(train={"loop": loop, "steps": 6, "batch_size": 2, "gradient_accumulation": 2})).steps
    assert left == [1]
    assert steps.graphs == (0,) * 6


def test_the_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a CUDA device the version that NVIDIA's module tells, open or not; of a processor nothing."""
    device = Device("cuda", torch.device("cuda"))
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "version")
    assert environment._driver(device) == ""
    for text in ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue", "NVRM version: Open 550.54.15 x"):
        (tmp_path / "version").write_text(text)
        assert environment._driver(device) == "550.54.15"
    assert environment._driver(Device("cpu", torch.device("cpu"))) == ""


def test_progress_is_told_of_each_step() -> None:
    """Step, number of steps, loss and rate, in order."""
    planned = case(train={"steps": 3, "batch_size": 2})
    told: list[tuple[int, int, float, float]] = []
    record = run.run(planned, shelf=run.checkpoint.Shelf(), root=Path.cwd(), progress=lambda *each: told.append(each))
    assert [(step, steps) for step, steps, _, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert tuple(loss for _, _, loss, _ in told) == record.steps.loss
    rates = [count / seconds for count, seconds in zip(record.steps.samples, record.steps.seconds, strict=True)]
    assert [rate for *_, rate in told] == rates


# Endings


def forward_of(monkeypatch: pytest.MonkeyPatch, *, do: Callable[[], Any], at: int | None = None) -> None:
    """Let something happen in every training forward, or in the one of that step."""
    on_forward, count = Watch._on_forward, iter(range(1_000_000))

    def note(self: Watch, *arguments: Any) -> None:
        on_forward(self, *arguments)
        if at is None or next(count) == at:
            do()

    monkeypatch.setattr(Watch, "_on_forward", note)


def raising(error: BaseException) -> Callable[[], None]:
    """A function that raises it."""

    def fail() -> None:
        raise error

    return fail


def allocate() -> None:
    """Ask torch for more memory than any machine has."""
    torch.empty(2**55, dtype=torch.uint8)


@pytest.fixture(scope="module")
def whole() -> dict[str, Record]:
    """Five steps of each loop, without a fault."""
    return {loop: train(case(train={"loop": loop, "steps": 5, "batch_size": 2})) for loop in LOOPS}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("fault", "outcome", "reason"),
    [
        (raising(ValueError("two words")), "crashed", "ValueError: two words"),
        (raising(ValueError("a line\nand another")), "crashed", "ValueError: a line"),
        (raising(SystemExit(3)), "crashed", "SystemExit: 3"),
        (raising(KeyboardInterrupt()), "interrupted", "stopped by Ctrl-C"),
        (raising(MemoryError()), "out of memory", "MemoryError:"),
        (raising(torch.OutOfMemoryError("CUDA out of memory.")), "out of memory", "OutOfMemoryError: CUDA out of"),
        (allocate, "out of memory", "RuntimeError: [enforce fail"),
    ],
)
def test_fault_in_a_step_leaves_the_evidence_until_then(
    loop: str,
    fault: Callable[[], None],
    outcome: str,
    reason: str,
    whole: dict[str, Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A case that ends in its third step says how, and keeps its checkpoint and the two steps before."""
    forward_of(monkeypatch, at=2, do=fault)
    record = attempt(case(train={"loop": loop, "steps": 5, "batch_size": 2}))
    assert record.outcome == outcome
    assert record.reason.startswith(reason)
    assert bool(record.traceback) == (outcome != "interrupted")
    assert record.checkpoint == whole[loop].checkpoint
    assert record.tokenizer == whole[loop].tokenizer
    assert record.steps.loss == whole[loop].steps.loss[:2]
    assert record.steps.examples == whole[loop].steps.examples[:2]
    assert record.batches == whole[loop].batches[:2]
    assert record.environment.versions["torch"] == whole[loop].environment.versions["torch"]
    assert Record.from_json(record.to_json()) == record


def test_fault_before_the_first_step_leaves_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that never begins leaves the checkpoint and empty columns."""
    monkeypatch.setitem(loops.LOOPS, "custom", lambda work, watch: raising(ValueError("no"))())
    record = attempt(case(train={"steps": 2}))
    assert (record.outcome, record.steps.loss, record.batches) == ("crashed", (), ())
    assert record.checkpoint is not None


def test_device_that_is_not_here_is_a_skip() -> None:
    """Nothing is loaded for it, and the reason names the device."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    planned = case(train={"steps": 1})
    moved = planned.settings.model_copy(update={"device": "cuda"})
    record = attempt(Case(planned.experiment, planned.path, "cuda", (), moved))
    assert record.outcome == "skipped"
    assert record.reason.startswith("no CUDA device")
    assert record.checkpoint is None


def test_nan_is_kept_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is no number stays in its place in the record and in its JSON."""
    whole = train(case(train={"loop": "trainer", "steps": 4}))
    step_done, count = Watch.step_done, iter(range(9))

    def nan_once(self: Watch, loss: torch.Tensor, norm: Any = None) -> None:
        step_done(self, loss * float("nan") if next(count) == 2 else loss, norm)

    monkeypatch.setattr(Watch, "step_done", nan_once)
    record = train(case(train={"loop": "trainer", "steps": 4}))
    assert [loss == loss for loss in record.steps.loss] == [True, True, False, True]
    assert '"NaN"' in record.to_json()
    assert record.steps.loss[3] == whole.steps.loss[3]


# What is left behind


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fault", [None, raising(ValueError("stop")), raising(KeyboardInterrupt())])
def test_nothing_global_is_left_changed(
    loop: str,
    fault: Callable[[], None] | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """After a run, however it ends: torch's precision, threads and modes, bars, environment, files and hooks."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    works: list[Workload] = []
    original = loops.LOOPS[loop]

    def noting(work: Workload, watch: Watch) -> None:
        works.append(work)
        original(work, watch)

    monkeypatch.setitem(loops.LOOPS, loop, noting)
    if fault is not None:
        forward_of(monkeypatch, at=1, do=fault)
    torch.set_float32_matmul_precision("high")
    try:
        before = globals_now()
        record = attempt(case(precision="bf16", probes=["replay"], train={"loop": loop, "steps": 3}))
        assert globals_now() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert record.finished == (fault is None)
    assert len(works) == (2 if loop == "custom" and fault is None else 1)  # a replay is in the custom loop
    modules = [module for work in works for module in work.model.modules()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in modules)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def globals_now() -> dict[str, Any]:
    """What a run may change while it runs and must put back."""
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "bars": logging.is_progress_bar_enabled(),
        "verbosity": logging.get_verbosity(),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "folder": Path.cwd(),
        "warnings": list(warnings.filters),
    }


# The order of examples


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(0, 1000), st.booleans())
def test_epoch_order_is_a_permutation(size: int, seed: int, epoch: int, shuffle: bool) -> None:
    """Whatever the seed and the epoch, each example comes exactly once."""
    order = EpochOrder(size, seed, shuffle)
    order.set_epoch(epoch)
    assert sorted(order) == list(range(size)) == (sorted(order) if shuffle else list(order))
    assert len(order) == size


@given(st.integers(10, 60), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_epoch_order_differs_between_epochs(size: int, seed: int, epoch: int) -> None:
    """Neighbouring epochs of ten examples and more are in another order, and coming back to one gives it again."""
    order = EpochOrder(size, seed, shuffle=True)
    taken = []
    for each in (epoch, epoch + 1, epoch + 2, epoch):
        order.set_epoch(each)
        taken.append(list(order))
    assert taken[0] == taken[3]
    assert all(one != other for one, other in pairwise(taken))


@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_epoch_order_is_independent_of_the_global_generator(size: int, seed: int, state: int) -> None:
    """Neither does torch's own generator change the order, nor does taking the order move the generator."""
    expected = list(EpochOrder(size, seed, shuffle=True))
    with torch.random.fork_rng():
        torch.manual_seed(state)
        before = torch.get_rng_state()
        assert list(EpochOrder(size, seed, shuffle=True)) == expected
        assert torch.equal(torch.get_rng_state(), before)


def test_drawn_notes_batches_in_the_order_they_are_made() -> None:
    """The collator behind it never sees an index, and the features of the data set keep theirs."""
    drawn, seen = Drawn(), []
    collate = drawn.noting(lambda rows: seen.append(rows) or {})
    features = [{"input_ids": [1], "label": 0, "index": 4}, {"input_ids": [2], "label": 1, "index": 2}]
    collate(features)
    collate(features[1:])
    assert [drawing.indices for drawing in drawn.queue] == [(4, 2), (2,)]
    assert seen == [[{"input_ids": [1], "label": 0}, {"input_ids": [2], "label": 1}], [{"input_ids": [2], "label": 1}]]
    assert [row["index"] for row in features] == [4, 2]
