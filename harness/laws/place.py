"""Which key of an experiment a law is about: where a reader looks first when it is broken."""

from __future__ import annotations

from harness.laws.law import Law

KEYS: dict[str, tuple[str, ...]] = {
    "adapter": ("peft",),
    "agreement": (),
    "data": ("data.labels", "data.files", "data.dataset", "data"),
    "dependence": ("checkpoint",),
    "equivalence": ("train.attention", "train.gradient_checkpointing", "train.compile", "train"),
    "evaluation": ("evaluation.metrics", "evaluation"),
    "exploration": ("tokenizer", "checkpoint"),
    "head": ("checkpoint",),
    "label": ("task", "data.labels", "data"),
    "loss": ("train.learning_rate", "train"),
    "objective": ("train.loop", "train"),
    "optimizer": ("train.optimizer", "train.schedule", "train.learning_rate", "train"),
    "padding": ("train.padding", "tokenizer", "checkpoint"),
    "prior": ("checkpoint",),
    "resume": ("train.resume_at",),
    "rows": ("evaluation",),
    "slow": ("train",),
    "state": ("train.loop", "train"),
    "step": ("train.gradient_accumulation", "train.max_grad_norm", "train.freeze", "train.loop", "train"),
    "training": ("checkpoint",),
}
"""By module of the law, the likeliest first; a file has the first of them that it writes."""


def keys(law: Law) -> tuple[str, ...]:
    """Dotted keys, the likeliest first. What the experiment says of the law itself comes before all."""
    named = (f"invariants.{law.name}", f"expect_broken.{law.name}")
    axis = (law.axis,) if law.axis is not None else ()
    return (*named, *axis, *KEYS.get(law.function.__module__.rpartition(".")[2], ()))
