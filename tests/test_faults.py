"""Real faults in real trainings: each is seeded where such a bug would be, and turns exactly the right items red."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from project import messages, outcomes
from safetensors.torch import load_file, save_file
from transformers import (
    BertForSequenceClassification,
    BertModel,
    DataCollatorWithPadding,
    DefaultFlowCallback,
    Trainer,
    TrainingArguments,
)
from trial import SEQUENCES, save

from harness.laws import LAWS

# pytester forgets what a run in this process imports. With all of training imported here, runs share its modules.
from harness.training import checkpoint, data, devices, run, tokenizer, trainer, workload  # noqa: F401
from harness.training.devices import Device
from harness.training.faults.seam import encoded
from harness.training.order import EpochOrder

pytestmark = pytest.mark.usefixtures("one_thread", "in_this_process", "nothing_is_counted")

Patch = pytest.MonkeyPatch
Red = dict[str, str]
"""Items that fail, and words that each of them says."""


def both(**laws: str) -> Red:
    """Items of both loops."""
    return {f"cpu-{loop}::{law}": says for law, says in laws.items() for loop in ("custom", "trainer")}


def trainer_only(**laws: str) -> Red:
    """Items of the Trainer's case."""
    return {f"cpu-trainer::{law}": says for law, says in laws.items()}


STILL = both(
    loss_decreases="no parameter moved: the optimizer never steps, or holds other tensors than the model's",
    head_changes="classifier.weight moved by 0 (its own scale",
    backbone_changes="none of 39 backbone parameters moved",
)

PILED_UP: Red = {"loops_agree": "gradient norm"}
"""The Trainer clears the gradients of all parameters, an optimizer of its own alone."""

IN_THE_TRAINING: dict[str, Red] = {
    "nothing": {},
    "mask_dropped": both(padding_mask_correct="no attention_mask among the model's arguments"),
    "mask_inverted": both(
        padding_mask_correct="attention_mask is 0x4 1x7, expected 1x4 0x7\nlikely cause: the polarity"
    ),
    "mask_all_ones": both(
        padding_mask_correct="attention_mask is 1x11, expected 1x4 0x7\nlikely cause: the mask is all"
    ),
    "mask_hides_the_last_token": both(
        padding_mask_correct="is 1x3 0x8, expected 1x4 0x7\nlikely cause: real tokens are"
    ),
    "padded_with_another_id": both(
        padding_mask_correct="input_ids[4] is 1 under a mask of 0, expected the pad token 0"
    ),
    "padded_on_the_wrong_side": both(
        padding_mask_correct="0x7 1x4, expected 1x4 0x7\nlikely cause: padding is on the o"
    ),
    "last_column_cut": both(tokens_match_tokenizer="10 tokens reached the model, the tokenizer gives 11"),
    "second_end_token": both(tokens_match_tokenizer="input_ids[4] is 3 and not masked, beyond the 4 tokens"),
    "one_token_changed": both(tokens_match_tokenizer="input_ids[1] is 1, the tokenizer gives"),
    "rows_reversed": both(tokens_match_tokenizer="text and row do not belong together"),
    "tokenizer_swapped": both(tokens_match_tokenizer="another tokenizer or normaliser was used"),
    "head_frozen": both(head_changes="classifier.weight is frozen (requires_grad is False)"),
    # Nothing can be learnt on top of a random backbone that stays as it is: that the loss does not fall is true.
    "backbone_frozen": both(
        backbone_changes="all 39 backbone parameters are frozen", loss_decreases="expected at most"
    ),
    "backbone_not_in_the_optimizer": both(
        backbone_changes="none of 39 backbone parameters moved", loss_decreases="expected at most"
    )
    | PILED_UP,
    "layer_not_in_the_optimizer": both(
        backbone_changes="15 of 39 backbone parameters did not move: bert.encoder.layer.0"
    )
    | PILED_UP,
    "optimizer_never_steps": STILL,
    "optimizer_holds_copies": STILL | PILED_UP,
    "learning_rate_0": {**STILL, **both(loss_decreases="the learning rate is 0 at every step")},
    "loss_climbed": both(loss_decreases="it rises"),
    "nan_in_both": both(loss_finite="loss is nan at step 4 of 12"),
    "nan_at_step_7_of_the_trainer": trainer_only(loss_finite="loss is nan at step 7 of 12"),
    "trainer_never_steps": {
        **trainer_only(
            loss_decreases="no parameter moved",
            head_changes="likely cause: the optimizer never steps",
            backbone_changes="likely cause: the optimizer never steps",
        ),
        "loops_agree": "learning rate differs first at step 1: 0.005 and 0,",
    },
    "trainer_shuffles_labels": {"loops_agree": "batches differ first at step 1, in labels\n"},
    "trainer_shuffles_with_another_seed": {
        "loops_agree": "at step 1, in attention_mask, input_ids, labels (examples 2 3 and 3 2)"
    },
    "trainer_halves_the_loss": {"loops_agree": "loss differs first at step 1: "},
    "trainer_turns_dropout_off": {"loops_agree": "loss differs first at step 1: "},
    "trainer_clips_gradients": {"loops_agree": "loss differs first at step "},
    "trainer_has_another_schedule": {"loops_agree": "learning rate differs first at step 2: 0.005 and 0.0045833"},
    "trainer_stops_early": {
        **trainer_only(trains="10 training steps were taken, train.steps declares 12"),
        "loops_agree": "steps differ: 12 and 10",
    },
    "trainer_draws_the_head_again": {
        **trainer_only(head_is_new="1 tensor changed between loading and the first step: classifier.weight"),
        "loops_agree": "initial weights differ: digest ",
    },
    "weights_drawn_with_other_seeds": {"loops_agree": "initial weights differ: digest "},
    "trainer_crashes_at_step_5": trainer_only(trains="crashed: ValueError: a broken thing"),
    "collator_crashes": both(trains="crashed: ValueError: a broken thing"),
}
"""Seeded into two loops that train a tiny model with random weights."""

IN_THE_CHECKPOINT: dict[str, Red] = {
    "backbone_saved": {},
    "wrong_prefix": both(
        head_is_new="39 parameters that the checkpoint should hold are newly initialised: bert.embeddings"
    ),
    "layer_lost": both(
        head_is_new="16 parameters that the checkpoint should hold are newly initialised: bert.encoder.la"
    ),
    "already_fine_tuned": both(
        head_is_new="classifier.bias, classifier.weight should be new, but came from the checkp"
    ),
}
"""Seeded into the folder that two loops load."""

ON_A_DEVICE: dict[str, Red] = {
    "cuda_is_right": {},
    "cuda_is_off": {"devices_agree": "cpu and cuda: loss without dropout differs first at step 2: "},
}
"""Seeded into a second device, on which the custom loop trains as it does on the CPU."""

EXPERIMENT = """\
checkpoint: {checkpoint}
data:
  sequences:
    - The soup was warm.
    - The soup was cold and the bread was stale.
    - Lovely.
    - Awful, we waited an hour for it.
  labels: [1, 0, 1, 0]
train: {{steps: 12, batch_size: 2, learning_rate: {learning_rate}}}
matrix: {{{matrix}}}
"""
TINY = {"checkpoint": "{architecture: bert, size: tiny}", "learning_rate": 5.0e-3}
FOLDER = {"checkpoint": "./model", "learning_rate": 1.0e-2}
LOOPS = {"matrix": "train.loop: [custom, trainer]"}
DEVICES = {"matrix": "device: [cpu, cuda]"}


PLAIN = (
    "trains",
    "loss_finite",
    "loss_decreases",
    "padding_mask_correct",
    "tokens_match_tokenizer",
    "head_is_new",
    "head_changes",
    "backbone_changes",
    "loops_agree",
    "devices_agree",
)
"""The laws judged here. Others see many of the same faults from nearer by: tests/test_faults_closely.py has them."""

STEPPED = 12
"""Steps of a case."""
QUICKLY = ("-p", "no:benchmark", "-p", "no:hypothesispytest")
"""The one describes the machine and the other is imported in every run: both take longer than the trainings."""


@pytest.mark.parametrize(
    ("fault", "red", "said"),
    [
        *(pytest.param(fault, red, TINY | LOOPS, id=fault) for fault, red in IN_THE_TRAINING.items()),
        *(pytest.param(fault, red, FOLDER | LOOPS, id=fault) for fault, red in IN_THE_CHECKPOINT.items()),
        *(pytest.param(fault, red, TINY | DEVICES, id=fault) for fault, red in ON_A_DEVICE.items()),
    ],
)
def test_fault_turns_the_right_items_red(
    fault: str, red: Red, said: dict[str, Any], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly the items that the fault concerns fail, and say what is wrong; without a fault none does."""
    SEEDS[fault](monkeypatch, pytester.path)
    off = f"invariants: {{{', '.join(f'{law.name}: false' for law in LAWS if law.name not in PLAIN)}}}"
    (pytester.path / "a.yaml").write_text(EXPERIMENT.format(**said) + off)
    result = pytester.runpytest_inprocess("a.yaml", *QUICKLY)
    found = {item.removeprefix("a.yaml::"): outcome for item, outcome in outcomes(result).items()}
    says = {item.removeprefix("a.yaml::"): message for item, message in messages(result).items()}
    assert {item for item, outcome in found.items() if outcome not in ("passed", "skipped")} == red.keys()
    for item, words in red.items():
        assert words in says[item]
    cases = 2
    alone = sum(law.axis is None for law in LAWS if law.name in PLAIN)
    assert len(found) == cases * (alone + len(["step_throughput"])) + len(["agreement"])
    if not red:
        skipped = {item for item, outcome in found.items() if outcome == "skipped"}
        assert all(item.endswith("::head_is_new") for item in skipped)
        assert bool(skipped) == ("architecture" in said["checkpoint"])


@pytest.mark.parametrize("law", PLAIN)
def test_every_law_is_broken_by_a_fault(law: str) -> None:
    """No law is there that no real fault turns red."""
    tables = IN_THE_TRAINING, IN_THE_CHECKPOINT, ON_A_DEVICE
    assert law in {item.rpartition("::")[2] for table in tables for red in table.values() for item in red}


def test_log_of_the_trainer_hides_the_nan(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the law sees at step 7 cannot be seen in what the Trainer logs: every loss there is a finite number."""
    logged: list[float] = []

    def log(self: Trainer, logs: dict[str, float], *args: Any) -> None:
        if "loss" in logs:
            logged.append(logs["loss"])

    nan_at_step_7_of_the_trainer(monkeypatch, pytester.path)
    making(monkeypatch, TrainingArguments, lambda said: {**said, "logging_strategy": "steps", "logging_steps": 1})
    monkeypatch.setattr(Trainer, "log", log)
    (pytester.path / "a.yaml").write_text(EXPERIMENT.format(**TINY, matrix="train.loop: [trainer]"))
    result = pytester.runpytest_inprocess("a.yaml::cpu-trainer::loss_finite", *QUICKLY)
    assert "loss is nan at step 7 of 12" in messages(result)["a.yaml::cpu-trainer::loss_finite"]
    assert len(logged) == STEPPED
    assert all(torch.isfinite(torch.tensor(logged[:12])))


# Where faults are seeded


def collating(patch: Patch, change: Callable[[Any, Any], Any]) -> None:
    """Let the collator do this to each batch that it has made: gets its tokenizer and the batch."""
    original = DataCollatorWithPadding.__call__

    def collate(self: DataCollatorWithPadding, features: Any) -> Any:
        batch = original(self, features)
        change(self.tokenizer, batch)
        return batch

    patch.setattr(DataCollatorWithPadding, "__call__", collate)


def computing_loss(patch: Patch, compute: Callable[[Callable[[], Any], Any, Any, int], Any]) -> None:
    """Let the Trainer compute its loss so: gets the right way, the model, its inputs, and the step, counted from 1."""
    original, steps = Trainer.compute_loss, count(1)

    def compute_loss(self: Trainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return compute(lambda: original(self, model, inputs, *args, **kwargs), model, inputs, next(steps))

    patch.setattr(Trainer, "compute_loss", compute_loss)


def loading(patch: Patch, change: Callable[[Any], Any]) -> None:
    """Do this to each model that was loaded."""
    original = checkpoint.load

    def load(settings: Any) -> Any:
        loaded = original(settings)
        change(loaded.model)
        return loaded

    patch.setattr(checkpoint, "load", load)


def making(patch: Patch, owner: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let objects of a class be made with other arguments by keyword."""
    original = owner.__init__
    patch.setattr(owner, "__init__", lambda self, *args, **said: original(self, *args, **change(said)))


def optimizing(patch: Patch, choose: Callable[[list[torch.Tensor]], list[torch.Tensor]]) -> None:
    """Let the optimizer hold these of the parameters that it is given."""
    original = torch.optim.AdamW.__init__

    def init(self: torch.optim.AdamW, params: Any, **said: Any) -> None:
        original(self, choose(list(params)), **said)

    patch.setattr(torch.optim.AdamW, "__init__", init)


# Faults: each gets the patch, and the folder of the experiment


def nothing(patch: Patch, folder: Path) -> None:
    """No fault."""


def mask_dropped(patch: Patch, folder: Path) -> None:
    """The collator leaves the mask out."""
    collating(patch, lambda words, batch: batch.pop("attention_mask"))


def mask_inverted(patch: Patch, folder: Path) -> None:
    """1 stands for padding."""
    collating(patch, lambda words, batch: batch.update(attention_mask=1 - batch["attention_mask"]))


def mask_all_ones(patch: Patch, folder: Path) -> None:
    """The mask is `torch.ones_like(input_ids)`."""
    collating(patch, lambda words, batch: batch["attention_mask"].fill_(1))


def mask_hides_the_last_token(patch: Patch, folder: Path) -> None:
    """An index is off by one."""

    def hide(words: Any, batch: Any) -> None:
        for row in batch["attention_mask"]:
            row[row.nonzero()[-1]] = 0

    collating(patch, hide)


def padded_with_another_id(patch: Patch, folder: Path) -> None:
    """The collator pads with the unknown token."""

    def pad(words: Any, batch: Any) -> None:
        batch["input_ids"][batch["attention_mask"] == 0] = words.unk_token_id

    collating(patch, pad)


def padded_on_the_wrong_side(patch: Patch, folder: Path) -> None:
    """The collator sets the tokenizer's side for itself."""
    original = DataCollatorWithPadding.__call__

    def collate(self: DataCollatorWithPadding, features: Any) -> Any:
        patch.setattr(self.tokenizer, "padding_side", "left")
        batch = original(self, features)
        patch.setattr(self.tokenizer, "padding_side", "right")
        return batch

    patch.setattr(DataCollatorWithPadding, "__call__", collate)


def last_column_cut(patch: Patch, folder: Path) -> None:
    """The collator cuts the batch a column too short."""

    def cut(words: Any, batch: Any) -> None:
        batch.update({name: tensor[:, :-1] for name, tensor in batch.items() if tensor.dim() == 2})

    collating(patch, cut)


def second_end_token(patch: Patch, folder: Path) -> None:
    """An end token is appended to texts that have one."""

    def append(words: Any, batch: Any) -> None:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            if not mask.all():
                ids[mask.sum()] = words.sep_token_id
                mask[mask.sum()] = 1

    collating(patch, append)


def one_token_changed(patch: Patch, folder: Path) -> None:
    """The first word of the first row is unknown."""

    def change(words: Any, batch: Any) -> None:
        batch["input_ids"][0, 1] = words.unk_token_id

    collating(patch, change)


def rows_reversed(patch: Patch, folder: Path) -> None:
    """The collator sorts its rows, and forgets that somebody else knows their order."""
    collating(patch, lambda words, batch: batch.update({name: tensor.flip(0) for name, tensor in batch.items()}))


def tokenizer_swapped(patch: Patch, folder: Path) -> None:
    """The texts are encoded by another tokenizer than the checkpoint's."""
    right, other = workload.prepare, tokenizer.train(SEQUENCES, vocab_size=40)
    patch.setattr(workload, "prepare", lambda *arguments: encoded(right(*arguments), other))


def head_frozen(patch: Patch, folder: Path) -> None:
    """The wrong half of the model is frozen."""
    loading(patch, lambda model: model.classifier.requires_grad_(False))


def backbone_frozen(patch: Patch, folder: Path) -> None:
    """The backbone is frozen, and stays so."""
    loading(patch, lambda model: model.base_model.requires_grad_(False))


def backbone_not_in_the_optimizer(patch: Patch, folder: Path) -> None:
    """The optimizer gets the parameters of the head only."""
    optimizing(patch, lambda parameters: parameters[-2:])


def layer_not_in_the_optimizer(patch: Patch, folder: Path) -> None:
    """Parameter groups that leave out the first layer."""
    optimizing(patch, lambda parameters: parameters[:5] + parameters[5 + 16 :])


def optimizer_never_steps(patch: Patch, folder: Path) -> None:
    """`step` does nothing."""
    patch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)


def optimizer_holds_copies(patch: Patch, folder: Path) -> None:
    """The optimizer was made before the model was copied to its device."""
    optimizing(patch, lambda parameters: [parameter.detach().clone().requires_grad_() for parameter in parameters])


def learning_rate_0(patch: Patch, folder: Path) -> None:
    """The declared rate does not reach the optimizer."""
    making(patch, torch.optim.AdamW, lambda said: {**said, "lr": 0.0})


def loss_climbed(patch: Patch, folder: Path) -> None:
    """The sign of the update is wrong."""
    making(patch, torch.optim.AdamW, lambda said: {**said, "maximize": True})


def nan_in_both(patch: Patch, folder: Path) -> None:
    """A weight of the model is NaN after three updates."""
    original, updates = torch.optim.AdamW.step, count(1)

    def step(self: torch.optim.AdamW, closure: Any = None) -> None:
        original(self, closure)
        if next(updates) % STEPPED == 3:
            torch.nn.init.constant_(self.param_groups[0]["params"][-1], float("nan"))

    patch.setattr(torch.optim.AdamW, "step", step)


def nan_at_step_7_of_the_trainer(patch: Patch, folder: Path) -> None:
    """The loss overflows once; from then on the weights are NaN too."""
    computing_loss(patch, lambda right, model, inputs, step: right() * (float("nan") if step == 7 else 1.0))


def trainer_never_steps(patch: Patch, folder: Path) -> None:
    """Accelerate believes that gradients are still being accumulated."""
    patch.setattr(AcceleratedOptimizer, "step", lambda self, closure=None: None)


def trainer_shuffles_labels(patch: Patch, folder: Path) -> None:
    """Labels do not travel with their texts, at the first step only."""

    def compute(right: Any, model: Any, inputs: Any, step: int) -> Any:
        if step == 1:
            inputs["labels"] = inputs["labels"].flip(0)
        return right()

    computing_loss(patch, compute)


def trainer_shuffles_with_another_seed(patch: Patch, folder: Path) -> None:
    """The order of the examples is drawn with a seed that the Trainer was not told."""
    order = EpochOrder(4, seed=7, shuffle=True)
    patch.setattr(trainer.WatchedTrainer, "_get_train_sampler", lambda self, examples=None: order)


def trainer_halves_the_loss(patch: Patch, folder: Path) -> None:
    """The loss is divided as if gradients were accumulated over two batches."""
    computing_loss(patch, lambda right, model, inputs, step: right() / 2)


def trainer_turns_dropout_off(patch: Patch, folder: Path) -> None:
    """The model is left in eval mode."""

    def compute(right: Any, model: Any, inputs: Any, step: int) -> Any:
        model.eval()
        return right()

    computing_loss(patch, compute)


def trainer_clips_gradients(patch: Patch, folder: Path) -> None:
    """The Trainer clips what the custom loop does not."""
    making(patch, TrainingArguments, lambda said: {**said, "max_grad_norm": 0.1})


def trainer_has_another_schedule(patch: Patch, folder: Path) -> None:
    """The Trainer makes the linear schedule that is its default."""

    def own_schedule(said: dict[str, Any]) -> dict[str, Any]:
        optimizer, _ = said["optimizers"]
        return {**said, "optimizers": (optimizer, None)}

    making(patch, Trainer, own_schedule)


def trainer_stops_early(patch: Patch, folder: Path) -> None:
    """A callback stops the training at step 10."""
    original = DefaultFlowCallback.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control = original(self, args, state, control, **kwargs)
        control.should_training_stop |= state.global_step == 10
        return control

    patch.setattr(DefaultFlowCallback, "on_step_end", on_step_end)


def trainer_draws_the_head_again(patch: Patch, folder: Path) -> None:
    """The Trainer initialises the head that it is given."""

    def draw(said: dict[str, Any]) -> dict[str, Any]:
        torch.nn.init.normal_(said["model"].classifier.weight, std=0.02)
        return said

    making(patch, Trainer, draw)


def weights_drawn_with_other_seeds(patch: Patch, folder: Path) -> None:
    """Each case loads its own weights, and the seed is not set before the head is drawn."""
    seeds = count()
    patch.setattr(checkpoint, "set_seed", lambda seed: torch.manual_seed(next(seeds)))
    patch.setattr(checkpoint.Shelf, "take", lambda self, file, settings: checkpoint.load(settings))


def trainer_crashes_at_step_5(patch: Patch, folder: Path) -> None:
    """The forward pass raises."""

    def compute(right: Any, model: Any, inputs: Any, step: int) -> Any:
        if step == 5:
            raise ValueError("a broken thing")
        return right()

    computing_loss(patch, compute)


def collator_crashes(patch: Patch, folder: Path) -> None:
    """The collator raises at a long text."""

    def refuse(words: Any, batch: Any) -> None:
        if batch["input_ids"].shape[1] > 8:
            raise ValueError("a broken thing")

    collating(patch, refuse)


def saved(folder: Path, model: Any) -> Path:
    """The weights of a checkpoint of random weights that learns in twelve steps."""
    save(folder / "model", model, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return folder / "model" / "model.safetensors"


def backbone_saved(patch: Patch, folder: Path) -> None:
    """A checkpoint as it should be: a backbone without a head."""
    saved(folder, BertModel)


def wrong_prefix(patch: Patch, folder: Path) -> None:
    """The weights were saved from inside another module: no name is the model's."""
    weights = saved(folder, BertModel)
    save_file({f"encoder_model.{name}": value for name, value in load_file(weights).items()}, weights, {"format": "pt"})


def layer_lost(patch: Patch, folder: Path) -> None:
    """A shard of the weights is missing."""
    weights = saved(folder, BertModel)
    kept = {name: value for name, value in load_file(weights).items() if "layer.1." not in name}
    save_file(kept, weights, {"format": "pt"})


def already_fine_tuned(patch: Patch, folder: Path) -> None:
    """The checkpoint has a head for the same task."""
    saved(folder, BertForSequenceClassification)


def cuda_is_right(patch: Patch, folder: Path) -> None:
    """`cuda` is the CPU under another name."""
    patch.setattr(devices, "find", lambda name: Device(name, torch.device("cpu")))


def cuda_is_off(patch: Patch, folder: Path) -> None:
    """The linear layers of `cuda` give two percent too much."""
    original, current = torch.nn.Linear.forward, ["cpu"]

    def find(name: str) -> Device:
        current[0] = name  # the last to be looked for is the one that the case runs on
        return Device(name, torch.device("cpu"))

    patch.setattr(devices, "find", find)
    patch.setattr(
        torch.nn.Linear,
        "forward",
        lambda self, input: original(self, input) * (1.02 if current[0] == "cuda" else 1.0),
    )


SEEDS: dict[str, Callable[[Patch, Path], None]] = {
    name: globals()[name] for table in (IN_THE_TRAINING, IN_THE_CHECKPOINT, ON_A_DEVICE) for name in table
}
