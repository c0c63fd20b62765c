"""The hooks that the plugin offers to others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.engines import Engine


@pytest.hookspec(firstresult=True)
def pytest_harness_engine(config: pytest.Config) -> Engine | None:
    """Return the engine that cases run on; by default they run in this process.

    Implement it in a ``conftest.py`` to send cases elsewhere. Called once, before the first case.
    """
