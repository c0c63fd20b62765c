"""What became of mutants, kept in a file: an hour's work that is stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.laws import Verdict
from harness.mutation import Described, Mutant
from harness.plan import Case


@dataclass
class Journal:
    """One line of JSON for each mutant, written when it is known.

    A mutant is told by its case, all that the case declares, and the name of the fault. What the code of the harness
    was is not looked at: whoever changes it begins another file.

    Args:
        path: the file; it need not exist.

    Raises:
        HarnessError: a line is no mutant.
    """

    path: Path
    _known: dict[str, tuple[Any, list[tuple[str, str]]]] = field(default_factory=dict)
    """Outcome, and the laws that were broken with what they said."""

    def __post_init__(self) -> None:
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line)
                self._known[found["key"]] = found["outcome"], [(law, said) for law, said in found["broken"]]
            except (ValueError, LookupError, TypeError) as error:
                raise HarnessError(
                    f"{self.path}:{number}: found {line[:60].decode(errors='replace')!r}, expected a mutant as JSON"
                ) from error

    def has_all(self, case: Case, faults: Iterable[Described]) -> bool:
        """Whether nothing is left to do for a case."""
        return all(_key(case, fault) in self._known for fault in faults)

    def find(self, case: Case, fault: Described) -> Mutant | None:
        """What became of a fault in a case; none if it was not made yet."""
        found = self._known.get(_key(case, fault))
        if found is None:
            return None
        outcome, broken = found
        verdicts = (Verdict("broken", law=law, about=case.name, message=said) for law, said in broken)
        return Mutant(case, fault, outcome, tuple(verdicts))

    def add(self, mutant: Mutant) -> None:
        """Write a mutant down."""
        key = _key(mutant.case, mutant.fault)
        said = {
            "key": key,
            "case": mutant.case.name,
            "fault": mutant.fault.name,
            "outcome": mutant.outcome,
            "broken": [[verdict.law, verdict.message] for verdict in mutant.broken],
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(said) + "\n")
        self._known[key] = mutant.outcome, [(verdict.law, verdict.message) for verdict in mutant.broken]


def _key(case: Case, fault: Described) -> str:
    # Without the defaults, so that a setting which a later version brings changes nothing.
    settings = case.settings.model_dump(mode="json", exclude={"checkpoint"}, exclude_defaults=True)
    said = json.dumps([case.name, str(case.settings.checkpoint), settings, fault.name], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]
