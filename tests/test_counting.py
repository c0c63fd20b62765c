"""What a step does, counted: exactly the same again, and right where it can be said what is right."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trial import SEQUENCES, case, train

from harness.record import Counters, Record
from harness.training import counting
from harness.training.checkpoint import Shelf
from harness.training.counting import Dispatched, Saved, kernels
from harness.training.fault import Fault
from harness.training.loops import LOOPS
from harness.training.run import run

NOT_CUDA = ("kernels", "peak_bytes")


@pytest.fixture(scope="module", params=LOOPS)
def trained(request: pytest.FixtureRequest) -> tuple[Record, Record]:
    """The same case twice, in each loop."""
    said = {"loop": request.param, "steps": 4, "batch_size": 2, "gradient_accumulation": 2}
    first, second = (train(case(timed=True, train=said)) for _ in range(2))
    return first, second


def test_counts_are_the_same_again(trained: tuple[Record, Record]) -> None:
    """To the last operator and byte."""
    first, second = (record.counters for record in trained)

    assert first == second
    assert first.reason == ""
    found = first.model_dump(exclude={"reason", *NOT_CUDA})
    assert all(isinstance(each, int) and each > 0 for each in found.values()), found


def test_nothing_is_claimed_of_a_device_that_is_not_there(trained: tuple[Record, Record]) -> None:
    """A processor launches no kernels: none, and not 0."""
    assert [getattr(trained[0].counters, name) for name in NOT_CUDA] == [None, None]


def test_more_of_it_is_counted() -> None:
    """A loop that clips does more operators; layers that are computed again save less."""
    plain, clipped, again = (
        train(case(timed=True, train={"steps": 2, "batch_size": 2, **said})).counters
        for said in ({"max_grad_norm": None}, {"max_grad_norm": 1.0}, {"gradient_checkpointing": True})
    )
    assert _numbers(clipped)[0] > _numbers(plain)[0]
    assert _numbers(clipped)[2] == _numbers(plain)[2]
    assert _numbers(again)[0] > _numbers(clipped)[0]
    assert _numbers(again)[2] < _numbers(clipped)[2]


@pytest.mark.parametrize("loop", ["custom", "accelerate"])
def test_a_smoothed_loss_waits_no_more_often_than_the_models_own(loop: str) -> None:
    """How many labels of a micro-batch count is for the device to find out, and for nobody to wait for."""
    rows = [{"words": text.split(), "labels": [0, *[1] * text.count(" ")]} for text in SEQUENCES]
    said = {"task": "token-classification", "data": {"rows": rows}, "timed": True}
    plain, smoothed = (
        train(case(**said, train={"loop": loop, "steps": 2, "batch_size": 2, "label_smoothing": share})).counters
        for share in (0.0, 0.1)
    )
    assert smoothed.operators != plain.operators
    assert smoothed.host_waits == plain.host_waits


def _numbers(found: Counters) -> tuple[int, int, int]:
    assert found.operators is not None
    assert found.moved_bytes is not None
    assert found.saved_bytes is not None
    return found.operators, found.moved_bytes, found.saved_bytes


def test_what_is_compiled_or_wrong_is_not_counted() -> None:
    """Neither dispatches what the loop would; the reason is in the record."""
    compiled = SimpleNamespace(fault=None, train=SimpleNamespace(compile=True))
    found: Any = counting.counters(compiled)  # type: ignore[arg-type]
    assert found == Counters(reason="not counted where steps are compiled: what is compiled dispatches no operators")
    one = case(timed=True, train={"steps": 2})
    record = run(one, shelf=Shelf(), root=one.path.parent, fault=Fault("nothing", "Changes nothing.", "none"))
    assert record.counters.reason == "not counted where a fault is seeded"
    assert record.finished


def test_a_model_that_cannot_be_counted_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training stands all the same."""
    monkeypatch.setattr(counting, "further", lambda work, steps: 1 / 0)
    found = train(case(timed=True, train={"steps": 2})).counters
    assert found == Counters(reason="ZeroDivisionError: division by zero")


# By hand


def test_operators_by_hand() -> None:
    """A product of matrices and a sum; the view between them moves nothing; each operator reads and writes."""
    one = torch.ones(4, 8)
    with Dispatched() as seen:
        (one @ one.t()).sum()

    assert seen.operators == 3
    four = 4
    assert seen.flops == 2 * 4 * 8 * 4
    assert seen.moved_bytes == four * (2 * 32 + 16) + four * (16 + 1)
    assert seen.host_waits == 0


def test_attention_on_a_processor_is_counted() -> None:
    """Its two products forward, and five backward, one of which is computed again: as on other devices."""
    query, key, value = (torch.ones(1, 2, 5, 8, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 5 * 5 * 8
    with Dispatched() as seen:
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        forward = seen.flops
        found.sum().backward()

    assert forward == 2 * product
    assert seen.flops == (2 + 5) * product


def test_waits_by_hand() -> None:
    """A value that the host asks for, and a size that depends on values."""
    one = torch.ones(4)
    with Dispatched() as seen:
        one.sum().item()
        float(one[0])
        one.nonzero()
        one.double()

    assert seen.host_waits == 3


def test_a_number_that_is_on_the_host_is_waited_for_by_nobody() -> None:
    """As where Adam keeps its count of steps there, or labels are counted before they are moved."""
    with Dispatched("cuda") as seen:
        torch.ones(4).sum().item()
    assert seen.host_waits == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_copy_to_the_host_waits_unless_it_need_not(blocking: bool) -> None:
    """What comes from a device is there when the call returns, if nothing else is said."""
    on_device = torch.ones(2, device="meta")
    elsewhere = SimpleNamespace(device=torch.device("cuda", 0))
    function = torch.ops.aten._to_copy.default
    kwargs = {} if blocking else {"non_blocking": True}

    class Remote(torch.Tensor):
        device = elsewhere.device  # type: ignore[assignment]

    remote = torch.zeros(2).as_subclass(Remote)
    assert counting.waits(function, (remote,), kwargs, torch.zeros(2)) is blocking
    assert not counting.waits(function, (torch.zeros(2),), kwargs, torch.zeros(2))
    assert not counting.waits(function, (remote,), kwargs, on_device)


def test_what_is_saved_by_hand() -> None:
    """The input and the result of each operator that needs them, a storage once; the weight is there anyway."""
    layer = torch.nn.Linear(8, 8, bias=False)
    batch = torch.ones(4, 8)
    seen, saved = Dispatched(), Saved(layer)
    with saved.following(seen), seen:
        hidden = layer(batch)
        (hidden.tanh() + hidden.exp()).sum().backward()

    # the batch for the weight's gradient, tanh's and exp's result
    assert saved.bytes == 3 * 4 * 8 * 4


def test_only_kernels_are_launches() -> None:
    """Of a profiler's events: those of the device, without copies and without ranges that bear a name."""
    cuda, cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        # as profilers have it, no two of these are one object
        SimpleNamespace(name=name, device_type=type(device)(device.value), is_user_annotation=annotation)
        for name, device, annotation in (
            ("aten::mm", cpu, False),
            ("ampere_sgemm_128x64_nn", cuda, False),
            ("vectorized_elementwise_kernel", cuda, False),
            ("Memcpy HtoD (Pinned -> Device)", cuda, False),
            ("Memset (Device)", cuda, False),
            ("Optimizer.step#AdamW.step", cuda, True),
        )
    ]
    assert kernels(events) == 2
