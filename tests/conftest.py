"""Fixtures that tests of several folders use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from olap_world import KINDS, EngineWorld, Worlds, started
from whole_cluster import Lakehouse


@pytest.fixture
def lakehouse(tmp_path: Path) -> Lakehouse:
    return Lakehouse(tmp_path / "lakehouse")


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    """DuckDB and real OLAP engines with the same rows."""
    found = Worlds(tmp_path_factory.mktemp("olap"))
    yield found
    found.close()


@pytest.fixture(scope="session", params=KINDS)
def engine_world(request: pytest.FixtureRequest, worlds: Worlds) -> EngineWorld:
    """Each of the real engines."""
    return started(worlds, request.param)
