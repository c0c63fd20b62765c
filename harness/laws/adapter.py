"""Low-rank adapters: what they are at the start, what they add, and what moves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field

from harness.errors import count
from harness.laws.declared import is_beside_adapters, train
from harness.laws.head import GRADIENT_NOISE, _cannot_move, _names, _why_still, expected_reach
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable, probed
from harness.record import Adapters, Parameter, Record

_FACTOR = re.compile(r"(?<=\.lora_)(embedding_)?[AB](?=\.)")
_NONE = not_applicable("no adapters are declared")


@law(probes=("adapted",))
def adapters_as_declared(
    record: Record,
    *,
    tolerance: Annotated[float, Field(gt=0, description="Largest relative difference of what a layer adds.")] = 1e-5,
) -> Verdict:
    """The adapters are as declared, on every target, and besides them only the modules to save are trained.

    Rank, scale and dropout are read from each layer. What an adapter adds to a layer's output must be
    ``alpha / rank * B A x`` (Hu et al. 2021, section 4.1), computed independently for random x and B, within 1e-5
    (measured: up to 4e-7). A target that matches no module is an error before any training.
    """
    adapters = record.adapters
    if adapters is None:
        return _undeclared(record)
    evidence = probed(record, "adapted")
    if isinstance(evidence, Verdict):
        return evidence
    if not adapters.modules or (empty := [part for part, modules in adapters.targets.items() if not modules]):
        return broken(f"no module has an adapter for {_names(empty) if adapters.modules else 'any target'}")
    expected = {"rank": adapters.rank, "scale": adapters.alpha / adapters.rank, "dropout": adapters.dropout}
    for layer in evidence["layers"]:
        if wrong := [name for name, value in expected.items() if not abs(layer[name] - value) <= 1e-9]:
            found = ", ".join(f"{name} {layer[name]:g}, declared {expected[name]:g}" for name in wrong)
            return broken(f"{count(layer['modules'], 'adapter')} with {found}", cause="another config reached peft")
    if (modules := sum(layer["modules"] for layer in evidence["layers"])) != adapters.modules:
        return broken(
            f"{count(modules, 'module')} with an adapter, and the targets mean {adapters.modules}",
            cause="other targets reached peft, or some of the layers alone",
        )
    for name, distance in evidence["formula"].items():
        if not float(distance) <= tolerance:
            return broken(
                f"what the adapter of {name} adds differs from alpha / rank * B A x by {float(distance):.3g} of it, "
                f"allowed {tolerance:g}",
                cause="another scale, or an adapter that is switched off or merged",
            )
    if (verdict := _trained(record, adapters)) is not None:
        return verdict
    targets = ", ".join(f"{part} {modules}" for part, modules in adapters.targets.items())
    return held(
        f"{count(adapters.modules, 'module')} ({targets}); whole: {_names(adapters.modules_to_save) or 'none'}; "
        f"{adapters.trainable / adapters.total:.2%} of the parameters are trained"
    )


def _undeclared(record: Record) -> Verdict:
    """Where no adapters are declared there must be none."""
    if any(parameter.adapter for parameter in record.parameters):
        return broken("the model has adapters, and none are declared")
    return _NONE


def _trained(record: Record, adapters: Adapters) -> Verdict | None:
    """The adapters and what is trained whole, and nothing else."""
    frozen = [parameter.name for parameter in record.parameters if parameter.adapter and not parameter.trainable]
    if frozen:
        return broken(f"{count(len(frozen), 'matrix')} of adapters do not train: {_names(frozen)}", cause="frozen")
    for part in record.settings.get("peft.modules_to_save") or ():
        if not any(one.trainable and not one.adapter and f".{part}." in f".{one.name}" for one in record.parameters):
            return broken(f"{part} is not trained whole, as declared", cause="it is missing among modules_to_save")
    beside = [one.name for one in record.parameters if one.trainable and is_beside_adapters(record, one)]
    if beside:
        return broken(
            f"{count(len(beside), 'parameter')} beside the adapters are trained: {_names(beside)}",
            cause="the weights under the adapters were not frozen, or were thawed again",
        )
    return None


@law()
def adapters_start_at_zero(record: Record) -> Verdict:
    """At the start every adapter adds exactly nothing: one of its matrices is 0, and so is the other's gradient.

    ``lora_B`` begins at 0 (Hu et al. 2021, section 4.1; of an embedding, peft lets A begin there), so that training
    starts from the checkpoint. The first gradient of ``lora_A`` goes through B and is exactly 0; in the second step it
    is not.
    """
    if record.adapters is None:
        return _NONE
    pairs = tuple(_pairs(record))
    if not pairs:
        return broken("no parameter of the model belongs to an adapter")
    if (verdict := _not_finite(pairs)) is not None:
        return verdict
    for pair in pairs:
        zero = [matrix for matrix in pair if matrix.start == 0]
        if len(zero) != 1:
            found = " and ".join(f"{matrix.name} {matrix.start:.3g}" for matrix in pair)
            return broken(
                f"root mean squares at the start: {found}; expected one of them to be 0",
                cause="both are 0, and neither will ever get a gradient"
                if zero
                else "init_lora_weights=False, or an adapter that was trained before",
            )
        (other,) = (matrix for matrix in pair if matrix is not zero[0])
        if other.gradient is not None and other.gradient != 0:
            return broken(
                f"the first gradient of {other.name} is {other.gradient:.3g}, expected exactly 0",
                cause=f"{zero[0].name} was not 0 any more when the first step was taken",
            )
    return held(f"{len(pairs)} pairs of matrices")


@law()
def adapters_change(record: Record) -> Verdict:
    """Every adapter moves: ``lora_B`` from the first step on, ``lora_A`` from the second.

    B by at least a tenth of an optimizer step, as in head_changes. A by more than twice what weight decay alone does:
    its gradient is as small as B, so AdamW's eps may slow it down. Under SGD, whose updates are as small as gradients,
    nothing is asked of A: at a low rate they may all be rounded away. Adapters of modules that the loss does not depend
    on get no gradient and are left out.
    """
    if record.adapters is None:
        return _NONE
    if (verdict := _cannot_move(record)) is not None:
        return verdict
    pairs = tuple(_pairs(record))
    if (verdict := _not_finite(pairs)) is not None:
        return verdict
    largest = max((matrix.gradient or 0 for pair in pairs for matrix in pair), default=0)
    live = [pair for pair in pairs if any((matrix.gradient or 0) > GRADIENT_NOISE * largest for matrix in pair)]
    if not live:
        return broken(f"none of {len(pairs)} adapters gets a gradient", cause="they are frozen, or switched off")
    rates = [rate for rate in record.steps.learning_rate if rate > 0]
    for pair in live:
        for matrix in pair:
            if matrix.furthest is None:
                return invalid(f"the way of {matrix.name} was not followed")
            first = matrix.start == 0
            decay = 2 * matrix.start * record.settings["train.weight_decay"] * sum(rates)
            least = expected_reach(record, matrix) if first else decay
            moved = matrix.furthest >= least if first else matrix.furthest > least
            if not moved and (first or (len(rates) > 1 and train(record)["optimizer"] != "sgd")):
                return broken(
                    f"{matrix.name} moved by {matrix.furthest:.3g}, expected more than {least:.3g}",
                    cause=_why_still(record, matrix)
                    if first
                    else "it is not in the optimizer, or B is 0 in every step",
                )
    return held(f"{len(live)} of {len(pairs)} adapters moved")


def _not_finite(pairs: Iterable[tuple[Parameter, ...]]) -> Verdict | None:
    for matrix in (matrix for pair in pairs for matrix in pair):
        for figure in ("start", "gradient", "furthest", "change"):
            value = getattr(matrix, figure)
            if value is not None and not math.isfinite(value):
                return broken(f"{figure} of {matrix.name} is {value}")
    return None


def _pairs(record: Record) -> Iterator[tuple[Parameter, ...]]:
    """The two matrices of each adapter."""
    pairs: dict[str, list[Parameter]] = {}
    for parameter in record.parameters:
        if parameter.adapter:
            pairs.setdefault(_FACTOR.sub("", parameter.name), []).append(parameter)
    return (tuple(pair) for pair in pairs.values())
