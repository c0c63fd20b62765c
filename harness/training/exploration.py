"""A search for texts on which the case's own encoding, loop, collator or model breaks a law."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy
from transformers.modeling_outputs import SequenceClassifierOutput

from harness import experiment
from harness.exploration import Exploration, Trial
from harness.record import Batch, Record, Steps
from harness.training import reference
from harness.training.checkpoint import Loaded
from harness.training.data import Drawn
from harness.training.devices import find as find_device
from harness.training.loops import LOOPS
from harness.training.probes.padding import moves
from harness.training.probes.result import chosen
from harness.training.rows import WHOLE, Labels, Table
from harness.training.texts import trials
from harness.training.twin import twin
from harness.training.workload import Workload, with_steps

TOKENS = 1024
"""Of a batch for the twin, padding included: of longer texts, fewer are taken, but two at least."""


Judge = Callable[[Any], Mapping[str, str]]

_PLAIN: dict[str, Any] = {
    "epochs": 1.0,
    "gradient_accumulation": 1,
    "optimizer": "adamw",
    "groups": [],
    "freeze": None,
    "max_grad_norm": None,
    "label_smoothing": 0.0,
    "compute_loss_func": False,
    "gradient_checkpointing": False,
    "compile": False,
}
"""How the choices of the training stand while its batches are looked at: nothing is trained then."""


def explorable(settings: experiment.Settings) -> bool:
    """Whether texts can be made up for a case: a text of its own and a class make an example."""
    data = settings.data
    pairs = "text_pair" in data.columns or any("text_pair" in row for row in data.given[:1])
    labels = (row.get("label", 0) for row in data.given[:1])
    single = experiment.problem_of(labels, data.problem_type) == "single_label_classification"
    return settings.task == "sequence-classification" and single and not pairs


def explore(loaded: Loaded, work: Workload, search: Exploration) -> dict[str, Any]:
    """Try what broke a law before, then make up data sets until one breaks a law, and make that one smaller.

    Seeded by `train.seed`. Shrinking tries as many data sets again at most, and keeps to the law that broke first.

    Returns:
        ``trials``, how many data sets were made up; ``known``, how many were found before and tried again; ``held``,
        how often each law did; and ``found``: none, or the smallest data set, the law that it breaks, and the record or
        the error that it leaves.
    """
    bench = Bench(loaded, work, search.judge)
    found = None
    with _no_garbage():
        for trial in search.known:
            if (found := bench.attempt(trial)) is not None:
                break
        known = bench.tried
        searched = found is None
        if searched:
            found = _search(bench, search.trials)
    return {
        "trials": bench.tried - known,
        "known": known,
        "held": dict(bench.held),
        "found": found and {**found.described(), "known": not searched},
    }


@dataclass(frozen=True)
class Finding:
    """A trial that breaks a law."""

    trial: Trial
    law: str
    record: Record | None = None
    """What the law judged; none where the trial crashed."""
    error: str = ""

    @property
    def kind(self) -> str:
        """What a smaller trial has to break as well."""
        return f"{self.law} {self.error.partition(':')[0]}"

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "sequences": list(self.trial.sequences),
            "batch_size": self.trial.batch_size,
            "law": self.law,
            "error": self.error,
            "record": self.record and self.record.model_dump(mode="json", exclude_defaults=True),
        }


class Bench:
    """The trained case's own encoding, loop, collator and model, ready for other texts.

    Args:
        loaded: the checkpoint, whose tokenizer is the reference.
        work: what was trained.
        judge: outcome by law of a trial's record.
    """

    def __init__(self, loaded: Loaded, work: Workload, judge: Judge) -> None:
        self._loaded = loaded
        self.work = replace(work, device=find_device("cpu"), precision="fp32", split=None)
        own = reference.tokenizer(loaded, work.task, work.max_length)
        # The case's own texts are judged by these; texts that spell special tokens out are no sign of either.
        self._tokenizer = own.model_copy(update={"foreign": (), "begin_token_id": None})
        self._twin = twin(work.model)
        self._judge = judge
        self.tried = 0
        """Trials so far."""
        self.held: Counter[str] = Counter()
        """How often, by law."""

    def attempt(self, trial: Trial) -> Finding | None:
        """What breaks in a trial, if anything does: a law, or the training itself."""
        self.tried += 1
        try:
            record, outcomes = self._judged(trial)
        except Exception as error:
            return Finding(trial, "trains", error=f"{type(error).__name__}: {error}"[:500])
        self.held.update(law for law, outcome in outcomes.items() if outcome == "held")
        broken = _broken(outcomes)
        return None if broken is None else Finding(trial, broken, record)

    def _judged(self, trial: Trial) -> tuple[Record | None, Mapping[str, str]]:
        """What a trial leaves; the model is asked only if right batches reach it."""
        data = self._data(trial)
        if data is None:
            return None, {}
        small = self._small(data, trial.batch_size)
        record = self._fed(small, trial)
        outcomes = self._judge(record)
        plain = [index for index, row in enumerate(data.rows) if not self._is_spelt(row["text"])]
        if plain and _broken(outcomes) is None:
            lengths = [small.examples.lengths[index] for index in plain]
            indices = [plain[place] for place in chosen(lengths, most=max(2, TOKENS // max(lengths)))]
            record = record.model_copy(update={"probes": {"padding": moves(self._twin, small, indices)}})
            outcomes = self._judge(record)
        return record, outcomes

    def _data(self, trial: Trial) -> Table | None:
        """Its texts with labels that tell neighbours apart; of a text without a token there is nothing to learn."""
        texts = [text for text in trial.sequences if self._says_something(text)]
        classes = self._loaded.rows.labels.count or 2
        rows = [{"text": text, "label": index % classes} for index, text in enumerate(texts)]
        return Table("explored", Labels(classes), rows=rows) if rows else None

    def _small(self, data: Table, batch_size: int) -> Workload:
        """The workload, for one epoch of other texts."""
        examples = self.work.examples.like(data)
        train = with_steps(self.work.train.model_copy(update={**_PLAIN, "batch_size": batch_size}), examples)
        settings = self.work.settings.model_copy(update={"train": train})
        return replace(self.work, examples=examples, settings=settings, train=train, drawn=Drawn())

    def _fed(self, small: Workload, trial: Trial) -> Record:
        """What the case's own loop feeds its model with."""
        listener = Listener(small.drawn, small.model.config)
        LOOPS[small.train.loop](replace(small, model=listener), listener)
        data, length = small.examples.rows, small.max_length
        assert isinstance(data, Table)
        rows = data.get(range(len(data)))
        return Record(
            experiment="explored",
            case=str(len(rows)),
            outcome="finished",
            started=datetime.now(UTC),
            seconds=0.0,
            settings={
                "data.examples": len(rows),
                "train.batch_size": trial.batch_size,
                **{f"train.{name}": getattr(small.train, name) for name in ("shuffle", "batching", "drop_last")},
            },
            tokenizer=self._tokenizer,
            examples=tuple(reference.example(self._loaded, small.task, i, row, length) for i, row in enumerate(rows)),
            batches=tuple(listener.batches),
            steps=Steps(examples=tuple(batch.examples for batch in listener.batches)),
            invariants=dict(small.settings.invariants),
            expect_broken=dict(small.settings.expect_broken),
        )

    def _says_something(self, text: str) -> bool:
        """Whether there is a token that stands for a part of it."""
        words = self._loaded.tokenizer
        special = {*words.all_special_ids} - {words.unk_token_id}
        return any(token not in special for token in self._encoded(text, truncation=True))

    def _is_spelt(self, text: str) -> bool:
        """Whether words of a text become special tokens.

        Heads look for the padding, or for the end, by its id: what they make of such a text is theirs to say.
        """
        words = self._loaded.tokenizer
        special = {*words.all_special_ids} - {words.unk_token_id} | {words.pad_token_id, words.eos_token_id}
        return not special.isdisjoint(self._encoded(text, add_special_tokens=False))

    def _encoded(self, text: str, **options: Any) -> list[int]:
        ids: list[int] = self._loaded.tokenizer(text, max_length=self.work.max_length, **options)["input_ids"]
        return ids


class Listener(torch.nn.Module):
    """Stands where the model stands, and where the watch does: keeps the batches and learns nothing.

    Args:
        drawn: which examples the loader drew for each batch.
        config: the model's, which says how batches are padded.
    """

    base_model_prefix = "backbone"
    backbone = None
    """There is none: its one weight is all head."""

    def __init__(self, drawn: Drawn, config: Any) -> None:
        super().__init__()
        self.config = config
        self.batches: list[Batch] = []
        self._drawn = drawn
        self._weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, **tensors: Any) -> SequenceClassifierOutput:
        """Keep them."""
        queue = self._drawn.queue
        kept = {
            name: tuple(value.tolist())
            for name, value in tensors.items()
            if isinstance(value, torch.Tensor) and value.dim() > 0
        }
        examples = queue.popleft().indices if queue else ()
        self.batches.append(Batch(step=len(self.batches), examples=examples, tensors=kept))
        return SequenceClassifierOutput(loss=self._weight * 1.0)

    def begin(self, optimizer: Any, scaler: Any = None) -> None:
        """Nothing."""

    def kept(self) -> None:
        """No checkpoint is written."""

    def step_done(self, loss: torch.Tensor, norm: Any = None) -> None:
        """Nothing."""

    def evaluate(self, evaluation: Callable[[], Any]) -> None:
        """Nothing: what is explored is the training."""


def _search(bench: Bench, count: int) -> Finding | None:
    """The smallest of what `count` data sets show."""
    work, seen, limit = bench.work, dict[Trial, Finding | None](), bench.tried + 2 * count
    first: Finding | None = None

    def breaks(trial: Trial) -> bool:
        nonlocal first
        if trial not in seen:
            seen[trial] = bench.attempt(trial) if bench.tried < limit else None
        found = seen[trial]
        first = first or found
        return found is not None and first is not None and found.kind == first.kind

    said = settings(
        max_examples=count,
        database=None,  # what was found is kept in the store, as texts
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    try:
        return seen[find(_strategy(work), breaks, settings=said, random=Random(work.train.seed))]
    except NoSuchExample:
        return None


def _strategy(work: Workload) -> SearchStrategy[Trial]:
    words = {word for text in work.task.texts(work.examples.rows.first(WHOLE)) for word in text.split()}
    return trials(work.tokenizer, tuple(sorted(words, key=lambda word: (len(word), word))), work.max_length)


def _broken(outcomes: Mapping[str, str]) -> str | None:
    """The first law that is."""
    return next((law for law, outcome in outcomes.items() if outcome == "broken"), None)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """What lives by now is no garbage: each Trainer looks for some when it is done, which takes longer than a trial."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
