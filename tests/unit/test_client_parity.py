"""The parity scoreboard of the docs, our side: nothing wrong, nothing that ends in other errors."""

from __future__ import annotations

from typing import Any

from client_probes import PROBES, expected, table, verdict
from client_world import local_session

import accel_dask.client.pandas as apd
from accel_dask.errors import UnsupportedOperation


def test_every_probe_gives_what_pandas_gives() -> None:
    session, transport = local_session()
    transport.put("t", table(), ("row",))
    frame = table().to_pandas()
    frame["k"] = frame["k"].astype("str")

    def run(probe: str) -> Any:
        return eval(probe, {"df": session.table("t"), "pd": apd, "len": len})

    found = {
        probe: verdict(probe, expected(frame, probe), run, UnsupportedOperation) for probe in PROBES
    }
    session.close()
    assert len(PROBES) >= 100
    assert {probe: what for probe, what in found.items() if what != "ok"} == {}
