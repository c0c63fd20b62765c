"""The laws over the evaluation split and its evaluations, on records written by hand and on any answers."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from records import BATCHES, EVALUATION, EXAMPLES, HEALTHY, PROBES, batch, record, score
from test_laws import Judged, check, each

from harness.laws.metric import expected
from harness.record import Interval, Record, Row


def evaluated(**changes: Any) -> Record:
    """The healthy record, but for this in its evaluation."""
    return record(evaluation=changes)


def last(**changes: Any) -> Record:
    """The healthy record, but for this in the evaluation after training."""
    return evaluated(scores=(EVALUATION.scores[0], score(8, **{"accuracy": 0.75, **changes})))


def change(low: float, high: float, **settings: Any) -> Record:
    """An accuracy that is better by something between these."""
    improved = {"accuracy": Interval(value=(low + high) / 2, low=low, high=high)}
    return record(evaluated(improvements=improved), invariants={"metric_improves": settings} if settings else {})


def perfect() -> Record:
    """As good as can be from the start."""
    return evaluated(
        scores=(score(0, 1.0), score(8, 1.0)), improvements={"accuracy": Interval(value=0.0, low=0.0, high=0.0)}
    )


def state(name: str, **changes: Any) -> Record:
    """The healthy record, but for the probe of one state of the weights."""
    probe = PROBES["evaluation"]
    return record(probes={"evaluation": {**probe, name: {**probe[name], **changes}}})


def says(name: str, **figures: float) -> Record:
    """The loop's figures in batches of three are other ones."""
    both = PROBES["evaluation"][name]["figures"]
    return state(name, figures=[both[0], {**both[1], **figures}])


def all_right() -> Record:
    """Every answer is right, with the weights before and after."""
    right = {"said": [0, 1, 0, 1], "figures": [{"loss": 0.5, "accuracy": 1.0}] * 2}
    probe = PROBES["evaluation"]
    before = {**probe["before"], **right, "figures": [{"loss": 0.7, "accuracy": 1.0}] * 2}
    return record(probes={"evaluation": {**probe, "after": {**probe["after"], **right}, "before": before}})


def of_task(task: str, metric: str, **columns: Sequence[Any]) -> Record:
    """A probe of another task, whose loop says what is right of these answers."""
    said = {"loss": [0.5, 1.5], "nll": [0.5, 1.5], "terms": [1, 3], **columns}
    figures = {name: expected(name, said, task, ("O", "B-A", "I-A")) for name in ("loss", metric)}
    seen = {**said, "figures": [figures, figures], "answered": [2, 2], "margin": 0.1}
    probe = {"examples": [0, 1], "sizes": [1, 2], "after": seen, "before": seen}
    base = evaluated(metrics=(metric,), label_names=("O", "B-A", "I-A"))
    return record(base, settings={"task": task}, probes={"evaluation": probe})


LEAK = Row(row=2, text="text 2", note="row 1 of the training data")
MASKED = batch(*EXAMPLES[:2])
HOLE = MASKED.model_copy(update={"tensors": {**MASKED.tensors, "attention_mask": ((1,) * 6, (1,) * 6)}})
SWAPPED = MASKED.model_copy(update={"tensors": {**MASKED.tensors, "labels": (0, 1)}})

ACCEPTED = (
    Judged(
        "metric_improves",
        "all of the interval is above 0",
        HEALTHY,
        "accuracy 0.25 before, 0.75 after; better by 0.5, 95% interval 0.25 to 0.75, 1000 resamples of 4 rows",
    ),
    Judged("metric_improves", "by more than is asked", change(0.2, 0.4, by=0.1)),
    Judged("model_in_eval_mode", "in both", HEALTHY, "3 modules in 2 evaluations"),
    Judged("evaluation_changes_nothing", "in both", HEALTHY, "2 evaluations"),
    Judged("evaluation_reads_the_split", "all of it", HEALTHY, "4 of 4 rows compared"),
    Judged(
        "evaluation_reads_the_split",
        "names as in the config",
        evaluated(label_names=("bad", "good"), config_label_names=("bad", "good")),
    ),
    Judged("evaluation_is_right", "in both states", HEALTHY, "accuracy 0.5 of 4 examples"),
    Judged("evaluation_is_right", "a rounding apart", says("after", accuracy=0.75 + 9e-7)),
    Judged(
        "evaluation_is_right", "a near tie", state("after", figures=[{"loss": 0.5, "accuracy": 0.5}] * 2, margin=1e-7)
    ),
    Judged(
        "evaluation_is_right",
        "words",
        of_task("token-classification", "entity_f1", said=[[1, 2], [0]], meant=[[1, 2], [1]]),
    ),
    Judged(
        "evaluation_is_right",
        "tokens",
        of_task("causal-lm", "perplexity", said=[1, 2], meant=[1, 3]),
        "perplexity 1.649",
    ),
    Judged(
        "evaluation_is_right",
        "numbers",
        of_task("sequence-classification", "pearson", said=[0.1, 0.9], meant=[1.0, 0.0]),
    ),
    Judged("evaluation_loss_is_right", "in both states", HEALTHY, "loss 0.7 of 4 examples"),
    Judged("evaluation_loss_is_right", "a rounding apart", says("after", loss=0.5 + 9e-6)),
    Judged("no_leakage", "none", HEALTHY, "0 of 4 rows, 4 rows of training looked at"),
    Judged(
        "no_leakage",
        "no more than is allowed",
        record(evaluated(leaked=1, leaks=(LEAK,)), invariants={"no_leakage": {"share": 0.25}}),
    ),
)

REJECTED = (
    Judged("metric_improves", "worse", change(-0.5, -0.25), "expected more than 0", "labels that do not belong"),
    Judged("metric_improves", "less than is asked", change(0.0, 0.05, by=0.1), "expected more than 0.1"),
    Judged(
        "model_in_eval_mode",
        "dropout on",
        last(training=("bert.dropout",)),
        "the evaluation after step 8: 1 of 3 modules with dropout were in train mode: bert.dropout",
        "model.eval() is missing",
    ),
    Judged(
        "model_in_eval_mode",
        "left in eval mode",
        last(modes=("", "bert")),
        "left 2 modules in another mode: the model, bert",
        "not set again",
    ),
    Judged(
        "evaluation_changes_nothing",
        "weights",
        last(changed=("bert.weight",)),
        "the evaluation after step 8 changed bert.weight",
        "weights are averaged",
    ),
    Judged(
        "evaluation_changes_nothing",
        "a seed",
        evaluated(scores=(score(0, 0.25, changed=("the random state of torch",)), EVALUATION.scores[1])),
        "the evaluation before training changed the random state of torch",
        "a seed is set",
    ),
    Judged(
        "evaluation_changes_nothing",
        "functional dropout",
        last(changed=("the random state of torch",), drew=True),
        "",
        "a functional dropout",
    ),
    Judged("evaluation_reads_the_split", "a row twice", evaluated(drawn=(0, 1, 2, 2)), "row 2 came twice"),
    Judged("evaluation_reads_the_split", "rows lost", evaluated(drawn=(0, 1)), "2 of 4 rows came"),
    Judged(
        "evaluation_reads_the_split",
        "other numbers",
        evaluated(label_names=("bad", "good"), config_label_names=("good", "bad")),
        "the classes are bad, good, and the model's config has good, bad",
    ),
    Judged(
        "evaluation_reads_the_split",
        "no mask",
        evaluated(batches=(HOLE, BATCHES[1])),
        "padding_mask_correct in the evaluation: step 1",
        "the mask is all ones",
    ),
    Judged(
        "evaluation_reads_the_split",
        "labels permuted",
        evaluated(batches=(SWAPPED, BATCHES[1])),
        "labels_travel in the evaluation: step 1, row 0 (example 0): label 0, declared 1",
    ),
    Judged(
        "evaluation_is_right",
        "answers of one batch",
        last(answered=2),
        "the evaluation after step 8: 2 answers to 4 rows",
        "one batch only",
    ),
    Judged(
        "evaluation_is_right",
        "of a copy made before",
        last(figures={"loss": 0.75, "accuracy": 0.75}),
        "the loss of the evaluation is 0.75 before and after the training",
        "a copy of it that was made before",
    ),
    Judged(
        "evaluation_is_right",
        "the last batch filled up",
        state("after", answered=[4, 6]),
        "with the weights after training, in batches of 3: 6 answers to 4 examples",
    ),
    Judged(
        "evaluation_is_right",
        "a metric",
        says("after", accuracy=0.5),
        "with the weights after training, in batches of 3: accuracy is 0.5, and 0.75 of the examples one at a time",
        "padding or ignored tokens are counted",
    ),
    Judged(
        "evaluation_loss_is_right", "a loss", says("before", loss=0.7002), "loss is 0.7002, and 0.7", "batches' means"
    ),
    Judged("evaluation_is_right", "NaN", says("before", accuracy=math.nan), "accuracy is nan, and 0.5"),
    Judged("evaluation_is_right", "no figure", state("after", figures=[{"loss": 0.5}] * 2), "accuracy is nan"),
    Judged(
        "no_leakage",
        "a row",
        evaluated(leaked=1, leaks=(LEAK,)),
        "1 of 4 rows are trained on, too (allowed 0.0%): row 2 ('text 2') is row 1 of the training data",
        "drawn from rows that are trained on",
    ),
    Judged("no_leakage", "but for case", evaluated(alike=1, likenesses=(LEAK,)), "1 but for case, spaces and punct"),
)

VACUOUS = (
    Judged("metric_improves", "perfect before", perfect(), "accuracy is 1 before training: it cannot improve"),
    Judged(
        "model_in_eval_mode",
        "no dropout",
        evaluated(scores=(score(0, 0.25, stochastic=0), score(8, 0.75, stochastic=0))),
        "neither dropout nor running statistics",
    ),
    Judged("evaluation_is_right", "all right", all_right(), "accuracy: 0, 1 or undefined before and after training"),
)

INVALID = (
    Judged("metric_improves", "too few rows", change(-0.1, 0.6), "4 rows are too few to tell"),
    Judged("metric_improves", "no prediction changed", change(0.0, 0.0), "4 rows are too few to tell"),
    Judged("metric_improves", "not defined", change(math.nan, math.nan), "nothing to compare"),
    Judged(
        "metric_improves", "one evaluation", evaluated(scores=EVALUATION.scores[:1]), "no evaluation before and after"
    ),
    Judged("evaluation_reads_the_split", "no batch", evaluated(batches=()), "no batch of the evaluation was kept"),
    Judged(
        "evaluation_is_right", "the probe failed", record(probes={"evaluation": {"error": "ValueError: no"}}), "failed"
    ),
)

NOT_APPLICABLE = (
    *(
        Judged(law, "no split", record(evaluation=None), "no rows to evaluate on are declared")
        for law in dict.fromkeys(judged.law for judged in ACCEPTED)
    ),
    Judged(
        "evaluation_loss_is_right",
        "question answering",
        record(settings={"task": "question-answering"}),
        "depends on padding by its formula",
    ),
    Judged("evaluation_is_right", "no probe", record(probes={"evaluation": None}), "did not run"),
)


@each(*ACCEPTED)
def test_accepts(judged: Judged) -> None:
    """A right evaluation keeps the law."""
    check(judged, "held")


@each(*REJECTED)
def test_rejects(judged: Judged) -> None:
    """A wrong one breaks it, and the verdict names what, where, and the likely cause."""
    check(judged, "broken")


@each(*VACUOUS)
def test_is_vacuous(judged: Judged) -> None:
    """Where nothing could have been found, the law says so."""
    check(judged, "vacuous")


@each(*INVALID)
def test_cannot_judge(judged: Judged) -> None:
    """Where the evidence cannot carry a judgement, the law says why."""
    check(judged, "invalid")


@each(*NOT_APPLICABLE)
def test_says_nothing(judged: Judged) -> None:
    """Without a split there is nothing to judge."""
    check(judged, "not applicable")


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1))
def test_an_improvement_is_judged_by_all_of_its_interval(one: float, other: float, by: float) -> None:
    """Held where it is above, broken where it is below, and undecided between."""
    low, high = sorted((one, other))
    outcome = "held" if low > by else "broken" if high < by else "invalid"
    check(Judged("metric_improves", "", change(low, high, by=by)), outcome)


@given(st.sampled_from(["loss", "accuracy"]), st.sampled_from(["before", "after"]), st.floats(-1, 1))
def test_a_figure_that_is_off_is_rejected(name: str, which: str, by: float) -> None:
    """Whatever the state and the figure, more than the tolerance is seen and less is not."""
    assume(not 5e-7 < abs(by) < 2e-5)
    right = PROBES["evaluation"][which]["figures"][1][name]
    law = "evaluation_loss_is_right" if name == "loss" else "evaluation_is_right"
    check(Judged(law, "", says(which, **{name: right + by})), "held" if abs(by) < 1e-6 else "broken")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_accepted(bad: float) -> None:
    """NaN and infinities in figures or intervals are not held."""
    for evidence, law in (
        (says("after", loss=bad), "evaluation_loss_is_right"),
        (says("after", accuracy=bad), "evaluation_is_right"),
        (change(bad, 0.5), "metric_improves"),
        (change(0.5, bad), "metric_improves"),
        (last(figures={"loss": 0.1, "accuracy": bad}), "metric_improves"),
    ):
        check(Judged(law, "", evidence), "invalid" if law == "metric_improves" else "broken")
