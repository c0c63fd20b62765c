"""What a library's loop costs: its time per step over that of the loop that is written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from harness.record import Record
from harness.throughput import NotMeasured, throughput


@dataclass(frozen=True)
class Overhead:
    """Median time per step of a case beside that of the custom loop's, of what is otherwise the same case."""

    name: str
    """``FILE::CASE``."""
    seconds: float
    custom: float
    """Seconds of the custom loop's step."""

    @property
    def ratio(self) -> float:
        """1 is no overhead, 2 twice the time."""
        return self.seconds / self.custom

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({1e3 * self.seconds:.3g} ms, custom {1e3 * self.custom:.3g} ms)"


def overheads(records: Sequence[Record]) -> tuple[Overhead, ...]:
    """Of each case in another loop that has a counterpart in the custom one, where both were measured."""
    measured = {record.name: _seconds(record) for record in records}
    bases = {_rest(record): record for record in records if record.settings.get("train.loop") == "custom"}
    found = []
    for record in records:
        base = bases.get(_rest(record))
        if base is None or base.name == record.name:
            continue
        mine, custom = measured[record.name], measured[base.name]
        if mine is not None and custom is not None:
            found.append(Overhead(record.name, mine, custom))
    return tuple(found)


def _seconds(record: Record) -> float | None:
    speed = throughput(record)
    return None if isinstance(speed, NotMeasured) else median(speed.seconds)


def _rest(record: Record) -> str:
    """Everything that is declared but the loop."""
    settings = sorted((key, value) for key, value in record.settings.items() if key != "train.loop")
    return repr((record.experiment, settings))
