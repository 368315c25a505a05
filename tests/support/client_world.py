"""A session over DuckDB in this process, whose every statement passes the gateway's gate; and
how its answers are compared with pandas'."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from accel_dask.client.options import Options
from accel_dask.client.session import Session
from accel_dask.errors import InvalidQuery
from accel_dask.model.ids import TenantId
from accel_dask.model.routing import RoutingTable
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.plan import PlanContext, QueryDraft

CONTEXT = PlanContext(tenant=TenantId("acme"), routing=RoutingTable(1, {}, {}, {}, b""))


class LocalAnswer:
    def __init__(self, table: pa.Table) -> None:
        self.schema = table.schema
        self._table = table

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self._table.to_batches(1000)

    def receipt(self) -> dict[str, Any]:
        return {"route": "hot", "rows": self._table.num_rows}

    def cancel(self) -> None:
        pass


class LocalTransport:
    """Runs statements as an executor would, after the gate."""

    def __init__(self) -> None:
        self.database = duckdb.connect(config={"threads": "1"})
        self.database.execute("SET GLOBAL TimeZone='UTC'")
        self.database.execute("SET GLOBAL python_enable_replacements=false")
        self.schemas: dict[str, pa.Schema] = {}
        self.sent: list[str] = []

    def put(
        self, name: str, table: pa.Table, sort_by: tuple[str, ...] = (), *, loaded: bool = False
    ) -> None:
        """`loaded`: with NaN as NULL and the columns described as a gateway does; else nothing is
        known of missing values, as of a query's columns."""
        table = as_loaded(table) if loaded else table
        self.database.register("incoming", table)
        self.database.execute(f'CREATE OR REPLACE TABLE "{name}" AS FROM incoming')
        self.database.unregister("incoming")
        found = self.database.sql(f'FROM "{name}" LIMIT 0').to_arrow_table().schema
        if loaded:
            found = pa.schema([_described(field, table[field.name]) for field in found])
        self.schemas[name] = found.with_metadata({"accel:sort_by": "\x1f".join(sort_by)})

    def cancel(self, name: str) -> None:
        pass

    def query(
        self, sql: str, *, timeout_ms: int, headers: Mapping[str, str], name: str
    ) -> LocalAnswer:
        parse(QueryDraft(sql=sql), CONTEXT)
        self.sent.append(sql)
        try:
            return LocalAnswer(self.database.cursor().sql(sql).to_arrow_table())
        except duckdb.Error as error:
            raise InvalidQuery(f"{error}\n{sql}") from error

    def describe(self, sql: str) -> pa.Schema:
        return self.database.cursor().sql(sql).limit(0).to_arrow_table().schema

    def tables(self) -> dict[str, pa.Schema]:
        return dict(self.schemas)

    def action(self, name: str, body: Mapping[str, Any]) -> Any:
        return [] if name == "accel.datasets" else "plan"

    def close(self) -> None:
        self.database.close()


def as_loaded(table: pa.Table) -> pa.Table:
    """`table` as a load makes it: NaN becomes NULL."""
    for index, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table.column(index)
            kept = pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column)
            table = table.set_column(index, field, kept)
    return table


def _described(field: pa.Field, column: pa.ChunkedArray) -> pa.Field:
    """With the gateway's metadata; what has all its values counts as required."""
    known = {"accel:nan": "0"} if pa.types.is_floating(field.type) else {}
    return field.with_metadata({**known, "accel:nulls": "some" if column.null_count else "never"})


def local_session(**options: Any) -> tuple[Session, LocalTransport]:
    transport = LocalTransport()
    return Session(transport, Options(**options)), transport


def same(ours: Any, theirs: Any, *, ordered: bool = True, index: bool = True) -> None:
    """Assert that two answers are the same values: kinds of missing values and widths of numbers
    aside. Without `ordered`, in any order of rows."""
    if not isinstance(theirs, pd.DataFrame | pd.Series):
        assert _same_value(_plain(ours), _plain(theirs)), (ours, theirs)
        return
    if isinstance(theirs, pd.Series):
        assert isinstance(ours, pd.Series), type(ours)
        assert ours.name == theirs.name or (ours.name is None) == (theirs.name is None), (
            ours.name, theirs.name,
        )  # fmt: skip
    else:
        assert list(ours.columns) == list(theirs.columns), (ours.columns, theirs.columns)
    if index:
        assert list(ours.index.names) == list(theirs.index.names)
    index = index and (ordered or list(theirs.index.names) != [None])
    left, right = _rows(ours, index=index), _rows(theirs, index=index)
    if not ordered:
        left, right = sorted(left, key=_sortable), sorted(right, key=_sortable)
    assert len(left) == len(right), (len(left), len(right), ours, theirs)
    for one, other in zip(left, right, strict=True):
        assert all(_same_value(a, b) for a, b in zip(one, other, strict=True)), (
            one, other, ours, theirs,
        )  # fmt: skip
    _check_kinds(ours, theirs)


def _rows(found: Any, *, index: bool) -> list[tuple[Any, ...]]:
    frame = found.to_frame("value") if isinstance(found, pd.Series) else found
    columns = [list(frame.iloc[:, i]) for i in range(frame.shape[1])]
    if index:
        columns = [
            list(frame.index.get_level_values(i)) for i in range(frame.index.nlevels)
        ] + columns
    if not columns:
        return [()] * len(frame)
    return [tuple(map(_plain, row)) for row in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    if hasattr(value, "item") and not isinstance(value, pd.Timestamp):
        value = value.item()
        return _plain(value) if isinstance(value, float) else value
    return value


def _same_value(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one == other or math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return bool(one == other)


def _sortable(row: tuple[Any, ...]) -> Any:
    return [
        (value is None, type(value).__name__ if isinstance(value, str) else "", str(value)
         if not isinstance(value, int | float) else "",
         round(float(value), 6) if isinstance(value, int | float) else 0.0)
        for value in row
    ]  # fmt: skip


def _check_kinds(ours: Any, theirs: Any) -> None:
    """The kinds of columns are the same, where pandas' own says something."""
    if not len(theirs):
        return
    pairs = (
        [(ours.dtype, theirs.dtype)] if isinstance(theirs, pd.Series)
        else list(zip(ours.dtypes, theirs.dtypes, strict=True))
    )  # fmt: skip
    for position, (one, other) in enumerate(pairs):
        kinds = {_kind(one), _kind(other)}
        if _is_missing(theirs, position):
            continue  # what has no values has any type to pandas
        assert len(kinds) == 1 or "object" in kinds, (one, other)


def _is_missing(found: Any, position: int) -> bool:
    column = found if isinstance(found, pd.Series) else found.iloc[:, position]
    return bool(column.isna().all())


def _kind(dtype: Any) -> str:
    if pd.api.types.is_bool_dtype(dtype):
        return "bool"
    if pd.api.types.is_numeric_dtype(dtype):
        return "number"
    if isinstance(dtype, pd.StringDtype):
        return "text"
    if isinstance(dtype, pd.DatetimeTZDtype):
        return f"time {dtype.tz}"
    return str(dtype).partition("[")[0]
