"""What an evaluation reads, says, and leaves behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from pydantic import Field

from harness.errors import count
from harness.laws import data, label, padding
from harness.laws.law import Law, Verdict, broken, held, invalid, law, not_applicable, probed, vacuous
from harness.laws.metric import expected
from harness.record import Evaluation, Interval, Record, Row, Score

CLOSE = 1e-5
"""Scores that are as near to each other, relative to the largest, are decided by rounding."""


@law()
def metric_improves(
    record: Record,
    *,
    by: Annotated[float, Field(ge=0, description="The least it must improve by, in units of the metric.")] = 0.0,
) -> Verdict:
    """The first metric of the evaluation is better after training than before it.

    Judged on the 95 % interval (or as `evaluation.confidence` says) of the difference, from a bootstrap that resamples
    the rows of the split, the same ones before and after (Efron 1979; the number of resamples is
    `evaluation.resamples`). The law holds if the whole interval is above `by`, is broken if the whole interval is
    below, and otherwise says that the rows are too few to tell. It is vacuous if the metric was perfect before the
    training.
    """
    evaluation = _evaluated(record)
    if isinstance(evaluation, Verdict):
        return evaluation
    name = evaluation.metrics[0]
    before, after = evaluation.scores[0], evaluation.scores[-1]
    step = record.steps.first_not_finite
    if step is not None:
        return not_applicable(f"the loss is {record.steps.loss[step]} at step {step + 1}: see loss_finite")
    values = before.figures.get(name, math.nan), after.figures.get(name, math.nan)
    change = evaluation.improvements.get(name)
    if change is None or not all(map(math.isfinite, (*values, change.value, change.low, change.high))):
        return invalid(f"{name} is {values[0]:.4g} before and {values[1]:.4g} after: nothing to compare")
    found = f"{name} {values[0]:.4g} before, {values[1]:.4g} after; {_said(evaluation, change)}"
    if name not in evaluation.lower_is_better and values[0] >= 1:
        return vacuous(f"{name} is {values[0]:.4g} before training: it cannot improve")
    if change.low > by:
        return held(found)
    if change.high < by:
        return broken(
            f"{found}: expected more than {by:g}",
            cause="labels that do not belong to these texts, a learning rate that is too high, rows of another kind "
            "than those of training, or too many steps",
        )
    return invalid(f"{found}: {count(evaluation.rows, 'row')} are too few to tell")


@law()
def model_in_eval_mode(record: Record) -> Verdict:
    """Dropout is off in every forward pass of an evaluation, and afterwards every module is in its former mode again.

    The inner modules are checked, not the outer flag: those with a dropout above 0 or with running statistics. With
    dropout on, the metric is noisy and too low; left in eval mode, the model trains on without dropout.
    """
    evaluation = _evaluated(record)
    if isinstance(evaluation, Verdict):
        return evaluation
    for score in evaluation.scores:
        if score.training:
            return broken(
                f"{_when(score)}: {len(score.training)} of {score.stochastic} modules with dropout were in train mode: "
                f"{', '.join(score.training[:3])}",
                cause="model.eval() is missing, or has no effect",
            )
        if score.modes:
            return broken(
                f"{_when(score)} left {count(len(score.modes), 'module')} in another mode: "
                f"{', '.join(name or 'the model' for name in score.modes[:3])}",
                cause="the mode before the evaluation is not set again",
            )
    if not any(score.stochastic for score in evaluation.scores):
        return vacuous("the model has neither dropout nor running statistics")
    return held(f"{evaluation.scores[0].stochastic} modules in {count(len(evaluation.scores), 'evaluation')}")


@law()
def evaluation_changes_nothing(record: Record) -> Verdict:
    """An evaluation leaves weights, buffers, gradients and random states as they were, bit for bit.

    Otherwise the training would depend on how often it is evaluated. Random states are those of torch (on the CPU and
    on the model's device), numpy and Python: a data loader without its own generator draws a number from torch's.
    """
    evaluation = _evaluated(record)
    if isinstance(evaluation, Verdict):
        return evaluation
    for score in evaluation.scores:
        if not score.changed:
            continue
        random = all(name.startswith("the random state") for name in score.changed)
        cause = "weights are averaged, cast or updated where they are only to be read, or a loss is back-propagated"
        if random:
            cause = "a seed is set, or a data loader, a sampler or a metric draws from the training's generator"
        if random and score.drew:
            cause = "the model draws random numbers in eval mode: a functional dropout that does not ask for the mode"
        return broken(f"{_when(score)} changed {', '.join(score.changed[:3])}", cause=cause)
    return held(count(len(evaluation.scores), "evaluation"))


@law()
def evaluation_reads_the_split(record: Record) -> Verdict:
    """Tokens, masks and labels of the evaluation are those of its rows, and its classes are those of training.

    What reached the model in the first evaluation is compared with what the checkpoint's own tokenizer makes of each
    row, as padding_mask_correct, tokens_match_tokenizer, labels_masked_right and labels_travel do for training; every
    row of the split is there, once. The names of the classes are those in the model's config: if the splits of a
    dataset number their classes differently, a right model looks wrong.
    """
    evaluation = _evaluated(record)
    if isinstance(evaluation, Verdict):
        return evaluation
    drawn = sorted(evaluation.drawn)
    if len(drawn) != evaluation.rows or drawn != list(range(len(drawn))):
        again = next((one for one, other in pairwise(drawn) if one == other), None)
        found = f"row {again} came twice" if again is not None else f"{len(drawn)} of {evaluation.rows} rows came"
        return broken(f"the first evaluation: {found}", cause="a sampler or loader that drops, repeats or fills up")
    if evaluation.label_names and evaluation.config_label_names != evaluation.label_names:
        return broken(
            f"the classes are {', '.join(evaluation.label_names)}, and the model's config has "
            f"{', '.join(evaluation.config_label_names)}",
            cause="each split was given numbers of its own",
        )
    if not evaluation.batches:
        return invalid("no batch of the evaluation was kept")
    view = record.model_copy(update={"batches": evaluation.batches, "examples": evaluation.examples})
    for one in _READING:
        verdict = one.function(view)
        if verdict.outcome in ("broken", "invalid"):
            return Verdict(verdict.outcome, f"{one.name} in the evaluation: {verdict.message}", verdict.cause)
    return held(f"{len(evaluation.examples)} of {count(evaluation.rows, 'row')} compared")


_READING: tuple[Law, ...] = (
    padding.padding_mask_correct,
    padding.tokens_match_tokenizer,
    label.labels_masked_right,
    data.labels_travel,
)


@law(probes=("evaluation",))
def evaluation_is_right(record: Record) -> Verdict:
    """The loop's metrics are those of its examples evaluated one at a time, whatever the batch size.

    The loop's own evaluation runs on the dropout-free copy of the model, with the trained weights and with the initial
    ones, in batches of two sizes, the last one smaller. Independently, each example is evaluated alone, without
    padding; other code reads off the answers, and the metrics have their own formulas. Padding, special tokens and
    prompts must not be counted, nor any example twice; labels of a causal language model belong to the token before
    them. Every row of the split has one answer in every evaluation, and the loss after the training is another number
    than before it.

    Metrics must agree within 1e-6, perplexities within 1e-5 of themselves (the forward pass in fp32 leaves 3e-6 at
    worst); if rounding decides an answer, there is no verdict. At 0 or 1 even wrong metrics agree, so the score must
    lie in between in one of the two states; otherwise the law is vacuous.
    """
    evaluation = _evaluated(record)
    if isinstance(evaluation, Verdict):
        return evaluation
    for score in evaluation.scores:
        if score.answered != evaluation.rows:
            return broken(
                f"{_when(score)}: {score.answered} answers to {count(evaluation.rows, 'row')}",
                cause="the answers of one batch only are kept, or those that fill up the last batch are counted",
            )
    if (loss := _of_another_model(record, evaluation)) is not None:
        return broken(
            f"the loss of the evaluation is {loss!r} before and after the training, to the last bit, and weights moved",
            cause="another model is evaluated than the one that trains: a copy of it that was made before",
        )
    compared = _compare(record, evaluation, evaluation.metrics)
    if isinstance(compared, Verdict):
        return compared
    if not compared:
        names = ", ".join(evaluation.metrics)
        return vacuous(f"{names}: 0, 1 or undefined before and after training, where wrong ones are, too")
    return held(_listed(compared, record))


@law(probes=("evaluation",))
def evaluation_loss_is_right(record: Record) -> Verdict:
    """The loss that the loop's evaluation reports is the mean over all its labels, whatever the batch size.

    From the same passes as evaluation_is_right, within 1e-5 of itself: over all examples, or if tokens have labels,
    over all tokens with one. A mean of the batches' means is another number if batches differ in how many labels they
    have, and so is a perplexity made from it. Not applicable to question answering: the softmax of its heads includes
    padding, so that by its very formula the loss depends on the batch.
    """
    evaluation = _evaluated(record)
    if isinstance(evaluation, Verdict):
        return evaluation
    if record.settings.get("task") == "question-answering":
        return not_applicable("the loss of question answering depends on padding by its formula")
    compared = _compare(record, evaluation, ("loss",))
    if isinstance(compared, Verdict):
        return compared
    return held(_listed(compared, record)) if compared else invalid("the loss of the examples is not finite")


def _of_another_model(record: Record, evaluation: Evaluation) -> float | None:
    """The loss that is the same before and after the training although weights moved; none where it is not, or 0."""
    before, after = (score.figures.get("loss", math.nan) for score in (evaluation.scores[0], evaluation.scores[-1]))
    moved = any(parameter.change > 0 for parameter in record.parameters)
    return before if moved and before == after != 0 else None


def _listed(compared: Mapping[str, str], record: Record) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in compared.items())
    return f"{figures} of {count(len(record.probes['evaluation']['examples']), 'example')}"


def _compare(record: Record, evaluation: Evaluation, names: Sequence[str]) -> dict[str, str] | Verdict:
    """The figures that could have been wrong, with their values; or what is wrong."""
    probe = probed(record, "evaluation")
    if isinstance(probe, Verdict):
        return probe
    between: dict[str, str] = {}
    for state in ("after", "before"):
        for name in names:
            right = expected(name, probe[state], str(record.settings.get("task", "")), evaluation.label_names)
            allowed = _allowed(name, right, probe[state])
            if allowed is None:
                continue
            if (wrong := _wrong(probe, state, name, right, allowed)) is not None:
                return wrong
            if name in ("loss", "perplexity") or 0 < abs(right) < 1:
                between[name] = f"{right:.4g}"
    return between


def _wrong(probe: Mapping[str, Any], state: str, name: str, right: float, allowed: float) -> Verdict | None:
    """What is wrong with a figure in batches of some size."""
    seen, asked = probe[state], len(probe["examples"])
    for size, figures, answered in zip(probe["sizes"], seen["figures"], seen["answered"], strict=True):
        where = f"with the weights {state} training, in batches of {size}"
        value = figures.get(name, math.nan)
        if answered != asked and name != "loss":
            return broken(
                f"{where}: {answered} answers to {count(asked, 'example')}",
                cause="the answers of one batch only are kept, or those that fill up the last batch are counted",
            )
        if not abs(value - right) <= allowed:
            return broken(
                f"{where}: {name} is {value:.7g}, and {right:.7g} of the examples one at a time", cause=_why(name)
            )
    return None


def _allowed(name: str, right: float, seen: Mapping[str, Any]) -> float | None:
    """How far a figure may be off; none where rounding decides it, or it is not defined."""
    if not math.isfinite(right):
        return None
    if name in ("loss", "perplexity"):
        return 1e-5 * max(1.0, abs(right))
    if name not in ("pearson", "spearman"):
        return None if seen["margin"] < CLOSE else 1e-6
    ordered = sorted(seen["said"])
    noise = CLOSE * max(map(abs, ordered))
    if name == "spearman":
        return None if any(b - a < noise for a, b in pairwise(ordered)) else 1e-6
    mean = math.fsum(ordered) / len(ordered)
    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in ordered) / len(ordered))
    return None if spread < 10 * noise else 1e-6 + 2 * noise / spread


def _why(name: str) -> str:
    if name == "loss":
        return "a mean of the batches' means, or the last batch is filled up"
    return (
        "padding or ignored tokens are counted, batches are averaged, labels stand beside the wrong token, or an "
        "example counts twice"
    )


@law()
def no_leakage(
    record: Record,
    *,
    share: Annotated[float, Field(ge=0, le=1, description="The largest share of the split that still holds.")] = 0.0,
) -> Verdict:
    """No row of the evaluation split is trained on, not even with other case, spaces or punctuation.

    What a row asks is compared, not its answer: a question with its context, the source of a translation, what the
    others say in a chat. Judged on the training rows that were read: all rows of a small source, and the drawn ones of
    a large source. If there are only few ways to say something, `share` allows some.
    """
    evaluation = _evaluated(record)
    if isinstance(evaluation, Verdict):
        return evaluation
    if record.data is None or not record.data.seen:
        return invalid("no row of the training data was looked at")
    both = evaluation.leaked + evaluation.alike
    if both > share * evaluation.rows:
        exact = f"{evaluation.leaked} of {count(evaluation.rows, 'row')} are trained on, too"
        near = f"{evaluation.alike} but for case, spaces and punctuation"
        kinds = [text for number, text in ((evaluation.leaked, exact), (evaluation.alike, near)) if number]
        return broken(
            f"{', '.join(kinds)} (allowed {share:.1%}): {_shown((*evaluation.leaks, *evaluation.likenesses))}",
            cause="the split was drawn from rows that are trained on, or texts stand in the data twice",
        )
    return held(f"{both} of {count(evaluation.rows, 'row')}, {count(record.data.seen, 'row')} of training looked at")


def _evaluated(record: Record) -> Evaluation | Verdict:
    if record.evaluation is None:
        return not_applicable("no rows to evaluate on are declared")
    if len(record.evaluation.scores) < 2:
        return invalid("there was no evaluation before and after training")
    return record.evaluation


def _when(score: Score) -> str:
    return "the evaluation before training" if score.step == 0 else f"the evaluation after step {score.step}"


def _said(evaluation: Evaluation, change: Interval) -> str:
    return (
        f"better by {change.value:.4g}, {evaluation.confidence:.0%} interval {change.low:.4g} to {change.high:.4g}, "
        f"{evaluation.resamples} resamples of {count(evaluation.rows, 'row')}"
    )


def _shown(rows: Sequence[Row]) -> str:
    return "; ".join(f"row {row.row} ({row.text!r}) is {row.note}" for row in rows[:5])
