"""Laws that train again. They run with ``-m slow_invariant``, or where the experiment names them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from harness.laws.agreement import first_difference, loop_tolerance
from harness.laws.declared import train
from harness.laws.law import Verdict, broken, held, invalid, law, probed, vacuous
from harness.record import Record

FALLS = 0.9
"""Share of the loss a tenth of the steps earlier, below which a loss still falls."""


@law(probes=("overfit",), slow=True)
def overfits_one_batch(
    record: Record,
    *,
    ratio: Annotated[float, Field(gt=0, lt=1, description="Share of the first loss that must be reached.")] = 0.1,
) -> Verdict:
    """A handful of examples can be learnt by heart: their loss falls below a tenth within 150 steps.

    On the twin, with the harness's own Adam and the model's own loss, on examples of different labels cut to the same
    length (a model that ignores its input could tell examples apart by length). With a fault in head or loss, the loss
    cannot fall below a floor: with a double softmax 0.31 of 0.69 for two classes, 0.55 of 1.10 for three. A loss that
    still falls after 150 steps, as that of Electra and MobileBERT with random weights does, has not reached its floor:
    then the law is invalid, if the mean of the last tenth of the steps is below 0.9 of that of the tenth before. So it
    is where a part of the model is declared frozen, and the rest does not get there.

    It trains again, so it only runs if asked for: by ``-m slow_invariant``, by its name on the command line, or by
    naming it under ``invariants``.
    """
    evidence = probed(record, "overfit")
    if isinstance(evidence, Verdict):
        return evidence
    losses = [float(loss) for loss in evidence["loss"]]
    if len(set(evidence["labels"])) == 1:
        return vacuous("the examples have one label only: anything learns that")
    found = (
        f"loss of {len(evidence['labels'])} examples from {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps"
    )
    if losses[-1] <= ratio * losses[0]:
        return held(found)
    if _still_falls(losses):
        return invalid(f"{found}: it still falls, and nobody knows how far")
    if train(record)["freeze"]:
        return invalid(f"{found}: a part is frozen, and nobody knows how much the rest can learn by heart")
    return broken(
        f"{found}: expected at most {ratio * losses[0]:.4f}",
        cause="the loss has a floor (a softmax too many, a wrong loss), the input is ignored, or the labels contradict",
    )


def _still_falls(losses: Sequence[float]) -> bool:
    tenth = max(1, len(losses) // 10)
    last, before = losses[-tenth:], losses[-2 * tenth : -tenth]
    return bool(before) and math.fsum(last) < FALLS * math.fsum(before)


@law(probes=("determinism",), slow=True)
def deterministic(record: Record) -> Verdict:
    """The same seed gives the same weights, bit for bit; another seed gives different ones, where anything is drawn.

    The whole case, including the loading, runs three times for a few steps on its own device. Exact on a CPU. On CUDA
    some operators add in a different order each time: if weights differ there, the losses must agree as closely as
    those of two loops (see loops_agree).

    It trains again, so it only runs if asked for: by ``-m slow_invariant``, by its name on the command line, or by
    naming it under ``invariants``.
    """
    evidence = probed(record, "determinism")
    if isinstance(evidence, Verdict):
        return evidence
    steps = evidence["steps"]
    alike = evidence["first"] == evidence["second"]
    difference = None if alike else _first_other_loss(record, *evidence.get("losses", ((), ())))
    if not alike and (record.settings["device"] == "cpu" or difference is not None):
        said = f": {difference}" if difference else ""
        return broken(
            f"weights differ after {steps} steps with the same seed{said}",
            cause="the head is drawn before the seed is set, or the sampler or dropout is not seeded",
        )
    if evidence["first"] == evidence["other_seed"] and not _draws(record):
        return vacuous(f"{steps} steps: no weight, order, dropout or mask is drawn, and another seed changes nothing")
    if evidence["first"] == evidence["other_seed"]:
        return broken(f"another seed gives the same weights after {steps} steps", cause="the seed is not used")
    return held(f"{steps} steps{'' if alike else ', whose losses agree; the weights differ by rounding'}")


def _draws(record: Record) -> bool:
    """Whether anything in the training depends on the seed."""
    checkpoint, modes = record.checkpoint, record.modes
    new = checkpoint is None or not checkpoint.pretrained or checkpoint.missing or checkpoint.mismatched
    drops = modes is None or modes.stochastic
    shuffled = record.settings["train.shuffle"] or record.settings.get("train.batching") == "grouped"
    return bool(new or drops or record.masking or record.adapters or shuffled)


def _first_other_loss(record: Record, first: Sequence[float], second: Sequence[float]) -> str | None:
    if not first:
        return "no losses were kept"
    return first_difference("loss", first, second, loop_tolerance(record))
