"""Shared by the tests and the shipped experiments."""

import os

import pytest

pytest_plugins = ["pytester"]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let a bare `pytest` run the tests on all cores; with a path, or with -n or --pdb, it does what is asked."""
    option = config.option
    bare = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    idle = getattr(option, "numprocesses", 0) is None and option.dist == "no"  # and xdist is there
    if bare and idle and not option.usepdb and not option.collectonly:
        option.numprocesses, option.dist = "logical", "worksteal"
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # else the threads of one worker wait for those of another
