"""Which of the seeded faults do the nearest other tools catch, and what do they say of healthy models?

Needs pytest-torch 1.1.1 and torchtest2 0.1.0 beside this project, best in an environment of their own::

    pip install -c constraints.txt -e '.[sample]' pytest-torch==1.1.1 torchtest2==0.1.0
    python benchmarks/other_tools.py > benchmarks/results/other_tools.txt

Each tool is given all that it can take of the same training: the model, batches, the optimizer and schedule, a step of
the documented loop, without knowing what is wrong. A check that fails where nothing is wrong counts for nothing.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torchtest2
from pytest_torch import (
    assert_all_params_receive_grad,
    assert_checkpoint_roundtrip,
    assert_gradients_finite,
    assert_loss_decreases,
    assert_mask_invariant,
    assert_overfits_one_batch,
    assert_padding_invariant,
    check_inference_contract,
)
from pytest_torch.training_loop import TrainingSetup, assert_optimizer_coverage, run_training
from tabulate import tabulate

from harness import plan
from harness.experiment import read
from harness.laws import LAWS
from harness.mutation import Subject
from harness.plan import Case
from harness.schedule import declared_share
from harness.training import devices, workload
from harness.training.checkpoint import Shelf
from harness.training.fault import HEALTHY, Fault, Patch
from harness.training.faults import FAULTS
from harness.training.mutate import runner
from harness.training.workload import Workload

ROOT = Path(__file__).parent.parent
ARCHITECTURES = ("bert", "roberta", "distilbert", "deberta-v2", "electra", "gpt2", "llama", "mixtral", "t5", "bart")

Checks = dict[str, Callable[[], Any]]
Batch = dict[str, Any]


@contextmanager
def seeded(case: Case, shelf: Shelf, fault: Fault) -> Iterator[Workload]:
    """The training with a mistake made in it."""
    device = devices.find("cpu")
    with Patch() as patch:
        stored = shelf.take(case.path, case.settings)
        own = replace(stored, model=copy.deepcopy(stored.model), tokenizer=copy.deepcopy(stored.tokenizer))
        loaded = fault.load(own, patch)
        yield fault.seed(workload.prepare(loaded, case.settings, device), patch)


def loss_of(output: Any) -> torch.Tensor:
    """As the model has computed it itself."""
    loss: torch.Tensor = output.loss
    return loss


def pytest_torch(work: Workload) -> Checks:
    """Everything of pytest-torch that a training gives something to."""
    plain = {"use_cache": False} if getattr(work.model.config, "use_cache", False) else {}  # caches can't be compared
    batches = [{**batch, **plain} for batch in work.batches()]
    batch = next((one for one in batches if not bool(one["attention_mask"].all())), batches[0])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    pad = work.tokenizer.pad_token_id
    side = work.tokenizer.padding_side

    def fresh() -> Any:
        return copy.deepcopy(work.model)

    def setup() -> TrainingSetup:
        optimizer = work.optimizer()
        return TrainingSetup(work.model, optimizer, work.schedule(optimizer))

    def step(setup: TrainingSetup, batch: Batch) -> torch.Tensor:
        setup.model.train()
        loss = loss_of(setup.model(**batch))
        loss.backward()
        setup.optimizer.step()
        setup.scheduler.step()
        setup.optimizer.zero_grad()
        return loss.detach()

    def trained() -> None:
        train = work.settings.train
        run = run_training(setup, batches, step, steps=train.steps)
        run.assert_healthy(min_relative_decrease=0.1)
        run.assert_lr(
            lambda index: train.learning_rate * declared_share(train.schedule, train.steps, train.warmup_steps, index)
        )

    return {
        "inference contract": lambda: check_inference_contract(fresh().eval(), inputs),
        "padding": lambda: assert_padding_invariant(fresh().eval(), inputs, pad_value=pad, side=side),
        "masked tokens": lambda: assert_mask_invariant(fresh().eval(), inputs),
        "checkpoint": lambda: assert_checkpoint_roundtrip(fresh, inputs),
        "finite gradients": lambda: assert_gradients_finite(fresh(), batch, loss_of),
        "all receive gradients": lambda: assert_all_params_receive_grad(fresh(), batch, loss_of),
        "optimizer coverage": lambda: assert_optimizer_coverage(work.model, work.optimizer()),
        "loss decreases": lambda: assert_loss_decreases(fresh(), batch, loss_of),
        "overfits": lambda: assert_overfits_one_batch(fresh(), batch, loss_of, lr=1e-3),
        "training": trained,
    }


def check_with_torchtest2(work: Workload) -> Checks:
    """Every check of torchtest2 over one batch, as a transformers model is to be given to it."""
    batch = dict(next(work.batches()))
    labels = batch.pop("labels", None)
    report = torchtest2.check_model(work.model, batch, labels, optimizer=work.optimizer(), plugin="huggingface")

    def fails(message: str) -> None:
        raise AssertionError(message)

    return {result.name: partial(fails, result.message) for result in report.failures}


def failed(checks: Callable[[Workload], Checks], work: Workload) -> set[str]:
    """Names of the checks that fail; a tool that crashes on it has noticed too."""
    found = set()
    try:
        every = checks(work)
    except Exception as error:
        return {type(error).__name__}
    for name, check in every.items():
        try:
            check()
        except Exception:
            found.add(name)
    return found


TOOLS = {"pytest-torch": pytest_torch, "torchtest2": check_with_torchtest2}


def of_architecture(case: Case, architecture: str) -> Case:
    """The same training of a tiny model of another architecture."""
    source = case.settings.checkpoint.model_copy(update={"architecture": architecture})
    return replace(case, settings=case.settings.model_copy(update={"checkpoint": source}))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments" / "tiny.yaml")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)

    cases = plan.cases(read(options.experiment, {law.name: law.options for law in LAWS}), ["cpu"], root=ROOT)
    case = next(one for one in cases if one.settings.train.loop == "custom")
    subject: Subject[Fault] = Subject(case, LAWS, runner(ROOT))
    shelf, possible = Shelf(), [fault for fault in FAULTS if subject.suits(fault)]
    with seeded(case, shelf, HEALTHY) as work:
        alarms = {tool: failed(checks, work) for tool, checks in TOOLS.items()}

    rows, caught = [], dict.fromkeys(["harness", *TOOLS], 0)
    for number, fault in enumerate(possible, start=1):
        print(f"{number} of {len(possible)}: {fault.name}", file=sys.stderr)
        ours = subject.with_fault(fault)
        if ours.outcome == "equivalent":
            continue
        cells = [", ".join(verdict.law for verdict in ours.broken[:2])]
        for tool, checks in TOOLS.items():
            with seeded(case, shelf, fault) as work:
                cells.append(", ".join(sorted(failed(checks, work) - alarms[tool])[:2]))
        rows.append([fault.name, *cells])
        for tool, cell in zip(caught, cells, strict=True):
            caught[tool] += bool(cell)

    print(f"{datetime.now(UTC):%Y-%m-%d}, python {sys.version.split()[0]}", end="")
    for name in ("torch", "transformers", "pytest-torch", "torchtest2"):
        print(f", {name} {version(name)}", end="")
    print(f"\n\n{len(rows)} faults that change something, in the custom loop of {options.experiment.name}\n")
    print(tabulate(rows, headers=["fault", *caught], disable_numparse=True))
    print(
        "\n" + tabulate([[name, f"{number} of {len(rows)}"] for name, number in caught.items()], headers=["", "caught"])
    )

    healthy = []
    for architecture in ARCHITECTURES:
        other = of_architecture(case, architecture)
        ours = sorted(alarm.split("::")[-1].split(":")[0] for alarm in Subject(other, LAWS, runner(ROOT)).alarms)
        cells = [", ".join(ours)]
        for checks in TOOLS.values():
            with seeded(other, Shelf(), HEALTHY) as work:
                cells.append(", ".join(sorted(failed(checks, work))))
        healthy.append([architecture, *cells])
    print("\nFalse alarms on healthy tiny models\n")
    print(tabulate(healthy, headers=["architecture", *caught], disable_numparse=True))


if __name__ == "__main__":
    main()
