"""Examples of rows, before the training or while it goes on, and which of them each batch has."""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from harness import experiment
from harness.errors import DataError, shown
from harness.training.encoding import Encoder, bare, tokens_in, tokens_of
from harness.training.order import GROUP, EpochOrder, by_length, shuffled
from harness.training.rows import WHOLE, Row, Rows, Table
from harness.training.tasks import Collator, Features

Encode = Callable[[Sequence[Row]], list[Features]]

AHEAD = 64
"""Examples that are encoded at once."""
CHUNKS = 4
"""Lots of encoded examples that may wait for the loop."""
SAMPLE = 256
"""Examples of a large source whose lengths are known before training: probes choose among them."""


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
