"""The pytest plugin: options, collecting, items, terminal summary."""

from __future__ import annotations

import os
from collections.abc import Generator
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.plugin.node import BadFile, ExperimentFile, ExperimentItem, check_devices
from harness.plugin.stash import (
    ACTIONS,
    BASELINES,
    REPORT,
    SESSION,
    STORE,
    SUMMARY,
    not_ready,
    reports_of,
    session_of,
    store_of,
)

if TYPE_CHECKING:  # what a run without experiments should not have to import
    from harness.compare.baseline import Baselines
    from harness.engines import Engine
    from harness.plan import Case
    from harness.record import Record

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
        "the smallest that breaks one",
    )
    if find_spec("pytest_profiling") is None:  # it has this very option, with which it then asks for both
        group.addoption(
            "--profile",
            action="store_true",
            help="also profile a few more steps of each case: a trace for Perfetto goes to traces/ among the reports, "
            "the most expensive operators into the report",
        )
    group.addoption(
        "--baseline",
        metavar="PATH",
        help="also compare each case with its line in this file, which `harness baseline accept` writes",
    )
    parser.addini("devices", "where experiments run that name no device", type="args", default=["cpu"])
    parser.addini(
        "experiment_files",
        "which files are experiments: patterns for the path relative to the root directory (* also matches /)",
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
    config.addinivalue_line("markers", "slow_invariant: a law that trains again; it only runs if it is selected")
    if not config.pluginmanager.hasplugin("benchmark"):
        config.addinivalue_line("markers", "benchmark: the throughput of a fine-tuning experiment")
    if given := config.getoption("device"):
        check_devices("--device", given)
    explore = config.getoption("explore")
    if explore is not None and explore < 1:
        raise pytest.UsageError(f"--explore: found {explore}, expected a number of data sets, 1 or more")
    if given := config.getoption("baseline"):
        config.stash[BASELINES] = _baselines(config.invocation_params.dir / given)
    traces = reports_of(config) / "traces"
    if config.getoption("profile", False) and os.access(traces, os.F_OK) and not traces.is_dir():
        raise pytest.UsageError(f"--profile: found {traces}, which is a file, expected a folder")
    if os.environ.get("GITHUB_ACTIONS") == "true" and not hasattr(config, "workerinput"):
        from harness.github import Actions

        config.stash[ACTIONS] = Actions.of(config.rootpath, os.environ)
        config.pluginmanager.register(config.stash[ACTIONS], "finetune-github")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give every pytest-xdist worker the name of this run."""
    node.workerinput["harness_run"] = store_of(node.config).run


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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, object, object]:
    """No mark or name selects among what a file with mistakes holds: it fails before the others, as a module does that
    cannot be imported. Its id can be deselected, and `--lf` chooses after this.
    """
    deselected = tuple(config.getoption("deselect") or ())
    bad = [item for item in items if isinstance(item, BadFile) and not item.nodeid.startswith(deselected)]
    items[:] = [item for item in items if item not in bad]
    result = yield
    items[:0] = bad
    return result


def pytest_collection_finish(session: pytest.Session) -> None:
    """Selected laws say which probes their cases run; of the selected items of a case one answers for a crash."""
    items = [item for item in session.items if isinstance(item, ExperimentItem)]
    answered: set[str] = set()
    # `trains`, or where it is not selected, or skipped as `--benchmark-only` does it, the first of the others
    for item in sorted(items, key=lambda item: (item.get_closest_marker("skip") is not None, item.name != "trains")):
        names = frozenset(case.name for case in item.cases)
        item.answers_for = names - answered
        answered |= names
        if item.law is not None and item.get_closest_marker("skip") is None:
            session_of(session.config).want(item.law, item.cases)
    option = session.config.option
    runs = items and not option.collectonly and not option.setupplan
    # A worker of pytest-xdist cannot refuse: its cases do.
    if runs and not hasattr(session.config, "workerinput") and (why := not_ready(session.config)):
        raise pytest.UsageError(why)


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
        path = reports_of(config) / "latest.md"
        config.stash[REPORT] = f"report: {os.path.relpath(path)}"
        try:
            path.write_text(markdown(summary), encoding="utf-8")
        except OSError as error:  # a full disk
            config.stash[REPORT] += f" cannot be written: {error.strerror or error}; `harness report` makes it again"
    if ACTIONS in config.stash:
        config.stash[ACTIONS].write(config.stash.get(SUMMARY, None))


@pytest.hookimpl(tryfirst=True)  # pytest-benchmark's raises where a benchmark has regressed
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of all cases that ran."""
    if SUMMARY in config.stash:
        from harness.report import terminal

        terminalreporter.section("fine-tuning")
        terminalreporter.write_line(terminal(config.stash[SUMMARY]))
        terminalreporter.write_line(config.stash[REPORT])
        if config.getoption("profile", False):
            traces = store_of(config).traces
            left = os.path.relpath(traces) if traces.exists() else "none, for no case left one"
            terminalreporter.write_line(f"traces: {left}")
    if ACTIONS in config.stash:
        for line in config.stash[ACTIONS].lines(config.stash.get(SUMMARY, None)):
            terminalreporter.write_line(line)
