"""Whether the figures of a record's timed steps close: counted and clocked twice, they must say the same.

A sum is judged in the typical step, the median one: what the operating system does between two readings in one step or
another makes figures noisy and not wrong, and a wrong clock or count is wrong in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

from harness.record import Flops, Record, Steps

CLOSES = 0.02
"""Share by which the rate may differ from samples over wall time, and one clock from another: clocks of one machine
differ by less than a thousandth, and what is beside the steps has an account of its own."""

PHASES_CLOSE = 0.03
"""Share of a step by which the sum of its phases may differ from it: the first and the last mark of a device stand
behind the host's readings."""

RESOLUTION = 0.0002
"""Seconds of a step that no account asks for: reading clocks takes microseconds, and being told by a GPU that it is
done tens of them."""

OVERLOADED = 0.75
"""Share of the time in which the loop may wait for a processor that others have. On two busy processors half is
ordinary, and shows as a wide range. Beyond three quarters a step takes four times what it takes alone and more: the
figure is one of the others."""

STOLEN = 0.25
"""Share of its processors' time that the host of a virtual machine may give to others. Some hundredths are ordinary on
shared hosts. Beyond a quarter a step takes a third longer and more than on the machine that the record names, in each
step, so that neither a range nor a repetition shows it; no time that a thread queues for has it in it."""

SHARED = 0.1
"""Share of the time in which other processes may compute on the GPU, which gives them turns or parts of itself: a
display takes some hundredths."""

SLOWED = 0.1
"""Share of the steps at whose end the GPU may be slowed down for heat, power or its hardware: at one moment of a long
training it is no news, and a median does not feel it."""

METERED = 1.0
"""Seconds of timed steps below which no energy is told."""

NEAR = 0.5
"""Share of a step that arithmetic and memory need together, one operator after the other, or neither bounds it: more
than half of the time goes into calling operators too small to fill the device, and into Python between them."""

WARM = 2.0
"""By which the first timed step may be longer than any other: from allocating memory and loading kernels it is longer
by more, and no noise makes the very first one stand out that far."""

PHASES = ("data", "transfer", "forward", "backward", "optimizer", "other")

NEEDED = ("seconds", "began", "ended", "samples", "rows", "real_tokens", "padded_tokens")
"""Columns without which there is no figure."""

Check = Callable[[Record, Sequence[int]], str | None]


def mistakes(record: Record, places: Sequence[int]) -> Iterator[str]:
    """Why the figures of these steps are no measurement, a sentence each; nothing where the account closes."""
    missing = [name for name in NEEDED if not _whole(record.steps, name)]
    if missing:
        yield f"the account of the steps cannot be closed: the record lacks {', '.join(missing)}"
        return
    for check in CHECKS:
        found = check(record, places)
        if found is not None:
            yield found


def phases(steps: Steps, place: int) -> dict[str, float]:
    """Seconds of a step by phase; empty where phases were not measured."""
    columns = {phase: getattr(steps, f"{phase}_seconds") for phase in PHASES}
    return {phase: column[place] for phase, column in columns.items() if place < len(column)}


def _whole(steps: Steps, name: str) -> bool:
    return len(getattr(steps, name)) == len(steps.loss)


def _time_passes(record: Record, places: Sequence[int]) -> str | None:
    """Every step took time."""
    seconds = record.steps.seconds
    wrong = next((place for place in places if not (math.isfinite(seconds[place]) and seconds[place] > 0)), None)
    return None if wrong is None else f"a step took no time, number {wrong}: the clock is too coarse, or wrong"


def _examples_count_once(record: Record, places: Sequence[int]) -> str | None:
    """What the loader drew for a step is what reached the model in it."""
    steps = record.steps
    wrong = next((place for place in places if steps.samples[place] != steps.rows[place]), None)
    if wrong is None:
        return None
    return f"step {wrong} counts {steps.samples[wrong]} samples, and {steps.rows[wrong]} reached the model"


def _clocks_agree(record: Record, places: Sequence[int]) -> str | None:
    """Two clocks that do not know of each other give the typical step the same seconds."""
    steps = record.steps
    others = [steps.ended[place] - steps.began[place] for place in places]
    pairs = [(steps.seconds[place], other) for place, other in zip(places, others, strict=True)]
    if _closes(pairs, CLOSES):
        return None
    one, two = (median(column) for column in zip(*pairs, strict=True))
    return f"two clocks disagree: {one:.4g} s and {two:.4g} s for the typical step"


def _phases_sum(record: Record, places: Sequence[int]) -> str | None:
    """The phases of the typical step are the step; on a device they are read from its own clock."""
    if not _whole(record.steps, "forward_seconds"):
        return None  # no clock for them
    pairs = [(record.steps.seconds[place], math.fsum(phases(record.steps, place).values())) for place in places]
    if _closes(pairs, PHASES_CLOSE):
        return None
    one, two = (median(column) for column in zip(*pairs, strict=True))
    return f"the phases of the typical step sum to {two:.4g} s, and it takes {one:.4g} s: the device was not waited for"


def _rate_is_samples_over_wall_time(record: Record, places: Sequence[int]) -> str | None:
    """What reached the model, over all the time from the end of a step to the end of the next, less what evidence and
    evaluations took between them, is the rate that is shown.
    """
    steps = record.steps
    before = [_end_of_the_one_before(record, place) for place in places]
    walls = [steps.ended[place] - end for place, end in zip(places, before, strict=True)]
    pairs = [(steps.seconds[place], wall) for place, wall in zip(places, walls, strict=True)]
    if _closes(pairs, CLOSES):
        return None
    shown = median(steps.samples[place] / steps.seconds[place] for place in places)
    found = median(
        steps.rows[place] / wall if wall > 0 else math.inf for place, wall in zip(places, walls, strict=True)
    )
    return f"{shown:.4g} samples/s are shown, and samples over wall time are {found:.4g}: time is in no step"


def _end_of_the_one_before(record: Record, place: int) -> float:
    """When a step may begin at the earliest."""
    steps = record.steps
    if place == 0:
        return steps.began[0]
    apart = (steps.watching_seconds, steps.evaluating_seconds, steps.saving_seconds)
    between = [seconds for column in apart for seconds in column[place - 1 : place]]
    return steps.ended[place - 1] + math.fsum(between)


def _no_warm_up(record: Record, places: Sequence[int]) -> str | None:
    """The first timed step is like others, by the clock that other processes have least to do with.

    One that is longer because its batch is takes no longer for each computed token.
    """
    quiet, tokens = quiet_seconds(record), computed_tokens(record)
    first, *others = (quiet[place] for place in places)
    if not others or first <= WARM * max(others):
        return None
    if all(tokens[place] for place in places):
        one, *rest = (quiet[place] / tokens[place] for place in places)
        if one <= WARM * max(rest):
            return None
    return (
        f"step {places[0]}, the first timed, takes {first:.4g} s and no other more than {max(others):.4g} s: "
        "it is one of warm-up; raise benchmark.warmup_steps"
    )


def quiet_seconds(record: Record) -> tuple[float, ...]:
    """Of each step, by the clock that other processes have least to do with: on a processor its own time."""
    steps = record.steps
    own = record.settings.get("device") == "cpu" and _whole(steps, "processor_seconds") and all(steps.processor_seconds)
    return steps.processor_seconds if own else steps.seconds


def computed_tokens(record: Record) -> tuple[int, ...]:
    """Of each step, padding included; where sequences are packed, real ones alone."""
    return record.steps.real_tokens if _packed(record) else record.steps.padded_tokens


def _packed(record: Record) -> bool:
    return record.settings.get("train.packing") is True


def _processor_was_free(record: Record, places: Sequence[int]) -> str | None:
    """The loop did not wait for a processor most of the time."""
    share = queued_share(record, places)
    if share is None or share <= OVERLOADED:
        return None
    return f"the machine was overloaded: in {share:.0%} of the time the loop waited for a processor that others had"


def _host_gave_the_processors(record: Record, places: Sequence[int]) -> str | None:
    """What a virtual machine takes for its processors' time was mostly that."""
    stolen = record.machine.stolen
    if stolen is None or stolen <= STOLEN:
        return None
    return f"the machine was overloaded: its host gave {stolen:.0%} of the time of its processors to others (steal)"


def _gpu_was_not_shared(record: Record, places: Sequence[int]) -> str | None:
    """No other process computed on it."""
    shared = record.machine.shared
    if shared is None or shared <= SHARED:
        return None
    return f"the GPU was shared: other processes computed on it in {shared:.0%} of the time"


def _gpu_was_not_slowed(record: Record, places: Sequence[int]) -> str | None:
    """It ran at the clock it is made for."""
    seen = [record.steps.slowed[place] for place in places if place < len(record.steps.slowed)]
    slowed = [why for why in seen if why]
    if len(slowed) <= SLOWED * len(places):
        return None
    reasons = ", ".join(sorted(set(slowed)))
    return f"the GPU was throttled after {len(slowed)} of {len(places)} timed steps: {reasons}"


def queued_share(record: Record, places: Sequence[int]) -> float | None:
    """Share of the steps' time in which the loop waited for a processor; none where the kernel does not say."""
    known = [second for place in places if (second := queued_seconds(record, place)) is not None]
    if len(known) < len(places):
        return None
    return math.fsum(known) / math.fsum(record.steps.seconds[place] for place in places)


def queued_seconds(record: Record, place: int) -> float | None:
    """Seconds of a step in which the loop waited for a processor; none where the kernel does not say."""
    queued = record.steps.queued_seconds
    return queued[place] if place < len(queued) else None


def _closes(pairs: Sequence[tuple[float, float]], limit: float) -> bool:
    """Whether two figures agree in the typical step; one that is no number agrees with nothing."""
    shares = [max(0.0, abs(one - two) - RESOLUTION) / one for one, two in pairs if not math.isnan(one - two)]
    return len(shares) == len(pairs) and median(shares) <= limit


def utilisation(record: Record, places: Sequence[int]) -> float | None:
    """Share of the measured ceiling that the model's own operations reach in the typical step; none where either is
    not known.

    After "model FLOPs utilization" (Chowdhery et al., PaLM, 2022): what is computed again does not count.
    """
    known = {each.shape: each for each in record.efficiency.flops}
    done = [(place, _operations(record, place, known)) for place in places]
    rates = [operations / record.steps.seconds[place] for place, operations in done if operations is not None]
    ceiling = record.efficiency.ceiling
    return median(rates) / ceiling if rates and ceiling else None


def _operations(record: Record, place: int, known: Mapping[tuple[int, ...], Flops]) -> float | None:
    """Of a step, as counted of batches of its shapes; where sequences are packed, for as many real tokens as it has."""
    shapes = record.steps.shapes[place] if place < len(record.steps.shapes) else ()
    counted = [known[shape] for shape in shapes if shape in known]
    if not counted or len(counted) < len(shapes):
        return None
    operations = math.fsum(each.forward + each.backward for each in counted)
    tokens = sum(each.real_tokens for each in counted) if _packed(record) else 0
    return operations * record.steps.real_tokens[place] / tokens if tokens else operations


def roofline(record: Record, places: Sequence[int]) -> dict[str, float]:
    """Share of the typical step that arithmetic alone would need at the measured ceiling, and reading and writing alone
    at the measured bandwidth; empty where that is not known.

    After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore
    architectures" (2009): the longer of the two bounds the step from below. That holds of memory only as far as what
    operators read and write does not come from caches: there is more than 1 where much of it does.

    Timed steps need not be as long as the counted one: they are put to its computed tokens, and are less the time in
    which the loop waited for a processor that others had.
    """
    counted, could, tokens = record.counters, record.efficiency, computed_tokens(record)
    if counted.step is None or counted.step >= len(tokens) or not all(tokens[place] for place in places):
        return {}
    own = _own_seconds(record, places)
    step = tokens[counted.step] * median(second / tokens[place] for second, place in zip(own, places, strict=True))
    needs = {"arithmetic": (counted.flops, could.ceiling), "memory": (counted.moved_bytes, could.bandwidth)}
    return {name: amount / most / step for name, (amount, most) in needs.items() if amount and most and step}


def bound(shares: dict[str, float]) -> str:
    """What a step is bound by, in a word; empty where `roofline` says nothing of both."""
    if len(shares) < 2:
        return ""
    if sum(shares.values()) < NEAR:
        return "overhead"
    longer = max(shares, key=lambda name: shares[name])
    return "memory or caches" if longer == "memory" and shares[longer] > 1 else longer


def _own_seconds(record: Record, places: Sequence[int]) -> list[float]:
    """Of each step, less what it waited for a processor."""
    return [max(0.0, record.steps.seconds[place] - (queued_seconds(record, place) or 0.0)) for place in places]


def _not_faster_than_the_device(record: Record, places: Sequence[int]) -> str | None:
    """No step computes more than products of matrices alone do on that device."""
    share = utilisation(record, places)
    if share is None or share <= 1:
        return None
    return f"{share:.0%} of what the device was measured to be able to: operations or seconds are counted wrong"


def joules_per_kilotoken(record: Record, places: Sequence[int]) -> float | None:
    """Energy of a thousand real tokens of the timed steps; none where it was not counted, or too little of it.

    Counters move on every millisecond on processors and every 100 on GPUs: below a second of steps they say little.
    """
    steps = record.steps
    joules = [steps.joules[place] for place in places if place < len(steps.joules)]
    known = [each for each in joules if each is not None]
    tokens = sum(steps.real_tokens[place] for place in places)
    if len(known) < len(places) or math.fsum(steps.seconds[place] for place in places) < METERED or not tokens:
        return None
    return 1000 * math.fsum(known) / tokens


CHECKS: tuple[Check, ...] = (
    _time_passes,
    _examples_count_once,
    _clocks_agree,
    _phases_sum,
    _rate_is_samples_over_wall_time,
    _not_faster_than_the_device,
    _no_warm_up,
    _processor_was_free,
    _host_gave_the_processors,
    _gpu_was_not_shared,
    _gpu_was_not_slowed,
)
