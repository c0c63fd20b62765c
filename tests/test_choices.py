"""What an experiment may choose of a training: every loop does it, keeps every law, and agrees with the others."""

from dataclasses import replace
from typing import Any

import pytest
from records import HEALTHY
from trial import attempt, case

from harness.laws import LAWS, judge, judge_together
from harness.record import Record
from harness.training.checkpoint import Shelf

pytestmark = pytest.mark.usefixtures("one_thread")

LOOPS = ("custom", "trainer", "accelerate")
CLASSES = {
    "data": {
        "sequences": ["the soup was warm", "bread", "we waited an hour for the soup", "cold", "never again", "a table"],
        "labels": [1, 0, 1, 0, 0, 1],
    },
    "checkpoint": {"architecture": "bert", "size": "tiny", "config": {"num_hidden_layers": 1}},
}
WORDS = {
    "task": "token-classification",
    "checkpoint": {"architecture": "distilbert", "size": "tiny", "config": {"n_layers": 1}},
    "data": {
        "rows": [
            {"words": ["Anna", "lives", "in", "Rome"], "labels": [1, 0, 0, 2]},
            {"words": ["Rome"], "labels": [2]},
            {"words": ["we", "met", "Ben", "and", "Anna", "in", "Paris"], "labels": [0, 0, 1, 0, 1, 0, 2]},
            {"words": ["no", "one"], "labels": [0, 0]},
            {"words": ["Ben", "left"], "labels": [1, 0]},
        ]
    },
}
TEXT = {
    "task": "causal-lm",
    "checkpoint": {"architecture": "gpt2", "size": "tiny", "config": {"n_layer": 1}},
    "data": {
        "rows": [
            {"text": "the soup was warm"},
            {"text": "bread"},
            {"text": "we waited an hour for the soup and the bread"},
            {"text": "it was cold"},
            {"text": "never again"},
        ]
    },
}
ANSWERS = {
    "task": "question-answering",
    "checkpoint": {"architecture": "bert", "size": "tiny", "config": {"num_hidden_layers": 1}},
    "data": {
        "rows": [
            {"question": "who", "context": "Anna lives in Rome", "answer": "Anna"},
            {"question": "where", "context": "Anna lives in Rome", "answer": "Rome"},
            {"question": "what", "context": "we had soup", "answer": "soup"},
        ]
    },
}
TINY: dict[str, Any] = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3}
PROBES = frozenset({"steps", "accumulation"})
"""Those of the laws that look at gradients and updates; the others have no part in these choices."""

PLAIN: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam"},
    "not fused": {"fused": False},
    "sgd with momentum": {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05},
    "adafactor": {"optimizer": "adafactor"},
    "groups": {
        "decay": "matrices",
        "groups": [
            {"parameters": "head", "learning_rate": 5e-3},
            {"parameters": ["layers:1", "*.pooler.*"], "weight_decay": 0.1},
        ],
    },
    "linear": {"schedule": "linear", "warmup_steps": 1},
    "cosine": {"schedule": "cosine", "warmup_ratio": 0.3, "steps": 5},
    "clipped": {"max_grad_norm": 0.1},
    "smoothed": {"label_smoothing": 0.1},
    "frozen backbone": {"freeze": "backbone"},
    "frozen layers": {"freeze": ["embeddings", "layers:1"]},
    "epochs": {"steps": None, "epochs": 1.5},
    "seeds": {"weights_seed": 1, "data_seed": 2, "dropout_seed": 3},
    "smoothed, in groups": {
        "label_smoothing": 0.2,
        "optimizer": "adam",
        "groups": [{"parameters": "head", "learning_rate": 5e-3}],
    },
}
"""Of one batch a step."""

ACCUMULATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "smoothed classes": (CLASSES, {"gradient_accumulation": 2, "label_smoothing": 0.1}),
    "smoothed words": (WORDS, {"gradient_accumulation": 2, "label_smoothing": 0.1, "max_grad_norm": 0.1}),
    "text": (TEXT, {"gradient_accumulation": 2}),
    "text, four by four": (TEXT, {"gradient_accumulation": 4, "batch_size": 1, "schedule": "linear"}),
    "text, clipped, by sgd": (TEXT, {"gradient_accumulation": 3, "optimizer": "sgd", "max_grad_norm": 0.1}),
    "text, smoothed": (TEXT, {"gradient_accumulation": 2, "label_smoothing": 0.1, "decay": "matrices"}),
    "text, adafactor, frozen": (TEXT, {"gradient_accumulation": 2, "optimizer": "adafactor", "freeze": "embeddings"}),
}
"""With micro-batches that have unequal numbers of terms."""

RAW = {"classes": CLASSES, "words": WORDS}
"""Tasks whose micro-batches the Trainer adds up, unless it gets a `compute_loss_func`."""


@pytest.fixture(scope="module")
def shelf() -> Shelf:
    """Keeps what is loaded between the trainings."""
    return Shelf()


def trained(shelf: Shelf, loop: str, data: dict[str, Any], train: dict[str, Any], **said: Any) -> Record:
    """The record of a case in one of the loops."""
    train = {name: value for name, value in {**TINY, "loop": loop, **train}.items() if value is not None}
    planned = case(train=train, probes=PROBES, **{**data, **said})
    return attempt(replace(planned, id=f"cpu-{loop}"), shelf)


def wrong(records: list[Record]) -> dict[str, str]:
    """What the laws say is broken or cannot be judged, in each and between them."""
    few = {"loss_decreases"}  # in so few steps
    verdicts = [verdict for record in records for verdict in judge(record)] + list(judge_together(records))
    return {
        f"{verdict.about}::{verdict.law}": f"{verdict.message}; {verdict.cause}"
        for verdict in verdicts
        if verdict.outcome in ("broken", "invalid") and verdict.law not in few
    }


def agree(records: list[Record]) -> None:
    """All have trained, keep every law, and the loops agree."""
    assert [record.reason for record in records if not record.finished] == []
    assert wrong(records) == {}
    assert {verdict.law: verdict.outcome for verdict in judge_together(records)}["loops_agree"] == "held"


@pytest.mark.parametrize("name", PLAIN)
def test_loops_agree_in_every_choice(name: str, shelf: Shelf) -> None:
    """Three loops, one batch a step: they keep every law of gradients and updates, and differ by rounding at most."""
    agree([trained(shelf, loop, CLASSES, PLAIN[name]) for loop in LOOPS])


@pytest.mark.parametrize("name", ACCUMULATED)
def test_loops_agree_over_micro_batches(name: str, shelf: Shelf) -> None:
    """Three loops, several unequal micro-batches a step."""
    data, train = ACCUMULATED[name]
    agree([trained(shelf, loop, data, train) for loop in LOOPS])


@pytest.mark.parametrize("task", RAW)
def test_trainer_agrees_with_a_loss_that_divides(task: str, shelf: Shelf) -> None:
    """The remedy of what it does to most heads; the other two loops need none."""
    train = {"gradient_accumulation": 2, "max_grad_norm": 0.5}
    records = [trained(shelf, loop, RAW[task], train) for loop in ("custom", "accelerate")]
    records.append(trained(shelf, "trainer", RAW[task], {**train, "compute_loss_func": True}))
    same = {**records[0].settings, "train.loop": "trainer"}  # but for the remedy
    agree([*records[:2], records[2].model_copy(update={"settings": same})])
    assert wrong(records[2:]) == {}


@pytest.mark.parametrize("precision", ["bf16", "bf16-pure", "fp16"])
@pytest.mark.parametrize(
    "train", [{"learning_rate": 2e-2}, {"gradient_accumulation": 2, "max_grad_norm": 0.5}], ids=str
)
def test_loops_agree_in_every_precision(precision: str, train: dict[str, Any], shelf: Shelf) -> None:
    """Those that this machine has; fp16 on a CPU is the custom loop's alone."""
    train = {"learning_rate": 2e-2, **train}
    records = [trained(shelf, loop, TEXT, train, precision=precision) for loop in LOOPS]
    if precision == "fp16":
        assert [record.outcome for record in records] == ["finished", "skipped", "skipped"]
        assert "no fp16 on cpu in the loop trainer" in records[1].reason
        assert wrong(records[:1]) == {}
    else:
        agree(records)


@pytest.mark.parametrize(
    ("data", "micro_batches"), [(CLASSES, 4), (WORDS, 2), (ANSWERS, 2)], ids=["classes", "words", "qa"]
)
def test_what_the_trainer_does_to_micro_batches_is_found(
    data: dict[str, Any], micro_batches: int, shelf: Shelf
) -> None:
    """A live defect: it is not hidden, but named with its remedy by all laws that see it."""
    train = {"gradient_accumulation": micro_batches, "batch_size": 1 if micro_batches == 4 else 2}
    records = [trained(shelf, loop, data, train) for loop in ("custom", "trainer")]
    found = wrong(records)
    laws = {"accumulation_equivalent", "loss_is_the_declared_one", "gradient_is_the_declared_one"}
    assert {name.rpartition("::")[2] for name in found if "cpu-trainer" in name} == laws
    assert {name for name in found if "cpu-trainer" not in name} == {"trial.yaml::loops_agree"}
    assert all("known defect of transformers" in says for says in found.values())
    if micro_batches == 4:
        loss, whole = records[1].probes["accumulation"]["loss"]
        assert loss == pytest.approx(4 * whole, rel=1e-4)
        assert "loss normalisation" in found["trial.yaml::loops_agree"]


def test_trainer_clips_what_it_made_too_large(shelf: Shelf) -> None:
    """Under a limit that the right gradients keep, only those of the Trainer are cut: AdamW hides nothing then."""
    train = {"gradient_accumulation": 2, "max_grad_norm": 1.5}
    custom, trainer = (trained(shelf, loop, CLASSES, train) for loop in ("custom", "trainer"))
    assert custom.steps.gradient_norm_before[0] is not None
    assert trainer.steps.gradient_norm_before[0] == pytest.approx(2 * custom.steps.gradient_norm_before[0], rel=1e-3)


def test_choices_are_recorded(shelf: Shelf) -> None:
    """The optimizer says whether it is fused and why, its groups whom they hold, and the settings how many steps."""
    record = trained(shelf, "custom", CLASSES, {**PLAIN["groups"], "steps": None, "epochs": 2.0})
    assert record.optimizer is not None
    assert record.optimizer.fused is True
    assert record.optimizer.reasons["fused"].startswith("fused: torch ")
    assert {group.weight_decay for group in record.optimizer.groups} == {0.0, 0.01, 0.1}
    assert sum(len(group.names) for group in record.optimizer.groups) == len(record.parameters)
    assert record.settings["train.steps"] == len(record.steps.loss) == 6
    head = next(group for group in record.optimizer.groups if "classifier.weight" in group.names)
    assert head.learning_rate == 5e-3


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"freeze": "embedings"}, "CheckpointError: train.freeze: 'embedings' means no parameter of the model"),
        ({"freeze": "*"}, "CheckpointError: train.freeze: nothing is left to be trained"),
        (
            {"groups": [{"parameters": "classifier.wieght"}]},
            "train.groups[0]: 'classifier.wieght' means no parameter of the model; did you mean 'classifier.weight'",
        ),
    ],
    ids=str,
)
def test_pattern_that_means_nothing_is_refused(train: dict[str, Any], says: str, shelf: Shelf) -> None:
    """And the nearest names are shown."""
    record = trained(shelf, "custom", CLASSES, train)
    assert record.outcome == "crashed"
    assert says in record.reason


@pytest.mark.parametrize(
    ("train", "precision", "says"),
    [
        ({"optimizer": "adamw_8bit"}, "fp32", "adamw_8bit: bitsandbytes is not installed"),
        ({}, "tf32", "no tf32 on cpu: NVIDIA's GPUs have it from Ampere on"),
    ],
)
def test_what_the_machine_lacks_is_a_skip(train: dict[str, Any], precision: str, says: str, shelf: Shelf) -> None:
    """With its reason."""
    if "optimizer" in train:
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("bitsandbytes is installed")
    record = trained(shelf, "custom", CLASSES, train, precision=precision)
    assert (record.outcome, record.reason) == ("skipped", says)


@pytest.mark.parametrize(
    ("seed", "weights", "data", "dropout"),
    [("weights_seed", True, False, False), ("data_seed", False, True, False), ("dropout_seed", False, False, True)],
)
def test_seeds_are_separate(seed: str, weights: bool, data: bool, dropout: bool, shelf: Shelf) -> None:
    """Each changes what it names, and nothing else."""
    usual, other = (trained(shelf, "custom", CLASSES, said) for said in ({}, {seed: 7}))
    assert usual.checkpoint is not None
    assert other.checkpoint is not None
    assert (usual.checkpoint.digest != other.checkpoint.digest) == weights
    assert (usual.steps.examples != other.steps.examples) == data
    if not weights and not data:  # which change losses, too
        assert (usual.steps.loss != other.steps.loss) == dropout


def test_older_records_are_judged() -> None:
    """What they do not say is as it was."""
    later = ("train.gradient_checkpointing", "train.compile", "train.packing", "benchmark.timed_steps")
    old = HEALTHY.model_copy(update={"settings": {k: v for k, v in HEALTHY.settings.items() if k not in later}})
    assert {verdict.law for verdict in judge(old) if verdict.outcome == "broken"} == set()
    assert len(LAWS) > 40
