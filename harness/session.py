"""One pytest session: asks the engine for records, stores them, and lets each be had again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from harness.engines import Engine
from harness.exploration import Exploration, Trial
from harness.laws import Law
from harness.laws.exploration import explored
from harness.plan import Case
from harness.record import Record
from harness.store import Store


@dataclass
class Session:
    """What the items of a session share."""

    store: Store
    make_engine: Callable[[], Engine]
    explore: int = 0
    """How many data sets are made up for a case whose laws ask for it."""
    profile: bool = False
    """Whether each case is profiled, too."""
    _engine: Engine | None = None
    _records: dict[str, Record] = field(default_factory=dict)
    """Of the file whose items are running."""
    _stored: set[str] = field(default_factory=set)
    _wanted: dict[str, list[tuple[Law, tuple[Case, ...]]]] = field(default_factory=dict)
    _devices: dict[str, bool] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        """Made when the first case needs it."""
        if self._engine is None:
            self._engine = self.make_engine()
        return self._engine

    def want(self, law: Law, cases: tuple[Case, ...]) -> None:
        """A selected law will judge these cases: they run the probes that it needs."""
        if law.probes:
            for case in cases:
                self._wanted.setdefault(case.name, []).append((law, cases))

    def record(self, case: Case) -> Record:
        """The record of a case: run now, and stored before anybody sees it; or had before.

        Raises:
            KeyboardInterrupt: the person stopped it, after its record was stored.
        """
        if case.name not in self._records:
            self._records[case.name] = self._read(case) if case.name in self._stored else self._run(case)
        return self._records[case.name]

    def forget(self, cases: Iterable[Case]) -> None:
        """Nobody will ask for these soon: they stay in the store only."""
        for case in cases:
            self._records.pop(case.name, None)

    def close(self) -> None:
        """No more cases."""
        if self._engine is not None:
            self._engine.close()

    def _run(self, case: Case) -> Record:
        probes = self._probes(case)
        exploration = self._exploration(case) if "exploration" in probes else None
        trace = self.store.trace(case.name) if self.profile else None
        record = self.engine.submit(replace(case, probes=probes, exploration=exploration, trace=trace))
        self.store.append(record)
        self._remember(record)
        self._stored.add(case.name)
        if record.outcome == "interrupted":
            raise KeyboardInterrupt
        return record

    def _read(self, case: Case) -> Record:
        return next(record for record in reversed(self.store.read().records) if record.name == case.name)

    def _probes(self, case: Case) -> frozenset[str]:
        """What the selected laws need; devices that are not here leave nothing to compare."""
        return frozenset(
            probe
            for law, cases in self._wanted.get(case.name, ())
            if law.axis != "device" or sum(map(self._has, {each.settings.device for each in cases})) > 1
            for probe in law.probes
        )

    def _exploration(self, case: Case) -> Exploration:
        return Exploration(self.explore, self.store.trials(case.experiment), explored)

    def _remember(self, record: Record) -> None:
        """Keep what was found for the next time: of all cases of the experiment."""
        if (found := record.probes.get("exploration", {}).get("found")) is not None:
            self.store.remember(record.experiment, Trial(tuple(found["sequences"]), found["batch_size"]))

    def _has(self, device: str | None) -> bool:
        device = device or ""
        if device not in self._devices:
            self._devices[device] = self.engine.unavailable(device) is None
        return self._devices[device]
