"""`harness mutate`: real mistakes made in an experiment, which law catches them, and what is said of the rest."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from records import HEALTHY, record
from trial import at_once, case

from harness import mutation
from harness.__main__ import main
from harness.errors import HarnessError
from harness.journal import Journal
from harness.laws import LAWS
from harness.mutation import Mutant, Mutation, Subject, alike, mutants
from harness.plan import Case
from harness.plugin import node
from harness.record import Record
from harness.report import mutation_markdown, mutation_text
from harness.training.fault import Fault, Patch
from harness.training.faults import FAULTS
from harness.training.mutate import runner

Runs = Callable[[Case, Fault | None], Record]

# What becomes of a fault, on records written by hand

SCALED = Fault("scaled", "The loss is scaled.", "a#1")
HIDDEN = Fault("hidden", "No law sees it.", "b#2")
NOTHING = Fault("nothing", "Nothing happens.", "c#3")
TRAINER_ONLY = Fault("trainer_only", "A callback of the Trainer.", "d#4", loops=frozenset({"trainer"}))
STUBBORN = Fault("stubborn", "Only a slow law sees it.", "e#5")


def runs(one: Case, fault: Fault | None) -> Record:
    """The healthy record, or that which a fault leaves."""
    if fault is not None and fault.description == SCALED.description:
        return record(loss_of_twin(1.4))
    if fault is HIDDEN:
        return record(reason="something else")
    if fault is STUBBORN and "overfit" in one.probes:
        return record(probes={"overfit": {**HEALTHY.probes["overfit"], "loss": [0.7, 0.7]}})
    return HEALTHY


def declared() -> Case:
    """A case whose record would be that one."""
    return case(file="a.yaml")


def loss_of_twin(loss: float) -> Record:
    """The healthy record, but for the loss of the first step on the twin."""
    steps = [dict(step) for step in HEALTHY.probes["steps"]["steps"]]
    steps[0] |= {"loss": loss, "logits_gradient": 1.0, "logits_gradient_scale": 2.0}
    return record(probes={"steps": {"steps": steps}})


@pytest.fixture
def subject() -> Subject[Fault]:
    """A healthy case."""
    return Subject(declared(), LAWS, runs)


def test_fault_is_caught_by_the_laws_that_it_breaks(subject: Subject[Fault]) -> None:
    """The verdicts are kept, to say which law noticed."""
    found = subject.with_fault(SCALED)
    assert found.outcome == "caught"
    assert [verdict.law for verdict in found.broken] == ["loss_is_the_declared_one"]


def test_fault_that_leaves_another_record_survives(subject: Subject[Fault]) -> None:
    """Something changed, and no law says so."""
    assert subject.with_fault(HIDDEN).outcome == "survived"


def test_fault_that_leaves_the_same_record_is_equivalent(subject: Subject[Fault]) -> None:
    """There is nothing to catch, down to the last bit of the weights."""
    assert subject.with_fault(NOTHING).outcome == "equivalent"


def test_time_and_place_make_no_difference() -> None:
    """Two runs of the same training are equal, whenever they ran and however long they took."""
    steps = {"seconds": (9.0,) * 8, "watching_seconds": (1.0,) * 8}
    later = record(steps=steps).model_copy(update={"seconds": 99.0, "started": HEALTHY.started.replace(year=2031)})
    assert alike(later, HEALTHY)
    assert not alike(record(steps={"graphs": (1,) * 8}), HEALTHY)


def test_rounding_makes_no_difference() -> None:
    """The same sum in another order is the same sum; what can be measured is not."""
    losses = HEALTHY.steps.loss
    assert alike(record(steps={"loss": tuple(loss * (1 + 1e-6) for loss in losses)}), HEALTHY)
    assert not alike(record(steps={"loss": tuple(loss * (1 + 1e-3) for loss in losses)}), HEALTHY)
    assert alike(record(loss_of_twin(math.nan)), loss_of_twin(math.nan))
    few, all_moved = record(steps={"unmoved": (3e-6,) * 8}), record(steps={"unmoved": (0.0,) * 8})
    assert alike(few, all_moved)
    assert not alike(record(steps={"unmoved": (1e-3,) * 8}), all_moved)


def test_what_training_made_of_rounding_makes_no_difference() -> None:
    """The loss of an example that is learned, and which parameter is furthest off where none is; not a loss before."""

    def evaluated(after: float = 2e-3, before: float = 0.7, worst: str = "head") -> Record:
        states = {name: {"loss": [loss]} for name, loss in (("after", after), ("before", before))}
        return HEALTHY.model_copy(update={"probes": {"evaluation": states, "steps": {"gradient_worst": worst}}})

    assert alike(evaluated(), evaluated(after=2e-3 * (1 + 2e-4), worst="backbone"))
    assert not alike(evaluated(), evaluated(after=2e-3 * 1.01))
    assert not alike(evaluated(), evaluated(before=0.7 * (1 + 2e-4)))


def test_a_generator_from_which_nothing_is_drawn_makes_no_difference() -> None:
    """Where it stands is nothing that a training leaves."""
    assert alike(record(steps={"random": ("elsewhere",) * 8}), HEALTHY)


def test_slow_laws_are_asked_last(subject: Subject[Fault]) -> None:
    """They train again, so only what the others let pass is put to them."""
    assert [verdict.law for verdict in subject.with_fault(STUBBORN).broken] == ["overfits_one_batch"]


def test_law_that_is_switched_off_catches_nothing() -> None:
    """The user's own selection is measured, not ours."""
    one = declared()
    settings = one.settings.model_copy(update={"invariants": {"loss_is_the_declared_one": False}})
    assert Subject(replace(one, settings=settings), LAWS, runs).with_fault(SCALED).outcome == "survived"


def test_fault_of_the_other_loop_is_left_out(subject: Subject[Fault]) -> None:
    """It cannot happen there."""
    assert [mutant.fault.name for mutant in mutants([subject], [SCALED, TRAINER_ONLY])] == ["scaled"]


def test_fault_of_another_task_is_left_out(subject: Subject[Fault]) -> None:
    """A mistake in the labels of tokens cannot be made where texts are classified."""
    other = replace(SCALED, name="other", tasks=frozenset({"causal-lm"}))
    own = replace(SCALED, name="own", tasks=frozenset({"causal-lm", "sequence-classification"}))
    assert [mutant.fault.name for mutant in mutants([subject], [other, own])] == ["own"]


def test_an_unhealthy_case_is_an_alarm() -> None:
    """No fault can be told from what is broken already."""
    broken = Subject[Fault](declared(), LAWS, lambda case, fault: loss_of_twin(1.4))
    assert [alarm.partition(": ")[0] for alarm in broken.alarms] == [f"{HEALTHY.name}::loss_is_the_declared_one"]
    skipped = Subject[Fault](declared(), LAWS, lambda case, fault: record(outcome="skipped", reason="no such device"))
    assert "skipped: no such device" in skipped.alarms[0]


def test_tables(subject: Subject[Fault]) -> None:
    """Fault, case, loop and laws; then each gap with its source; then the score, which leaves equivalents out."""
    found = Mutation(tuple(mutants([subject], [SCALED, HIDDEN, NOTHING])))
    text = mutation_text(found)
    assert "scaled   a.yaml::cpu  custom  loss_is_the_declared_one" in text
    assert "SURVIVED hidden in a.yaml::cpu: No law sees it. (b#2)" in text
    assert text.endswith("caught 1 of 2 (1 equivalent)")
    page = mutation_markdown(found)
    assert "Caught 1 of 2 (1 equivalent)." in page
    assert re.search(r"\| scaled +\| The loss is scaled. +\| caught 1 +\| loss\S+one 1 +\| a\\#1 ", page)
    assert re.search(r"\| a.yaml::cpu +\| 1 +\| 1 +\| 1 +\|", page)
    assert "## Survived" in page
    assert "## Survived" not in mutation_markdown(Mutation(tuple(mutants([subject], [SCALED]))))


def test_what_was_found_is_not_made_again(subject: Subject[Fault], tmp_path: Path) -> None:
    """A journal holds each mutant with the laws that caught it; another setting or another fault is another mutant."""
    path = tmp_path / "found.jsonl"
    first = tuple(mutants([subject], [SCALED, HIDDEN], Journal(path)))

    def fails(one: Case, fault: Fault | None) -> Record:
        raise AssertionError("it is known already")

    again = Journal(path)
    known = Mutation(tuple(mutants([Subject(declared(), LAWS, fails)], [SCALED, HIDDEN], again)))
    assert mutation_text(known) == mutation_text(Mutation(first))
    assert again.has_all(subject.case, [SCALED, HIDDEN])
    assert not again.has_all(subject.case, [SCALED, NOTHING])
    train = subject.case.settings.train.model_copy(update={"steps": 99})
    other = replace(subject.case, settings=subject.case.settings.model_copy(update={"train": train}))
    assert again.find(other, SCALED) is None


def test_a_journal_of_something_else_is_an_error(tmp_path: Path) -> None:
    """Its line is named."""
    path = tmp_path / "found.jsonl"
    path.write_text('{"key": "a", "outcome": "caught", "broken": []}\nso it goes\n', encoding="utf-8")
    with pytest.raises(HarnessError, match=r"found.jsonl:2: found 'so it goes', expected a mutant as JSON"):
        Journal(path)


# The faults themselves


def test_faults_are_many_and_described() -> None:
    """Each has a name of its own, a sentence, and the place where it happened."""
    assert len(FAULTS) >= 70
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        assert fault.description.endswith("."), fault.name
        assert fault.source, fault.name
        assert fault.loops, fault.name


TEXTS = ["it was cold", "never again", "the soup was warm", "bread", "we waited an hour for the soup", "A fine day!"]
SAID = {
    "data": {"sequences": TEXTS, "labels": [0, 0, 1, 1, 0, 1]},
    "train": {"steps": 16, "batch_size": 4, "learning_rate": 5e-3, "warmup_steps": 2},
}


@pytest.fixture(scope="module")
def trained() -> Iterator[dict[str, Subject[Fault]]]:
    """A small training with a warm-up, whose last batch of an epoch is smaller than the others, by loop."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs: Runs = runner(Path.cwd())
    cases = {loop: case(data=SAID["data"], train={**SAID["train"], "loop": loop}) for loop in ("custom", "trainer")}
    with at_once():
        yield {loop: Subject(one, LAWS, runs) for loop, one in cases.items()}
    torch.set_num_threads(threads)


EQUIVALENT = {
    "tied_weights_untied": "BERT with a classification head ties nothing",
    "callback_sets_eval_mode": "the Trainer sets train mode before each step",
}


PLAIN = case(data=SAID["data"], train=SAID["train"]).settings
OF_TEXTS = [
    fault
    for fault in FAULTS
    if fault.when(PLAIN) and not fault.evaluates and (not fault.tasks or "sequence-classification" in fault.tasks)
]
"""The others are made in trainings of their own tasks and choices: test_tasks_live.py, test_faults_of_choices.py."""


@pytest.mark.parametrize("fault", OF_TEXTS, ids=lambda fault: fault.name)
def test_every_fault_is_caught(trained: dict[str, Subject[Fault]], fault: Fault) -> None:
    """In the custom loop if it can happen there; docs/laws.md shows both loops, and other architectures."""
    found = trained[min(fault.loops & trained.keys())].with_fault(fault)
    assert found.outcome == ("equivalent" if fault.name in EQUIVALENT else "caught")


def test_faults_leave_nothing_behind(trained: dict[str, Subject[Fault]]) -> None:
    """After all of them, the case without a fault is what it was, and no law is broken."""
    for subject in trained.values():
        assert subject.alarms == ()
        assert subject.with_fault(NOTHING).outcome == "equivalent"


def test_patch_is_taken_back_when_the_run_crashes(trained: dict[str, Subject[Fault]]) -> None:
    """However a run ends."""

    def crash(work: object, patch: Patch) -> object:
        patch.set(mutation, "OUTCOMES", ())
        raise RuntimeError("a broken thing")

    found = trained["custom"].with_fault(Fault("crash", "It crashes.", "a#1", seed=crash))  # type: ignore[arg-type]
    assert [verdict.law for verdict in found.broken] == ["trains"]
    assert mutation.OUTCOMES


# The command

EXPERIMENT = """
checkpoint: {architecture: bert, size: tiny}
data: {sequences: [good enough, bad, a long way from good, so so], labels: [1, 0, 1, 0]}
train: {steps: 20, batch_size: 2, learning_rate: 1.0e-3}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small experiment in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return path


def test_command_prints_table_and_score(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything caught: status 0."""
    assert main(["mutate", str(file), "--only", "loss_negated"]) == 0
    out = capsys.readouterr().out
    assert "loss_is_the_declared_one" in out
    assert out.endswith("caught 1 of 1 (0 equivalent)\n")


def test_command_goes_on_from_its_journal(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the journal holds is shown, and nothing is trained for it."""
    command = ["mutate", str(file), "--only", "loss_negated", "--journal", "found.jsonl"]
    assert main(command) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(Subject, "with_fault", None)
    monkeypatch.setattr(Subject, "alarms", None)
    assert main(command) == 0
    assert capsys.readouterr().out == first


def test_command_that_is_stopped_says_what_it_found(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Minutes of work are not thrown away: the table of what was done, and status 1."""
    right, seen = Subject.with_fault, list[Fault]()

    def with_fault(self: Subject[Fault], fault: Fault) -> Mutant:
        seen.append(fault)
        if len(seen) > 1:
            raise KeyboardInterrupt
        return right(self, fault)

    monkeypatch.setattr(Subject, "with_fault", with_fault)
    assert main(["mutate", str(file), "--only", "loss_negated", "loss_summed"]) == 1
    said = capsys.readouterr()
    assert "stopped by Ctrl-C after 1 mutant" in said.err
    assert said.out.endswith("caught 1 of 1 (0 equivalent)\n")


def test_command_names_the_gap(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A survivor: status 1, and the page says which."""
    file.write_text(EXPERIMENT + "invariants: {update_is_the_declared_one: false, optimizer_covers_trainable: false}\n")
    page = tmp_path / "page.md"
    assert main(["mutate", str(file), "--only", "another_adam", "--output", str(page)]) == 1
    assert capsys.readouterr().out == "caught 0 of 1 (0 equivalent)\n"
    assert "## Survived" in page.read_text(encoding="utf-8")


def test_command_wants_a_healthy_experiment(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is broken before anything is made wrong is said instead: status 2."""
    file.write_text(EXPERIMENT.replace("1.0e-3", "1.0e-12"))
    assert main(["mutate", str(file), "--only", "loss_negated"]) == 2
    error = capsys.readouterr().err
    assert "or declare it in expect_broken:\nexperiment.yaml::cpu::head_changes: " in error


def test_command_knows_its_faults(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is none gets the nearest one that is."""
    assert main(["mutate", str(file), "--only", "loss_negate"]) == 2
    assert "loss_negate: no such fault; did you mean 'loss_negated'?" in capsys.readouterr().err


def test_command_knows_its_devices(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is none is bad usage, said before anything is made."""
    assert main(["mutate", str(file), "--device", "gpu"]) == 2
    assert capsys.readouterr().err.startswith("--device: found 'gpu', expected cpu, cuda")


def test_command_takes_all_cuda_devices(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`cuda:all` is a case for each."""
    monkeypatch.setattr(node, "cuda_count", lambda: 2)
    monkeypatch.setattr(Subject, "alarms", property(lambda self: (self.case.name,)))
    assert main(["mutate", str(file), "--device", "cuda:all"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["experiment.yaml::cuda:0", "experiment.yaml::cuda:1"]


def test_mutant_is_what_the_table_needs() -> None:
    """A mutant says itself what became of it."""
    assert Mutant(declared(), SCALED, "caught").broken == ()
