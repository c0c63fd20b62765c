"""A law is a pure function of evidence; a verdict is what it says."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from harness.record import Record

Outcome = Literal["held", "broken", "expected", "vacuous", "invalid", "not applicable"]
OUTCOMES: tuple[Outcome, ...] = typing.get_args(Outcome)


@dataclass(frozen=True)
class Verdict:
    """What a law says of a record, or of several.

    `invalid` is not `broken`: the evidence cannot carry a judgement, and `message` says why. `expected` is broken as
    the experiment says it would be.
    """

    outcome: Outcome
    message: str
    """Tensor, step, numbers: what was found, and where it is not `held`, what was expected."""
    cause: str = ""
    """The likely cause, where it is broken."""
    law: str = ""
    about: str = ""
    """``FILE::CASE``, or the file of an agreement."""
    between: tuple[str, ...] = ()
    """The cases that do not agree, where it is broken."""
    error: Exception | None = field(default=None, compare=False)
    """What the law stumbled over, where it is invalid for that: its evidence is not what probes leave, or the law is
    wrong."""


def held(message: str) -> Verdict:
    """The law held."""
    return Verdict("held", message)


def vacuous(message: str) -> Verdict:
    """Nothing was found, and nothing could have been: the law had no power over this case."""
    return Verdict("vacuous", message)


def broken(message: str, cause: str = "", between: tuple[str, ...] = ()) -> Verdict:
    """The training breaks the law."""
    return Verdict("broken", message, cause, between=between)


def not_applicable(message: str) -> Verdict:
    """The law says nothing about this case."""
    return Verdict("not applicable", message)


def invalid(message: str) -> Verdict:
    """The evidence cannot carry a judgement."""
    return Verdict("invalid", message)


def probed(record: Record, probe: str) -> Mapping[str, Any] | Verdict:
    """What a probe left, or the verdict of a law that cannot do without."""
    step = record.steps.first_not_finite
    if step is not None:
        return not_applicable(f"the loss is {record.steps.loss[step]} at step {step + 1}: see loss_finite")
    evidence = record.probes.get(probe)
    if evidence is None:
        return not_applicable(f"the probe {probe} did not run")
    if "error" in evidence:
        return invalid(f"the probe {probe} failed: {evidence['error']}")
    return evidence


class NoOptions(BaseModel):
    """The options of a law that has none."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Law:
    """A named statement about a training, and the function that judges it."""

    name: str
    statement: str
    """One line: what holds."""
    reason: str
    """Why it is asked, and the source of every threshold: the rest of the function's docstring."""
    function: Callable[..., Verdict]
    options: type[BaseModel]
    """What an experiment may set under ``invariants``; made from the function's keyword-only parameters."""
    probes: frozenset[str] = frozenset()
    """Probes whose evidence it reads."""
    axis: str | None = None
    """The dotted key in which the cases it compares differ; none where it judges each record alone."""
    slow: bool = False
    """Its probes train again: it runs where it is asked for."""
    on_failure: bool = False
    """It also judges a case that did not come to its end."""

    def judge(self, evidence: Record | Sequence[Record], about: str) -> Verdict:
        """Judge a record, or records where the law has an `axis`, under what the experiment declares of laws."""
        first = evidence if isinstance(evidence, Record) else evidence[0]
        setting = first.invariants.get(self.name, True)
        if setting is False:
            verdict = not_applicable("turned off by the experiment")
        else:
            verdict = self._judge(evidence, setting if isinstance(setting, dict) else {})
        if (reason := first.expect_broken.get(self.name)) is not None:
            verdict = _as_expected(verdict, reason)
        return replace(verdict, law=self.name, about=about)

    def _judge(self, evidence: Record | Sequence[Record], said: dict[str, Any]) -> Verdict:
        """What the function says. A stored record may be of another version, or changed by hand: where the law cannot
        read it, it says so, and other laws go on.
        """
        try:
            options = self.options.model_validate(said)
            return self.function(evidence, **{name: getattr(options, name) for name in type(options).model_fields})
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            why = f"it cannot read the evidence: {type(error).__name__}: {error}"
            return Verdict("invalid", " ".join(why.split()), error=error)


def _as_expected(verdict: Verdict, reason: str) -> Verdict:
    """Broken is what was expected; anything that says it is not broken is news."""
    if verdict.outcome == "broken":
        return replace(verdict, outcome="expected", cause=reason)
    if verdict.outcome in ("held", "vacuous"):
        return broken(
            f"expected to be broken ({reason}), and it is {verdict.outcome}: {verdict.message}",
            cause="what was wrong is mended: take it out of expect_broken",
        )
    return verdict


def law(
    *, probes: Sequence[str] = (), axis: str | None = None, slow: bool = False, on_failure: bool = False
) -> Callable[[Callable[..., Verdict]], Law]:
    """Make a law of a function ``(record, *, option=default, ...) -> Verdict`` (``(records, ...)`` with an `axis`).

    The first line of its docstring is the statement, the rest the reason. Nothing is registered: a law is judged
    where it is listed (`harness.laws.LAWS`).
    """

    def make(function: Callable[..., Verdict]) -> Law:
        statement, _, reason = (inspect.getdoc(function) or "").partition("\n")
        return Law(
            name=function.__name__,
            statement=statement,
            reason=reason.strip(),
            function=function,
            options=_options(function, statement),
            probes=frozenset(probes),
            axis=axis,
            slow=slow,
            on_failure=on_failure,
        )

    return make


def _options(function: Callable[..., Verdict], statement: str) -> type[BaseModel]:
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        parameter.name: (hints[parameter.name], parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    config = ConfigDict(extra="forbid", strict=True, frozen=True)
    # Editors show the statement beside the options.
    return create_model(f"{function.__name__}_options", __config__=config, __doc__=statement, **fields)
