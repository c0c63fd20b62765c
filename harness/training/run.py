"""One case in, one record out."""

from __future__ import annotations

import copy
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers.utils import logging

from harness import experiment, record
from harness.errors import HarnessError, Unavailable
from harness.plan import Case
from harness.record import Example, Masking, Outcome, Record
from harness.training import (
    adapters,
    checkpoint,
    devices,
    environment,
    fresh,
    machine,
    optimizer,
    reference,
    resume,
    workload,
)
from harness.training.compilation import Compiling
from harness.training.counting import counters
from harness.training.efficiency import efficiency
from harness.training.evaluation import EVALUATIONS
from harness.training.fault import HEALTHY, Fault, Patch
from harness.training.loops import LOOPS
from harness.training.probes import PROBES, Probe
from harness.training.probes.resumed import resumed
from harness.training.resume import NOWHERE, Keeping
from harness.training.rows import Row, Rows, Table
from harness.training.survey import Survey
from harness.training.timing import StepClock, marks_of
from harness.training.watch import Pace, Progress, Watch
from harness.training.witness import Witness
from harness.training.workload import Workload


def run(
    case: Case,
    *,
    shelf: checkpoint.Shelf,
    root: Path,
    progress: Progress | None = None,
    pace: Pace | None = None,
    fault: Fault | None = None,
) -> Record:
    """Train one case and bring back what there is to know of it. Never raises.

    A case that crashes, runs out of memory or is interrupted leaves a record too, with everything seen until then.

    Args:
        case: what to train, and the probes wanted.
        shelf: keeps checkpoints between the cases of a file, and what devices can do.
        root: a folder of the repository that holds the experiment, for its commit.
        progress: told of each step.
        pace: asked after each step when to go on.
        fault: a mistake to make in it on purpose; what it changes is put back.
    """
    started, clock = datetime.now(UTC), perf_counter()
    job = Job(case, shelf, root, progress, pace, fault or HEALTHY, {"environment": environment.describe(root)})
    outcome, reason, trace = _attempt(job)
    return Record(
        outcome=outcome,
        reason=reason,
        traceback=trace,
        started=started,
        seconds=perf_counter() - clock,
        **{**case.declared(), **job.evidence},
    )


@dataclass(frozen=True)
class Job:
    """A case on its way through the stages."""

    case: Case
    shelf: checkpoint.Shelf
    root: Path
    progress: Progress | None
    pace: Pace | None
    fault: Fault
    evidence: dict[str, Any]
    """Fields of the record: what a stage leaves is here at once, whatever becomes of the next."""


def _stages(job: Job, patch: Patch) -> None:
    """Everything that happens to a case, in order."""
    loaded, work = _prepare(job, patch)
    keeping = patch.enter_context(_keeping(job.case))
    watch = _train(job, loaded, work, keeping)
    _measure(job, work)
    job.evidence["optimizer"], job.evidence["modes"] = _optimizer(work, watch), watch.modes()
    job.evidence["parameters"] = watch.parameters(checkpoint.head_names(work.model))
    if watch.state is not None:
        resume.seal(keeping, work.settings, watch.state)
    _probe_all(job, loaded, work, keeping)


def _prepare(job: Job, patch: Patch) -> tuple[checkpoint.Loaded, Workload]:
    """The checkpoint, and what a loop needs to train: with the fault in both."""
    case, evidence, settings = job.case, job.evidence, job.case.settings
    device = devices.find(settings.device or "cpu")
    devices.require(device, settings.precision, settings.train.loop)
    devices.clear(device)
    evidence["environment"] = environment.on(device, evidence["environment"])
    loaded = _with(job.fault, job.shelf.take(case.path, settings), patch)
    work = job.fault.seed(workload.prepare(loaded, settings, device), patch)
    work = replace(work, fault=None if job.fault is HEALTHY else job.fault)
    evidence["settings"] = case.declared()["settings"] | {
        f"train.{name}": getattr(work.train, name) for name in ("steps", *experiment.CHOSEN)
    }
    evidence["checkpoint"] = checkpoint.describe(loaded, work.model, digest="", attention_reason=work.attention_reason)
    evidence["adapters"] = loaded.adapters
    evidence["tokenizer"] = reference.tokenizer(loaded, work.task, work.max_length)
    evidence["masking"] = _masking(loaded, work)
    evidence["lost"], evidence["lost_among"] = work.examples.lost, len(work.examples.lengths)
    if case.probes & fresh.USERS:
        fresh.wait()
    return loaded, work


def _train(job: Job, loaded: checkpoint.Loaded, work: Workload, keeping: Keeping) -> Watch:
    """The loop, under the eyes of all that take evidence; an evaluation before it and one after it."""
    evidence, declared = job.evidence, job.case.settings.train
    witness = None if work.split is None else Witness(loaded, work, work.split)
    survey = Survey(loaded, work, None if witness is None else witness.leakage)
    evidence["data"] = survey.found()
    compiling, meter = Compiling(work.train.compile), machine.meter(work.device)
    watch = _watch(job, loaded, work, survey, witness, compiling, meter)
    memory, conditions = devices.PeakMemory(work.device), machine.Conditions(meter)
    memory.watch()
    conditions.watch()
    evaluate = partial(EVALUATIONS[declared.loop], work)
    try:
        with work.products(), work.memory():
            if witness is not None:
                witness.take(0, evaluate)
            LOOPS[declared.loop](replace(work, keeping=keeping), watch)
            if witness is not None:
                witness.take(work.train.steps, evaluate)
    finally:
        watch.close()
        evidence["evaluation"] = None if witness is None else witness.found()
        evidence["compilation"] = compiling.found(watch.eager_passes, work.compile_reason)
        evidence["checkpoint"] = checkpoint.describe(
            loaded, work.model, watch.digest, watch.altered, attention_reason=work.attention_reason
        )
        evidence["steps"] = watch.steps()
        evidence["batches"] = watch.batches()
        evidence["data"] = survey.found()
        evidence["examples"] = _examples(loaded, work, watch)
    evidence["memory"] = memory.read().model_copy(update={"freed": work.memory_reason})
    evidence["machine"] = conditions.read()
    return watch


def _measure(job: Job, work: Workload) -> None:
    """What a step computes and does, in further steps that nobody times."""
    evidence = job.evidence
    devices.clear(work.device)  # of the optimizer: what comes has one of its own
    if job.case.timed:
        evidence["efficiency"] = efficiency(work, evidence["steps"], evidence["batches"], job.shelf.ceilings)
        evidence["counters"] = counters(work)
    if job.case.trace is not None:
        from harness.training.profiling import profiled

        evidence["profile"] = profiled(work, job.case.trace)


def _probe_all(job: Job, loaded: checkpoint.Loaded, work: Workload, keeping: Keeping) -> None:
    """What laws ask for beyond the training, and how long it took."""
    found = job.evidence["probes"] = {}
    seconds = job.evidence["probe_seconds"] = {}
    for name, probe in _probes(job.case, keeping):
        clock = perf_counter()
        found[name] = _probe(probe, loaded, work)
        seconds[name] = perf_counter() - clock


def _with(fault: Fault, loaded: checkpoint.Loaded, patch: Patch) -> checkpoint.Loaded:
    """The checkpoint as the fault leaves it; what is on the shelf stays as it is."""
    if fault is HEALTHY:
        return loaded
    own = replace(loaded, model=copy.deepcopy(loaded.model), tokenizer=copy.deepcopy(loaded.tokenizer))
    return fault.load(own, patch)


def _attempt(job: Job) -> tuple[Outcome, str, str]:
    """Outcome, reason and traceback of the stages."""
    try:
        with devices.matmul_precision("highest"), _no_bars(), Patch() as patch:
            _stages(job, patch)
    except Unavailable as error:
        return "skipped", str(error), ""
    except KeyboardInterrupt:
        return "interrupted", "stopped by Ctrl-C", ""
    except BaseException as error:
        # Some messages begin with an empty line.
        message = str(error).strip()
        reason = f"{type(error).__name__}: {message}".splitlines()[0]
        if isinstance(error, HarnessError):  # says itself what is wrong; where in the harness it was seen is no help
            return "crashed", reason, "\n".join(message.splitlines()[1:])
        return "out of memory" if _out_of_memory(error) else "crashed", reason, traceback.format_exc()
    return "finished", "", ""


def _probes(case: Case, keeping: Keeping) -> Iterator[tuple[str, Probe]]:
    """The probes that a case wants, by name."""
    known: dict[str, Probe] = {**PROBES, "resumed": partial(resumed, keeping=keeping)}
    yield from ((name, known[name]) for name in sorted(case.probes & known.keys()))
    if case.exploration is not None:
        from harness.training.exploration import explorable, explore  # hypothesis: only who explores waits for it

        if explorable(case.settings):
            yield "exploration", partial(explore, search=case.exploration)


def _probe(probe: Probe, loaded: checkpoint.Loaded, work: Workload) -> dict[str, Any]:
    """What a probe leaves; one that fails voids its laws, not the training."""
    try:
        return probe(loaded, work)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _watch(
    job: Job,
    loaded: checkpoint.Loaded,
    work: Workload,
    survey: Survey,
    witness: Witness | None,
    compiling: Compiling,
    meter: machine.Meter | None,
) -> Watch:
    followed = set(checkpoint.head_names(work.model))
    names = [name for name, _ in work.model.named_parameters() if not adapters.is_spare(name)]
    if loaded.pretrained or loaded.adapters is not None:
        followed = {name for name in names if adapters.plain(name) in loaded.new}
    followed |= {name for name in names if adapters.is_adapter(name)}
    return Watch(
        model=work.model,
        start=loaded.model if work.precision != "bf16-pure" else workload.start(loaded.model, work.precision),
        head=followed,
        drawn=work.drawn,
        labels_kept=work.labels_kept,
        terms=work.terms,
        drawable=work.task.drawable(loaded.tokenizer),
        survey=None if survey.whole else survey,
        compiling=compiling,
        steps=work.train.steps,
        clock=StepClock(
            work.device.wait, marks=marks_of(work.device.torch), compiling=lambda: compiling.seconds, meter=meter
        ),
        progress=job.progress,
        pace=job.pace,
        witness=witness,
    )


def _optimizer(work: Workload, watch: Watch) -> record.Optimizer | None:
    """What stepped, and why it is fused, or not."""
    seen = watch.optimizer()
    _, reason = optimizer.fuses(work.train, work.precision, optimizer.groups(work.model, work.train))
    return None if seen is None else seen.model_copy(update={"reasons": {"fused": reason}})


def _masking(loaded: checkpoint.Loaded, work: Workload) -> Masking | None:
    share = work.task.masked
    return None if share is None else Masking(probability=share, token=loaded.tokenizer.mask_token_id)


def _examples(loaded: checkpoint.Loaded, work: Workload, watch: Watch) -> tuple[Example, ...]:
    """Each example of a kept batch."""
    indices = sorted({index for batch in watch.batches() for index in batch.examples})
    rows = {index: _row(work.examples.rows, index, watch) for index in indices}
    return tuple(reference.example(loaded, work.task, index, row, work.max_length) for index, row in rows.items())


def _row(rows: Rows, index: int, watch: Watch) -> Row:
    """As the source has it; a stream has it no more, but the loader has noted it."""
    return rows.get([index])[0] if isinstance(rows, Table) else watch.rows[index]


@contextmanager
def _keeping(case: Case) -> Iterator[Keeping]:
    """Where the checkpoint is kept that the case goes on from, until all is done."""
    at = case.settings.train.resume_at
    if at is None or "resumed" not in case.probes:
        yield NOWHERE
        return
    with tempfile.TemporaryDirectory(prefix="harness-checkpoint-") as folder:
        yield Keeping(Path(folder), at)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the progress bars of transformers out of pytest's output."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
