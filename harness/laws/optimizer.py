"""What the optimizer holds, how it steps, and the learning rate of every step."""

from __future__ import annotations

from harness.errors import count
from harness.laws.declared import settings_of, share, train
from harness.laws.law import Verdict, broken, held, invalid, law
from harness.record import Group, Optimizer, Parameter, Record

CLASSES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD", "adafactor": "Adafactor", "adamw_8bit": "AdamW8bit"}
"""The class of each optimizer that an experiment may name."""


@law()
def optimizer_covers_trainable(record: Record) -> Verdict:
    """The optimizer holds every trainable parameter of the model, each once, with the declared settings.

    Checked at its first step and compared by identity, so it shows if the optimizer was made before the model was
    moved, resized or wrapped: then it holds copies. The class, betas, eps or momentum, and for every parameter the
    weight decay and the learning rate of its group are compared exactly with what the experiment declares for it.
    Which parameters are trained does not change until the end, and nobody else writes into them between two steps.
    """
    optimizer = record.optimizer
    if optimizer is None:
        return invalid("the optimizer never stepped")
    if not record.parameters:
        return invalid("no parameter was recorded")
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
    if optimizer.toggled:
        return broken(
            f"{count(len(optimizer.toggled), 'parameter')} trained in a part of the training only: "
            f"{', '.join(optimizer.toggled[:4])}",
            cause="something sets requires_grad in the midst of it, as a gradual unfreezing or an evaluation may do",
        )
    if optimizer.written:
        return broken(
            f"{count(len(optimizer.written), 'parameter')} written into between two steps: "
            f"{', '.join(optimizer.written[:4])}",
            cause="a checkpoint is loaded, or weights are drawn anew or averaged, in the midst of the training",
        )
    if (found := _undeclared(optimizer, record)) is not None:
        return broken(found, cause="the declared value is not handed on")
    held_count = sum(group.parameters for group in optimizer.groups)
    return held(f"{held_count} parameters in {count(len(optimizer.groups), 'group')}")


def _undeclared(optimizer: Optimizer, record: Record) -> str | None:
    """The first setting that is not the declared one."""
    declared = CLASSES[train(record)["optimizer"]]
    for number, group in enumerate(optimizer.groups):
        if (difference := _of_all(group, record)) is not None:
            return f"group {number} of {optimizer.name}: {difference}"
        for parameter in _members(optimizer, group, record):
            if (difference := _of_one(group, parameter, record)) is not None:
                return f"group {number} of {optimizer.name}: {difference}"
    return None if optimizer.name == declared else f"the optimizer is {optimizer.name}, declared {declared}"


def _of_all(group: Group, record: Record) -> str | None:
    """What is declared for every parameter alike."""
    said = train(record)
    names = {"sgd": ("momentum",), "adafactor": ()}.get(said["optimizer"], ("betas", "eps"))
    for name in names:
        found, expected = getattr(group, name), said[name]
        if (list(found) if name == "betas" else found) != (list(expected) if name == "betas" else expected):
            return f"{name} is {list(found) if name == 'betas' else found}, declared {expected}"
    return f"{group.variants[0]} is on, which is not declared" if group.variants else None


def _of_one(group: Group, parameter: Parameter, record: Record) -> str | None:
    """What is declared for a parameter."""
    rate, decay = settings_of(record, parameter)
    if group.weight_decay != decay:
        return f"weight_decay of {parameter.name} is {group.weight_decay}, declared {decay:g}"
    rate *= share(record, 0)
    if not abs(group.learning_rate - rate) <= 1e-12 * max(rate, 1e-12):
        return f"the first learning rate of {parameter.name} is {group.learning_rate:.6g}, declared {rate:.6g}"
    return None


def _members(optimizer: Optimizer, group: Group, record: Record) -> list[Parameter]:
    """The parameters of a group; of the only one, all that are trained."""
    if len(optimizer.groups) == 1:
        return [parameter for parameter in record.parameters if parameter.trainable]
    return [parameter for parameter in record.parameters if parameter.name in set(group.names)]


@law()
def schedule_followed(record: Record) -> Verdict:
    """The learning rate of every optimizer step is the declared one, in every parameter group.

    Read from the optimizer at the moment it steps, and compared with the closed form within 1e-12 (relative): linear
    from 0 over the warm-up, then constant, or falling to 0 linearly or as half a cosine (Loshchilov and Hutter 2017).
    Steps that a loss scaler skips do not advance the schedule.
    """
    rates = record.steps.learning_rate
    if not rates:
        return invalid("no step was taken")
    taken = 0  # by the optimizer
    for step, found in enumerate(rates):
        skipped = found != found and _overflowed(record, step)
        if skipped:
            continue
        expected = _highest(record) * share(record, taken)
        if not abs(found - expected) <= 1e-12 * max(expected, _highest(record)):
            return broken(
                f"step {step + 1} of {len(rates)} used a learning rate of {found:.6g}, declared {expected:.6g}",
                cause="the optimizer did not step"
                if found != found
                else "the schedule is stepped another number of times, starts elsewhere, or is another one",
            )
        if (wrong := _group_apart(record, step)) is not None:
            return broken(wrong, cause="one of the parameter groups has a schedule of its own")
        taken += 1
    return held(f"{len(rates)} steps, last at {rates[-1]:.3g}")


def _highest(record: Record) -> float:
    """The declared rate of the first group's parameters, without the schedule's share."""
    optimizer = record.optimizer
    if optimizer is not None and len(optimizer.groups) > 1:
        for parameter in _members(optimizer, optimizer.groups[0], record):
            return settings_of(record, parameter)[0]
    if (first := next((parameter for parameter in record.parameters if parameter.trainable), None)) is not None:
        return settings_of(record, first)[0]
    return float(train(record)["learning_rate"])


def _group_apart(record: Record, step: int) -> str | None:
    """A group whose rate has moved by another factor since the first step than that of the first group."""
    rates, optimizer = record.steps.group_rates, record.optimizer
    if optimizer is None or len(optimizer.groups) < 2 or step >= len(rates):
        return None
    declared = [settings_of(record, _members(optimizer, group, record)[0])[0] for group in optimizer.groups]
    for number, (found, highest) in enumerate(zip(rates[step], declared, strict=True)):
        expected = highest * rates[step][0] / declared[0]
        if not abs(found - expected) <= 1e-12 * max(expected, highest):
            return f"step {step + 1}: group {number} used a learning rate of {found:.6g}, declared {expected:.6g}"
    return None


def _overflowed(record: Record, step: int) -> bool:
    """Whether a loss scaler left the step out: its scale is lower afterwards."""
    scales = record.steps.loss_scale
    if step + 1 >= len(scales):
        return step < len(scales) and scales[step] is not None  # the last: nothing tells
    now, after = scales[step], scales[step + 1]
    return now is not None and after is not None and after < now
