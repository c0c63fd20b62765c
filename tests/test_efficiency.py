"""Operations of a step, and the ceiling of the device: counted and measured outside of the timed steps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from trial import case, train

from harness.record import Flops, Record, Steps
from harness.training import ceiling, efficiency
from harness.training.ceiling import Ceilings
from harness.training.checkpoint import Shelf
from harness.training.devices import Device, find, matmul_precision

HIDDEN, INNER, LAYERS = 16, 32, 2


@pytest.fixture(scope="module")
def trained() -> Record:
    """A training with batches of several shapes, under gradient checkpointing."""
    said = {"steps": 4, "batch_size": 2, "gradient_accumulation": 2, "gradient_checkpointing": True}
    config = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    return train(case({"architecture": "bert", "config": config}, timed=True, train=said))


def test_operations_are_those_of_the_formula(trained: Record) -> None:
    """Of a BERT: its products of matrices, each a multiplication and an addition, and twice as many on the way back.
    What is computed again for gradient checkpointing does not count.
    """
    found = trained.efficiency
    assert found.reason == ""
    assert found.flops
    for each in found.flops:
        rows, length = each.shape
        layer = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER + 2 * length * HIDDEN
        expected = 2 * rows * (LAYERS * length * layer + HIDDEN * HIDDEN + 2 * HIDDEN)
        assert each.forward == expected
        assert each.backward == 2 * expected


def test_operations_of_packed_batches_are_put_to_their_real_tokens() -> None:
    """Which are those of a batch of that shape."""
    said = {"steps": 2, "batch_size": 3, "shuffle": False, "packing": True}
    found = train(case(timed=True, train=said))
    tokens = {shapes[0]: tokens for shapes, tokens in zip(found.steps.shapes, found.steps.real_tokens, strict=True)}
    assert {each.shape: each.real_tokens for each in found.efficiency.flops} == tokens


def test_the_commonest_shapes_are_counted(trained: Record) -> None:
    """Every micro-batch has a shape, and those of most are among the counted."""
    steps = trained.steps
    assert [len(shapes) for shapes in steps.shapes] == [len(each) for each in steps.micro_batches]
    assert {shape[0] for shapes in steps.shapes for shape in shapes} == {1, 2}
    assert {each.shape for each in trained.efficiency.flops} <= {shape for shapes in steps.shapes for shape in shapes}
    assert len({each.shape for each in trained.efficiency.flops}) == len(trained.efficiency.flops) <= efficiency.MOST


def test_the_ceiling_is_above_what_a_step_does(trained: Record) -> None:
    """It is a rate of the same machine: no training of a tiny model comes near it."""
    ceiling = trained.efficiency.ceiling
    assert ceiling is not None
    assert trained.efficiency.dtype == "float32"
    assert ceiling > 1e9
    done = trained.efficiency.flops[0]
    assert (done.forward + done.backward) / min(trained.steps.seconds) < ceiling


def test_operations_of_the_counted_step_are_those_of_its_shapes(trained: Record) -> None:
    """Two ways of counting: those that were computed are the model's own, and once more what was computed again."""
    step = trained.counters.step
    assert step is not None
    known = {each.shape: each for each in trained.efficiency.flops}
    own = [known[shape] for shape in trained.steps.shapes[step]]
    forward, backward = sum(each.forward for each in own), sum(each.backward for each in own)
    assert trained.counters.flops is not None
    assert forward + backward < trained.counters.flops <= 1.2 * (2 * forward + backward)


# Ceilings


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured, in order; each time it comes out otherwise."""
    seen: list[str] = []

    def measure(what: str, *figures: float) -> Callable[..., float]:
        left = iter(figures)

        def found(*arguments: object) -> float:
            seen.append(what)
            return next(left)

        return found

    monkeypatch.setattr(ceiling, "products", measure("products", 100.0, 40.0, 300.0))
    monkeypatch.setattr(ceiling, "bandwidth", measure("bandwidth", 8.0))
    return seen


def test_a_ceiling_is_measured_once_a_session(measured: list[str]) -> None:
    """For a device, a dtype, a precision of products and a number of threads; another of these has its own."""
    cpu, ceilings = find("cpu"), Ceilings()
    assert [ceilings.products(cpu, torch.float32) for _ in range(3)] == [100.0] * 3
    assert [ceilings.bandwidth(cpu) for _ in range(3)] == [8.0] * 3
    assert measured == ["products", "bandwidth"]
    assert ceilings.products(cpu, torch.bfloat16) == 40.0
    with matmul_precision("high"):
        assert ceilings.products(cpu, torch.float32) == 300.0
    assert ceilings.products(cpu, torch.float32) == 100.0


def test_a_ceiling_that_is_measured_again_does_not_sink(measured: list[str]) -> None:
    """What was reached once can be reached."""
    cpu, ceilings = find("cpu"), Ceilings()
    again = [ceilings.products(cpu, torch.float32, again=again) for again in (False, True, True, False)]
    assert again == [100.0, 100.0, 300.0, 300.0]
    assert measured == ["products"] * 3


@pytest.mark.parametrize(("seconds", "times"), [(0.6, 1), (0.4, 2)])
def test_a_step_above_the_ceiling_has_it_measured_again(measured: list[str], seconds: float, times: int) -> None:
    """Once, before anybody calls the account wrong: the machine may have been busy when it was measured."""
    steps = Steps(seconds=(1.0, seconds), shapes=(((2, 6),), ((2, 6),)))
    flops = (Flops(shape=(2, 6), forward=20, backward=30),)
    efficiency._above(steps, flops, partial(Ceilings().products, find("cpu"), torch.float32))
    assert measured == ["products"] * times


def test_the_cases_of_a_session_share_ceilings(measured: list[str]) -> None:
    """The engine's shelf holds them: the second case measures nothing."""
    shelf = Shelf()
    one, other = (train(case(timed=True, train={"steps": 2, "batch_size": size}), shelf) for size in (1, 2))
    assert measured.count("bandwidth") == 1
    assert one.efficiency.bandwidth == other.efficiency.bandwidth == 8.0
    assert one.efficiency.flops != other.efficiency.flops


def test_no_memory_for_the_bandwidth_is_no_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else is known stands."""

    def full(device: Device) -> float:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(ceiling, "bandwidth", full)
    found = train(case(timed=True, train={"steps": 2}), Shelf()).efficiency
    assert (found.bandwidth, found.reason) == (None, "")
    assert found.flops
    assert found.ceiling


def test_ceilings_are_plausible() -> None:
    """A processor reads and writes more than 100 MB/s, and an array is larger than its caches."""
    cpu = find("cpu")
    assert ceiling.bandwidth(cpu) > 1e8
    least, most = ceiling.ARRAY_BYTES
    assert least <= ceiling._array_bytes(cpu) <= most


def test_caches_of_the_last_level_are_summed(tmp_path: Path) -> None:
    """Each once, however many processors share it; where the kernel says nothing there are none."""
    for processor, shared in enumerate(["0-1", "0-1", "2"]):
        for level, size in enumerate(["32K", "1024K", "4096K"]):
            folder = tmp_path / f"cpu{processor}" / "cache" / f"index{level}"
            folder.mkdir(parents=True)
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(f"{shared}\n")
    (tmp_path / "cpufreq").mkdir()
    assert ceiling.cached_bytes(tmp_path) == 2 * 4096 * 1024
    assert ceiling.cached_bytes(tmp_path / "nothing") == 0


def test_another_kind_of_device_has_no_ceiling() -> None:
    """Where nothing is known of sizes nothing is claimed."""
    meta = Device("meta", torch.device("meta"))
    assert Ceilings().products(meta, torch.float32) is None
    assert Ceilings().bandwidth(meta) is None


def test_a_model_that_cannot_be_counted_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training stands all the same."""

    def fail(*arguments: object) -> None:
        raise ValueError("no copy of this model")

    monkeypatch.setattr(efficiency, "copied", fail)
    found = train(case(timed=True, train={"steps": 2})).efficiency
    assert found.reason == "ValueError: no copy of this model"
    assert (found.flops, found.ceiling) == ((), None)
