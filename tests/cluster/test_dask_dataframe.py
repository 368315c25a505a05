"""`to_dask_dataframe()` on a real cluster of two hosts: the same rows as `compute()`, each shard
read where it lives, and still right when hosts go and epochs come."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from answers import hosts_of, publish_all
from distributed import Client
from pyarrow import flight
from whole_cluster import wait_until

from accel_dask.client import DataFrame, Session, connect
from accel_dask.errors import (
    EpochRetired,
    InvalidQuery,
    RoutingError,
    Unauthenticated,
    UnsupportedOperation,
)
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset, SourceSpec, Spread
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.tenant import MIB, Quota

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

FILES, ROWS = 6, 1000
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        ("day", pa.date32()), ("at", pa.timestamp("us")), ("k", pa.int64()), ("n", pa.int32()),
        ("x", pa.float64()), ("s", pa.string()), ("b", pa.bool_()), ("version", pa.int64()),
    ]
)  # fmt: skip
"""Only the last file has missing values in `k` and `b`."""


def rows_of(number: int, version: int) -> pa.Table:
    ids = range(number * ROWS, (number + 1) * ROWS)
    is_last = number == FILES - 1
    return pa.table(
        {
            "id": ids,
            "day": [19_000 + i // 500 for i in ids],
            "at": [1_700_000_000_000_000 + i * 1_000_000 for i in ids],
            "k": [None if is_last and i % 7 == 0 else i % 11 for i in ids],
            "n": [i % 5 for i in ids],
            "x": [None if i % 13 == 0 else i / 8 for i in ids],
            "s": [None if i % 17 == 0 else f"s{i % 3}" for i in ids],
            "b": [None if is_last and i % 9 == 0 else i % 2 == 0 for i in ids],
            "version": [version] * ROWS,
        },
        schema=SCHEMA,
    )


@dataclass
class Site:
    cluster: LocalAccelCluster
    session: Session
    dask: Client
    source: Path
    token: str

    @property
    def facts(self) -> DataFrame:
        return self.session.table("facts")

    def write(self, version: int) -> None:
        for number in range(FILES):
            pq.write_table(rows_of(number, version), self.source / f"{version}-{number}.parquet")
        for old in self.source.glob(f"{version - 1}-*.parquet"):
            old.unlink()

    def receipts(self, since_ms: float) -> list[dict[str, Any]]:
        found = self.session._transport.action("accel.receipts", {"last": 200})
        return [one for one in found if one["started_at_ms"] >= since_ms]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    source = tmp_path_factory.mktemp("facts")
    quota = Quota(executor_memory_bytes=128 * MIB, memory_bytes_per_host=192 * MIB)
    with LocalAccelCluster(LocalOptions(workers=2)) as cluster:
        token = cluster.create_tenant("acme", quota)
        cluster.create_tenant("other", quota)
        session = connect(cluster.gateway_urls[0], user="acme", token=token, max_rows=100_000)
        with session, Client(cluster.scheduler_address, set_as_default=False) as client:
            made = Site(cluster, session, client, source, token)
            made.write(1)
            publish_all(cluster, [declared(source)])
            assert len(hosts_of(cluster, "acme", "facts")) == 2
            yield made


def declared(source: Path) -> Dataset:
    return Dataset(
        tenant=TenantId("acme"),
        name="facts",
        source=SourceSpec(connector="parquet", options=(("path", str(source)),)),
        sort_by=("id",),
        spread=Spread.SPREAD,
        shard_target_bytes=1,
    )


def places(site: Site) -> dict[str, str]:
    """The host of each shard of what is served."""
    view: ClusterView = site.cluster.view
    dataset = DatasetId(TenantId("acme"), "facts")
    serving = view.serving(dataset)
    assert serving is not None
    placement = view.placement(dataset, serving.epoch)
    assert placement is not None
    return {shard: workers[0] for shard, workers in placement.hosts}


def same(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    by = list(theirs.columns)[:1]
    pd.testing.assert_frame_equal(
        ours.sort_values(by).reset_index(drop=True), theirs.sort_values(by).reset_index(drop=True)
    )


def test_all_rows_are_those_of_compute_with_its_dtypes(site: Site) -> None:
    ddf = site.facts.to_dask_dataframe()
    assert ddf.npartitions == FILES
    expected = site.facts.compute()
    assert dict(ddf.dtypes) == dict(expected.dtypes)
    same(site.dask.compute(ddf).result(), expected)


@pytest.mark.parametrize("backend", ["numpy_nullable", "pyarrow"])
def test_other_dtype_backends_are_those_of_compute_too(site: Site, backend: str) -> None:
    frame = site.facts[["id", "k", "x", "s", "b", "day"]]
    ddf = frame.to_dask_dataframe(dtype_backend=backend)
    same(site.dask.compute(ddf).result(), frame.compute(dtype_backend=backend))


def test_filters_and_columns_are_read_and_nothing_else(site: Site) -> None:
    frame = site.facts[(site.facts.id >= 2500) & (site.facts.s == "s1")][["id", "n"]]
    frame["twice"] = frame.n * 2
    ddf = frame.to_dask_dataframe()
    assert ddf.npartitions == FILES - 2, "two shards cannot have such rows"
    same(site.dask.compute(ddf).result(), frame.compute())
    narrow = ddf[["twice"]]
    started = time.time() * 1000 - 1
    total = site.dask.compute(narrow.sum()).result()
    assert total["twice"] == frame.twice.sum()
    asked = [one for one in site.receipts(started) if '"n"' in one["sql"]]
    assert asked
    assert all('"id" >=' in one["sql"] for one in asked), "the filter went along"
    assert all('."id" AS' not in one["sql"] for one in asked), "Dask needs no other column"


def test_every_shard_is_read_by_the_executor_of_its_own_host(site: Site) -> None:
    ddf = site.facts[["id"]].to_dask_dataframe()
    started = time.time() * 1000 - 1

    def where(part: pd.DataFrame) -> pd.DataFrame:
        from distributed import get_worker

        return pd.DataFrame({"first": [part.id.min()], "host": [str(get_worker().name)]})

    found = site.dask.compute(
        ddf.map_partitions(where, meta={"first": "int64", "host": "str"})
    ).result()
    hosts = places(site)
    epoch = site.session._transport.action("accel.shards", {"sql": "SELECT id FROM facts"})
    expected = {int(one["stats"]["id"]["lower"]): hosts[one["shard"]] for one in epoch["shards"]}
    assert dict(zip(found["first"], found["host"], strict=True)) == expected
    assert len(set(expected.values())) == 2
    told = site.receipts(started)
    assert len(told) == FILES
    assert all("handed out as a ticket" in one["reason"] for one in told), "no rows went elsewhere"


def test_away_from_its_shards_a_task_reads_through_the_gateway(site: Site) -> None:
    ddf = site.facts.to_dask_dataframe()
    (address,) = (
        address for address, one in site.dask.scheduler_info()["workers"].items()
        if one["name"] == "worker-0"
    )  # fmt: skip
    started = time.time() * 1000 - 1
    found = site.dask.compute(ddf, workers=[address], allow_other_workers=False).result()
    same(found, site.facts.compute())
    far = [one for one in site.receipts(started) if "narrowed to the shard" in one["reason"]
           and "ticket" not in one["reason"]]  # fmt: skip
    assert len(far) == sum(host == "worker-1" for host in places(site).values())
    assert all(one["rows"] == ROWS for one in far)


def test_divisions_are_known_by_the_sort_order_and_not_by_another_column(site: Site) -> None:
    ddf = site.facts.set_index("id")[["n"]].to_dask_dataframe()
    assert ddf.known_divisions
    assert ddf.divisions == (0, 1000, 2000, 3000, 4000, 5000, 5999)
    assert site.dask.compute(ddf.loc[1500:2499]).result().index.tolist() == list(range(1500, 2500))
    by_day = site.facts.set_index("at")[["n"]].to_dask_dataframe()
    assert by_day.divisions[0] == pd.Timestamp(1_700_000_000_000_000, unit="us")
    assert not site.facts.set_index("n").to_dask_dataframe().known_divisions


def test_dask_goes_on_with_joins_and_groups_of_its_own(site: Site) -> None:
    ddf = site.facts.to_dask_dataframe()
    labels = dd.from_pandas(
        pd.DataFrame({"n": pd.array([0, 1, 2], ddf.n.dtype), "name": ["a", "b", "c"]}),
        npartitions=1,
    )
    joined = ddf.merge(labels, on="n").groupby("name").x.mean()
    found = site.dask.compute(joined).result().sort_index()
    expected = site.facts.compute().merge(labels.compute(), on="n").groupby("name").x.mean()
    pd.testing.assert_series_equal(found, expected)


def test_a_series_and_plain_threads_work_as_well(site: Site) -> None:
    series = site.facts[site.facts.n == 3].x
    with dask.config.set(scheduler="threads"):
        found = series.to_dask_dataframe().compute()
    assert sorted(found.dropna()) == sorted(series.compute().dropna())
    assert found.name == "x"


def test_what_is_no_choice_of_rows_is_refused_with_a_way_out(site: Site) -> None:
    facts = site.facts
    for frame in (
        facts.groupby("n").agg(t=("x", "sum")),
        facts.sort_values("x").head(3),
        facts.merge(facts, on="id"),
        facts.assign(r=facts.x.rank()),
        site.session.sql("SELECT id FROM facts"),
    ):
        with pytest.raises(UnsupportedOperation, match="go on in Dask"):
            frame.to_dask_dataframe()


def test_limits_and_tenants_hold_for_a_ticket_as_for_a_query(site: Site) -> None:
    shard = next(iter(places(site)))
    body = {"sql": "SELECT id FROM facts", "shard": f"facts@1/{shard}"}
    transport = site.session._transport
    told = transport.action("accel.ticket", body)
    with flight.FlightClient(told["executors"][0]["address"]) as client:
        forged = bytearray(base64.b64decode(told["ticket"]))
        forged[-20] ^= 1
        with pytest.raises(flight.FlightUnauthenticatedError):
            client.do_get(flight.Ticket(bytes(forged))).read_all()
    with pytest.raises(InvalidQuery, match="has no shard"):
        transport.action("accel.ticket", {**body, "shard": "facts@1/0000"})
    with pytest.raises(InvalidQuery, match="does not read"):
        transport.action("accel.ticket", {**body, "shard": f"else@1/{shard}"})
    with pytest.raises(Unauthenticated):
        connect(site.cluster.gateway_urls[0], user="other", token=site.token)
    answer = transport.query(
        "SELECT count(*) FROM facts", timeout_ms=5000,
        headers={"x-accel-shard": f"facts@1/{shard}"}, name="",
    )  # fmt: skip
    assert [batch.to_pydict() for batch in answer.batches()] == [{"count_star()": [ROWS]}]


@pytest.mark.filterwarnings("ignore:Computing mixed collections:UserWarning")  # it is the point
def test_frames_are_still_collections_beside_dask_dataframes(site: Site) -> None:
    counts = site.facts.groupby("n").size()
    ddf = site.facts.to_dask_dataframe()
    found = site.dask.compute([counts, ddf.id.max(), dask.delayed(len)(counts)])
    answers = [one.result() for one in found]
    assert answers[0].tolist() == [1200] * 5
    assert answers[1:] == [FILES * ROWS - 1, 5]


def test_an_epoch_switch_is_an_error_and_never_a_mixture(site: Site) -> None:
    ddf = site.facts[["id", "version"]].to_dask_dataframe()
    site.write(2)
    site.cluster.publish("acme", "facts")
    site.cluster.wait_routed()
    with pytest.raises(EpochRetired, match="serves epoch 2"):
        site.dask.compute(ddf).result()
    again = site.dask.compute(site.facts[["version"]].to_dask_dataframe()).result()
    assert set(again["version"]) == {2}


def test_a_killed_host_is_read_around(site: Site) -> None:
    ddf = site.facts[["id", "x"]].to_dask_dataframe()
    expected = site.facts[["id", "x"]].compute()
    site.cluster.stop_process("worker-1", kill=True)
    # Its shards are loaded again on the other host; until then a query waits, or says so.
    wait_until(lambda: hosts_of(site.cluster, "acme", "facts") == {"worker-0"}, 60)
    wait_until(lambda: _answers(site), 60)
    same(site.dask.compute(ddf).result(), expected)


def _answers(site: Site) -> bool:
    try:
        return bool(site.facts.id.count() == FILES * ROWS)
    except RoutingError:
        return False
