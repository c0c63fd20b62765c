"""Metrics of answers, each by its formula: what the figures of a library and of a loop are held against."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Column = Sequence[Any]


def expected(metric: str, alone: Mapping[str, Any], task: str, label_names: Sequence[str]) -> float:
    """A metric of answers to examples that were asked one at a time; NaN where it is not defined.

    Args:
        metric: by name; `loss` is the mean over all terms.
        alone: columns `said`, `meant`, `loss` (summed over the terms of an example), `nll` (the same where labels are
            smoothed, and it is not) and `terms`.
        task: as the experiment names it: of a language model, `said` counts the right tokens of `meant`.
        label_names: of the classes, by number.
    """
    said, meant = alone["said"], alone["meant"]
    if metric in ("loss", "perplexity"):
        mean = _ratio(math.fsum(alone["loss" if metric == "loss" else "nll"]), sum(alone["terms"]))
        return mean if metric == "loss" else _exp(mean)
    if metric == "entity_f1":
        return _entity_f1(said, meant, label_names)
    if task.endswith("-lm") and metric == "accuracy":
        return _ratio(math.fsum(said), math.fsum(meant))
    if metric in ("f1_macro", "f1_micro", "f1_binary"):
        return _f1(metric.removeprefix("f1_"), said, meant, task)
    return _OF_PAIRS[metric](*_flat(said, meant, task))


def _flat(said: Column, meant: Column, task: str) -> tuple[Column, Column]:
    """The classes of all words one after the other; what is said of whole texts stays as it is."""
    if task != "token-classification":
        return said, meant
    return [each for row in said for each in row], [each for row in meant for each in row]


def _accuracy(said: Column, meant: Column) -> float:
    return _ratio(sum(one == other for one, other in zip(said, meant, strict=True)), len(meant))


def _exact(said: Column, meant: Column) -> float:
    return _accuracy([_plain(each) for each in said], [_plain(each) for each in meant])


def _token_f1(said: Column, meant: Column) -> float:
    each = []
    for one, other in ((_plain(a).split(), _plain(b).split()) for a, b in zip(said, meant, strict=True)):
        both = (Counter(one) & Counter(other)).total()
        each.append(_harmonic(both / len(one), both / len(other)) if one and other else float(one == other))
    return _ratio(math.fsum(each), len(each))


def _plain(answer: Any) -> Any:
    """Text without case, punctuation, articles and extra spaces."""
    if not isinstance(answer, str):
        return answer
    kept = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _f1(average: str, said: Column, meant: Column, task: str) -> float:
    classes, counts = _classes(said, meant, task)
    if average == "binary":
        return _f1_of(*counts(1))
    if average == "micro":
        right, said_so, so = (sum(column) for column in zip(*map(counts, classes), strict=True))
        return _f1_of(right, said_so, so)
    return _ratio(math.fsum(_f1_of(*counts(one)) for one in classes), len(classes))


def _classes(said: Column, meant: Column, task: str) -> tuple[Sequence[int], Callable[[int], tuple[int, int, int]]]:
    """The classes that occur, or all of a text with several, and a function: right, said and meant of each."""
    if task == "sequence-classification" and meant and isinstance(meant[0], list | tuple):
        return range(len(meant[0])), lambda one: (
            sum(bool(a[one] and b[one]) for a, b in zip(said, meant, strict=True)),
            sum(a[one] for a in said),
            sum(b[one] for b in meant),
        )
    flat_said, flat_meant = _flat(said, meant, task)
    return sorted({*flat_said, *flat_meant}), lambda one: (
        sum(a == b == one for a, b in zip(flat_said, flat_meant, strict=True)),
        list(flat_said).count(one),
        list(flat_meant).count(one),
    )


def _f1_of(right: int, said: int, meant: int) -> float:
    return _harmonic(right / said, right / meant) if said and meant else 0.0


def _harmonic(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _matthews(said: Column, meant: Column) -> float:
    """The correlation of which class is said with which is meant, over all classes (Gorodkin 2004)."""
    classes, number = sorted({*said, *meant}), len(said)

    def covariance(one: Column, other: Column) -> int:
        both = (sum(a == b == each for a, b in zip(one, other, strict=True)) for each in classes)
        alone = (list(one).count(each) * list(other).count(each) for each in classes)
        return int(number * sum(both) - sum(alone))

    spread = covariance(said, said) * covariance(meant, meant)
    return covariance(said, meant) / math.sqrt(spread) if spread else 0.0


def _pearson(said: Column, meant: Column) -> float:
    if len(set(said)) < 2 or len(set(meant)) < 2:
        return math.nan
    a, b = ([each - math.fsum(one) / len(one) for each in one] for one in (said, meant))
    spread = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / spread if spread else math.nan


def _spearman(said: Column, meant: Column) -> float:
    return _pearson(_ranks(said), _ranks(meant))


def _ranks(values: Column) -> list[float]:
    """From 1 on; equal values share the mean of their ranks."""
    return [sum(other < each for other in values) + (sum(other == each for other in values) + 1) / 2 for each in values]


def _entity_f1(said: Column, meant: Column, label_names: Sequence[str]) -> float:
    right = total = 0
    for one, other in zip(said, meant, strict=True):
        a, b = (set(_entities([label_names[each] for each in row])) for row in (one, other))
        right += len(a & b)
        total += len(a) + len(b)
    return 2 * right / total if total else 0.0


def _entities(names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Kind, first and last place of each run of one kind: B- begins one, I- goes on or begins one, O is in none."""
    begun: tuple[str, int] | None = None
    for place, name in enumerate([*names, "O"]):
        mark, _, kind = name.partition("-")
        goes_on = mark == "I" and begun is not None and begun[0] == kind
        if begun is not None and not goes_on:
            yield (*begun, place - 1)
            begun = None
        if begun is None and mark in ("B", "I"):
            begun = kind, place


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan


def _exp(number: float) -> float:
    return math.exp(number) if number < 700 else math.inf


_OF_PAIRS: dict[str, Callable[[Column, Column], float]] = {
    "accuracy": _accuracy,
    "exact_match": _exact,
    "token_f1": _token_f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
