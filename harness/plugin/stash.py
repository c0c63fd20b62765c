"""What the plugin keeps for a session of pytest, under typed keys of its stash."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # what a run without experiments should not have to import
    from harness.compare.baseline import Baselines
    from harness.github import Actions
    from harness.report import Summary
    from harness.session import Session
    from harness.store import Store

STORE: pytest.StashKey[Store] = pytest.StashKey()
SESSION: pytest.StashKey[Session] = pytest.StashKey()
REPORT: pytest.StashKey[str] = pytest.StashKey()
"""Where the report is, as the terminal is told."""
SUMMARY: pytest.StashKey[Summary] = pytest.StashKey()
BASELINES: pytest.StashKey[Baselines] = pytest.StashKey()
ACTIONS: pytest.StashKey[Actions] = pytest.StashKey()


def session_of(config: pytest.Config) -> Session:
    """The one object of this session, made when it is first needed."""
    if SESSION not in config.stash:
        from harness.session import Session

        make_engine = partial(config.hook.pytest_harness_engine, config=config)
        explore, profile = config.getoption("explore") or 0, config.getoption("profile", False)
        config.stash[SESSION] = Session(store_of(config), make_engine, explore, profile)
    return config.stash[SESSION]


def store_of(config: pytest.Config) -> Store:
    """Where records of this run go; pytest-xdist workers and their controller share the run."""
    if STORE not in config.stash:
        from harness.store import Store, new_run

        worker: dict[str, str] = getattr(config, "workerinput", {})
        run = worker.get("harness_run") or new_run()
        config.stash[STORE] = Store(reports_of(config), run, worker.get("workerid", ""))
    return config.stash[STORE]


def reports_of(config: pytest.Config) -> Path:
    """The folder that the command line names, or that below the root directory."""
    given = config.getoption("reports")
    return config.invocation_params.dir / given if given else config.rootpath / "reports"


def not_ready(config: pytest.Config) -> str:
    """Why nothing can be written to the report folder, which is made if it is not there; empty if all is well."""
    from harness.errors import HarnessError

    try:
        store_of(config).prepare(exploring=config.getoption("explore") is not None)
    except HarnessError as error:
        return f"--reports: {error}"
    return ""
