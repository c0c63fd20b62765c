"""Ways of computing the same training that must not matter: recomputing, other kernels, compiled code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from harness.errors import count
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable, probed, vacuous
from harness.record import Record

LOGITS = 1e-4
"""Largest distance of logits and loss in fp32, as in padding_changes_nothing: right set-ups stay below 3.3e-6."""
ROUNDING = {"bf16": 1.5e-2, "fp16": 1.5e-2, "bf16-pure": 1.5e-2}
"""What is allowed beyond that where products are rounded: TRL's invariant suite allows losses of two ways this much."""
SPREAD = 3.0
"""Below fp32, how much further from fp32 than the plain way another way may be: flash-attention's own tests allow its
kernels two to three times the error of torch's."""
VANISHED = 1e-3
"""A loss below which its gradient is what rounding leaves of it: a softmax in fp32 is off by 6e-8."""

PACKED = "sdpa_packed"
"""The implementation of attention that packed models have."""

Tolerance = Annotated[float, Field(gt=0, description="Largest relative difference of the gradient in fp32.")]
Way = Mapping[str, Any]


@law(probes=("checkpointing",))
def checkpointing_equals_plain(record: Record, *, tolerance: Tolerance = 1e-3) -> Verdict:
    """With train.gradient_checkpointing, layers are recomputed, and the gradient is the same as without it.

    The trained model, in the case's precision and with its dropout, runs one batch forward and backward with
    checkpointing and without, from the same random state. On a CPU loss and gradient are equal bit for bit (measured:
    ten architectures); on CUDA, where sums are added in a different order each time, the gradient's relative distance
    is at most 1e-3, the limit of the other ways of computing. Layers that are recomputed with other dropout, or that
    lose a part of the gradient, do not show in a loss curve.
    """
    if not record.settings.get("train.gradient_checkpointing"):
        return not_applicable("train.gradient_checkpointing is not declared")
    if record.modes is not None and record.modes.checkpointing is False:
        return broken(
            "train.gradient_checkpointing is declared, and no layer had it on in the first forward pass",
            cause="it is enabled on another object than the model that trains, or turned off again",
        )
    evidence = probed(record, "checkpointing")
    if isinstance(evidence, Verdict):
        return evidence
    if not evidence["recomputed"]:
        return broken("no module ran again in the backward pass", cause="the model does not heed its own flag")
    exact = record.settings["device"] == "cpu"
    distances = {name: float(evidence[name]) for name in ("loss", "gradient")}
    for name, limit in (("loss", 0.0 if exact else LOGITS), ("gradient", 0.0 if exact else tolerance)):
        if not distances[name] <= limit:
            return broken(
                f"the {name} differs by {distances[name]:.3g} from that without checkpointing, allowed {limit:g}",
                cause="dropout is drawn anew when a layer is recomputed (preserve_rng_state), or the gradient is cut "
                "where a layer's inputs need none (use_reentrant)",
            )
    again = count(evidence["recomputed"], "module")
    return held(f"{again} ran again; gradients differ by {distances['gradient']:.1g}")


@law(probes=("attention",))
def attention_implementations_agree(record: Record, *, tolerance: Tolerance = 1e-3) -> Verdict:
    """The implementation of attention in use gives the logits and the gradient of eager attention, padding included.

    Judged on the trained model on its own device, with dropout at 0, and a batch with more padding than it needs:
    logits of real tokens within 1e-4 of eager attention's in fp32, the gradient within 1e-3 (measured on right set-ups:
    below 1e-6). In bf16 and fp16 a kernel may be three times as far from fp32 as eager attention is there, plus 1.5e-2.
    A kernel that ignores the padding mask shows here. In fp32 the law is invalid if rounding alone would explain a
    difference: the weights are so large, as after a training at a rate of 1, that eager attention is a third of the
    limit off itself where each of them is moved by four times its last bit; or the loss is below 1e-3, and its gradient
    what a softmax leaves of it. Every number must also stay finite, if it does in eager
    attention, with padding on the other side, where some queries have nothing that they may attend to, and in fp32 for
    a row that is nothing but padding, where the softmax is over nothing. (In bf16 torch's own kernels for CUDA give NaN
    for such a row, measured with torch 2.11; if the data have one, loss_finite sees it.)
    """
    evidence = probed(record, "attention")
    if isinstance(evidence, Verdict):
        return evidence
    used = evidence["used"]
    if used in ("", "eager"):
        return not_applicable("attention is eager, with which others would be compared")
    if "no_eager" in evidence:
        return not_applicable(f"there is no eager attention to compare {used} with: {evidence['no_eager']}")
    apart = _apart(
        record,
        evidence["batches"],
        tolerance,
        f"{used} and eager attention",
        cause="a kernel that ignores the padding mask or reads it otherwise, or one that lacks what the architecture "
        "does to its scores, such as a soft-cap or a bias",
    )
    if apart is not None:
        return apart
    if not_finite := [name for name, finite in evidence["finite"].items() if not finite]:
        return broken(
            f"{used}: {not_finite[0]} makes a number NaN or infinite", cause="a softmax over masked places alone"
        )
    return held(f"{used} and eager: {_furthest(evidence['batches'])}")


@law(probes=("compilation",))
def compiled_equals_eager(record: Record, *, tolerance: Tolerance = 1e-3) -> Verdict:
    """With train.compile, the training ran compiled, and the compiled model gives what it gives uncompiled.

    The trained model on its own device, with dropout at 0 (what is compiled draws other random numbers than what is
    not): logits and loss within 1e-4 of the uncompiled model's in fp32, the gradient within 1e-3; in bf16 and fp16 it
    may be three times as far from fp32 as the uncompiled model is there, and 1.5e-2 more. Where lengths vary, a second
    batch makes the code for any length. Dynamo gives up silently: forward passes whose result came out of no compiled
    graph are counted, and if they are more than half, the law is broken.
    """
    if not record.settings.get("train.compile"):
        return not_applicable("train.compile is not declared")
    compilation = record.compilation
    if compilation is None:
        return invalid("what was compiled is missing from the evidence")
    passes = sum(map(len, record.steps.micro_batches)) or len(record.steps.loss)
    if compilation.graphs == 0 or compilation.eager_passes * 2 > passes:
        return broken(
            f"{count(compilation.graphs, 'graph')} compiled; {compilation.eager_passes} of {passes} forward passes "
            "ended in code that was not",
            cause="the loop calls another object than the one that torch.compile gave, or Dynamo went back to eager "
            "after too many recompilations",
        )
    evidence = probed(record, "compilation")
    if isinstance(evidence, Verdict):
        return evidence
    if not evidence["graphs"]:
        return invalid("nothing was compiled where it was to be compared")
    apart = _apart(
        record,
        evidence["batches"],
        tolerance,
        f"compiled by {compilation.backend}",
        cause="a fused kernel or a decomposition that computes something else, or code for another shape or mode",
    )
    if apart is not None:
        return apart
    breaks = sum(compilation.breaks.values())
    return held(
        f"{count(compilation.graphs, 'graph')} by {compilation.backend}, {count(breaks, 'break')}; "
        f"{_furthest(evidence['batches'])}"
    )


@law(probes=("packing",))
def packing_changes_nothing(record: Record, *, tolerance: Tolerance = 1e-3) -> Verdict:
    """If sequences are packed into one row without padding, each gives what it gives in a padded batch.

    The trained model, with dropout at 0 (on another shape it draws other random numbers): logits and loss within 1e-4
    of those of the same model on padded rows in fp32, the gradient within 1e-3, the limits of the other ways of
    computing (measured on 22 architectures: logits differ by at most 8e-7, gradients by 1e-6); in bf16 and fp16 it may
    be three times as far from fp32 as the padded way is there, and 1.5e-2 more. Sequences that see their neighbours in
    the row show here, and no loss curve shows them. Where no batch that is compared has padding to take out, or each is
    longer than a layer's sliding window, nothing is packed, and that says nothing.
    """
    if not record.settings.get("train.packing"):
        return not_applicable("nothing is packed")
    evidence = probed(record, "packing")
    if isinstance(evidence, Verdict):
        return evidence
    if (used := evidence["used"]) != PACKED:
        return broken(
            f"train.packing is declared, and attention is {used or 'that of the layers themselves'}, not {PACKED}",
            cause="another implementation was set after the model was packed, or it was packed on another object",
        )
    apart = _apart(
        record,
        evidence["batches"],
        tolerance,
        "packed",
        cause="sequences of a row attend to each other, or what was packed is not put back in its place",
    )
    if apart is not None:
        return apart
    if "packed" not in evidence:
        return invalid("how many batches were packed is missing from the evidence")
    if not evidence["packed"]:
        return vacuous("none of the batches that were compared was packed")
    return held(_furthest(evidence["batches"]))


def _apart(record: Record, batches: Sequence[Way], tolerance: float, what: str, cause: str) -> Verdict | None:
    """Broken at the first distance above its limit; invalid where in fp32 rounding explains all that are."""
    precision, unsure = record.settings["precision"], None
    for batch in batches:
        for name, limit in (("loss", LOGITS), ("logits", LOGITS), ("gradient", tolerance)):
            found, plain = _distances(batch, name)
            allowed = limit if precision == "fp32" else SPREAD * plain + limit + ROUNDING.get(precision, 0.0)
            if found <= allowed:  # NaN is a difference
                continue
            said = f"{what}, {batch['batch']}: {name} off by {found:.3g}, allowed {allowed:.3g}"
            if precision != "fp32":
                by = f" (the plain way is off by {plain:.3g} in this precision)" if plain else ""
                return broken(said + by, cause=cause)
            if (rounding := _rounding(batch, name, limit)) is None:
                return broken(said, cause=cause)
            unsure = unsure or invalid(f"{said}: {rounding}")
    return unsure


def _rounding(batch: Way, name: str, limit: float) -> str | None:
    """How rounding alone explains in fp32 that a distance is above its limit; none where it does not."""
    found, plain = _distances(batch, name)
    loss = float(batch.get("loss", math.inf))
    if name == "gradient" and math.isfinite(found) and loss < VANISHED:
        return f"the loss is {loss:.2g}, and has no gradient to speak of"
    if not SPREAD * plain <= limit:
        return f"the last bits of the weights move the plain way by {plain:.3g}"
    return None


def _distances(batch: Way, name: str) -> tuple[float, float]:
    """How far the way that is judged is off, and the plain way from itself in fp32."""
    return float(batch["own"][name]), float(batch.get("plain", {}).get(name, 0.0))


def _furthest(batches: Iterable[Way]) -> str:
    logits, gradient = (max(float(batch["own"][name]) for batch in batches) for name in ("logits", "gradient"))
    return f"logits differ by at most {logits:.1g}, gradients by {gradient:.1g}"
