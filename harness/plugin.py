"""The pytest plugin: options, collecting, items, terminal summary."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache, cached_property, partial
from inspect import signature
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # what a run without experiments should not have to import
    from harness.compare.baseline import Baselines
    from harness.engines import Engine
    from harness.errors import InvalidExperiment
    from harness.experiment.line import Lines
    from harness.github import Actions
    from harness.laws import Law, Verdict
    from harness.plan import Case
    from harness.record import Record
    from harness.report import Summary
    from harness.session import Session
    from harness.store import Store
    from harness.throughput import Throughput

STORE: pytest.StashKey[Store] = pytest.StashKey()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
SUMMARY: pytest.StashKey[Summary] = pytest.StashKey()
BASELINES: pytest.StashKey[Baselines] = pytest.StashKey()
ACTIONS: pytest.StashKey[Actions] = pytest.StashKey()

SUFFIXES = (".yaml", ".yml")
EXPERIMENT_FILES = ("experiments/*.yaml", "experiments/*.yml", "*/experiments/*.yaml", "*/experiments/*.yml")


# Options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Few options: the experiment file is the interface."""
    group = parser.getgroup("finetune", "fine-tuning experiments")
    group.addoption(
        "--device",
        action="append",
        metavar="NAME",
        help="run every experiment on this device instead of those it names: cpu, cuda, cuda:1, cuda:all, mps. "
        "May be given several times.",
    )
    group.addoption(
        "--reports",
        metavar="DIR",
        help="where records and reports go (default: reports/ below the root directory)",
    )
    group.addoption(
        "--explore",
        type=int,
        metavar="N",
        help="also search for texts that break a law: hypothesis makes up N small data sets for each case, and shows "
        "the smallest that does",
    )
    group.addoption(
        "--baseline",
        metavar="PATH",
        help="also compare each case with its line in this file, which `harness baseline accept` writes",
    )
    parser.addini("devices", "devices of experiments that name none", type="args", default=["cpu"])
    parser.addini(
        "experiment_files",
        "which files are experiments: patterns over the path relative to the root directory (* also matches /)",
        type="args",
        default=list(EXPERIMENT_FILES),
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Offer the engine hook."""
    from harness import hooks

    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Register marks, and check what the command line says."""
    config.addinivalue_line("markers", "invariant: a law of a fine-tuning experiment")
    config.addinivalue_line("markers", "slow_invariant: a law whose evidence takes more trainings; select it to run it")
    if not config.pluginmanager.hasplugin("benchmark"):
        config.addinivalue_line("markers", "benchmark: the throughput of a fine-tuning experiment")
    if given := config.getoption("device"):
        _check_devices("--device", given)
    explore = config.getoption("explore")
    if explore is not None and explore < 1:
        raise pytest.UsageError(f"--explore: found {explore}, expected a number of data sets, 1 or more")
    if given := config.getoption("baseline"):
        config.stash[BASELINES] = _baselines(config.invocation_params.dir / given)
    if _reports(config).exists() and not _reports(config).is_dir():
        raise pytest.UsageError(f"--reports: found {_reports(config)}, which is a file, expected a folder")
    if os.environ.get("GITHUB_ACTIONS") == "true" and not hasattr(config, "workerinput"):
        from harness.github import Actions

        config.stash[ACTIONS] = Actions.of(config.rootpath, os.environ)
        config.pluginmanager.register(config.stash[ACTIONS], "finetune-github")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give every pytest-xdist worker the name of this run."""
    node.workerinput["harness_run"] = _store(node.config).run


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let the items of one experiment stay on one pytest-xdist worker: the items of a case share a training."""
    if config.getoption("dist") != "load":
        return None  # the person chose another way
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist may be absent
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith(SUFFIXES) else nodeid

    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_harness_engine(config: pytest.Config) -> Engine:
    """Run cases in this process, with a progress line if somebody is watching."""
    from harness.engines.inline import Inline
    from harness.progress import ProgressLine

    # Asked of the reporter: while a test runs, stdout itself is a file that pytest captures it in.
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if hasattr(config, "workerinput") or reporter is None or not reporter.isatty:
        return Inline(config.rootpath)
    line = ProgressLine.on_tty()
    config.add_cleanup(line.close)
    return Inline(config.rootpath, progress=line)


def _session(config: pytest.Config) -> Session:
    """The one object of this session, made when it is first needed."""
    if SESSION not in config.stash:
        from harness.session import Session

        make_engine = partial(config.hook.pytest_harness_engine, config=config)
        config.stash[SESSION] = Session(_store(config), make_engine, config.getoption("explore") or 0)
    return config.stash[SESSION]


def _store(config: pytest.Config) -> Store:
    """Where records of this run go; pytest-xdist workers and their controller share the run."""
    if STORE not in config.stash:
        from harness.store import Store, new_run

        worker: dict[str, str] = getattr(config, "workerinput", {})
        run = worker.get("harness_run") or new_run()
        config.stash[STORE] = Store(_reports(config), run, worker.get("workerid", ""))
    return config.stash[STORE]


def _reports(config: pytest.Config) -> Path:
    given = config.getoption("reports")
    return config.invocation_params.dir / given if given else config.rootpath / "reports"


def _baselines(path: Path) -> Baselines:
    """The baseline file.

    Raises:
        pytest.UsageError: it cannot be read.
    """
    from harness.compare import baseline
    from harness.errors import HarnessError

    try:
        return baseline.read(path)
    except HarnessError as error:
        raise pytest.UsageError(f"--baseline: {error}") from None


def _check_devices(where: str, names: Sequence[str]) -> None:
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


# Collecting


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ExperimentFile | None:
    """Take the YAML files that the `experiment_files` patterns name, or that are given on the command line.

    Files and folders whose names begin with `_` hold bases for others.
    """
    if file_path.suffix not in SUFFIXES:
        return None
    path = os.path.relpath(file_path, parent.config.rootpath).replace(os.sep, "/")
    is_base = any(part.startswith("_") for part in path.split("/"))
    listed = any(fnmatch(path, pattern) for pattern in parent.config.getini("experiment_files"))
    if parent.session.isinitpath(file_path) or (listed and not is_base):
        return ExperimentFile.from_parent(parent, path=file_path)
    return None


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
            _check_devices("devices, in pytest's configuration", configured)
        except pytest.UsageError as error:
            raise self.CollectError(str(error)) from None
        planned = plan.cases(experiment, given or configured, root=self.config.rootpath, override=bool(given))
        self.cases = plan.expand(planned, _cuda_count)
        for case in self.cases:
            yield CaseNode.from_parent(self, name=case.id, case=case)
        for law in LAWS:
            if law.axis is not None and law.name in _laws_on(self.cases) and _varies(law.axis, self.cases):
                yield _item(self, law.name, _law_function(law), law, self.cases)

    @cached_property
    def lines(self) -> Lines:
        """Where the file says what; read again, for most runs never ask."""
        from harness.experiment.line import Lines

        return Lines.read(self.path)

    def teardown(self) -> None:
        """The file's last item is done."""
        _session(self.config).forget(self.cases)


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
                item = _item(self, law.name, _law_function(law), law, (self.case,))
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
        words = " ".join([*self.config.args, options.keyword, options.markexpr])
        return law.name in self.case.settings.invariants or law.name in words or "slow_invariant" in words

    def _throughput(self) -> ExperimentItem:
        if not self.config.pluginmanager.hasplugin("benchmark"):
            item = _item(self, "step_throughput", step_throughput_alone, None, (self.case,))
            item.add_marker(pytest.mark.benchmark)
            return item
        item = _item(self, "step_throughput", step_throughput, None, (self.case,))
        item.add_marker(pytest.mark.benchmark(timer=Replay(), group=self.case.experiment))
        return item

    def setup(self) -> None:
        """Obtain the record."""
        self.record = _session(self.config).record(self.case)

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
                pytest.fail(f"{record.name}: {record.outcome}: {record.reason}\n\n{record.traceback}", pytrace=False)
        super().runtest()

    def reportinfo(self) -> tuple[Path, int, str]:
        """It comes from the experiment, from the line that says what the law is about."""
        from harness.laws.place import keys

        file = self.getparent(ExperimentFile)
        assert file is not None
        values = dict(self.cases[0].values) if len(self.cases) == 1 else {}
        return self.path, file.lines.of(keys(self.law) if self.law is not None else (), values) - 1, self.name

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
        return tuple(_session(self.config).record(case) for case in self.cases)


def _item(
    parent: pytest.Collector, name: str, function: Callable[..., None], law: Law | None, cases: tuple[Case, ...]
) -> ExperimentItem:
    item: ExperimentItem = ExperimentItem.from_parent(parent, name=name, callobj=function)
    item.law = law
    item.cases = cases
    return item


def pytest_collection_finish(session: pytest.Session) -> None:
    """Selected laws say which probes their cases run; of the selected items of a case one answers for a crash."""
    items = [item for item in session.items if isinstance(item, ExperimentItem)]
    answered: set[str] = set()
    # `trains`, or where it is not selected, or skipped as `--benchmark-only` does it, the first of the others
    for item in sorted(items, key=lambda item: (item.get_closest_marker("skip") is not None, item.name != "trains")):
        names = frozenset(case.name for case in item.cases)
        item.answers_for = names - answered
        answered |= names
        if item.law is not None:
            _session(session.config).want(item.law, item.cases)


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


def _laws_on(cases: Iterable[Case]) -> set[str]:
    """Laws that at least one of the cases has not turned off."""
    from harness.laws import LAWS

    return {law.name for case in cases for law in LAWS if case.settings.invariants.get(law.name) is not False}


def _varies(axis: str, cases: Iterable[Case]) -> bool:
    setting = attrgetter(axis)  # not `declared`, which spells out all settings
    return len({setting(case.settings) for case in cases}) > 1


def _cuda_count() -> int:
    """How many CUDA devices there are, asked of another process: collecting never imports torch."""
    count = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


# Items


@cache
def _law_function(law: Law) -> Callable[..., None]:
    """The pytest function of a law: it judges the records of its item."""

    def check(request: pytest.FixtureRequest) -> None:
        from harness.laws import judge, judge_together

        records = request.node.records
        (verdict,) = judge(records[0], [law]) if law.axis is None else judge_together(records, [law])
        _settle(verdict)

    check.__doc__ = law.statement
    check.__signature__ = signature(check)  # type: ignore[attr-defined]  # which pytest asks for with every item
    return pytest.mark.invariant(check)


def _settle(verdict: Verdict) -> None:
    """Let a verdict be the outcome of the running item."""
    if verdict.outcome == "broken":
        pytest.fail(verdict.message + (f"\nlikely cause: {verdict.cause}" if verdict.cause else ""), pytrace=False)
    if verdict.outcome == "expected":
        pytest.xfail(f"{verdict.cause}: {verdict.message}")
    if verdict.outcome != "held":
        prefix = f"{verdict.outcome}: " if verdict.outcome in ("vacuous", "invalid") else ""
        pytest.skip(prefix + verdict.message)


class Replay:
    """A clock for pytest-benchmark that returns the recorded samples.

    pytest-benchmark reads its timer before and after each round: each pair of readings is one sample apart.
    """

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, seconds: Iterable[float]) -> None:
        """The samples of the next rounds, in seconds."""
        self._readings = (reading for second in seconds for reading in (0.0, second))

    def __call__(self) -> float:
        return next(self._readings)


def step_throughput(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """The measured steps, replayed into pytest-benchmark: its table, JSON and comparisons show these very samples."""
    speed = _speed(request)
    clock: Replay = request.node.get_closest_marker("benchmark").kwargs["timer"]
    clock.load(speed.seconds)
    benchmark.name = request.node.cases[0].id  # the table shows names; `fullname` stays the node id
    benchmark.extra_info.update(
        samples_per_second=speed.samples_per_second.median,
        tokens_per_second=speed.tokens_per_second.median,
        padding=speed.padding,
        warmup_steps=speed.warmup_steps,
    )
    benchmark.pedantic(lambda: None, rounds=len(speed.seconds))


def step_throughput_alone(request: pytest.FixtureRequest) -> None:
    """Without pytest-benchmark the figures are in the harness's own report."""
    _speed(request)


def no_regression(request: pytest.FixtureRequest) -> None:
    """The case is not slower than its baseline, and its loss goes where the baseline's does."""
    from harness.compare import NotComparable
    from harness.compare.baseline import against
    from harness.laws import not_finished
    from harness.report import comparison_lines

    (record,) = request.node.records
    if not record.finished:
        pytest.skip(not_finished(record))
    baselines = request.config.stash[BASELINES]
    baseline = baselines.of(record)
    if baseline is None:
        others = ", ".join(baselines.elsewhere(record))
        pytest.skip(f"no baseline on {record.environment.device}" + (f", there is one on {others}" if others else ""))
    among = sum(item.name == "no_regression" for item in request.session.items)
    try:
        pair = against(baseline, record, among=among)
    except NotComparable as error:
        pytest.fail(f"{error.listed}\nrenew it with harness baseline accept", pytrace=False)
    said = "\n".join([f"{pair.verdict}, baseline of {baseline.accepted:%Y-%m-%d}", *comparison_lines(pair)])
    if pair.fails:
        pytest.fail(said, pytrace=False)
    if pair.verdict == "undecided":
        pytest.skip(said)


def _speed(request: pytest.FixtureRequest) -> Throughput:
    from harness.laws import not_finished
    from harness.throughput import NotMeasured, throughput

    (record,) = request.node.records
    if not record.finished:
        pytest.skip(not_finished(record))
    speed = throughput(record)
    if isinstance(speed, NotMeasured):
        pytest.skip(f"invalid: {speed.reason}")
    return speed


# Fixtures, for laws of one's own


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The case whose training a law of one's own judges: its settings are in `case.settings`."""
    found: Case = request.node.cases[0]
    return found


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """What the training left. Skips where it did not finish: `trains` fails for that."""
    from harness.laws import not_finished

    found: Record = request.node.records[0]
    if not found.finished:
        pytest.skip(not_finished(found))
    return found


# Reporting


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say where reports go, if devices were asked for on the command line which those are."""
    given = config.getoption("device")
    return f"finetune: devices {', '.join(given)} (--device)" if given else None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let go of the engine, and leave the report; workers of pytest-xdist leave that to their controller."""
    config = session.config
    if SESSION in config.stash:
        config.stash[SESSION].close()
    if hasattr(config, "workerinput"):
        return
    if STORE in config.stash and config.stash[STORE].files:
        from harness.report import markdown, summarise

        reading = config.stash[STORE].read()
        config.stash[SUMMARY] = summary = summarise(reading.records, reading.problems)
        (_reports(config) / "latest.md").write_text(markdown(summary), encoding="utf-8")
    if ACTIONS in config.stash:
        config.stash[ACTIONS].write(config.stash.get(SUMMARY, None))


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark's raises where a benchmark has regressed
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of all cases that ran."""
    if SUMMARY in config.stash:
        from harness.report import terminal

        terminalreporter.section("fine-tuning")
        terminalreporter.write_line(terminal(config.stash[SUMMARY]))
        terminalreporter.write_line(f"report: {os.path.relpath(_reports(config) / 'latest.md')}")
    if ACTIONS in config.stash:
        for command in config.stash[ACTIONS].commands(config.stash.get(SUMMARY, None)):
            terminalreporter.write_line(command)
