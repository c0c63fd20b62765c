"""Mistakes that real fine-tunings have made, to be made on purpose: what `harness mutate` seeds, one at a time.

Who has others passes more; nothing is registered.
"""

from __future__ import annotations

from harness.training.fault import Fault
from harness.training.faults import (
    adapter,
    choice,
    collator,
    evaluation,
    head,
    label,
    loading,
    loop,
    loss,
    mode,
    model,
    optimizer,
    order,
    resume,
    saving,
    schedule,
    token,
    tokenizer,
    trainer,
    way,
)

__all__ = ["FAULTS"]

FAULTS: tuple[Fault, ...] = (
    *tokenizer.FAULTS,
    *label.FAULTS,
    *token.FAULTS,
    *collator.FAULTS,
    *order.FAULTS,
    *loading.FAULTS,
    *model.FAULTS,
    *head.FAULTS,
    *adapter.FAULTS,
    *mode.FAULTS,
    *loss.FAULTS,
    *optimizer.FAULTS,
    *schedule.FAULTS,
    *loop.FAULTS,
    *choice.FAULTS,
    *trainer.FAULTS,
    *way.FAULTS,
    *evaluation.FAULTS,
    *saving.FAULTS,
    *resume.FAULTS,
)
"""In the order of a training: from the text to what is saved."""
