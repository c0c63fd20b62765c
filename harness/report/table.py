"""The one table: what its columns are and how their values are written."""

from __future__ import annotations

from statistics import median

from harness.account import PHASES
from harness.laws import OUTCOMES
from harness.report.summary import Row
from harness.throughput import NotMeasured, Rate

HEADERS = ("case", "laws", "loss, first to last", "samples/s", "tokens/s", "padding", "data wait", "peak memory")


def cells(row: Row) -> tuple[str, ...]:
    """The cells of one case, as text."""
    if row.outcome != "finished":
        return (row.name, row.outcome, _losses(row), "-", "-", "-", "-", "-")
    return (row.name, laws(row), _losses(row), *_speed(row), memory(row))


STEP_HEADERS = ("case", "step", *PHASES, "padded tokens/s", "MFU", "queued", "J/1000 tokens")


def step_cells(row: Row) -> tuple[str, ...]:
    """How long a step takes and what its time goes into; empty where there is no figure."""
    speed = row.speed
    if isinstance(speed, NotMeasured):
        return ()
    shares = [f"{speed.phases[phase]:.0%}" if speed.phases else "-" for phase in PHASES]
    padded = "-" if speed.padded_tokens_per_second is None else short(speed.padded_tokens_per_second.median)
    queued = "-" if speed.queued is None else f"{speed.queued:.0%}"
    used = "-" if speed.utilisation is None else f"{speed.utilisation:.0%}"
    energy = "-" if speed.joules_per_kilotoken is None else short(speed.joules_per_kilotoken)
    return (row.name, duration(median(speed.seconds)), *shares, padded, used, queued, energy)


def duration(seconds: float) -> str:
    """In milliseconds below a second."""
    return f"{short(seconds)} s" if seconds >= 1 else f"{short(1000 * seconds)} ms"


def laws(row: Row) -> str:
    """``8 held, 1 broken``; kinds that do not occur are left out."""
    kinds = {outcome: "n/a" if outcome == "not applicable" else outcome for outcome in OUTCOMES}
    return ", ".join(f"{row.count(kind)} {word}" for kind, word in kinds.items() if row.count(kind))


def memory(row: Row) -> str:
    """In MiB; a dash where it was not measured."""
    return f"{row.memory.peak_bytes / 2**20:.0f} MiB" if row.memory.peak_bytes is not None else "-"


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
