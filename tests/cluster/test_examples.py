"""The examples, run as people run them: on the demo's data, on a cluster that `connect()` finds."""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pyarrow import flight
from run_examples import EXAMPLES, demo_cluster, execute
from whole_cluster import wait_until

from accel_dask.client import connect
from accel_dask.local import LocalAccelCluster
from accel_dask.model.executor import Executor, ExecutorState

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalAccelCluster]:
    with demo_cluster() as running:
        yield running


def outputs(notebook: Any) -> list[dict[str, Any]]:
    return [one for cell in notebook.cells for one in cell.get("outputs", ())]


def texts(notebook: Any, kind: str) -> str:
    found = [one["data"].get(kind, "") for one in outputs(notebook) if "data" in one]
    streams = [one["text"] for one in outputs(notebook) if one["output_type"] == "stream"]
    return "\n".join([*found, *(streams if kind == "text/plain" else [])])


def in_flight(cluster: LocalAccelCluster, tenant: str) -> int:
    """Queries that the tenant's executors are at, by their own count."""
    found = 0
    for executor in cluster.view.records(Executor):
        if executor.tenant == tenant and executor.state is ExecutorState.READY:
            try:
                with flight.FlightClient(executor.address) as client:
                    (told,) = client.do_action("ping", flight.FlightCallOptions(timeout=5))
            except flight.FlightUnavailableError:  # replaced: it ends before its record goes
                continue
            found += json.loads(told.body.to_pybytes())["in_flight"]
    return found


def test_a_frame_is_interrupted_and_its_query_ends_in_the_executor(
    cluster: LocalAccelCluster,
) -> None:
    with connect(user="skyways", timeout_ms=60_000) as session:
        pairs = session.sql(
            "SELECT count(*) AS n FROM flights a JOIN flights b ON a.day <= b.day "
            "WHERE a.dep_delay + b.dep_delay > 100 AND a.tailnum < b.tailnum"
        )
        assert in_flight(cluster, "skyways") == 0

        def interrupt() -> None:
            wait_until(lambda: in_flight(cluster, "skyways") == 1, 20)
            _thread.interrupt_main()

        usual = signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupter = threading.Thread(target=interrupt)
        try:
            interrupter.start()
            with pytest.raises(KeyboardInterrupt):
                pairs.compute()
            interrupter.join(20)
        finally:
            signal.signal(signal.SIGINT, usual)
        wait_until(lambda: in_flight(cluster, "skyways") == 0, 5)
        wait_until(lambda: bool(session.receipts(1)), 5)
        assert session.receipts(1)[0]["outcome"] == "QUERY_CANCELLED"
        assert len(session.table("airlines")) == 16, "the executor is free again"


@pytest.mark.parametrize("name", ["flights_dashboard", "noisy_neighbour"])
def test_a_notebook_runs_and_shows_what_it_says(cluster: LocalAccelCluster, name: str) -> None:
    import nbformat

    path = EXAMPLES / f"{name}.ipynb"
    stored, found = nbformat.read(path, as_version=4), execute(path)
    for was, now in zip(stored.cells, found.cells, strict=True):
        assert bool(was.get("outputs")) == bool(now.get("outputs")), now.source
        assert not [one for one in was.get("outputs", ()) if one["output_type"] == "error"]
    assert "image/png" in {kind for one in outputs(found) for kind in one.get("data", ())}
    html = texts(found, "text/html")
    assert "from memory" in html, "a preview says where it came from"
    plain = texts(found, "text/plain")
    if name == "flights_dashboard":
        assert "ResultTooLarge" in plain
        assert "did you mean 'carrier'" in plain
    else:
        assert "answered by the OLAP engine" in html
        assert "EpochRetired" in plain
        assert "FallbackForbidden" in plain


def test_the_dask_example_runs(cluster: LocalAccelCluster) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "dask_collections.py")],
        capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "EWR: 35.9% of all flights" in done.stdout
    assert "partitions, from 01 January 2013" in done.stdout
    assert "Wednesday" in done.stdout
