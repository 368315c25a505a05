"""The TPC-H scripts in pandas, by the client on a real cluster of two hosts, beside the
specification's SQL in plain DuckDB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from answers import hosts_of, publish_all
from client_world import same
from tpch_data import QUERIES, TABLES, PlainTpch, tpch_datasets, tpch_quota
from tpch_pandas import SCRIPTS

import accel_dask.client.pandas as apd
from accel_dask.client import Session, connect
from accel_dask.local import LocalAccelCluster, LocalOptions

SCALE = 0.1

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Any, Session]]:
    engine = PlainTpch.open(SCALE).engine
    with LocalAccelCluster(LocalOptions(workers=2)) as cluster:
        token = cluster.create_tenant("tpch", tpch_quota(SCALE))
        publish_all(cluster, tpch_datasets("tpch", SCALE))
        assert len(hosts_of(cluster, "tpch", "lineitem")) == 2
        with connect(cluster.gateway_urls[0], user="tpch", token=token) as session:
            yield engine, session
    engine.close()


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_of_tpch_answers_as_its_sql(world: tuple[Any, Session], name: str) -> None:
    engine, session = world
    ours = SCRIPTS[name](apd, {table: session.table(table) for table in TABLES})
    ours = ours.compute() if hasattr(ours, "compute") else ours
    text = QUERIES[name].read_text()
    theirs = engine.cursor().sql(text.rstrip().rstrip(";")).to_arrow_table().to_pandas()
    for column in theirs.columns:
        if theirs[column].dtype == object:
            theirs[column] = _plain(theirs[column])
    assert session.last_query is not None
    assert session.last_query.route == "hot"
    if not isinstance(ours, pd.DataFrame):
        same(ours, float(theirs.iloc[0, 0]))
        return
    assert ours.shape == theirs.shape
    theirs.columns = ours.columns
    same(ours.reset_index(drop=True), theirs, ordered=False)


def _plain(column: Any) -> Any:
    kind = type(column.iloc[0]).__name__ if len(column) else ""
    if kind == "Decimal":
        return column.astype(float)
    return pd.to_datetime(column) if kind == "date" else column
