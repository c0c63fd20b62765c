"""Records and verdicts to one value that every report is printed from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.errors import count
from harness.laws import LAWS, OUTCOMES, Verdict, judge, judge_together
from harness.laws.causes import Finding, findings
from harness.record import Counters, Environment, Evaluation, Memory, Profile, Record
from harness.report.overhead import Overhead, overheads
from harness.throughput import NotMeasured, Throughput, throughput


@dataclass(frozen=True)
class Row:
    """One case."""

    name: str
    outcome: str
    reason: str
    verdicts: tuple[Verdict, ...]
    first_loss: float | None
    last_loss: float | None
    speed: Throughput | NotMeasured
    memory: Memory
    chosen: tuple[str, ...] = ()
    """What was chosen for the experiment, and why."""
    evaluation: Evaluation | None = None
    """Where rows to evaluate on are declared, and were evaluated on."""
    compiling: tuple[float, ...] = ()
    """Seconds that each step spent on compiling which compiled something."""
    counters: Counters = field(default_factory=Counters)
    uncounted: tuple[str, ...] = ()
    """Why nothing was counted in a step, or of what it computes."""
    graph_breaks: int | None = None
    """None where nothing is compiled."""
    profile: Profile | None = None

    @property
    def compiled(self) -> str:
        """What compiling took, in words; empty where nothing was compiled."""
        steps = count(len(self.compiling), "step")
        return f"compiling took {sum(self.compiling):.1f} s in {steps}, not timed" if self.compiling else ""

    def count(self, outcome: str) -> int:
        """How many verdicts of that kind."""
        return sum(verdict.outcome == outcome for verdict in self.verdicts)


@dataclass(frozen=True)
class Cost:
    """What evidence took, over all cases."""

    evidence: str
    """The probe; or ``watching``, for what is seen of each training step with its clock stopped."""
    laws: tuple[str, ...]
    """Those that read it."""
    seconds: float


@dataclass(frozen=True)
class Summary:
    """Everything that a report shows."""

    rows: tuple[Row, ...]
    agreements: tuple[Verdict, ...]
    """Verdicts over several cases of a file."""
    environments: tuple[Environment, ...]
    problems: tuple[str, ...] = ()
    """Lines of record files that could not be used."""
    costs: tuple[Cost, ...] = ()
    """Of the laws, the dearest first."""
    seconds: float = 0.0
    """All cases together, laws included."""
    overheads: tuple[Overhead, ...] = ()
    """Of the loops of libraries, where the same is also trained in the custom one."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The broken laws, each under the one that explains it."""
        alone = [verdict for row in self.rows for verdict in row.verdicts if verdict.outcome == "broken"]
        return findings(alone, [verdict for verdict in self.agreements if verdict.outcome == "broken"])

    def unjudged(self, outcome: str) -> tuple[Verdict, ...]:
        """Verdicts of that kind, ``invalid`` or ``vacuous``, over finished cases: what a reader may take for held."""
        alone = [verdict for row in self.rows if row.outcome == "finished" for verdict in row.verdicts]
        return tuple(verdict for verdict in [*alone, *self.agreements] if verdict.outcome == outcome)

    @property
    def tally(self) -> str:
        """``3 cases: 2 finished, 1 skipped; laws: 18 held, 1 broken``."""
        outcomes = Counter(row.outcome for row in self.rows)
        verdicts = Counter(
            verdict.outcome for verdict in [*(v for row in self.rows for v in row.verdicts), *self.agreements]
        )
        cases = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()) or "none finished"
        laws = ", ".join(f"{verdicts[kind]} {kind}" for kind in OUTCOMES[:-1] if verdicts[kind])
        return f"{len(self.rows)} case{'s' * (len(self.rows) != 1)}: {cases}; laws: {laws or 'none judged'}"


def summarise(records: Iterable[Record], problems: Sequence[str] = ()) -> Summary:
    """Judge records and gather what reports show. Of several records of one case the last counts."""
    last = tuple({record.name: record for record in records}.values())
    environments = dict.fromkeys(record.environment.model_dump_json() for record in last if record.finished)
    return Summary(
        rows=tuple(_row(record) for record in last),
        agreements=tuple(verdict for verdict in judge_together(last) if verdict.outcome != "not applicable"),
        environments=tuple(Environment.model_validate_json(environment) for environment in environments),
        problems=tuple(problems),
        costs=_costs(last),
        seconds=math.fsum(record.seconds for record in last),
        overheads=overheads(last),
    )


def _costs(records: Sequence[Record]) -> tuple[Cost, ...]:
    seconds = {"watching": math.fsum(second for record in records for second in record.steps.watching_seconds)}
    for record in records:
        for probe, taken in record.probe_seconds.items():
            seconds[probe] = seconds.get(probe, 0.0) + taken
    costs = (Cost(name, _readers(name), taken) for name, taken in seconds.items() if taken)
    return tuple(sorted(costs, key=lambda cost: -cost.seconds))


def _readers(evidence: str) -> tuple[str, ...]:
    return tuple(law.name for law in LAWS if (evidence in law.probes or (evidence == "watching" and not law.probes)))


def _row(record: Record) -> Row:
    losses = record.steps.losses
    return Row(
        name=record.name,
        outcome=record.outcome,
        reason=record.reason,
        verdicts=judge(record),
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        speed=throughput(record),
        memory=record.memory,
        chosen=tuple(_chosen(record)),
        evaluation=record.evaluation if record.evaluation is not None and record.evaluation.scores else None,
        compiling=tuple(seconds for seconds in record.steps.compile_seconds if seconds > 0),
        counters=record.counters,
        uncounted=tuple(why for why in (record.counters.reason, record.efficiency.reason) if why),
        graph_breaks=sum(record.compilation.breaks.values())
        if record.compilation and record.compilation.backend
        else None,
        profile=record.profile,
    )


def _chosen(record: Record) -> Iterator[str]:
    """What tokenizer and optimizer were given, how attention is computed where nobody says, whether freed memory is
    kept and the model compiled; and why.
    """
    for part in (record.tokenizer, record.optimizer):
        yield from part.reasons.values() if part is not None else ()
    start = record.checkpoint
    if start is not None and start.attention and start.attention_reason and not record.settings.get("train.attention"):
        yield f"attention is {start.attention}: {start.attention_reason}"
    if record.memory.freed:
        yield record.memory.freed
    if record.compilation is not None and record.compilation.reason:
        yield record.compilation.reason
