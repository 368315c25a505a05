"""Fixtures that tests of several folders use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from olap_world import KINDS, EngineWorld, Worlds, started
from scheduling import GroupScheduling, order_of
from whole_cluster import Lakehouse

# A machine that stands still for a while is no fault of an example.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: order_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    return GroupScheduling(config, log)


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
