"""The one table: what its columns are and how their values are written."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from harness.account import PHASES, bound
from harness.laws import OUTCOMES
from harness.record import Profile
from harness.report.summary import Row
from harness.throughput import NotMeasured, Rate

HEADERS = ("case", "laws", "loss, first to last", "samples/s", "tokens/s", "padding", "data wait", "peak memory")


def cells(row: Row) -> tuple[str, ...]:
    """The cells of one case, as text."""
    if row.outcome != "finished":
        return (row.name, row.outcome, _losses(row), "-", "-", "-", "-", "-")
    return (row.name, laws(row), _losses(row), *_speed(row), memory(row))


STEP_HEADERS = ("case", "step", *PHASES, "queued")


def step_cells(row: Row) -> tuple[str, ...]:
    """How long a step takes and what its time goes into; empty where there is no figure."""
    speed = row.speed
    if isinstance(speed, NotMeasured):
        return ()
    shares = [share(speed.phases.get(phase)) for phase in PHASES]
    return (row.name, duration(median(speed.seconds)), *shares, share(speed.queued))


DEVICE_HEADERS = ("case", "padded tokens/s", "MFU", "arithmetic", "memory", "bound by", "J/1000 tokens")


def device_cells(row: Row) -> tuple[str, ...]:
    """What a step makes of its device; empty where there is no figure."""
    speed = row.speed
    if isinstance(speed, NotMeasured):
        return ()
    padded = "-" if speed.padded_tokens_per_second is None else short(speed.padded_tokens_per_second.median)
    roofs = [share(speed.roofline.get(roof)) for roof in ("arithmetic", "memory")]
    energy = "-" if speed.joules_per_kilotoken is None else short(speed.joules_per_kilotoken)
    return (row.name, padded, share(speed.utilisation), *roofs, bound(speed.roofline) or "-", energy)


COUNTER_HEADERS = (
    "case", "operations", "bytes moved", "operations/byte", "kept for backward", "operators", "kernels", "host waits",
    "graph breaks",
)  # fmt: skip


def counter_cells(row: Row) -> tuple[str, ...]:
    """What was counted in a step, and where its graph was broken; empty where nothing was."""
    found = row.counters
    intensity = short(found.flops / found.moved_bytes) if found.flops and found.moved_bytes else "-"
    amounts = [_amount(found.flops), _amount(found.moved_bytes, "B"), intensity, _amount(found.saved_bytes, "B")]
    numbers = (found.operators, found.kernels, found.host_waits, row.graph_breaks)
    cells = (*amounts, *("-" if number is None else str(number) for number in numbers))
    return (row.name, *cells) if set(cells) != {"-"} else ()


OPERATOR_HEADERS = ("operator", "own time a step", "of the step", "calls a step")


def operator_cells(profile: Profile) -> list[tuple[str, ...]]:
    """A line for each of the costliest operators."""
    return [
        (
            each.name,
            duration(each.seconds / profile.steps),
            share(each.seconds / profile.seconds if profile.seconds else None),
            short(each.calls / profile.steps),
        )
        for each in profile.operators
    ]


def used(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The same without columns in which no row has anything."""
    places = [place for place in range(len(headers)) if any(row[place] != "-" for row in rows)]
    return [headers[place] for place in places], [[row[place] for place in places] for row in rows]


def share(part: float | None) -> str:
    """In percent; a dash where it is not known."""
    return "-" if part is None else f"{part:.0%}"


def _amount(number: int | None, unit: str = "") -> str:
    """With three digits, in thousands of thousands: ``1.44e+11`` is ``144 G``."""
    if number is None:
        return "-"
    power = max((power for power in range(len(PREFIXES)) if number >= 1000**power), default=0)
    return f"{short(number / 1000**power)} {PREFIXES[power]}{unit}".strip()


PREFIXES = ("", "k", "M", "G", "T", "P")
"""Of powers of 1000."""


def duration(seconds: float) -> str:
    """In milliseconds below a second."""
    return f"{short(seconds)} s" if seconds >= 1 else f"{short(1000 * seconds)} ms"


def laws(row: Row) -> str:
    """``8 held, 1 broken``; kinds that do not occur are left out."""
    kinds = {outcome: "n/a" if outcome == "not applicable" else outcome for outcome in OUTCOMES}
    return ", ".join(f"{row.count(kind)} {word}" for kind, word in kinds.items() if row.count(kind))


def memory(row: Row) -> str:
    """In MiB, with what was reserved for it; a dash where it was not measured."""
    peak, reserved = row.memory.peak_bytes, row.memory.reserved_bytes
    if peak is None:
        return "-"
    return mebibytes(peak) + (f" ({reserved / 2**20:.0f} reserved)" if reserved is not None else "")


def mebibytes(number: float) -> str:
    """Of bytes."""
    return f"{number / 2**20:.0f} MiB"


def _losses(row: Row) -> str:
    if row.first_loss is None or row.last_loss is None:
        return "-"
    return f"{row.first_loss:.4f} to {row.last_loss:.4f}"


def _speed(row: Row) -> tuple[str, str, str, str]:
    speed = row.speed
    if isinstance(speed, NotMeasured):
        return ("invalid", "invalid", "-", "-")
    wait = "-" if speed.data_wait is None else f"{speed.data_wait:.1%}"
    return (_rate(speed.samples_per_second), _rate(speed.tokens_per_second), f"{speed.padding:.0%}", wait)


def _rate(rate: Rate) -> str:
    return f"{short(rate.median)} ({short(rate.low)} to {short(rate.high)})"


def short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def printable(text: str) -> str:
    """Text of an experiment must not command the terminal: control characters are spelled out."""
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)
