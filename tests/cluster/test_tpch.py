"""The 22 TPC-H queries through ADBC: each as plain DuckDB answers it, or refused with a reason.
And the client's scripts of them in pandas, beside the specification's SQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import duckdb
import pandas as pd
import pytest
from client_world import same
from tpch_data import QUERIES, TABLES, PlainTpch
from tpch_pandas import SCRIPTS
from tpch_run import Outcome, TpchSite, run, run_on, show, tpch_cluster

import accel_dask.client.pandas as apd
from accel_dask.client import Session, connect

pytestmark = pytest.mark.cluster

SCALE: Final = 0.1
AT_LEAST: Final = 18


@pytest.fixture(scope="module")
def plain() -> Iterator[duckdb.DuckDBPyConnection]:
    with PlainTpch.open(SCALE).engine as engine:
        yield engine


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[TpchSite]:
    with tpch_cluster(2, SCALE) as site:
        yield site


@pytest.fixture(scope="module")
def session(two_hosts: TpchSite) -> Iterator[Session]:
    with connect(two_hosts.url, user="tpch", token=two_hosts.token) as session:
        yield session


def check(outcomes: list[Outcome], at_least: int) -> None:
    show(outcomes)
    assert [one for one in outcomes if one.wrong] == []
    assert sum(not one.refused for one in outcomes) >= at_least


@pytest.mark.parametrize("hosts", [1, 4])
def test_a_cluster_answers_tpch_as_plain_duckdb_does(
    plain: duckdb.DuckDBPyConnection, hosts: int
) -> None:
    with tpch_cluster(hosts, SCALE) as site:
        check(run_on(site, plain), AT_LEAST)


def test_two_hosts_answer_tpch_as_plain_duckdb_does(
    plain: duckdb.DuckDBPyConnection, two_hosts: TpchSite
) -> None:
    check(run_on(two_hosts, plain), AT_LEAST)


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_of_tpch_answers_as_its_sql(
    plain: duckdb.DuckDBPyConnection, session: Session, name: str
) -> None:
    ours = SCRIPTS[name](apd, {table: session.table(table) for table in TABLES})
    ours = ours.compute() if hasattr(ours, "compute") else ours
    text = QUERIES[name].read_text()
    with plain.cursor() as cursor:
        theirs = cursor.sql(text.rstrip().rstrip(";")).to_arrow_table().to_pandas()
    for column in theirs.columns:
        if theirs[column].dtype == object:
            theirs[column] = _as_pandas(theirs[column])
    assert session.last_query is not None
    assert session.last_query.route == "hot"
    if not isinstance(ours, pd.DataFrame):
        same(ours, float(theirs.iloc[0, 0]))
        return
    assert ours.shape == theirs.shape
    theirs.columns = ours.columns
    same(ours.reset_index(drop=True), theirs, ordered=False)


def _as_pandas(column: Any) -> Any:
    kind = type(column.iloc[0]).__name__ if len(column) else ""
    if kind == "Decimal":
        return column.astype(float)
    return pd.to_datetime(column) if kind == "date" else column


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_facts_that_are_mostly_cold_answer_tpch_as_plain_duckdb_does() -> None:
    check(run(2, scale=0.1, hot_shards=4), AT_LEAST)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_tpch_at_scale_one_answers_as_plain_duckdb_does(hosts: int) -> None:
    check(run(hosts, scale=1), AT_LEAST)
