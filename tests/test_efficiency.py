"""Operations of a step, and the ceiling of the device: counted and measured outside of the timed steps."""

import pytest
import torch
from trial import case, train

from harness.record import Record
from harness.training import efficiency
from harness.training.devices import find

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


def test_another_kind_of_device_has_no_ceiling() -> None:
    """Where nothing is known of sizes nothing is claimed."""
    assert efficiency.ceiling(find("cpu").__class__("meta", torch.device("meta")), torch.float32) is None


def test_a_model_that_cannot_be_counted_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training stands all the same."""

    def fail(*arguments: object) -> None:
        raise ValueError("no copy of this model")

    monkeypatch.setattr(efficiency, "copied", fail)
    found = train(case(timed=True, train={"steps": 2})).efficiency
    assert found.reason == "ValueError: no copy of this model"
    assert (found.flops, found.ceiling) == ((), None)
