"""Real faults, seen by the laws that look closer: at the twin, the optimizer, the order of the data, what is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from project import messages
from test_faults import (
    EXPERIMENT,
    LOOPS,
    QUICKLY,
    SEEDS,
    TINY,
    Patch,
    computing_loss,
    loading,
)
from transformers import PreTrainedModel
from transformers.models.bert import modeling_bert

from harness.laws import LAWS
from harness.training.order import EpochOrder

pytestmark = pytest.mark.usefixtures("one_thread", "in_this_process", "nothing_is_counted")


def drawn_with_replacement(patch: Patch, folder: Path) -> None:
    """Each example is drawn by itself, whatever was drawn before."""
    patch.setattr(EpochOrder, "__iter__", lambda self: iter([0, 1, 1, 3]))


def same_order_every_epoch(patch: Patch, folder: Path) -> None:
    """Nobody tells the sampler which epoch it is."""
    patch.setattr(EpochOrder, "set_epoch", lambda self, epoch: None)


def losses_kept(patch: Patch, folder: Path) -> None:
    """Losses are added up without detaching them."""
    kept: list[Any] = []

    def compute(right: Any, model: Any, inputs: Any, step: int) -> Any:
        kept.append(right())
        return kept[-1]

    computing_loss(patch, compute)


def head_not_saved(patch: Patch, folder: Path) -> None:
    """The head does not reach the file."""
    original = PreTrainedModel.save_pretrained

    def save(self: Any, *args: Any, **kwargs: Any) -> None:
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("classifier")}
        original(self, *args, state_dict=state, **kwargs)

    patch.setattr(PreTrainedModel, "save_pretrained", save)


def softmax_before_the_loss(patch: Patch, folder: Path) -> None:
    """The head gives probabilities, and cross-entropy takes another softmax of them."""
    loading(patch, lambda model: model.classifier.register_forward_hook(lambda head, given, out: out.softmax(-1)))


def batch_mean_subtracted(patch: Patch, folder: Path) -> None:
    """The head sees each example relative to the others of its batch."""

    def mix(head: Any, given: Any) -> Any:
        return (given[0] - 0.3 * given[0].mean(0, keepdim=True),)

    loading(patch, lambda model: model.classifier.register_forward_pre_hook(mix))


def input_ignored(patch: Patch, folder: Path) -> None:
    """The embedding is zeroed."""
    loading(patch, lambda model: model.get_input_embeddings().register_forward_hook(lambda table, ids, out: out * 0))


def dropout_in_evaluation(patch: Patch, folder: Path) -> None:
    """A functional dropout that no mode turns off, in front of the head."""

    def drop(head: Any, given: Any) -> Any:
        return (torch.nn.functional.dropout(given[0], 0.3, training=True),)

    loading(patch, lambda model: model.classifier.register_forward_pre_hook(drop))


def eager_attention_ignores_the_mask(patch: Patch, folder: Path) -> None:
    """One of the attention implementations leaves the mask out."""
    original = modeling_bert.eager_attention_forward

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        return original(module, query, key, value, None, **kwargs)

    patch.setattr(modeling_bert, "eager_attention_forward", attend)


FAULTS: dict[str, dict[str, str]] = {
    "mask_dropped": {
        "cpu-custom::padding_changes_nothing": "its logits move by",
        "cpu-trainer::examples_stay_apart": "the logits depend on padding",
    },
    "mask_hides_the_last_token": {"cpu-custom::every_token_counts": "1 of 4 tokens have no influence"},
    "batch_mean_subtracted": {
        "cpu-custom::padding_changes_nothing": "its logits move by",
        "cpu-trainer::examples_stay_apart": "tokens of another",
    },
    "input_ignored": {
        "cpu-custom::every_token_counts": "likely cause: all of them: the input is ignored",
        "cpu-custom::overfits_one_batch": "expected at most",
    },
    "trainer_shuffles_labels": {"cpu-trainer::labels_travel": "labels and texts are ordered apart"},
    "drawn_with_replacement": {"cpu-custom::every_example_once": "epoch 1: example 1 was drawn 2 times"},
    "same_order_every_epoch": {"cpu-custom::every_example_once": "have the same order"},
    "trainer_halves_the_loss": {
        "cpu-trainer::loss_is_the_declared_one": "the loss is scaled by 0.5",
        "cpu-trainer::gradient_is_the_declared_one": "every gradient is scaled by 0.5",
    },
    "softmax_before_the_loss": {
        "cpu-custom::loss_is_the_declared_one": "the logits are probabilities already",
        "cpu-trainer::overfits_one_batch": "the loss has a floor",
    },
    "trainer_clips_gradients": {"cpu-trainer::gradient_is_the_declared_one": "clipping that is not declared"},
    "trainer_has_another_schedule": {"cpu-trainer::schedule_followed": "step 2 of 12 used a learning rate of"},
    "trainer_turns_dropout_off": {"cpu-trainer::dropout_on_in_training": "step 1: "},
    "dropout_in_evaluation": {"cpu-custom::padding_changes_nothing": "its logits move by"},
    "layer_not_in_the_optimizer": {
        "cpu-custom::optimizer_covers_trainable": "left out of its parameter groups",
        "cpu-trainer::update_is_the_declared_one": "the update differs by",
    },
    "optimizer_holds_copies": {"cpu-custom::optimizer_covers_trainable": "tensors that are not the model's"},
    "loss_climbed": {"cpu-custom::update_is_the_declared_one": "the update differs by 2"},
    "losses_kept": {"cpu-trainer::no_graph_kept": "graphs of earlier steps are alive after step 12"},
    "head_not_saved": {"cpu-custom::save_reload_equal": "2 weights differ after loading: classifier."},
    "weights_drawn_with_other_seeds": {"cpu-custom::deterministic": "weights differ after 8 steps with the same seed"},
    "eager_attention_ignores_the_mask": {
        "cpu-custom::attention_implementations_agree": "sdpa and eager attention, more padding: loss off by"
    },
    "nothing": {},
}
"""Faults, and what some of the closer laws say of each."""


@pytest.mark.parametrize("fault", FAULTS)
def test_closer_laws_see_the_fault(fault: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the twin, the optimizer or the saved model show is named; without a fault nothing is."""
    seed = SEEDS[fault] if fault in SEEDS else globals()[fault]
    seed(monkeypatch, pytester.path)
    (pytester.path / "a.yaml").write_text(EXPERIMENT.format(**TINY, **LOOPS))
    items = [f"a.yaml::{item}" for item in FAULTS[fault]] or ["a.yaml"]
    result = pytester.runpytest_inprocess(*items, "-m", "invariant or slow_invariant", *QUICKLY)
    says = {item.removeprefix("a.yaml::"): message for item, message in messages(result).items()}
    for item, words in FAULTS[fault].items():
        assert words in says.get(item, "passed"), says
    if fault == "nothing":
        # The others are of labels of tokens, adapters, evaluations or choices that are not made here.
        found = result.parseoutcomes()
        assert found["passed"] == 2 * 27 + 1
        assert not found.keys() & {"failed", "errors"}


# What only exploring finds is in tests/test_exploration.py.
@pytest.mark.parametrize("law", [law.name for law in LAWS if law.probes - {"exploration"} and law.axis is None])
def test_every_closer_law_is_broken_by_a_fault(law: str) -> None:
    """No law is there that no real fault turns red."""
    elsewhere = {
        "future_unseen",
        "pretraining_shows",
        "checkpointing_equals_plain",
        "compiled_equals_eager",
        "adapters_as_declared",
        "evaluation_is_right",
        "evaluation_loss_is_right",
        "accumulation_equivalent",
        "scaler_used_right",
        "resume_equivalent",
        "packing_changes_nothing",
    }  # in test_tasks_live, _prior, _adapters, _evaluation, _faults_of_choices, _resume, _equivalence
    assert law in {item.rpartition("::")[2] for red in FAULTS.values() for item in red} | elsewhere
