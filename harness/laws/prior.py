"""What was there before the training."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable, probed
from harness.record import Record

FEW = 100
"""Predictions below which the mean of their losses says too little: its standard error is 0.3 nats there."""


@law(probes=("prior",))
def pretraining_shows(
    record: Record,
    *,
    share: Annotated[
        float, Field(gt=0, le=1, description="Of the loss of a guess among all tokens, how much may be left.")
    ] = 0.6,
) -> Verdict:
    """A pretrained language model reads the data's texts as language: far better than chance, before any step.

    The mean loss of its own pretraining task over the texts as the case encodes them (the next token, or masked ones)
    must be below 0.6 ln V, where ln V is the loss of a guess among the V tokens, and below that of the same texts with
    every word replaced by another. With the weights of another model, a tokenizer that is not the checkpoint's, or no
    pretrained weights at all, it is ln V or far above, although all shapes fit and the fine-tuning's loss falls. For
    checkpoints that hold a language model, whatever head is trained. Texts unlike anything it has read (another
    language, a code of symbols) may be as hard for it: an experiment that uses them on purpose allows a larger share.
    """
    evidence = probed(record, "prior")
    if isinstance(evidence, Verdict):
        return evidence
    if reason := evidence.get("reason"):
        return not_applicable(reason)
    loss, permuted, tokens = (float(evidence[name]) for name in ("loss", "permuted", "vocabulary"))
    chance, number = math.log(tokens), evidence["predictions"]
    if number < FEW:
        return invalid(f"the texts give {number} predictions, fewer than {FEW}: their mean says too little")
    found = (
        f"loss {loss:.2f} over {number} tokens ({loss / chance:.0%} of a guess among {tokens:.0f}), {permuted:.2f} "
        "with every word replaced"
    )
    if loss <= share * chance and loss < permuted:
        return held(found)
    return broken(
        f"{found}: expected at most {share:.0%} of a guess, and less than with every word replaced",
        cause="the tokenizer is not the checkpoint's, the weights are another model's or were never trained, or the "
        "texts are unlike all that it has read",
    )
