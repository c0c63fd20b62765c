"""Fixtures of several test modules."""

from pathlib import Path

import pytest
from project import Project


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project of its own, whose cases a fake engine answers."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return Project(pytester)
