"""Comparing what real trainings leave."""

from typing import Any

import pytest
from trial import case, train

from harness.compare import NotComparable, compare
from harness.compare.identity import ABSENT, fields
from harness.record import Machine, Record

SAID: dict[str, Any] = {"train": {"steps": 16, "batch_size": 2}, "benchmark": {"warmup_steps": 2}}


@pytest.fixture(scope="module")
def twice() -> tuple[Record, Record]:
    """The same training, twice."""
    return train(case(**SAID)), train(case(**SAID))


def undisturbed(record: Record) -> Record:
    """As if nobody else had wanted the processor: on a busy machine times are void, and say why."""
    steps = record.steps.model_copy(update={"queued_seconds": (0.0,) * len(record.steps.loss)})
    return record.model_copy(update={"steps": steps, "machine": Machine()})


def test_the_same_training_is_alike_and_has_the_same_loss(twice: tuple[Record, Record]) -> None:
    """Nothing of its identity differs from run to run, losses are equal, and both clocks were read."""
    (pair,) = compare([undisturbed(twice[0])], [undisturbed(twice[1])]).pairs
    assert pair.losses.outcome == "same"
    assert [measure.name for measure in pair.measures][:2] == ["step time", "processor time"]
    assert all(measure.shift is not None for measure in pair.measures[:2])
    assert not pair.fails


def test_everything_that_makes_runs_alike_is_in_a_record(twice: tuple[Record, Record]) -> None:
    """Weights, batches, settings, libraries, device, processor and threads are known of a real run."""
    known = fields(twice[0])
    needed = {"weights", "batches", "steps trained", "train.learning_rate", "precision", "data.digest"}
    needed |= {"python", "torch", "transformers", "device model", "processor", "threads", "driver", "runtime"}
    assert needed <= known.keys()
    assert all(known[name] not in ("", ABSENT, None) for name in needed - {"driver", "runtime"})  # a CPU has neither


def test_another_seed_is_another_training(twice: tuple[Record, Record]) -> None:
    """It has other weights and other batches, beside the setting that says so."""
    other = train(case(**{**SAID, "train": {**SAID["train"], "seed": 7}}))
    with pytest.raises(NotComparable) as caught:
        compare(twice[:1], [other])
    assert {"train.seed", "weights", "batches"} <= {one.field for one in caught.value.differences}


def test_records_survive_the_way_to_disk(twice: tuple[Record, Record]) -> None:
    """What is compared is what was stored: nothing of an identity is lost in a line of JSON."""
    assert fields(Record.from_json(twice[0].to_json())) == fields(twice[0])
