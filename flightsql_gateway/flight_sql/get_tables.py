"""CommandGetTables: the tenant's datasets that have a READY epoch."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from accel_dask.model.routing import DatasetRoute
from accel_dask.query_planner.plan import CATALOG
from flightsql_gateway.arrow_types import schema_of
from flightsql_gateway.flight_sql.patterns import matches, optional
from flightsql_gateway.flight_sql.request import Request

TABLE_TYPE = "table"
"""In lower case: SQLAlchemy's dialect over ADBC asks for it so."""

SORT_BY = "accel:sort_by"
"""Metadata of a table's schema: the columns of its declared order, apart by U+001F."""

_SCHEMA = pa.schema(
    [
        pa.field("catalog_name", pa.string()),
        pa.field("db_schema_name", pa.string()),
        pa.field("table_name", pa.string(), nullable=False),
        pa.field("table_type", pa.string(), nullable=False),
    ]
)
_SCHEMA_WITH_COLUMNS = _SCHEMA.append(pa.field("table_schema", pa.binary(), nullable=False))


def schema(command: Any) -> pa.Schema:
    return _SCHEMA_WITH_COLUMNS if command.include_schema else _SCHEMA


def answer(command: Any, request: Request) -> pa.Table:
    routes = [
        route for route in request.table.datasets_of(request.identity.tenant)
        if _is_wanted(command, route)
    ]  # fmt: skip
    columns: dict[str, list[Any]] = {
        "catalog_name": [CATALOG] * len(routes),
        "db_schema_name": [route.dataset_id.tenant for route in routes],
        "table_name": [route.dataset_id.name for route in routes],
        "table_type": [TABLE_TYPE] * len(routes),
    }
    if command.include_schema:
        columns["table_schema"] = [_serialized(route) for route in routes]
    return pa.table(columns, schema=schema(command))


def _is_wanted(command: Any, route: DatasetRoute) -> bool:
    types = [name.lower() for name in command.table_types]
    return (
        optional(command, "catalog") in (None, CATALOG)
        and (not types or TABLE_TYPE in types)
        and matches(optional(command, "db_schema_filter_pattern"), route.dataset_id.tenant)
        and matches(optional(command, "table_name_filter_pattern"), route.dataset_id.name)
    )


def _serialized(route: DatasetRoute) -> bytes:
    dataset = route.dataset_id
    data: bytes = (
        schema_of(route.columns, CATALOG, dataset.tenant, dataset.name)
        .with_metadata({SORT_BY: "\x1f".join(route.sort_by)} if route.sort_by else None)
        .serialize()
        .to_pybytes()
    )
    return data
