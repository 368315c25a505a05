"""The TPC-H scripts in pandas, run by the client and compared with plain DuckDB's SQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from client_world import LocalTransport, same
from tpch_data import QUERIES, TABLES, PlainTpch
from tpch_pandas import SCRIPTS

import accel_dask.client.pandas as apd
from accel_dask.client.options import Options
from accel_dask.client.session import Session

SCALE = 0.1

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Any, Session]]:
    engine = PlainTpch.open(SCALE).engine
    transport = LocalTransport()
    transport.database.close()
    transport.database = engine
    for table in TABLES:
        transport.schemas[table] = engine.sql(f"FROM {table} LIMIT 0").to_arrow_table().schema
    session = Session(transport, Options())
    yield engine, session
    session.close()


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_of_tpch_answers_as_its_sql(world: tuple[Any, Session], name: str) -> None:
    engine, session = world
    tables = {table: session.table(table) for table in TABLES}
    ours = SCRIPTS[name](apd, tables)
    ours = ours.compute() if hasattr(ours, "compute") else ours
    text = QUERIES[f"q{name[1:]}"].read_text()
    theirs = engine.cursor().sql(text.rstrip().rstrip(";")).to_arrow_table().to_pandas()
    for column in theirs.columns:
        if theirs[column].dtype == object:
            theirs[column] = _plain(theirs[column])
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
