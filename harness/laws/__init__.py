"""Evidence to verdicts. Pure functions; torch is never needed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from harness.laws import (
    adapter,
    agreement,
    data,
    dependence,
    equivalence,
    evaluation,
    exploration,
    head,
    known,
    label,
    loss,
    objective,
    optimizer,
    padding,
    prior,
    resume,
    rows,
    slow,
    state,
    step,
    training,
)
from harness.laws.law import OUTCOMES, Law, NoOptions, Outcome, Verdict, broken, held, invalid, law, not_applicable
from harness.record import Record

__all__ = [
    "LAWS",
    "OUTCOMES",
    "Law",
    "NoOptions",
    "Outcome",
    "Verdict",
    "broken",
    "held",
    "invalid",
    "judge",
    "judge_together",
    "law",
    "not_applicable",
    "not_finished",
]

LAWS: tuple[Law, ...] = (
    training.trains,
    loss.loss_finite,
    loss.loss_decreases,
    padding.padding_mask_correct,
    padding.tokens_match_tokenizer,
    data.labels_travel,
    label.labels_masked_right,
    label.labels_survive_truncation,
    label.decoder_inputs_shifted,
    label.masking_is_random,
    data.every_example_once,
    rows.labels_in_range,
    rows.no_conflicting_duplicates,
    rows.tokens_are_known,
    rows.texts_are_whole,
    head.head_is_new,
    prior.pretraining_shows,
    head.head_changes,
    head.backbone_changes,
    adapter.adapters_as_declared,
    adapter.adapters_start_at_zero,
    adapter.adapters_change,
    optimizer.optimizer_covers_trainable,
    optimizer.schedule_followed,
    step.clipping_bounds,
    step.scaler_used_right,
    step.updates_not_lost,
    step.frozen_stay,
    state.dropout_on_in_training,
    state.no_graph_kept,
    state.save_reload_equal,
    step.accumulation_equivalent,
    resume.resume_equivalent,
    objective.loss_is_the_declared_one,
    objective.gradient_is_the_declared_one,
    objective.update_is_the_declared_one,
    dependence.padding_changes_nothing,
    dependence.examples_stay_apart,
    dependence.every_token_counts,
    dependence.future_unseen,
    equivalence.checkpointing_equals_plain,
    equivalence.attention_implementations_agree,
    equivalence.compiled_equals_eager,
    equivalence.packing_changes_nothing,
    evaluation.no_leakage,
    evaluation.evaluation_reads_the_split,
    evaluation.model_in_eval_mode,
    evaluation.evaluation_changes_nothing,
    evaluation.evaluation_is_right,
    evaluation.evaluation_loss_is_right,
    evaluation.metric_improves,
    slow.overfits_one_batch,
    slow.deterministic,
    exploration.holds_for_any_text,
    agreement.loops_agree,
    agreement.devices_agree,
)
"""Every law of the harness, in the order of the reports."""


def judge(record: Record, laws: Iterable[Law] = LAWS) -> tuple[Verdict, ...]:
    """Judge one record by every law that looks at a record alone."""
    return tuple(_judge_one(law, record) for law in laws if law.axis is None)


def judge_together(records: Sequence[Record], laws: Iterable[Law] = LAWS) -> tuple[Verdict, ...]:
    """Judge the records of each experiment file by the laws that compare cases, whatever order they come in."""
    laws = tuple(law for law in laws if law.axis is not None)
    ordered = sorted(records, key=lambda record: (record.experiment, record.case))
    by_file = [(file, tuple(cases)) for file, cases in groupby(ordered, key=lambda record: record.experiment)]
    return tuple(_with_known(_judge_several(law, cases, file), cases) for file, cases in by_file for law in laws)


def not_finished(record: Record) -> str:
    """Why a record cannot be judged, pointing at the item that fails for it."""
    if record.outcome == "skipped":
        return record.reason
    return f"the case did not finish ({record.outcome}): see {record.case}::trains"


def _judge_one(law: Law, record: Record) -> Verdict:
    if record.finished or law.on_failure:
        return known.explained(law.judge(record, about=record.name), record)
    return replace(not_applicable(not_finished(record)), law=law.name, about=record.name)


def _with_known(verdict: Verdict, cases: tuple[Record, ...]) -> Verdict:
    """The verdict, which names a known defect where one of the cases that do not agree has what it takes."""
    for record in cases:
        if record.name in verdict.between and (explained := known.explained(verdict, record)) != verdict:
            return explained
    return verdict


def _judge_several(law: Law, cases: tuple[Record, ...], about: str) -> Verdict:
    """Cases that turn the law off are left out, unless all do; those that expect it to be broken are judged apart."""
    on = tuple(case for case in cases if case.invariants.get(law.name) is not False) or cases
    expecting = tuple(case for case in on if law.name in case.expect_broken)
    others = tuple(case for case in on if law.name not in case.expect_broken)
    verdicts = [law.judge(group, about=about) for group in (others, expecting) if group]
    if len(verdicts) < 2 or any(verdict.outcome == "not applicable" for verdict in verdicts):
        return law.judge(on, about=about)  # all are of one kind, or a case expects what its counterpart does not
    verdict, expected = verdicts
    if expected.outcome != "expected" or verdict.outcome == "broken":
        return expected if expected.outcome == "broken" else verdict
    return replace(verdict, message=f"{verdict.message}; broken as expected ({expected.cause}): {expected.message}")
