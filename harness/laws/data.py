"""Every example, its label, and when it comes."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

from harness.errors import count
from harness.laws.declared import train
from harness.laws.law import Verdict, broken, held, invalid, law, vacuous
from harness.record import Example, Record

IGNORED = -100
"""The label of what is not to be learnt: torch's cross-entropy leaves it out."""

ALIKE = 4.5
"""Standard deviations above chance at which orders are no longer random: 3 of a million right trainings reach it."""
BY_CHANCE = 3e-6
"""How likely it may be that epochs have the same order, or the same batches, to be taken for chance."""


@law()
def labels_travel(record: Record) -> Verdict:
    """Every row of a batch carries the label of its own example.

    The index of an example travels with it through loader and collator, so a shuffle of one without the other shows.
    If tokens have labels, those that are not -100 are compared, position by position; which of them should be -100 is
    left to labels_masked_right. Exact, except for the rounding of numbers to fp32.
    """
    declared = {example.index: by_argument(example) for example in record.examples}
    if not record.batches or not declared.keys() >= {index for batch in record.batches for index in batch.examples}:
        return invalid("no batch was kept, or not every example of the kept ones")
    left = record.tokenizer is not None and record.tokenizer.padding_side == "left"
    seen = 0
    for batch in record.batches:
        for argument in dict.fromkeys(name for index in batch.examples for name in declared[index]):
            found = batch.tensors.get(argument)
            if found is None:
                names = ", ".join(batch.tensors)
                return broken(f"step {batch.step + 1}: no {argument} among the model's arguments: {names}")
            if len(found) != len(batch.examples):
                return broken(f"step {batch.step + 1}: {len(found)} labels for {len(batch.examples)} examples")
            for row, (index, label) in enumerate(zip(batch.examples, found, strict=True)):
                seen += 1
                if (wrong := _wrong_label(label, declared[index][argument], left)) is not None:
                    return broken(
                        f"step {batch.step + 1}, row {row} (example {index}): {wrong}",
                        cause="labels and texts are ordered apart, or the labels are mapped to other numbers",
                    )
    kinds = {repr(labels) for labels in declared.values()}
    if len(kinds) == 1:
        (example, *_) = record.examples
        return vacuous(f"all examples have the label {example.label}: a mix-up would not show")
    return held(f"{seen} rows")


def by_argument(example: Example) -> dict[str, Any]:
    """What is to be learnt of an example, by the model's arguments."""
    return example.label if isinstance(example.label, dict) else {"labels": example.label}


def _wrong_label(found: Any, declared: Any, left: bool) -> str | None:
    if not isinstance(declared, list) or not isinstance(found, list):
        return None if _equal(found, declared) else f"label {found}, declared {declared}"
    if len(found) < len(declared):
        return f"{len(found)} labels, declared {len(declared)}"
    start = len(found) - len(declared) if left else 0
    for place, label in enumerate(declared):
        if IGNORED not in (label, found[start + place]) and not _equal(found[start + place], label):
            return f"label {found[start + place]} at position {start + place}, declared {label}"
    return None


def _equal(found: Any, declared: Any) -> bool:
    if isinstance(declared, float) and isinstance(found, float):
        return math.isclose(found, declared, rel_tol=1e-6)
    return bool(found == declared)


@law()
def every_example_once(record: Record) -> Verdict:
    """Every epoch sees each example once, in batches of the declared size, and if shuffled, in its own order.

    Judged on the indices that the loader drew. An epoch that the run does not finish must not repeat an example, and
    only the last batch of an epoch may be smaller than the others. If shuffling is declared, the orders of successive
    epochs must be as different as chance makes them: sorting by length shows, and batches that are made once and then
    only shuffled among themselves, so that an example always has the same companions. Equal orders of a few examples
    may be chance, and are let pass while that is likelier than 3 in a million.

    The law follows the settings: with ``train.drop_last`` an epoch lacks the examples that fill no batch; if batches
    are grouped by length, it is their order that must be random; in a stream, which is shuffled within a buffer, no
    example may come twice before its end.
    """
    drawn = [index for batch in record.steps.examples for index in batch]
    if not drawn:
        return invalid("the loader drew nothing")
    size = _size(record)
    epoch_size = _epoch_size(record, size) or len(drawn)
    epochs = [tuple(drawn[start : start + epoch_size]) for start in range(0, len(drawn), epoch_size)]
    for number, epoch in enumerate(epochs, start=1):
        again = [index for index, count in Counter(epoch).items() if count > 1]
        if again:
            never = sorted(set(range(size or 0)) - set(epoch))
            return broken(
                f"epoch {number}: example {again[0]} was drawn {Counter(epoch)[again[0]]} times"
                + (f", example {never[0]} never" if never and len(epoch) == size else ""),
                cause="sampling with replacement, or a last batch that is dropped or carried over",
            )
    if (wrong := _wrong_size(record, epoch_size)) is not None:
        return broken(wrong, cause="several devices or processes multiply or divide it, or an epoch loses its end")
    if size is None:
        return held(f"{len(drawn)} examples of a stream whose end the run does not reach, none twice")
    whole = [epoch for epoch in epochs if len(epoch) == epoch_size]
    if not whole:
        return held(f"{len(drawn)} of {size} examples in an epoch that the run does not finish, none twice")
    return _judge_order(record, whole) or held(
        f"{len(whole)} whole epochs of {epoch_size} examples"
        + (f", the {size - epoch_size} that fill no batch left out" if size > epoch_size else "")
    )


def _size(record: Record) -> int | None:
    """How many examples there are; none where the end of a stream was not reached."""
    if record.data is not None:
        return record.data.rows
    return int(record.settings["data.examples"])


def _epoch_size(record: Record, size: int | None) -> int | None:
    """How many of them an epoch has: all, or as many as fill batches."""
    batch: int = record.settings["train.batch_size"]
    if size is None or size < batch or not record.settings.get("train.drop_last"):
        return size
    return size - size % batch


def _judge_order(record: Record, whole: list[tuple[int, ...]]) -> Verdict | None:
    """What is wrong with the order of whole epochs, if anything is."""
    size, shuffled = len(whole[0]), record.settings["train.shuffle"]
    grouped = record.settings.get("train.batching") == "grouped"
    if not shuffled and not grouped and any(list(epoch) != sorted(epoch) for epoch in whole):
        return broken("train.shuffle is false, and the order is not that of the data")
    if not shuffled:
        return None
    # Where batches are grouped, it is they that come in a random order, and the examples with them.
    batch = record.settings["train.batch_size"]
    free = size // batch if grouped else size
    if len(set(whole)) == 1 and not _by_chance(_log_factorial(free), whole):
        return broken(
            f"all {len(whole)} epochs have the same order",
            cause="the sampler is never told the epoch (set_epoch), or the data is not shuffled",
        )
    if record.settings.get("data.streaming"):
        return None  # shuffled within a buffer: neighbours stay near to each other
    drawn = [epoch[: free * batch] for epoch in whole] if grouped else whole  # a rest comes last in each
    if (alikeness := _alikeness(drawn, free)) > ALIKE:
        return broken(
            f"the orders of {len(whole)} epochs are too much alike: {alikeness:.1f} standard deviations from chance",
            cause="the data is sorted, by length for instance, or shuffled only a little",
        )
    if not grouped and _same_batches(whole, batch):
        return broken(
            f"the batches of all {len(whole)} epochs have the same examples",
            cause="rows were shuffled and put together once, and only the batches are shuffled since",
        )
    return None


def _same_batches(epochs: list[tuple[int, ...]], batch: int) -> bool:
    """Whether every epoch puts the same examples together, which as many random orders would not."""
    size = len(epochs[0])
    made = {frozenset(frozenset(epoch[at : at + batch]) for at in range(0, size, batch)) for epoch in epochs}
    full, rest = divmod(size, batch)
    # The logarithm of the number of ways to part a set into `full` sets of one size, in any order, and one of the rest.
    ways = _log_factorial(size) - full * _log_factorial(batch) - _log_factorial(full) - _log_factorial(rest)
    return len(made) == 1 and not _by_chance(ways, epochs)


def _by_chance(ways: float, epochs: list[tuple[int, ...]]) -> bool:
    """Whether all epochs may well be the same of so many ways, whose logarithm this is."""
    return (len(epochs) - 1) * ways <= -math.log(BY_CHANCE)


def _log_factorial(number: int) -> float:
    return math.lgamma(number + 1)


def _alikeness(epochs: list[tuple[int, ...]], free: int) -> float:
    """How many standard deviations the rank correlation of successive epochs lies above that of random orders.

    For random orders of n it has mean 0 and variance 1 / (n - 1) (Kendall, Rank Correlation Methods, section 5.7);
    `free` is how many places are drawn at random.
    """
    pairs = list(pairwise(epochs))
    if not pairs or free < 3:
        return 0.0
    mean = math.fsum(_correlation(one, two) for one, two in pairs) / len(pairs)
    return mean * math.sqrt((free - 1) * len(pairs))


def _correlation(one: tuple[int, ...], two: tuple[int, ...]) -> float:
    """Spearman's rank correlation of the places of each example in two epochs; those that one lacks are left out."""
    both = set(one) & set(two)
    one, two = (tuple(index for index in epoch if index in both) for epoch in (one, two))
    size, places = len(one), {index: place for place, index in enumerate(two)}
    if size < 2:
        return 0.0
    squares = sum((place - places[index]) ** 2 for place, index in enumerate(one))
    return 1 - 6 * squares / (size * (size**2 - 1))


def _wrong_size(record: Record, size: int) -> str | None:
    """The first micro-batch that is not of the declared size, or step that has another number of them."""
    declared, most = record.settings["train.batch_size"], train(record)["gradient_accumulation"]
    left = size
    for step, found in enumerate(_micro_batches(record), start=1):
        expected = []
        for _ in range(most):
            expected.append(min(declared, left))
            left -= expected[-1]
            if not left:
                break
        left = left or size
        if list(found) != expected:
            sizes, wanted = (" + ".join(map(str, each)) for each in (found, expected))
            return f"step {step}: {_examples(sizes)} in the batch, expected {wanted} (batch_size {declared})"
    return None


def _micro_batches(record: Record) -> list[tuple[int, ...]]:
    """How many examples each micro-batch of each step had."""
    steps = record.steps
    return list(steps.micro_batches) or [(len(examples),) for examples in steps.examples]


def _examples(sizes: str) -> str:
    return count(int(sizes), "example") if sizes.isdigit() else f"{sizes} examples"
