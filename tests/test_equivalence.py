"""Other ways of computing a training: what may be declared, what machines lack, and that real faults are caught."""

import gc
import os
import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import DistilBertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput
from trial import attempt, train
from trial import case as trial

from harness import experiment
from harness.errors import InvalidExperiment, Unavailable
from harness.experiment.train import CompileMode
from harness.laws import LAWS, judge
from harness.mutation import Subject
from harness.plan import Case
from harness.record import Record
from harness.throughput import MINIMUM, timed_steps
from harness.training import compilation, data, devices, fresh
from harness.training.checkpoint import Shelf, load
from harness.training.choice import Trial
from harness.training.fault import Fault
from harness.training.faults.way import FAULTS
from harness.training.loops import LOOPS
from harness.training.mutate import runner
from harness.training.run import run
from harness.training.workload import Workload, prepare

# What may be declared


WRONG = {
    "attention: flash_attention_2": "'flash_attention_2' with precision fp32, expected bf16, fp16 or bf16-pure as",
    "attention: flash": "5: train.attention: found 'flash', expected 'eager', 'sdpa', 'flash_attention_2' or",
    "compile: fast": "5: train.compile: found 'fast', expected true, false, auto, reduce-overhead, max-autotune, ",
    "compile: max-autotun": "aot_eager; did you mean 'max-autotune'?",
    "compile: {mode: default}": "5: train.compile: found a mapping, expected true, false, auto, reduce-overhead",
    "packing: true\n  compile: true": "train.packing: found true beside compile, expected false: each batch",
    "packing: auto\n  attention: eager": "train.attention: found 'eager', expected sdpa or nothing beside packing",
    "packing: atuo": "5: train.packing: found 'atuo', expected true, false or auto; did you mean 'auto'?",
    "gradient_checkpointing: some": "5: train.gradient_checkpointing: found 'some', expected true or false",
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_values_are_mistakes_of_the_file(tmp_path: Path, said: str) -> None:
    """They are found while pytest collects, with what is allowed."""
    path = tmp_path / "a.yaml"
    path.write_text(f"checkpoint: {{architecture: bert}}\ndata:\n  {{sequences: [a], labels: [0]}}\ntrain:\n  {said}\n")
    with pytest.raises(InvalidExperiment, match=re.escape(WRONG[said])):
        experiment.read(path, {law.name: law.options for law in LAWS})


def test_modes_are_those_of_torch() -> None:
    """What the file calls a mode is one that inductor has."""
    assert {*get_args(CompileMode)} - {"aot_eager"} <= {*torch._inductor.list_mode_options()}


# What a machine or a model lacks

LACKING = {
    "flash_attention_2": "no flash_attention_2 on cpu: its kernels are for CUDA devices",
    "flex_attention": "no flex_attention on cpu: torch's flex_attention has a backward pass on CUDA devices alone",
}


@pytest.mark.parametrize("kind", LACKING)
def test_what_a_machine_lacks_is_skipped(kind: str) -> None:
    """With the reason, and nothing is trained."""
    found = attempt(trial(precision="bf16", train={"attention": kind}))
    assert (found.outcome, found.reason) == ("skipped", LACKING[kind])
    assert not found.steps.loss


@pytest.mark.parametrize(
    ("architecture", "said", "reason"),
    [
        ("fnet", {"attention": "sdpa"}, "no sdpa in FNetForSequenceClassification: "),
        ("deberta-v2", {"attention": "sdpa"}, "no sdpa in DebertaV2ForSequenceClassification: its layers compute"),
        ("xlm", {"gradient_checkpointing": True}, "no gradient checkpointing: XLMForSequenceClassification does not"),
    ],
)
def test_what_a_model_lacks_is_skipped(architecture: str, said: dict[str, Any], reason: str) -> None:
    """transformers warns of some of it, and trains on as if nothing had been asked for."""
    found = attempt(trial({"architecture": architecture, "size": "tiny"}, train={"steps": 1, **said}))
    assert (found.outcome, found.reason[: len(reason)]) == ("skipped", reason)


def test_inductor_without_a_compiler_is_skipped() -> None:
    """The reason names what is missing, and what needs none."""
    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)):
        with pytest.raises(Unavailable, match=r"no C[+][+] compiler, .*; train.compile: aot_eager needs none"):
            compilation.require(True, devices.find("cpu"))
        compilation.require("aot_eager", devices.find("cpu"))


def test_what_is_missing_is_found_before_a_row_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding can take minutes, and would be for nothing."""
    monkeypatch.setattr(data, "examples", None)
    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)), pytest.raises(Unavailable, match="compiler"):
        prepared(compile=True)


def test_attention_in_use_stands_in_the_record_with_its_reason() -> None:
    """As declared, or as transformers has chosen."""
    declared, chosen = (train(trial(train={"steps": 1, **said})) for said in ({"attention": "eager"}, {}))
    assert declared.checkpoint is not None
    assert chosen.checkpoint is not None
    assert (declared.checkpoint.attention, declared.checkpoint.attention_reason) == (
        "eager",
        "train.attention declares it",
    )
    assert (chosen.checkpoint.attention, chosen.checkpoint.attention_reason[:21]) == ("sdpa", "transformers' choice:")


# Live

SAID: dict[str, Any] = {
    "data": {
        "sequences": [
            "it was cold", "never again", "the soup was warm", "bread", "we waited an hour for the soup", "A fine day!"
        ],
        "labels": [0, 0, 1, 1, 0, 1],
    },
    "train": {"steps": 10, "batch_size": 3, "learning_rate": 5e-3},
}  # fmt: skip
COMPILED = {"compile": "aot_eager", "padding": "max_length", "max_length": 16}
HELD_OUT = {
    "sequences": ["cold soup", "warm bread", "an hour", "a fine day", "it was", "never warm"],
    "labels": [0, 1, 0, 1, 0, 1],
    "batch_size": 3,
}
"""Batches in the shape of those of the training."""


def ways(loop: str, *, probes: Iterable[str] = (), evaluation: dict[str, Any] | None = None, **said: Any) -> Case:
    """A model of one layer that trains in one of the ways."""
    checkpoint = {"architecture": "distilbert", "size": "tiny", "config": {"n_layers": 1}}
    train = {**SAID["train"], "loop": loop, **said}
    return trial(checkpoint, data=SAID["data"], train=train, evaluation=evaluation, probes=probes)


@pytest.fixture(scope="module")
def compiled() -> Iterator[dict[str, Record]]:
    """All loops train a compiled model that was evaluated before. The custom one is the last: its evaluation compiles
    nothing, and those of the others leave code behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {
        loop: train(ways(loop, probes=["compilation"] * (loop == "custom"), evaluation=HELD_OUT, **COMPILED))
        for loop in ("trainer", "accelerate", "custom")
    }
    torch.set_num_threads(threads)


def test_loops_that_compile_agree(compiled: dict[str, Record]) -> None:
    """aot_eager runs the operators of eager: the losses are those of a training that is neither compiled nor evaluated,
    bit for bit."""
    plain = train(ways("custom", **{**COMPILED, "compile": False}))
    for one in compiled.values():
        assert one.steps.loss == plain.steps.loss


def test_compiled_training_is_watched_as_any_other(compiled: dict[str, Record]) -> None:
    """Hooks break no graph, see every batch, and no step keeps its graph. Graphs of evaluations are not counted, and a
    model that Accelerate has evaluated is compiled as any other."""
    assert compiled.keys() == LOOPS.keys()
    for one in compiled.values():
        assert one.evaluation is not None
        assert [score.step for score in one.evaluation.scores] == [0, 10]
        assert one.compilation is not None
        assert (one.compilation.breaks, one.compilation.eager_passes) == ({}, 0)
        assert one.compilation.graphs == sum(second > 0 for second in one.steps.compile_seconds)
        assert all(one.steps.digest)
        verdicts = {verdict.law: verdict for verdict in judge(one)}
        assert verdicts["compiled_equals_eager"].outcome == ("held" if one.probes else "not applicable")
        for law in ("no_graph_kept", "dropout_on_in_training", "padding_mask_correct"):
            assert verdicts[law].outcome == "held", verdicts[law]


def test_steps_that_compile_are_not_timed(compiled: dict[str, Record]) -> None:
    """Their seconds are kept in the record, apart from what compiling took of them; a busy machine changes nothing."""
    for one in compiled.values():
        first = [place for place, second in enumerate(one.steps.compile_seconds) if second > 0]
        assert first[0] == 0
        assert 0 < one.steps.compile_seconds[0] < one.steps.seconds[0]
        assert len(timed_steps(one)) >= MINIMUM
        assert not set(first) & set(timed_steps(one))


def test_compiling_leaves_nothing_behind(compiled: dict[str, Record]) -> None:
    """Neither code nor followers: the next training compiles everything itself."""
    from torch._dynamo.callback import callback_handler

    assert callback_handler.start_callbacks == callback_handler.end_callbacks == []
    assert torch._dynamo.eval_frame._debug_get_cache_entry_list(DistilBertForSequenceClassification.forward) == []


@pytest.mark.parametrize("loop", LOOPS)
def test_checkpointing_trains_the_same(loop: str) -> None:
    """Bit for bit, dropout included, and no graph is kept."""
    plain, again = (train(ways(loop, gradient_checkpointing=on, steps=6)) for on in (False, True))
    assert again.steps.loss == plain.steps.loss
    assert (plain.modes and plain.modes.checkpointing, again.modes and again.modes.checkpointing) == (False, True)
    assert max(again.steps.graphs) == 0


WAYS: dict[str, dict[str, Any]] = {
    "attention_implementations_agree": {},
    "checkpointing_equals_plain": {"gradient_checkpointing": True},
    "compiled_equals_eager": COMPILED,
    "packing_changes_nothing": {"packing": True},
}
"""What is declared where a law has something to say."""
CAUGHT_BY = {
    "kernel_ignores_the_mask": "attention_implementations_agree",
    "kernel_divides_by_an_empty_sum": "attention_implementations_agree",
    "checkpointing_draws_dropout_anew": "checkpointing_equals_plain",
    "checkpointing_cuts_the_gradient": "checkpointing_equals_plain",
    "checkpointing_forgotten": "checkpointing_equals_plain",
    "checkpointing_not_handed_on": "checkpointing_equals_plain",
    "compiled_code_is_off": "compiled_equals_eager",
    "compiled_model_not_called": "compiled_equals_eager",
    "compiling_not_handed_on": "compiled_equals_eager",
    "packed_sequences_see_each_other": "packing_changes_nothing",
    "packing_forgotten": "packing_changes_nothing",
}
ALSO = {
    "kernel_ignores_the_mask": {"padding_changes_nothing", "examples_stay_apart"},
    "packed_sequences_see_each_other": {
        "attention_implementations_agree",
        "padding_changes_nothing",
        "examples_stay_apart",
    },
    "checkpointing_cuts_the_gradient": {"gradient_is_the_declared_one"},
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faults_of_the_way_are_caught(fault: Fault) -> None:
    """By the law that compares it with the plain way; others that see it are explained by that one, or it by them."""
    laws = [law for law in LAWS if law.axis is None and not law.slow and law.name != "loss_decreases"]
    loop = "custom" if "custom" in fault.loops else min(fault.loops)
    probes = {probe for law in laws for probe in law.probes} - fresh.USERS
    one = ways(loop, **WAYS[CAUGHT_BY[fault.name]], steps=4, probes=probes)
    found = run(one, shelf=Shelf(), root=one.path.parent, fault=fault)
    red = {verdict.law for verdict in judge(found, laws) if verdict.outcome == "broken"}
    assert red == {CAUGHT_BY[fault.name]} | ALSO.get(fault.name, set())


def test_faults_of_a_way_need_it() -> None:
    """What is not declared cannot go wrong."""
    subject = Subject(ways("custom"), LAWS, runner(Path.cwd()))
    assert {fault.name for fault in FAULTS if subject.suits(fault)} == {
        "kernel_ignores_the_mask",
        "kernel_divides_by_an_empty_sum",
    }


# Chosen by a measurement


@pytest.mark.parametrize(
    ("uncompiled", "took", "compiles", "says"),
    [
        (1.0, None, False, "not compiled, nor is it tried: 1000 micro-batches take about 1 s uncompiled, compiling "),
        (1e3, None, False, "not compiled: it was tried, and each length is compiled anew, or nothing at all"),
        (
            1e3,
            (30.0, 0.8, 1.0),
            True,
            "compiled, by a measurement: compiling takes 30 s, and then 0.8 s a micro-batch ",
        ),
        (1e3, (30.0, 0.88, 1.0), False, "not compiled, by a measurement: compiling takes 30 s, and then 0.88 s a "),
        (1e3, (30.0, 1.2, 1.0), False, "not compiled, by a measurement: "),
    ],
)
def test_what_compiles_by_itself_pays_within_the_declared_steps(
    monkeypatch: pytest.MonkeyPatch, uncompiled: float, took: Any, compiles: bool, says: str
) -> None:
    """A tenth of all that is computed, its own cost included; where that cannot be, nobody compiles to find it out."""
    monkeypatch.setattr(compilation, "uncompiled", lambda trial, batches: uncompiled / 1000)
    monkeypatch.setattr(compilation, "compared", lambda trial, batches: took)
    work = prepared(compile="auto", steps=500, gradient_accumulation=2)
    assert (work.train.compile, work.compile_reason[: len(says)]) == (compiles, says)


class Words(torch.nn.Module):
    """The smallest model that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(8, 2)

    def forward(self, input_ids: torch.Tensor) -> SequenceClassifierOutput:
        """As those of transformers."""
        return SequenceClassifierOutput(loss=self.table(input_ids).square().mean())


def trial_of_lengths(monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Of batches of three lengths, with what compiles quickest."""
    monkeypatch.setattr(compilation, "options", lambda declared: {"backend": "aot_eager"})
    batches = [{"input_ids": torch.ones(2, columns, dtype=torch.long)} for columns in (5, 7, 6)]
    return Trial(Words(), devices.find("cpu"), nullcontext, lambda: batches)


def test_a_trial_compiles_copies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling is measured apart, for any length, and neither a gradient nor anything compiled is left behind."""
    trial = trial_of_lengths(monkeypatch)
    took = compilation.compared(trial, trial.batches())
    assert took is not None
    compiling, fast, slow = took
    assert compiling > fast > 0 < slow
    assert compilation.uncompiled(trial, trial.batches()) > 0
    assert trial.model.table.weight.grad is None
    assert torch._dynamo.eval_frame._debug_get_cache_entry_list(Words.forward) == []


def test_a_model_that_is_compiled_anew_for_each_length_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of yet another length would be, in the midst of the training."""
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False, assume_static_by_default=True):
        trial = trial_of_lengths(monkeypatch)
        assert compilation.compared(trial, trial.batches()) is None


def test_logic_is_judged_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, whatever the device of the case: a machine with a GPU may have no compiler for its processor."""
    compiles: list[Any] = []

    def compiled(self: Workload, model: Any) -> Any:
        compiles.append(self.train.compile)
        return model

    monkeypatch.setattr(Workload, "compiled", compiled)
    train(ways("custom", probes=["steps", "accumulation"], compile="aot_eager", gradient_accumulation=2))
    assert sorted(compiles, key=str) == [False, False, False, "aot_eager"]


def test_breaks_with_the_same_first_line_are_counted_together() -> None:
    """What follows it tells them apart, and is long."""
    from torch._dynamo.utils import counters

    compiling = compilation.Compiling("aot_eager")
    counters.clear()
    counters["graph_break"].update({"a call\n of this": 2, "a call\n of that": 1, "": 1})
    found = compiling.found(0)
    counters.clear()
    assert found is not None
    assert found.breaks == {"a call": 3, "": 1}


def test_a_compiler_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody asked for it: headers that are missing, an operator that it does not know."""

    def compared(*args: object) -> None:
        raise RuntimeError("no Python.h\nand so on")

    monkeypatch.setattr(compilation, "uncompiled", lambda trial, batches: 1.0)
    monkeypatch.setattr(compilation, "compared", compared)
    work = prepared(compile="auto", steps=1000)
    reason = "not compiled: it was tried, and failed: RuntimeError: no Python.h"
    assert (work.train.compile, work.compile_reason) == (False, reason)


@pytest.mark.parametrize("said", [{}, {"batching": "grouped"}, {"shuffle": False}], ids=str)
def test_what_is_measured_on_is_what_is_trained_on_first(said: dict[str, Any]) -> None:
    """Where batches are grouped by length there is less padding than in the order of the file."""
    work = prepared(steps=3, batch_size=2, **said)
    for measured, trained in zip(work.first_batches(), work.batches(), strict=True):
        assert torch.equal(measured["input_ids"], trained["input_ids"])


def test_auto_that_compiles_nothing_says_why() -> None:
    """In the record, with the setting that came of it; and packed batches are not compiled, whatever they take."""
    found = train(ways("custom", compile="auto", steps=2))
    assert (found.settings["train.compile"], found.steps.compile_seconds) == (False, (0.0, 0.0))
    assert found.compilation is not None
    assert found.compilation.reason.startswith("not compiled, nor is it tried: 2 micro-batches take about ")
    packed = prepared(compile="auto", packing=True)
    assert (packed.train.compile, packed.compile_reason[:34]) == (False, "not compiled: sequences are packed")


def prepared(**said: Any) -> Workload:
    """A workload, ready to be trained."""
    settings = ways("custom", **said).settings
    return prepare(load(settings), settings, devices.find("cpu"))


# What only a GPU would show


class Recorded:
    """Stands where `torch.cuda` would: keeps which device is the current one, inside of what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current: list[Any] = ["cuda:0"]
        monkeypatch.setattr(torch.cuda, "set_device", self.set)
        monkeypatch.setattr(torch.cuda, "device", self.inside)

    def set(self, device: Any) -> None:
        """As `set_device`."""
        self.current[-1] = str(device)

    @contextmanager
    def inside(self, device: Any) -> Iterator[None]:
        """As `torch.cuda.device`."""
        self.current.append(str(device))
        yield
        self.current.pop()


SECOND = devices.Device("cuda:1", torch.device("cuda", 1))


def test_the_trainer_is_on_the_gpu_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself it takes the first; which one is the current one is as before when it is done."""
    from harness.training.trainer import arguments

    cuda = Recorded(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    planned = ways("trainer")
    work = replace(prepare(load(planned.settings), planned.settings, devices.find("cpu")), device=SECOND)
    with devices.accelerate_on(SECOND.torch):
        assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cuda:1"
        said = arguments(work, str(tmp_path))
        assert (said.device, said.n_gpu, cuda.current[-1]) == (SECOND.torch, 1, "cuda:1")
    assert cuda.current == ["cuda:0"]
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ


def test_the_gpu_that_is_asked_for_is_asked_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another may be the current one."""
    cuda = Recorded(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: cuda.current[-1] == "cuda:1")
    devices.require(SECOND, "bf16", "custom")
    with pytest.raises(Unavailable, match="no bf16 on cuda:0: A GPU has no such arithmetic"):
        devices.require(devices.Device("cuda:0", torch.device("cuda", 0)), "bf16", "custom")


def test_fp32_stays_fp32_where_accelerate_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It turns TF32 on then, on a GPU; here by hand."""
    from accelerate.state import AcceleratorState

    from harness.training.accelerator import accelerator_for
    from harness.training.trainer import EvaluatingTrainer, arguments

    right = AcceleratorState.__init__

    def begun(self: Any, *args: Any, **kwargs: Any) -> None:
        right(self, *args, **kwargs)
        torch.set_float32_matmul_precision("high")

    monkeypatch.setattr(AcceleratorState, "__init__", begun)
    planned = ways("trainer", compile="aot_eager")
    work = prepare(load(planned.settings), planned.settings, devices.find("cpu"))
    with devices.matmul_precision("highest"):
        accelerator_for(work)
        assert torch.get_float32_matmul_precision() == "highest"
        EvaluatingTrainer(work=work, model=work.model, args=arguments(work, str(tmp_path)))
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("mode", compilation.GRAPHED)
def test_cuda_graphs_take_no_micro_batches(mode: str) -> None:
    """The graph of one overwrites the gradients of another: a skip with its reason, before anything is compiled."""
    with pytest.raises(Unavailable, match=r"no .* with train\.gradient_accumulation on cuda:1: .*pytorch#169545"):
        compilation.require(mode, SECOND, 2)


def test_the_optimizer_is_let_go_when_the_training_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its moments may fill half of a device, and what counts a step has others."""
    alive: list[Any] = []
    made = Workload.optimizer

    def noted(self: Workload) -> Any:
        optimizer = made(self)
        alive.append(weakref.ref(optimizer))
        return optimizer

    def measure(job: Any, work: Any) -> None:
        gc.collect()
        assert [one() for one in alive] == [None]

    monkeypatch.setattr(Workload, "optimizer", noted)
    monkeypatch.setattr("harness.training.run._measure", measure)
    train(ways("custom"))
