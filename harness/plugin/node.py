"""What pytest collects of an experiment: a file, its cases, and the items that judge them."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from harness.plugin.judgement import Replay, law_function, no_regression, step_throughput, step_throughput_alone
from harness.plugin.stash import BASELINES, not_ready, session_of

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.errors import InvalidExperiment
    from harness.experiment.line import Lines
    from harness.laws import Law
    from harness.plan import Case
    from harness.record import Record


class ExperimentFile(pytest.Module):
    """One YAML file: its cases, then the laws over several of them.

    A module without a Python object, as pytest's own doctest files are: fixtures of module scope live as long as it.
    """

    obj = None
    cases: tuple[Case, ...] = ()
    own_laws: Mapping[str, Callable[..., None]] = MappingProxyType({})

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        """Read the file; a bad one is one failing item."""
        from harness import plan
        from harness.errors import InvalidExperiment
        from harness.experiment import read
        from harness.laws import LAWS, NoOptions

        self.own_laws = _own_laws(self.config, self.path)
        laws = {law.name: law.options for law in LAWS} | dict.fromkeys(self.own_laws, NoOptions)
        try:
            experiment = read(self.path, laws)
        except InvalidExperiment as error:
            yield BadFile.from_parent(self, name="valid", error=error)
            return
        given, configured = self.config.getoption("device"), self.config.getini("devices")
        try:
            check_devices("devices, in pytest's configuration", configured)
        except pytest.UsageError as error:
            raise self.CollectError(str(error)) from None
        planned = plan.cases(experiment, given or configured, root=self.config.rootpath, override=bool(given))
        self.cases = plan.expand(planned, cuda_count)
        for case in self.cases:
            yield CaseNode.from_parent(self, name=case.id, case=case)
        for law in LAWS:
            if law.axis is not None and law.name in _laws_on(self.cases) and _varies(law.axis, self.cases):
                yield _item(self, law.name, law_function(law), law, self.cases)

    @cached_property
    def lines(self) -> Lines:
        """Where the file says what, as it is when its first item runs: who only collects need not know.

        Raises:
            InvalidExperiment: it was changed since it was collected, and cannot be read.
        """
        from harness.experiment.line import Lines

        return Lines.read(self.path)

    def setup(self) -> None:
        """Under pytest-xdist, train nothing that would be lost."""
        if self.cases and hasattr(self.config, "workerinput") and (why := not_ready(self.config)):
            pytest.fail(why, pytrace=False)

    def teardown(self) -> None:
        """The file's last item is done."""
        session_of(self.config).forget(self.cases)


class BadFile(pytest.Item):
    """An experiment file that says something it may not."""

    def __init__(self, *, error: InvalidExperiment, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.error = error

    def runtest(self) -> None:
        """Fail with every mistake."""
        raise self.error

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """The mistakes are the message; no traceback."""
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int, str]:
        """The line of the first mistake."""
        return self.path, self.error.mistakes[0].line - 1, self.name


class CaseNode(pytest.Collector):
    """One case: trained once, when its first item is set up."""

    parent: ExperimentFile

    def __init__(self, *, case: Case, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.case = case
        self.record: Record | None = None

    def collect(self) -> Iterator[pytest.Item]:
        """An item a law, then the throughput."""
        from harness.laws import LAWS

        on = _laws_on((self.case,))
        for law in LAWS:
            if law.axis is None and law.name in on and (not law.slow or self._asked_for(law)):
                item = _item(self, law.name, law_function(law), law, (self.case,))
                if law.slow:
                    item.add_marker(pytest.mark.slow_invariant)
                yield item
        for name, function in self.parent.own_laws.items():
            if self.case.settings.invariants.get(name) is not False:
                yield _item(self, name, function, None, (self.case,))
        yield self._throughput()
        if BASELINES in self.config.stash:
            yield _item(self, "no_regression", no_regression, None, (self.case,))

    def _asked_for(self, law: Law) -> bool:
        """Slow laws run where the experiment names them, or the command line does; exploring has its own option."""
        if "exploration" in law.probes:
            return self.config.getoption("explore") is not None
        options = self.config.option
        named = {part for argument in self.config.args for part in argument.split("::")[1:]}
        words = f"{options.keyword} {options.markexpr}"
        asked = law.name in named or law.name in words or "slow_invariant" in words
        return asked or law.name in self.case.settings.invariants

    def _throughput(self) -> ExperimentItem:
        if not self.config.pluginmanager.hasplugin("benchmark"):
            item = _item(self, "step_throughput", step_throughput_alone, None, (self.case,))
            item.add_marker(pytest.mark.benchmark)
            return item
        item = _item(self, "step_throughput", step_throughput, None, (self.case,))
        item.add_marker(pytest.mark.benchmark(timer=Replay(), group=self.case.experiment))
        return item

    def setup(self) -> None:
        """Obtain the record, unless pytest only shows what would run."""
        if self.config.option.setupplan:
            return
        self.record = session_of(self.config).record(self.case)

    def teardown(self) -> None:
        """Let go of it."""
        self.record = None


class ExperimentItem(pytest.Function):
    """A pytest function that judges the record of its case, or the records of its file."""

    law: Law | None
    cases: tuple[Case, ...]
    answers_for: frozenset[str] = frozenset()
    """Names of the cases whose crash this item reports."""

    def runtest(self) -> None:
        """Fail for a case that crashed, or judge."""
        if isinstance(self.parent, CaseNode):
            self._tell(self.records[0])
        for record in self.records:
            crashed = record.outcome in ("crashed", "out of memory") and "trains" not in record.expect_broken
            if crashed and record.name in self.answers_for:
                said = f"{record.name}: {record.outcome}: {record.reason}\n\n{record.traceback}"
                pytest.fail(said.rstrip(), pytrace=False)
        super().runtest()

    def reportinfo(self) -> tuple[Path, int, str]:
        """It comes from the experiment, from the line that says what the law is about; from the first, where the file
        can no longer be read.

        The heading of a failure also says of which case: there is no traceback that would.
        """
        from harness.errors import InvalidExperiment
        from harness.laws.place import keys

        file = self.getparent(ExperimentFile)
        assert file is not None
        values = dict(self.cases[0].values) if len(self.cases) == 1 else {}
        line = 0
        with contextlib.suppress(InvalidExperiment):
            line = file.lines.of(keys(self.law) if self.law is not None else (), values) - 1
        return self.path, line, f"{self.name}: {self.nodeid.rpartition('::')[0]}"

    def _tell(self, record: Record) -> None:
        """Leave properties for JUnit, as `record_property` does: every item its case, one of them all figures."""
        from harness.report.junit import figures, identity

        known = identity(record) + (figures(record) if record.name in self.answers_for else ())
        self.user_properties += [each for each in known if each not in self.user_properties]

    @property
    def records(self) -> tuple[Record, ...]:
        """The records that it judges."""
        if isinstance(self.parent, CaseNode) and self.parent.record is not None:
            return (self.parent.record,)
        return tuple(session_of(self.config).record(case) for case in self.cases)


def _item(
    parent: pytest.Collector, name: str, function: Callable[..., None], law: Law | None, cases: tuple[Case, ...]
) -> ExperimentItem:
    item: ExperimentItem = ExperimentItem.from_parent(parent, name=name, callobj=function)
    item.law = law
    item.cases = cases
    return item


class Planned:
    """A plugin that notes the cases and bad files of a collection, in order."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        """By name."""
        self.errors: list[str] = []
        self.root = Path()
        """Of the session."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Look at what was collected."""
        self.root = session.config.rootpath
        for item in session.items:
            if isinstance(item, ExperimentItem):
                self.cases.update({case.name: case for case in item.cases})
            elif isinstance(item, BadFile):
                self.errors.append(str(item.error))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be collected at all."""
        if report.failed:
            self.errors.append(report.longreprtext)


def _own_laws(config: pytest.Config, path: Path) -> dict[str, Callable[..., None]]:
    """Functions marked by `harness.invariant` in the conftest.py files around an experiment, the nearest last."""
    conftests = {
        Path(file): plugin
        for plugin in config.pluginmanager.get_plugins()
        if (file := getattr(plugin, "__file__", None)) and Path(file).name == "conftest.py"
    }
    return {
        name: function
        for file, conftest in sorted(conftests.items())  # a folder sorts before what is in it
        if path.is_relative_to(file.parent)
        for name, function in vars(conftest).items()
        if getattr(function, "is_harness_invariant", False)
    }


class _Conftests:
    """A plugin that lets pytest load the `conftest.py` files around some files, and collect nothing."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.laws: dict[Path, dict[str, type[BaseModel]]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> bool:
        """Look at what was loaded; true stops other plugins from collecting."""
        from harness.laws import NoOptions

        for file in self.files:
            self.laws[file] = dict.fromkeys(_own_laws(session.config, file.absolute()), NoOptions)
        return True


def own_laws(files: Sequence[Path]) -> dict[Path, dict[str, type[BaseModel]]]:
    """The laws of the `conftest.py` files around each of the files, with their options.

    Raises:
        HarnessError: pytest cannot load them; it has said why on standard error.
    """
    from harness.errors import HarnessError

    if not files:
        return {}
    conftests = _Conftests(files)
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", *map(str, files)], plugins=[conftests])
    if not conftests.laws:
        raise HarnessError(f"pytest cannot load the conftest.py around {', '.join(map(str, files))}")
    return conftests.laws


def _laws_on(cases: Iterable[Case]) -> set[str]:
    """Laws that at least one of the cases has not turned off."""
    from harness.laws import LAWS

    return {law.name for case in cases for law in LAWS if case.settings.invariants.get(law.name) is not False}


def _varies(axis: str, cases: Iterable[Case]) -> bool:
    setting = attrgetter(axis)  # not `declared`, which spells out all settings
    return len({setting(case.settings) for case in cases}) > 1


def cuda_count() -> int:
    """How many CUDA devices there are, asked of another process: collecting never imports torch."""
    count = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


def check_devices(where: str, names: Sequence[str]) -> None:
    """Each is the name of a device, as an experiment writes it, and there is one.

    Raises:
        pytest.UsageError: a line for each that is not.
    """
    from harness.experiment import DEVICE_FORMS, check_device

    mistakes = [] if names else [f"found nothing, expected {DEVICE_FORMS}"]
    for name in names:
        try:
            check_device(name)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise pytest.UsageError("\n".join(f"{where}: {mistake}" for mistake in mistakes))
