"""One gateway with two tenants for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from gateway_world import World, flights

from accel_dask.client import Session, connect


@pytest.fixture
def world() -> Iterator[World]:
    """A gateway with tenants `acme` (flights in two shards, carriers) and `rival` (secrets)."""
    world = World()
    world.tenant("acme")
    world.tenant("rival")
    carriers = pa.table({"carrier": ["C0", "C1", "C2"], "name": ["Ann", "Ben", "Cat"]})
    rows = flights()
    world.serve(
        "acme", {"flights": (1, [rows.slice(0, 60), rows.slice(60)]), "carriers": (1, [carriers])}
    )
    world.serve("rival", {"secrets": (1, [pa.table({"secret": [42]})])})
    world.start()
    yield world
    world.close()


@pytest.fixture
def session(world: World) -> Iterator[Session]:
    """A session of `acme` with the test's world, whichever that is."""
    with connect(world.url, user="acme", token="secret-of-acme") as made:
        yield made
