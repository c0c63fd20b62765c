"""Whether the case trained at all."""

from __future__ import annotations

from harness.laws.law import Verdict, broken, held, law, not_applicable
from harness.record import Record


@law(on_failure=True)
def trains(record: Record) -> Verdict:
    """The case loads, trains every step it declares, and comes to its end.

    Running out of memory breaks it, too: a set-up that does not fit on the device does not train.
    """
    if record.outcome == "skipped":
        return not_applicable(record.reason)
    if not record.finished:
        return broken(f"{record.outcome}: {record.reason}")
    done, declared = len(record.steps.loss), record.settings["train.steps"]
    if done != declared:
        return broken(
            f"{done} training steps were taken, train.steps declares {declared}",
            cause="the loop stops early, or goes on too long",
        )
    return held(f"{done} steps in {record.seconds:.1f} s")
