"""Going on from a checkpoint, in each loop: every part of the state, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from records import AT, PROBES, RATE, RESUMED, record
from test_laws import Judged, check, each
from trial import case, settings, train

from harness.errors import CheckpointError
from harness.laws import judge
from harness.laws.law import Verdict
from harness.record import Record
from harness.training import checkpoint, devices, loops, resume, workload
from harness.training.checkpoint import Shelf
from harness.training.fault import Fault
from harness.training.faults.resume import FAULTS
from harness.training.further import Onlooker
from harness.training.resume import Keeping
from harness.training.run import run

pytestmark = pytest.mark.usefixtures("one_thread", "in_this_process")

LOOPS = ("custom", "trainer", "accelerate")
STEPS = {"steps": 8, "batch_size": 2, "learning_rate": 1e-2, "schedule": "linear", "warmup_steps": 2}
TEXTS = (
    "the soup was warm and the bread",
    "we waited an hour for the soup and the bread",
    "it was cold and warm again",
)


def verdict(found: Record) -> Verdict:
    """Of the law."""
    (only,) = (one for one in judge(found) if one.law == "resume_equivalent")
    return only


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "said",
    [
        {"train": {"resume_at": 2}},  # in the middle of an epoch of three
        {"train": {"resume_at": 3}},  # at its end
        {"train": {"resume_at": 3, "gradient_accumulation": 2, "max_grad_norm": 0.1}},
        {"train": {"resume_at": 5, "optimizer": "sgd", "momentum": 0.9}},
        {"train": {"resume_at": 4}, "peft": {"rank": 2, "dropout": 0.1, "modules_to_save": ["word_embeddings"]}},
        {"train": {"resume_at": 4}, "precision": "bf16"},
    ],
    ids=["middle", "end", "accumulated", "momentum", "adapters", "bf16"],
)
def test_goes_on_as_if_it_had_not_stopped(loop: str, said: dict[str, Any]) -> None:
    """Bit for bit, dropout included: losses, rates, batches, random numbers, and the weights at the end."""
    steps = {**STEPS, **said["train"], "loop": loop}
    found = train(case(probes={"resumed"}, **{**said, "train": steps}))
    judged = verdict(found)
    assert judged.outcome == "held", judged
    assert f"after step {steps['resume_at']}, and all weights at the end" in judged.message
    assert found.modes is not None
    assert found.modes.stochastic > 0


@pytest.mark.parametrize("loop", ["custom", "accelerate"])
def test_what_is_masked_goes_on_too(loop: str) -> None:
    """The collator that hides tokens draws from a generator of its own."""
    said = {"task": "masked-lm", "data": {"rows": [{"text": text} for text in TEXTS], "mask_probability": 0.5}}
    found = train(case(probes={"resumed"}, train={**STEPS, "resume_at": 4, "loop": loop}, **said))
    assert verdict(found).outcome == "held", verdict(found)


def test_labels_that_the_trainer_keeps_are_those_of_the_same_batch() -> None:
    """It smooths them itself, and the model never sees them."""
    said = {"loop": "trainer", "label_smoothing": 0.1, "resume_at": 4}
    found = train(case(probes={"resumed"}, train={**STEPS, **said}))
    assert verdict(found).outcome == "held", verdict(found)


@pytest.mark.parametrize("loop", ["custom", "accelerate"])
def test_what_is_skipped_is_forgotten_and_nothing_else(loop: str, tmp_path: Path) -> None:
    """Each step after it has the examples of its own batch, although Accelerate's loader is a batch ahead."""

    def examples(keeping: Keeping) -> list[tuple[int, ...]]:
        settings = case(train={**STEPS, "resume_at": 2, "loop": loop}).settings
        work = workload.prepare(checkpoint.load(settings), settings, devices.find("cpu"))
        seen: list[tuple[int, ...]] = []

        class Looking(Onlooker):
            def step_done(self, loss: object, norm: object = None) -> None:
                seen.append(work.drawn.queue.popleft().indices)

        loops.LOOPS[loop](replace(work, keeping=keeping), Looking())
        return seen

    whole = examples(Keeping(tmp_path, at=2))
    assert examples(Keeping(tmp_path, at=2, resumes=True)) == whole[2:]


SAYS = {
    "optimizer_state_not_loaded": "optimizer moments: ",
    "schedule_begins_anew": "schedule: ",
    "random_state_not_restored": "random state: another one in step 5",
    "data_begin_anew": "data position: another one in step 5",
    "weights_not_loaded": "weights: ",
    "checkpoint_cut_off": "is damaged",
}


@pytest.mark.parametrize(("fault", "loop"), [(fault, loop) for fault in FAULTS for loop in sorted(fault.loops)])
def test_fault_is_named_by_the_state_that_it_loses(fault: Fault, loop: str) -> None:
    """And no other law is broken: the training that went through is right."""
    made = case(probes={"resumed"}, train={**STEPS, "resume_at": 4, "loop": loop})
    found = run(made, shelf=Shelf(), root=Path.cwd(), fault=fault)
    assert found.finished, found.reason
    red = {one.law: one.message for one in judge(found) if one.outcome == "broken"}
    assert red.keys() - {"loss_decreases"} == {"resume_equivalent"}
    assert SAYS[fault.name] in red["resume_equivalent"]


def test_without_the_key_nothing_is_written() -> None:
    """The law says so."""
    found = train(case(probes={"resumed"}, train={"steps": 2}))
    assert (verdict(found).outcome, verdict(found).message) == (
        "not applicable", "no checkpoint is declared: see train.resume_at"
    )  # fmt: skip


def test_the_last_step_leaves_nothing_to_go_on_with() -> None:
    """The checkpoint is written before the end."""
    with pytest.raises(ValueError, match="a step before the last"):
        settings(train={"steps": 4, "resume_at": 4})


# The checkpoint


@pytest.fixture
def keeping(tmp_path: Path) -> Keeping:
    """A checkpoint of a layer, sealed."""
    kept = Keeping(tmp_path, at=3)
    resume.save(kept.folder, model=torch.nn.Linear(2, 2))
    resume.seal(kept, settings(), {"weights": {}})
    return kept


def test_a_whole_checkpoint_is_taken(keeping: Keeping) -> None:
    """With the state that it should bring back."""
    assert resume.check(keeping, settings()) == {"weights": {}}


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: (folder / "state.pt").unlink(), "state.pt is missing"),
        (lambda folder: (folder / "state.pt").write_bytes(b"torn"), "state.pt is damaged"),
        (lambda folder: (folder / "harness.json").unlink(), "no whole checkpoint"),
        (lambda folder: (folder / "harness.json").write_text("{"), "no whole checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_refused(keeping: Keeping, harm: Any, says: str) -> None:
    """The file is named."""
    harm(keeping.folder)
    with pytest.raises(CheckpointError, match=says):
        resume.check(keeping, settings())


def test_a_checkpoint_of_another_training_is_refused(keeping: Keeping) -> None:
    """Every difference is named with both values; what says nothing of the training is none."""
    other = settings(train={"learning_rate": 0.5, "seed": 7}, peft={"rank": 2})
    with pytest.raises(CheckpointError) as caught:
        resume.check(keeping, other)
    assert "train.learning_rate is 5e-05 there and 0.5 here" in str(caught.value)
    assert "train.seed is 42 there and 7 here" in str(caught.value)
    assert "peft is null there and" in str(caught.value)
    assert resume.check(keeping, settings(benchmark={"warmup_steps": 1}, invariants={}))


def test_random_numbers_go_on(tmp_path: Path) -> None:
    """Of Python, numpy and torch, through a file."""
    import random

    resume.save(tmp_path / "a")
    drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
    resume.load(tmp_path / "a")
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == drawn


# The law, on records written by hand


def resumed(**changes: Any) -> Record:
    """The healthy record with what a right going on leaves, but for this."""
    steps = {**RESUMED["steps"], **changes.pop("steps", {})}
    return record(probes={**PROBES, "resumed": {**RESUMED, "steps": steps, **changes}})


def on_cuda(found: Record) -> Record:
    """The same on a GPU."""
    return record(found, settings={"device": "cuda"})


DIGESTS = RESUMED["steps"]["digest"]
ACCEPTED = (
    Judged("resume_equivalent", "right", resumed(), "3 steps after step 5, and all weights at the end"),
    Judged("resume_equivalent", "another order of sums", on_cuda(resumed(steps={"loss": [0.45, 0.3, 0.2001]}))),
    Judged("resume_equivalent", "weights on CUDA", on_cuda(resumed(ended=["classifier.weight"])), "3 steps"),
    Judged(
        "resume_equivalent",
        "a step without a rate, in fp16",
        record(
            resumed(steps={"learning_rate": [RATE, float("nan"), RATE]}),
            steps={"learning_rate": (*(RATE,) * 6, float("nan"), RATE)},
        ),
    ),
    Judged(
        "resume_equivalent",
        "nothing draws",
        record(resumed(steps={"random": ["x", "y", "z"]}), modes={"stochastic": 0}),
    ),
)
REJECTED = (
    Judged("resume_equivalent", "refused", resumed(refused="checkpoint-5 is refused: a is damaged"), "a is damaged"),
    Judged("resume_equivalent", "fails", resumed(failed="KeyError: x"), "it does not go on: KeyError: x"),
    Judged(
        "resume_equivalent",
        "weights",
        resumed(weights=["a", "b", "c", "d"], ended=["a"]),
        "after step 5 of 8 another state goes on: weights: a, b, c and 1 more",
        "not in the checkpoint",
    ),
    Judged("resume_equivalent", "moments", resumed(moments=["a"]), "optimizer moments: a", "optimizer's state is"),
    Judged("resume_equivalent", "scaler", resumed(scaler=["scale"]), "scaler: scale", "loss scaler"),
    Judged(
        "resume_equivalent",
        "data",
        resumed(steps={"digest": [DIGESTS[0], {"input_ids": "others"}, DIGESTS[2]]}),
        "data position: another one in step 7",
        "begins anew",
    ),
    Judged(
        "resume_equivalent",
        "schedule",
        resumed(steps={"learning_rate": [1e-3, 1e-3, 2e-3]}),
        "schedule: 0.002 in step 8, 0.001 without a stop",
    ),
    Judged(
        "resume_equivalent",
        "random",
        resumed(steps={"random": ["5", "x", "7"]}),
        "random state: another one in step 7",
        "generators",
    ),
    Judged("resume_equivalent", "loss", resumed(steps={"loss": [0.45, 0.3, 0.2001]}), "loss: 0.2001 in step 8, 0.2"),
    Judged("resume_equivalent", "NaN", resumed(steps={"loss": [0.45, "NaN", 0.2]}), "loss: nan in step 7"),
    Judged("resume_equivalent", "end", resumed(ended=["a"]), "weights at the end: a"),
    Judged(
        "resume_equivalent",
        "too few",
        resumed(steps={"loss": [0.45]}),
        "number of steps: 1 after the checkpoint, expected 3",
    ),
    Judged(
        "resume_equivalent",
        "two at once",
        resumed(moments=["a"], steps={"random": ["x", "y", "z"]}),
        ("optimizer moments: a", "random state: another one in step 6"),
    ),
)


@each(*ACCEPTED)
def test_accepts(judged: Judged) -> None:
    """A right going on keeps the law."""
    check(judged, "held")


@each(*REJECTED)
def test_rejects(judged: Judged) -> None:
    """A wrong one breaks it, and every state that is lost is named."""
    check(judged, "broken")


@given(st.sampled_from(["loss", "learning_rate", "digest", "random"]), st.integers(0, 2), st.data())
def test_any_other_step_is_rejected(column: str, place: int, data: st.DataObject) -> None:
    """Whatever differs, in whichever step, however little: on a CPU nothing may."""
    right = RESUMED["steps"][column]
    other = data.draw(st.floats() if column in ("loss", "learning_rate") else st.text(min_size=9))
    assume(other != right[place])
    other = {"input_ids": other} if column == "digest" else other
    changed = [other if number == place else value for number, value in enumerate(right)]
    found = verdict(resumed(steps={column: changed}))
    assert found.outcome == "broken"
    assert f"step {AT + place + 1}" in found.message


def test_the_settings_that_are_compared_are_readable(keeping: Keeping) -> None:
    """The manifest is a file for people too."""
    said = json.loads((keeping.folder / resume.MANIFEST).read_text())
    assert said["settings"]["train.steps"] == "20"
    assert len(said["settings"]["data"]) == 16  # a digest: what is written must not grow with the data
