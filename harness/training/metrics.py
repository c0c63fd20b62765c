"""Metrics of answers, from scikit-learn, scipy and seqeval, and their bootstrap intervals."""

from __future__ import annotations

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from operator import eq
from typing import Any

import numpy as np

from harness.errors import Unavailable
from harness.record import Interval
from harness.training.tasks import Answer

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
NUMBERS = 10_000_000
"""That resamples hold at once, at most."""

Answers = Sequence[Answer]
Table = np.ndarray
"""Numbers for each example: examples x numbers; or of many resamples at once, resamples x examples x numbers."""


@dataclass(frozen=True)
class Metric:
    """How answers are measured: by a library, and once more from a table, whose rows are resampled many at a time."""

    score: Callable[[Answers, tuple[str, ...]], float]
    """Of answers and the names of the classes."""
    table: Callable[[Answers, tuple[str, ...]], Table]
    """The numbers of each example that the metric is made of."""
    of: Callable[[Table], Any]
    """The metric of such a table; an array of them where it holds many resamples."""


def require(names: Sequence[str]) -> None:
    """Import the libraries of these metrics before anything is measured: importing them draws random numbers.

    Raises:
        Unavailable: one of them is not installed.
    """
    for name in ("scipy.stats", "sklearn.metrics", *["seqeval.metrics"] * ("entity_f1" in names)):
        try:
            import_module(name)
        except ImportError as error:
            raise Unavailable(f"evaluation: {error}: pip install 'pytest-finetune[evaluation]'") from None


def measure(names: Sequence[str], answers: Answers, label_names: tuple[str, ...] = ()) -> dict[str, float]:
    """Each metric of the answers; NaN where it is not defined, as a correlation with what is all the same."""
    with np.errstate(all="ignore"):
        return {name: float(METRICS[name].score(answers, label_names)) if answers else math.nan for name in names}


def interval(
    name: str, runs: Sequence[Answers], label_names: tuple[str, ...], *, resamples: int, confidence: float, seed: int
) -> Interval:
    """A metric of one run over the examples, or how much the second of two differs from the first, with its interval.

    The percentile bootstrap (Efron 1979) over examples; both runs are resampled alike, for they are of the same
    examples. An interval of no width says that no resample differs.

    Args:
        name: of the metric.
        runs: one, or two.
        label_names: of the classes.
        resamples: how many.
        confidence: of the interval.
        seed: of the resamples.
    """
    from scipy import stats

    metric = METRICS[name]
    tables = [metric.table(answers, label_names) for answers in runs]

    def statistic(places: Any, axis: int = -1) -> Any:
        values = [metric.of(table[places]) for table in tables]
        return values[-1] - values[0] if len(values) > 1 else values[0]

    places = np.arange(len(runs[0]))
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):  # of resamples that are all alike
        value = float(statistic(places)) if len(places) else math.nan
        if len(places) < 2 or not math.isfinite(value):
            return Interval(value=value, low=math.nan, high=math.nan)
        found = stats.bootstrap(
            (places,),
            statistic,
            n_resamples=resamples,
            batch=max(1, NUMBERS // tables[0].size),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    # A resample may be one of which the metric says nothing, as a correlation where all labels are the same.
    defined = found[np.isfinite(found)]
    if not len(defined):
        return Interval(value=value, low=math.nan, high=math.nan)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value=value, low=float(low), high=float(high))


# What is measured


def _of_library(function: Callable[[list[Any], list[Any]], float]) -> Callable[[Answers, tuple[str, ...]], float]:
    """A score of two lists of classes or numbers, what was meant first; of words, all of them are in one list."""

    def score(answers: Answers, label_names: tuple[str, ...]) -> float:
        columns = ([answer.meant for answer in answers], [answer.said for answer in answers])
        meant, said = ([*chain(*column)] if isinstance(column[0], list) else column for column in columns)
        return function(meant, said) if meant else math.nan

    return score


def _of_table(metric: str) -> Callable[[Answers, tuple[str, ...]], float]:
    """Where a metric is a plain quotient, and no library is asked."""
    return lambda answers, label_names: float(METRICS[metric].of(METRICS[metric].table(answers, label_names)))


def _quotient(table: Table) -> Any:
    """The sum of the first numbers over that of the second."""
    sums = table.sum(axis=-2)
    return sums[..., 0] / sums[..., 1]


def _numbers(rows: Iterable[Sequence[float]]) -> Table:
    return np.array([*map(tuple, rows)], dtype=float)


def _accuracy(answers: Answers, label_names: tuple[str, ...]) -> float:
    from sklearn.metrics import accuracy_score

    if _is_counted(answers):
        return float(_quotient(_right(answers, label_names)))
    return float(_of_library(accuracy_score)(answers, label_names))


def _right(answers: Answers, label_names: tuple[str, ...]) -> Table:
    """How much is right, of how much."""
    if _is_counted(answers):
        return _numbers((answer.said, answer.meant) for answer in answers)
    if isinstance(answers[0].meant, list):
        return _numbers((sum(map(eq, answer.said, answer.meant)), len(answer.meant)) for answer in answers)
    return _numbers((answer.said == answer.meant, 1) for answer in answers)


def _is_counted(answers: Answers) -> bool:
    """Whether they are of a language model, whose tokens are counted already."""
    return not math.isnan(answers[0].loss)


def _f1(average: str) -> Metric:
    """F1 of each class, averaged; or of class 1 alone. Classes that nobody means and nobody says are left out."""

    def score(meant: list[Any], said: list[Any]) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(meant, said, average=average, zero_division=0))

    def of(table: Table) -> Any:
        right, wrong, there = np.split(table.sum(axis=-2), 3, axis=-1)
        if average == "micro":
            right, wrong = right.sum(axis=-1, keepdims=True), wrong.sum(axis=-1, keepdims=True)
            there = there.sum(axis=-1, keepdims=True)
        each = np.divide(2 * right, 2 * right + wrong, out=np.zeros_like(right), where=right + wrong > 0)
        if average == "binary":
            return each[..., 1]
        return each.sum(axis=-1) / np.maximum((there > 0).sum(axis=-1), 1)

    return Metric(_of_library(score), _by_class, of)


def _by_class(answers: Answers, label_names: tuple[str, ...]) -> Table:
    """For each class how often it is right, how often said or meant alone, and whether it is to be looked at."""
    pairs = [_indicators(answer) for answer in answers]
    several = isinstance(answers[0].meant, tuple)
    highest = max((place for pair in pairs for column in pair for place in column), default=0)
    classes = len(answers[0].meant) if several else max(highest + 1, 2)
    table = np.zeros((len(answers), 3, classes))
    for (right, wrong, there), (said, meant) in zip(table, pairs, strict=True):
        there[...] = several  # of texts with several classes all of them count, else those that occur
        for one, other in zip(said, meant, strict=True):
            if one == other >= 0:
                right[one] += 1
            for place in {one, other} - {-1}:
                wrong[place] += one != other
                there[place] = 1
    return table.reshape(len(answers), -1)


def _indicators(answer: Answer) -> tuple[Sequence[int], Sequence[int]]:
    """What is said and meant, one class beside the other; of a text with several classes -1 stands for none."""
    if isinstance(answer.meant, tuple):
        said, meant = (
            [place if flag else -1 for place, flag in enumerate(each)] for each in (answer.said, answer.meant)
        )
        return said, meant
    return (answer.said, answer.meant) if isinstance(answer.meant, list) else ([answer.said], [answer.meant])


def _matthews(meant: list[Any], said: list[Any]) -> float:
    from sklearn.metrics import matthews_corrcoef

    with warnings.catch_warnings(action="ignore"):  # of one class alone
        return float(matthews_corrcoef(meant, said))


def _confusion(answers: Answers, label_names: tuple[str, ...]) -> Table:
    """For each pair of classes whether the one was meant and the other said."""
    classes = max(max(answer.said, answer.meant) for answer in answers) + 1
    table = np.zeros((len(answers), classes * classes))
    for row, answer in zip(table, answers, strict=True):
        row[answer.meant * classes + answer.said] = 1
    return table


def _matthews_of(table: Table) -> Any:
    """Gorodkin 2004, eq. 8, of any number of classes; 0 where all that is said, or all that is meant, is one class."""
    sums = table.sum(axis=-2)
    classes = math.isqrt(sums.shape[-1])
    matrix = sums.reshape(*sums.shape[:-1], classes, classes)
    meant, said, number = matrix.sum(axis=-1), matrix.sum(axis=-2), sums.sum(axis=-1)
    covariance = np.trace(matrix, axis1=-2, axis2=-1) * number - (meant * said).sum(axis=-1)
    spread = (number**2 - (meant**2).sum(axis=-1)) * (number**2 - (said**2).sum(axis=-1))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)


def _correlation(name: str) -> Callable[[list[Any], list[Any]], float]:
    def score(meant: list[Any], said: list[Any]) -> float:
        from scipy import stats

        if len(set(meant)) < 2 or len(set(said)) < 2:
            return math.nan  # with what is all the same there is none
        return float(getattr(stats, name)(meant, said).statistic)

    return score


def _pairs(answers: Answers, label_names: tuple[str, ...]) -> Table:
    return _numbers((answer.said, answer.meant) for answer in answers)


def _pearson_of(table: Table) -> Any:
    one, other = (table[..., place] - table[..., place].mean(axis=-1, keepdims=True) for place in (0, 1))
    spread = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    varied = (np.ptp(table, axis=-2) > 0).all(axis=-1)
    return np.where(varied, (one * other).sum(axis=-1) / np.where(spread > 0, spread, 1), np.nan)


def _spearman_of(table: Table) -> Any:
    from scipy import stats

    return _pearson_of(stats.rankdata(table, axis=-2))


def _same(answers: Answers, label_names: tuple[str, ...]) -> Table:
    """Whether all of each example is right; of texts, once they are normalised."""
    if isinstance(answers[0].meant, str):
        return _numbers((normalised(answer.said) == normalised(answer.meant), 1) for answer in answers)
    return _numbers((answer.said == answer.meant, 1) for answer in answers)


def _overlaps(answers: Answers, label_names: tuple[str, ...]) -> Table:
    """F1 of the words of each answer, as SQuAD has it (Rajpurkar et al. 2016, section 6.1)."""
    return _numbers((_words_in_common(answer.said, answer.meant), 1) for answer in answers)


def _words_in_common(said: str, meant: str) -> float:
    one, other = normalised(said).split(), normalised(meant).split()
    if not one or not other:
        return float(one == other)
    return 2 * (Counter(one) & Counter(other)).total() / (len(one) + len(other))


def normalised(text: str) -> str:
    """A text without case, punctuation, articles and extra spaces, as SQuAD compares answers."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _entities(answers: Answers, label_names: tuple[str, ...]) -> float:
    from seqeval.metrics import f1_score

    meant, said = (_named([getattr(each, side) for each in answers], label_names) for side in ("meant", "said"))
    with warnings.catch_warnings(action="ignore"):  # of names that begin with no B- or I-
        return float(f1_score(meant, said, zero_division=0))


def _entity_counts(answers: Answers, label_names: tuple[str, ...]) -> Table:
    """Entities that are right, and half of all that are said or meant."""
    from seqeval.metrics.sequence_labeling import get_entities

    rows = []
    with warnings.catch_warnings(action="ignore"):
        for answer in answers:
            said, meant = (set(get_entities(one)) for one in _named([answer.said, answer.meant], label_names))
            rows.append((len(said & meant), (len(said) + len(meant)) / 2))
    return _numbers(rows)


def _named(columns: Sequence[Sequence[int]], label_names: tuple[str, ...]) -> list[list[str]]:
    return [[label_names[each] for each in one] for one in columns]


def _quotient_or_0(table: Table) -> Any:
    sums = table.sum(axis=-2)
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros_like(sums[..., 0]), where=sums[..., 1] > 0)


def _losses(answers: Answers, label_names: tuple[str, ...]) -> Table:
    return _numbers((answer.loss, answer.meant) for answer in answers)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, _right, _quotient),
    "f1_macro": _f1("macro"),
    "f1_micro": _f1("micro"),
    "f1_binary": _f1("binary"),
    "matthews": Metric(_of_library(_matthews), _confusion, _matthews_of),
    "pearson": Metric(_of_library(_correlation("pearsonr")), _pairs, _pearson_of),
    "spearman": Metric(_of_library(_correlation("spearmanr")), _pairs, _spearman_of),
    "exact_match": Metric(_of_table("exact_match"), _same, _quotient),
    "token_f1": Metric(_of_table("token_f1"), _overlaps, _quotient),
    "entity_f1": Metric(_entities, _entity_counts, _quotient_or_0),
    "perplexity": Metric(_of_table("perplexity"), _losses, lambda table: np.exp(_quotient(table))),
}
"""By the name that experiments use."""
