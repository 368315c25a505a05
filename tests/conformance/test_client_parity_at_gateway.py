"""The probes of the parity scoreboard through a real gateway, on a dataset of three shards."""

from __future__ import annotations

from typing import Any

from client_probes import PROBES, expected, table, verdict
from client_world import as_loaded
from gateway_world import World

import accel_dask.client.pandas as apd
from accel_dask.client import connect
from accel_dask.errors import UnsupportedOperation
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId
from accel_dask.store.records import put_record


def test_every_probe_gives_what_pandas_gives_through_a_gateway() -> None:
    world = World()
    try:
        world.start()
        token = world.tenant("acme")
        rows = as_loaded(table())
        shards = [rows.slice(0, 20), rows.slice(20, 25), rows.slice(45)]
        world.serve("acme", {"t": (1, shards)})
        source = SourceSpec(connector="parquet")
        put_record(
            world.store,
            Dataset(tenant=TenantId("acme"), name="t", source=source, sort_by=("row",)),
        )
        world.wait_applied()
        frame = rows.to_pandas()
        frame["k"] = frame["k"].astype("str")
        with connect(world.url, user="acme", token=token) as session:

            def run(probe: str) -> Any:
                return eval(probe, {"df": session.table("t"), "pd": apd, "len": len})

            found = {
                probe: verdict(probe, expected(frame, probe), run, UnsupportedOperation)
                for probe in PROBES
            }
        assert {probe: what for probe, what in found.items() if what != "ok"} == {}
    finally:
        world.close()
