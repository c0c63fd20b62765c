"""Which broken law explains which: a dropped mask also moves logits and keeps the loss from falling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.laws.law import Verdict

_DATA = (
    "tokens_match_tokenizer",
    "padding_mask_correct",
    "labels_travel",
    "labels_masked_right",
    "decoder_inputs_shifted",
    "masking_is_random",
    "every_example_once",
)
_MODEL = ("head_is_new", "dropout_on_in_training", "padding_changes_nothing", "examples_stay_apart")
_OBJECTIVE = ("accumulation_equivalent", "loss_is_the_declared_one", "gradient_is_the_declared_one")
_STEP = ("scaler_used_right", "clipping_bounds", "updates_not_lost", "frozen_stay")
_OPTIMIZER = ("optimizer_covers_trainable", "schedule_followed", "update_is_the_declared_one")
_EVALUATION = ("evaluation_reads_the_split", "model_in_eval_mode", "evaluation_is_right")
_EVERYTHING = ("trains", *_DATA, *_MODEL, "every_token_counts", "loss_finite", *_OBJECTIVE, *_STEP, *_OPTIMIZER)

EXPLAINED_BY: dict[str, tuple[str, ...]] = {
    "padding_changes_nothing": (
        "padding_mask_correct",
        "tokens_match_tokenizer",
        "attention_implementations_agree",
        "packing_changes_nothing",
    ),
    "attention_implementations_agree": ("packing_changes_nothing",),
    "examples_stay_apart": ("padding_mask_correct", "padding_changes_nothing", "packing_changes_nothing"),
    "every_token_counts": ("padding_mask_correct", "tokens_match_tokenizer"),
    "pretraining_shows": ("head_is_new", "tokens_match_tokenizer"),
    "loss_finite": ("head_is_new", "padding_changes_nothing", "schedule_followed"),
    "accumulation_equivalent": ("padding_changes_nothing", "examples_stay_apart"),
    "loss_is_the_declared_one": ("adapters_as_declared", "accumulation_equivalent"),
    "gradient_is_the_declared_one": (
        "adapters_as_declared",
        "accumulation_equivalent",
        "loss_is_the_declared_one",
        "clipping_bounds",
        "checkpointing_equals_plain",
    ),
    "schedule_followed": ("optimizer_covers_trainable",),
    "adapters_change": ("adapters_as_declared",),
    "frozen_stay": ("adapters_as_declared",),
    "save_reload_equal": ("adapters_as_declared",),
    "update_is_the_declared_one": ("optimizer_covers_trainable", "schedule_followed"),
    "head_changes": ("loss_finite", "head_is_new", *_OBJECTIVE, *_STEP, *_OPTIMIZER),
    "backbone_changes": ("loss_finite", "head_is_new", *_OBJECTIVE, *_STEP, *_OPTIMIZER),
    "loss_decreases": _EVERYTHING,
    "head_is_new": ("evaluation_changes_nothing",),
    "evaluation_changes_nothing": ("model_in_eval_mode",),
    "evaluation_loss_is_right": ("evaluation_reads_the_split", "model_in_eval_mode", "padding_changes_nothing"),
    "evaluation_is_right": ("evaluation_reads_the_split", "model_in_eval_mode", "padding_changes_nothing"),
    "metric_improves": (*_EVERYTHING, "loss_decreases", *_EVALUATION),
    "overfits_one_batch": _EVERYTHING,
    "compiled_equals_eager": ("padding_changes_nothing", "examples_stay_apart"),
    "loops_agree": (*_EVERYTHING, "loss_decreases", "head_changes", "backbone_changes"),
    "devices_agree": _EVERYTHING,
}
"""By law, those that break it when they are broken, the likeliest first. What is not here has causes of its own."""


@dataclass(frozen=True)
class Finding:
    """A broken law, and those that are broken because of it."""

    verdict: Verdict
    consequences: tuple[Verdict, ...] = ()


def findings(broken: Iterable[Verdict], agreements: Iterable[Verdict] = ()) -> tuple[Finding, ...]:
    """Broken laws of one case or file, put under the ones that explain them.

    Args:
        broken: broken verdicts over single cases.
        agreements: broken verdicts over the cases of a file; a broken law of one that does not agree explains them.
    """
    under: dict[Verdict, list[Verdict]] = {}
    broken = tuple(broken)
    for verdict in broken:
        under.setdefault(_root(verdict, [one for one in broken if one.about == verdict.about]), []).append(verdict)
    for verdict in agreements:
        under.setdefault(_root(verdict, [one for one in broken if one.about in verdict.between]), []).append(verdict)
    return tuple(Finding(root, tuple(one for one in all_ if one != root)) for root, all_ in under.items())


def _root(verdict: Verdict, others: Sequence[Verdict]) -> Verdict:
    """Follow what explains a verdict to where nothing does."""
    for cause in EXPLAINED_BY.get(verdict.law, ()):
        for other in others:
            if other.law == cause:
                return _root(other, others)
    return verdict
