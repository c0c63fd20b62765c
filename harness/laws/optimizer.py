"""What the optimizer holds, and the learning rate of every step."""

from __future__ import annotations

from harness.laws.law import Verdict, broken, held, invalid, law
from harness.record import Group, Record
from harness.schedule import declared_rate


@law()
def optimizer_covers_trainable(record: Record) -> Verdict:
    """The optimizer holds every trainable parameter of the model, each once, with the declared settings.

    Looked at at its first step and compared by identity, so an optimizer made before the model was moved, resized or
    wrapped is seen: it holds copies. Betas, eps and weight decay are compared exactly.
    """
    optimizer = record.optimizer
    if optimizer is None:
        return invalid("the optimizer never stepped")
    if optimizer.outside:
        stale = f" It holds {optimizer.strangers} tensors that are not the model's." if optimizer.strangers else ""
        return broken(
            f"{len(optimizer.outside)} trainable parameters are not in the optimizer: "
            f"{', '.join(optimizer.outside[:4])}.{stale}",
            cause="the optimizer was made from other tensors: before the model was moved, resized, wrapped or reloaded"
            if optimizer.strangers
            else "they were left out of its parameter groups, and never train",
        )
    if optimizer.twice:
        return broken(f"held more than once: {', '.join(optimizer.twice[:4])}", cause="they are stepped twice")
    for number, group in enumerate(optimizer.groups):
        if (difference := _undeclared(group, record)) is not None:
            found = f"group {number} of {optimizer.name}: {difference}"
            return broken(found, cause="the declared value is not handed on")
    held_count = sum(group.parameters for group in optimizer.groups)
    return held(f"{held_count} parameters in {len(optimizer.groups)} group{'s' * (len(optimizer.groups) > 1)}")


def _undeclared(group: Group, record: Record) -> str | None:
    declared = {name: record.settings[f"train.{name}"] for name in ("weight_decay", "betas", "eps")}
    found = {"weight_decay": group.weight_decay, "betas": list(group.betas), "eps": group.eps}
    for name, value in found.items():
        expected = list(declared[name]) if name == "betas" else declared[name]
        if value != expected:
            return f"{name} is {value}, declared {expected}"
    return f"{group.variants[0]} is on, which is not declared" if group.variants else None


@law()
def schedule_followed(record: Record) -> Verdict:
    """The learning rate of every optimizer step is the declared one.

    Read from the optimizer at the moment it steps, and compared with the closed form within 1e-12 (relative): linear
    from 0 over the warm-up, then constant.
    """
    rates = record.steps.learning_rate
    if not rates:
        return invalid("no step was taken")
    rate, warmup = record.settings["train.learning_rate"], record.settings["train.warmup_steps"]
    for step, found in enumerate(rates):
        expected = declared_rate(rate, warmup, step)
        if not abs(found - expected) <= 1e-12 * max(expected, rate):
            return broken(
                f"step {step + 1} of {len(rates)} used a learning rate of {found:.6g}, declared {expected:.6g}",
                cause="the optimizer did not step"
                if found != found
                else "the schedule is stepped another number of times, starts elsewhere, or is another one",
            )
    return held(f"{len(rates)} steps, last at {rates[-1]:.3g}")
