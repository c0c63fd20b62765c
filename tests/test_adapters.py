"""Low-rank adapters in real trainings: every task, the names in the record, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
from records import record
from transformers import BertModel
from trial import attempt, case, save, train

from harness import experiment
from harness.laws import LAWS, judge
from harness.record import Record
from harness.training import adapters
from harness.training.checkpoint import Shelf, load
from harness.training.fault import Fault
from harness.training.faults import adapter, saving
from harness.training.run import run

pytestmark = pytest.mark.usefixtures("one_thread", "in_this_process")

PROBES = frozenset(probe for law in LAWS if not law.slow for probe in law.probes) - {"exploration"}
TEXTS = [{"text": text} for text in ("the soup was warm", "bread", "we waited an hour for the soup", "it was cold")]
ROWS: dict[str, list[dict[str, Any]]] = {
    "token-classification": [
        {"words": ["Ada", "lives", "in", "London"], "labels": [1, 0, 0, 2]},
        {"words": ["it", "rains"], "labels": [0, 0]},
    ],
    "question-answering": [
        {"question": "who sings", "context": "every day Ada sings to the cat", "answer": "Ada"},
        {"question": "what is warm", "context": "the soup", "answer": "soup"},
    ],
    "multiple-choice": [
        {"text": "it rains", "choices": ["we get wet", "we stay dry"], "label": 0},
        {"text": "bread", "choices": ["is a fruit", "is baked in an oven"], "label": 1},
    ],
    "masked-lm": TEXTS,
    "causal-lm": TEXTS,
    "seq2seq-lm": [{"text": "one two", "target": "two"}, {"text": "three four five", "target": "five"}],
}
MASKED = ({}, {"mask_probability": 0.5})
"""Of so few tokens, else none may be drawn."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of random weights, without a head."""
    return save(tmp_path_factory.mktemp("checkpoint"), BertModel)


def broken(found: Record) -> dict[str, str]:
    """What is broken, but for a loss that a few steps do not bring down."""
    return {one.law: one.message for one in judge(found) if one.outcome == "broken" and one.law != "loss_decreases"}


@pytest.mark.parametrize("loop", ["custom", "trainer", "accelerate"])
def test_a_checkpoint_with_adapters_keeps_every_law(checkpoint: Path, loop: str) -> None:
    """New is the head alone, which is trained whole; everything else is frozen, and what is saved is all there is."""
    said = {"rank": 2, "alpha": 8, "dropout": 0.1, "targets": ["query", "attention.output.dense"]}
    steps = {"steps": 6, "batch_size": 3, "learning_rate": 1e-2, "loop": loop}
    found = train(case(checkpoint, peft=said, train=steps, probes=PROBES))
    assert broken(found) == {}
    assert found.adapters is not None
    assert found.adapters.targets == {"query": 2, "attention.output.dense": 2}
    assert found.adapters.modules_to_save == ("classifier",)
    assert found.adapters.reasons["modules_to_save"] == "classifier: newly initialised"
    assert found.checkpoint is not None
    assert (
        found.checkpoint.head == ("classifier.weight", "classifier.bias") == tuple(reversed(found.checkpoint.missing))
    )
    held = {one.law for one in judge(found) if one.outcome == "held"}
    assert {
        "head_is_new",
        "head_changes",
        "save_reload_equal",
        "adapters_change",
        "optimizer_covers_trainable",
        "frozen_stay",
    } <= held
    still = [one for one in found.parameters if not one.trainable]
    assert len(still) == 41  # the backbone's 39 and what the head was
    assert {one.change for one in still} == {0.0}


@pytest.mark.parametrize(
    ("task", "architecture", "kind", "whole"),
    [
        ("token-classification", "bert", "TOKEN_CLS", ("classifier",)),
        ("question-answering", "distilbert", "QUESTION_ANS", ("qa_outputs",)),
        ("multiple-choice", "bert", None, ("classifier",)),
        ("masked-lm", "bert", None, ()),
        ("causal-lm", "gpt2", "CAUSAL_LM", ()),
        ("seq2seq-lm", "t5", "SEQ_2_SEQ_LM", ()),
        ("sequence-classification", "xlnet", "SEQ_CLS", ("sequence_summary", "logits_proj")),
        ("sequence-classification", "t5", "SEQ_CLS", ("classification_head",)),
    ],
)
def test_every_task_trains_its_new_head(task: str, architecture: str, kind: str | None, whole: tuple[str, ...]) -> None:
    """Also where peft has no name for the task, or does not know the head's: T5's and XLNet's would stay random."""
    said = {"data": {"rows": ROWS[task], **MASKED[task == "masked-lm"]}} if task in ROWS else {}
    steps = {"steps": 3, "batch_size": 2, "learning_rate": 1e-2}
    probes = {"saved", "adapted", "steps"}
    model = {"architecture": architecture, "size": "tiny"}
    found = train(case(model, task=task, peft={"rank": 2}, train=steps, probes=probes, **said))
    assert broken(found) == {}
    assert found.adapters is not None
    assert (found.adapters.task_type, found.adapters.modules_to_save) == (kind, whole)
    assert all(found.adapters.targets.values())


def test_targets_of_an_unknown_architecture_are_its_linear_layers() -> None:
    """The reason says so; and embeddings that are declared train whole, and are saved."""
    said = {"peft": {"modules_to_save": ["word_embeddings"]}, "probes": {"saved", "adapted"}}
    found = train(case({"architecture": "mpnet", "size": "tiny"}, train={"steps": 2}, **said))
    assert broken(found) == {}
    assert found.adapters is not None
    assert found.adapters.targets == {"all-linear": found.adapters.modules}
    assert found.adapters.reasons["targets"] == "peft knows no targets for mpnet"
    assert found.adapters.modules_to_save == ("mpnet.embeddings.word_embeddings", "classifier")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"targets": ["qery"]},
            "peft.targets: found 'qery', which matches no module, expected the end of a module's name; nearest: query",
        ),
        ({"targets": ["query", "self.vlue"]}, "peft.targets: found 'self.vlue'"),
        ({"targets": ["classifier"]}, "peft.targets: found 'classifier', which is trained whole (classifier)"),
        ({"targets": ["attention"]}, "peft.targets: found a module of the class BertAttention, expected linear"),
        ({"modules_to_save": ["embedings"]}, "peft.modules_to_save: found 'embedings'"),
    ],
)
def test_name_of_no_module_is_an_error_with_the_nearest(checkpoint: Path, said: dict[str, Any], message: str) -> None:
    """Nothing is trained on a slip of the pen."""
    found = attempt(case(checkpoint, peft=said))
    assert found.outcome == "crashed"
    assert message in found.reason
    assert found.steps.loss == ()


def test_without_the_library_the_case_is_skipped(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine lacks is a skip that says how to get it."""
    monkeypatch.setitem(sys.modules, "peft", None)
    found = attempt(case(checkpoint, peft={}))
    assert (found.outcome, found.reason) == (
        "skipped", "adapters need the peft library: pip install 'pytest-finetune[peft]'"
    )  # fmt: skip


def test_a_head_that_peft_was_not_told_of_stays_random(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commonest mistake: no task type, and no module to save."""
    monkeypatch.setattr(adapters, "TASK_TYPES", {})
    monkeypatch.setattr(adapters, "_whole", lambda declared, model, new: ((), "forgotten"))
    found = train(case(checkpoint, peft={}, train={"steps": 3}, probes={"adapted", "steps", "saved"}))
    # What was never trained is not saved either, and a reload draws it anew.
    assert broken(found).keys() == {"head_changes", "save_reload_equal"}


SAVING = [fault for fault in saving.FAULTS if not fault.tasks or "sequence-classification" in fault.tasks]
RED: dict[str, set[str]] = {
    "head_unknown_to_peft": {"head_changes"},
    "embeddings_unknown_to_peft": {"adapters_as_declared"},
    "adapters_start_at_random": {"adapters_start_at_zero"},
    "alpha_forgotten": {"adapters_as_declared"},
    "adapters_without_their_dropout": {"adapters_as_declared"},
    "adapters_on_the_first_layer_only": {"adapters_as_declared"},
    # The model on which every step is computed once more, and the one that is loaded again, have the right scale.
    "scale_applied_twice": {
        "adapters_as_declared",
        "loss_is_the_declared_one",
        "gradient_is_the_declared_one",
        "save_reload_equal",
    },
    # What is trained there is not saved with the adapters.
    "weights_under_adapters_thawed": {"adapters_as_declared", "frozen_stay", "save_reload_equal"},
    "one_matrix_of_adapters_frozen": {"adapters_as_declared", "adapters_change", "gradient_is_the_declared_one"},
    "adapters_trained_before": {"head_is_new", "adapters_start_at_zero"},
    **{fault.name: {"save_reload_equal"} for fault in SAVING},
}
"""Every fault of adapters and of what is saved, and the laws that it breaks."""


@pytest.mark.parametrize("fault", [*adapter.FAULTS, *SAVING], ids=lambda fault: fault.name)
def test_fault_turns_its_laws_red(fault: Fault) -> None:
    """These and no others."""
    whole = ["word_embeddings"] if fault.name in ("embeddings_unknown_to_peft", "last_token_row_not_saved") else []
    said = {"rank": 2, "dropout": 0.1, "modules_to_save": whole}
    steps = {"steps": 4, "batch_size": 3, "learning_rate": 1e-2}
    made = case(peft=said, train=steps, probes={"adapted", "saved", "steps"})
    found = run(made, shelf=Shelf(), root=Path.cwd(), fault=fault)
    assert found.finished, found.reason
    assert broken(found).keys() == RED[fault.name]


@pytest.mark.parametrize("targets", ["query", [], [" "], [1], "all_linear"])
def test_targets_are_names_or_all_linear(targets: object) -> None:
    """Anything else is a mistake of the file."""
    with pytest.raises(ValueError, match="a list of names of modules, or all-linear"):
        experiment.Peft.model_validate({"targets": targets})


def test_names_lead_back_to_the_base_model(checkpoint: Path) -> None:
    """Every parameter of the base model is found once, under its own name."""
    settings = case(checkpoint).settings
    plain = [name for name, _ in load(settings).model.named_parameters()]
    adapted = load(settings.model_copy(update={"peft": experiment.Peft()})).model
    names = [name for name, _ in adapted.named_parameters()]
    found = [adapters.plain(name) for name in names if not adapters.is_adapter(name) and not adapters.is_spare(name)]
    assert found == plain
    assert sum(map(adapters.is_adapter, names)) == 8


def test_reports_read_old_records() -> None:
    """A record without adapters is one of a training of all weights."""
    line = record().to_json()
    assert '"adapters":null' in line
    assert Record.from_json(line.replace('"adapters":null,', "")).adapters is None
