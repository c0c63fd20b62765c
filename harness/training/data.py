"""Rows to examples to batches."""

from __future__ import annotations

import math
import queue
import random
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler

from harness import experiment
from harness.errors import CheckpointError, DataError, shown
from harness.training.rows import WHOLE, Row, Rows, Table
from harness.training.tasks import Collator, Features, Task

Encode = Callable[[Sequence[Row]], list[Features]]

NOTED = ("index", "place", "row", "cut", "lost", "offsets")
"""What an example carries beside what the model gets: its index, the place of its row in the source, the row, how many
tokens were cut off, whether something that was to be learnt is lost with them, and where in a text its tokens stand."""
AHEAD = 64
"""Examples that are encoded at once."""
CHUNKS = 4
"""Lots of encoded examples that may wait for the loop."""
GROUP = 50
"""Batches whose examples are sorted by length among themselves, as `transformers` groups them."""
SAMPLE = 256
"""Examples of a large source whose lengths are known before training: probes choose among them."""


@dataclass(frozen=True)
class Encoder:
    """Rows of a task, as features without padding.

    Args:
        task: whose rows they are.
        tokenizer: called as a tokenizer is.
        max_length: longest encoding in tokens; longer text is cut.
        special: ids that stand for no text.
        words: the checkpoint's own tokenizer.
        positions: tokens that the model has positions for; none where it takes any number.
        evaluating: whether nothing may be left to chance when a batch is made.

    Raises:
        CheckpointError: when called: the tokenizer cannot cut a text to that length.
    """

    task: Task
    tokenizer: Any
    max_length: int
    special: frozenset[int] = frozenset()
    words: Any = None
    positions: int | None = None
    evaluating: bool = False

    def __call__(self, rows: Sequence[Row]) -> list[Features]:
        """The features of each row, with its label."""
        encode = self.task.encode_to_evaluate if self.evaluating else self.task.encode
        found = encode(rows, self.tokenizer, self.max_length)
        longest = max((len(ids) for features in found for ids in tokens_of(features)), default=0)
        if longest > self.max_length:  # tokenizers leave a text whole, silently, where special tokens find no room
            raise CheckpointError(
                f"max_length {self.max_length}: the tokenizer leaves {longest} tokens, {self._room()}"
            )
        for row, features in zip(rows, found, strict=True):
            features["cut"] = self._cut(row, features)
            features["lost"] = self.task.loses(row, features, self.tokenizer)
        return found

    def says_nothing(self, row: Row, features: Features) -> bool:
        """Whether a text is no token at all to the checkpoint's own tokenizer."""
        if not any(all(token in self.special for token in ids) for ids in tokens_of(features)):
            return False
        if self.tokenizer is self.words:
            return True
        return any(all(token in self.special for token in self._words(text)) for text in experiment.texts(row))

    def _words(self, text: str) -> list[int]:
        ids: list[int] = self.words(text)["input_ids"]
        return ids

    def _cut(self, row: Row, features: Features) -> int:
        """Tokens of a text, or of a pair, that its encoding lacks; 0 for other rows."""
        if "text" not in row or tokens_in(features) < self.max_length:
            return 0
        both = [[row[role]] for role in ("text", "text_pair") if row.get(role) is not None]
        whole = self.tokenizer(*both, verbose=False)["input_ids"][0]
        return max(0, len(whole) - self.max_length)

    def _room(self) -> str:
        special = getattr(self.tokenizer, "num_special_tokens_to_add", None)
        return f"for it adds {special()} special ones" if special else "more than it was asked for"


def encoder(task: Task, tokenizer: Any, max_length: int, positions: int | None = None) -> Encoder:
    """What encodes for the task; the unknown token is a word that the tokenizer does not know, so it says something."""
    special = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return Encoder(task, tokenizer, max_length, special, tokenizer, positions)


def tokens_of(features: Features) -> list[list[int]]:
    """The ids of each text of an example: one, or one for each choice."""
    ids = features["input_ids"]
    return ids if ids and isinstance(ids[0], list) else [ids]


def tokens_in(features: Features) -> int:
    """Tokens of an example, of all its texts."""
    return sum(map(len, tokens_of(features)))


class Examples(Dataset[Features]):
    """Every row of a small table encoded once, without padding, beside its label and its index.

    Args:
        rows: a table.
        encode: rows to features.

    Raises:
        CheckpointError: a text cannot be cut to the longest length.
        DataError: a row holds nothing to train on.
    """

    def __init__(self, rows: Table, encode: Encode) -> None:
        lot = [(index, rows.place(index), row) for index, row in enumerate(rows.get(range(len(rows))))]
        found = _noted(rows, lot, encode)
        if not found:
            raise DataError(f"{rows.name}: no row is left: all of them were dropped")
        self.encode = encode
        self.rows = rows if len(found) == len(rows) else replace(rows, order=[each["place"] for each in found])
        self._features = [{**features, "index": index} for index, features in enumerate(found)]
        self.lengths = tuple(map(tokens_in, self._features))
        self.lost = tuple(features["index"] for features in self._features if features.get("lost"))
        """Indices of the examples that have lost something to be learnt, as in what is cut off."""

    def like(self, rows: Table) -> Examples:
        """Other rows, encoded in the same way."""
        return Examples(rows, self.encode)

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> Features:
        return self._features[index]


class Ahead(IterableDataset[Features]):
    """Rows of a stream or of a large table, encoded in a thread of its own while the loop works on earlier ones.

    What it gives is in the order of the epoch. As many as `lengths` are known at once, by their index.

    Args:
        rows: a table or a stream.
        encode: rows to features.
        train: order, batch size, and how batches are made.
        change: what becomes of the features of each index, at last.
    """

    def __init__(
        self,
        rows: Rows,
        encode: Encode,
        train: experiment.Train,
        shuffle_buffer: int,
        change: Callable[[int, Features], Features] | None = None,
    ) -> None:
        self.rows, self.encode, self.train = rows, encode, train
        self.shuffle_buffer, self.change = shuffle_buffer, change
        self.ended: int | None = None
        """Examples of an epoch, once its end was reached."""
        self._epoch = 0
        first = self._encoded(list(islice(self._in_order(), SAMPLE)))
        self._first = first
        if not first:
            raise DataError(f"{rows.name}: no row is left: all of them were dropped")
        self.lengths = tuple(map(tokens_in, first))
        self.lost = tuple(features["index"] for features in first if features.get("lost"))

    def __getitem__(self, index: int) -> Features:
        """One of the first; where rows were dropped among them, `index` counts those that are left."""
        return self._first[index]

    def like(self, rows: Table) -> Examples:
        """Other rows, few of them, encoded in the same way."""
        return Examples(rows, self.encode)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; the Trainer calls this at the start of each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Features]:
        with closing(ahead(self._lots(self._epoch), CHUNKS)) as lots:
            whole = 0
            kept: list[Features] = []
            for lot in lots:
                for features in lot:
                    kept.append(features)
                    if len(kept) == self.train.batch_size:
                        yield from kept
                        whole, kept = whole + 1, []
            if not self.train.drop_last or not whole:
                yield from kept

    def _lots(self, epoch: int) -> Iterator[list[Features]]:
        """Encoded examples in the order of the epoch, a lot at a time."""
        grouped = self.train.batching == "grouped"
        size = GROUP * self.train.batch_size if grouped else AHEAD
        generator = torch.Generator().manual_seed(self.train.seed_of_data + epoch)
        rows, made = self._drawn(epoch), 0
        while lot := list(islice(rows, size)):
            found = self._encoded(lot)
            if grouped:
                lengths = list(map(tokens_in, found))
                found = [found[place] for place in by_length(lengths, self.train.batch_size, generator)]
            made += len(found)
            yield found
        self.ended = made

    def _encoded(self, lot: list[tuple[int, int, Row]]) -> list[Features]:
        found = _noted(self.rows, lot, self.encode)
        return found if self.change is None else [self.change(each["index"], each) for each in found]

    def _drawn(self, epoch: int) -> Iterator[tuple[int, int, Row]]:
        """Index, place and row of each example, in the order of the epoch."""
        if isinstance(self.rows, Table):
            order = EpochOrder(len(self.rows), self.train.seed_of_data, self.train.shuffle)
            order.set_epoch(epoch)
            return self._from_table(self.rows, iter(order))
        rows = self._in_order()
        return shuffled(rows, self.shuffle_buffer, self.train.seed_of_data + epoch) if self.train.shuffle else rows

    def _in_order(self) -> Iterator[tuple[int, int, Row]]:
        if isinstance(self.rows, Table):
            yield from self._from_table(self.rows, iter(range(len(self.rows))))
            return
        for index, (place, row) in enumerate(self.rows):
            yield index, place, row

    @staticmethod
    def _from_table(rows: Table, order: Iterator[int]) -> Iterator[tuple[int, int, Row]]:
        while indices := list(islice(order, AHEAD)):
            for index, row in zip(indices, rows.get(indices), strict=True):
                yield index, rows.place(index), row


def examples(rows: Rows, encode: Encode, train: experiment.Train, shuffle_buffer: int) -> Examples | Ahead:
    """The examples of these rows: encoded before training where they are few, else while it goes on."""
    if isinstance(rows, Table) and len(rows) <= WHOLE:
        return Examples(rows, encode)
    return Ahead(rows, encode, train, shuffle_buffer)


def _noted(rows: Rows, lot: Iterable[tuple[int, int, Row]], encode: Encode) -> list[Features]:
    """The features of these rows with what `NOTED` says; without those that say nothing, where such are dropped."""
    lot = list(lot)
    found: list[Features] = []
    wrong: list[tuple[int, str]] = []
    for (index, place, row), features in zip(lot, encode([row for _, _, row in lot]), strict=True):
        if isinstance(encode, Encoder) and encode.says_nothing(row, features):
            text = next(experiment.texts(row))
            reason = f"the tokenizer makes no token of the text {shown(text)}"
            if rows.drops:
                rows.dropped.add(place, row, reason)
            else:
                wrong.append((place, reason))
            continue
        longest = max(map(len, tokens_of(features)))
        if isinstance(encode, Encoder) and longest > (encode.positions or math.inf):
            tokens = f"{longest} tokens, and the model has positions for {encode.positions}"
            wrong.append((place, f"{tokens}; see train.max_length"))
            continue
        found.append({**features, "index": index, "place": place, "row": row})
    if wrong:
        raise rows.refuse(wrong)
    return found


def ahead(items: Iterator[Any], most: int) -> Generator[Any, None, None]:
    """The same items, made in a thread of its own, at most so many before they are asked for.

    What goes wrong there is raised here. Closing the iterator ends the thread.
    """
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(most)
    ended, over = object(), threading.Event()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not over.is_set():
            try:
                made.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put(item)
                if over.is_set():
                    return
        except BaseException as error:
            put(ended, error)
        else:
            put(ended)

    thread = threading.Thread(target=make, name="harness-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is ended:
                return
            yield item
    finally:
        over.set()
        thread.join()


def shuffled(items: Iterator[Any], size: int, seed: int) -> Iterator[Any]:
    """The items in another order: each is drawn from the next so many that are left."""
    chance = random.Random(seed)
    buffer = list(islice(items, size))
    for item in items:
        place = chance.randrange(len(buffer))
        buffer[place], item = item, buffer[place]
        yield item
    chance.shuffle(buffer)
    yield from buffer


def by_length(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[int]:
    """An order of places in which each batch holds neighbours in length; batches are shuffled, a rest comes last."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rest = batches.pop() if batches and len(batches[-1]) < batch_size else []
    turns = torch.randperm(len(batches), generator=generator).tolist()
    return [*(place for turn in turns for place in batches[turn]), *rest]


class EpochOrder(Sampler[int]):
    """The order of one epoch: a permutation drawn from seed and epoch alone, or the order of the file.

    It has a generator of its own, so that neither dropout nor a worker can change which examples meet in a batch.

    Args:
        size: number of examples.
        seed: of the permutations.
        shuffle: whether there are any.
        batch_size: of the batches that `lengths` and `drop_last` mean.
        lengths: where batches are grouped by length, of each example.
        drop_last: whether examples that fill no batch are left out.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        shuffle: bool,
        *,
        batch_size: int = 1,
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ) -> None:
        self._size = size
        self._seed = seed
        self._shuffle = shuffle
        self._batch_size = batch_size
        self._lengths = lengths
        self._epoch = 0
        self._taken = size - size % batch_size if drop_last and size >= batch_size else size

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; the Trainer calls this at the start of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._taken

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = self._permutation(generator)
        return islice(order if self._lengths is None else self._grouped(order, self._lengths), self._taken)

    def _permutation(self, generator: torch.Generator) -> Iterator[int]:
        if not self._shuffle:
            return iter(range(self._size))
        if self._size <= WHOLE:
            return iter(torch.randperm(self._size, generator=generator).tolist())
        # A million numbers are a few MB as a tensor, and ten times as much as a list.
        places = torch.randperm(
            self._size, generator=generator, dtype=torch.int32 if self._size < 2**31 else torch.int64
        )
        return (place for start in range(0, self._size, AHEAD) for place in places[start : start + AHEAD].tolist())

    def _grouped(self, order: Iterator[int], lengths: Sequence[int]) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        while lot := list(islice(order, GROUP * self._batch_size)):
            places = by_length([lengths[index] for index in lot], self._batch_size, generator)
            yield from (lot[place] for place in places)


@dataclass(frozen=True)
class Drawing:
    """The examples of one batch."""

    indices: tuple[int, ...]
    lengths: tuple[int, ...]
    """Real tokens of each."""
    features: tuple[Features, ...]
    """As the loader had them."""
    labels: torch.Tensor | None = None
    """The batch's labels as they were collated, for loops that keep them from the model."""


class Drawn:
    """The examples of each batch, in the order the loader made the batches.

    Models do not take an example's index, so a noting collator leaves it here before it hands the features on; the
    step that uses the batch takes it from `queue`. `waiting` is entered whenever the loop waits for a batch.
    """

    def __init__(self) -> None:
        self.queue: deque[Drawing] = deque()
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext

    def noting(self, collator: Collator) -> Collator:
        """The same collator, for features that carry an index."""

        def collate(features: list[Features]) -> Any:
            batch = collator([bare(row) for row in features])
            self.queue.append(
                Drawing(
                    tuple(row["index"] for row in features),
                    tuple(map(tokens_in, features)),
                    tuple(features),
                    batch.get("labels"),
                )
            )
            return batch

        return collate

    def timing(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, each of them waited for."""
        while True:
            with self.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def bare(features: Features) -> Features:
    """What a collator gets of an example."""
    return {name: value for name, value in features.items() if name not in NOTED}


def longest(declared: int | None, tokenizer: Any, model: Any) -> int:
    """The longest encoding in tokens: as declared, else what both tokenizer and model can take."""
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < 1_000_000]
    if declared is not None:
        return declared
    return min(known) if known else 512


def positions(model: Any) -> int | None:
    """The rows of the model's table of positions; none where it has none, and reads texts of any length."""
    limit = getattr(model.config, "max_position_embeddings", None)
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding)
        and re.search(r"(^|\.)(wpe|embed_positions|position_embeddings?)$", name)
    ]
    return max(*tables, limit) if tables and isinstance(limit, int) else None
