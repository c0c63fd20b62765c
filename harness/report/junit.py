"""Properties of test cases in JUnit XML: what a machine reads of a case beside passed and failed."""

from __future__ import annotations

from collections.abc import Iterator

from harness.record import Record
from harness.throughput import NotMeasured, throughput

Property = tuple[str, str]


def identity(record: Record) -> tuple[Property, ...]:
    """What says which case an item is of: of every item."""
    return (("case", record.name), ("device", record.environment.device or str(record.settings.get("device", ""))))


def figures(record: Record) -> tuple[Property, ...]:
    """What there is to know of a case: of one item of it.

    A rate is the median of the timed steps; `.low` and `.high` are the slowest and the fastest of them.
    """
    return tuple(_figures(record))


def _figures(record: Record) -> Iterator[Property]:
    yield "outcome", record.outcome
    speed = throughput(record)
    if isinstance(speed, NotMeasured):
        yield "not_measured", speed.reason
    else:
        for name in ("samples_per_second", "tokens_per_second"):
            rate = getattr(speed, name)
            yield name, f"{rate.median:.6g}"
            yield f"{name}.low", f"{rate.low:.6g}"
            yield f"{name}.high", f"{rate.high:.6g}"
        yield "timed_steps", str(len(speed.seconds))
    if record.memory.peak_bytes is not None:
        yield "peak_bytes", str(record.memory.peak_bytes)
    if losses := record.steps.losses:
        yield "loss_first", repr(losses[0])
        yield "loss_last", repr(losses[-1])
    if record.checkpoint is not None and record.checkpoint.digest:
        yield "weights_digest", record.checkpoint.digest
    if "data.digest" in record.settings:
        yield "data_digest", str(record.settings["data.digest"])
    if record.environment.commit:
        yield "commit", record.environment.commit
    for name, version in record.environment.versions.items():
        yield f"version.{name}", version
