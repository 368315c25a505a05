"""CommandGetTables: the tenant's datasets that can be asked: those that have a READY epoch, or
an engine that answers for them until they have one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from accel_dask.model.bounds import FLOATS
from accel_dask.model.fallback import FallbackPolicy, FallbackReason
from accel_dask.model.ids import TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.plan import CATALOG
from flightsql_gateway.arrow_types import schema_of
from flightsql_gateway.flight_sql.patterns import matches, optional
from flightsql_gateway.flight_sql.request import Request

TABLE_TYPE = "table"
"""In lower case: SQLAlchemy's dialect over ADBC asks for it so."""

SORT_BY = "accel:sort_by"
"""Metadata of a table's schema: the columns of its declared order, apart by U+001F."""

NAN = "accel:nan"
"""Metadata of a column of floats: `0`, as NaN is loaded as NULL."""

NULLS = "accel:nulls"
"""Metadata of a column: `never`, the source requires values; `0`, none is NULL in the serving
epoch; `some`. Without it nothing is known."""

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
        route for route in _routes(request.table, request.identity.tenant)
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


def _routes(table: RoutingTable, tenant: TenantId) -> list[DatasetRoute]:
    found = list(table.datasets_of(tenant))
    found += [
        DatasetRoute(
            dataset_id=dataset, epoch=route.epoch, snapshot_id=route.snapshot_id,
            columns=route.columns, shards=(), executors=(),
        )
        for dataset, route in table.fallbacks.items()
        if dataset.tenant == tenant and dataset not in table.datasets
        and (route.spec.allows(FallbackReason.MISS) or route.spec.policy is FallbackPolicy.ALWAYS)
    ]  # fmt: skip
    return sorted(found, key=lambda route: route.dataset_id)


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
    nulls = null_counts(route)
    fields = [
        field.with_metadata({**(field.metadata or {}), **told_of_missing(nulls, column)})
        for field, column in zip(
            schema_of(route.columns, CATALOG, dataset.tenant, dataset.name),
            route.columns,
            strict=True,
        )
    ]
    data: bytes = (
        pa.schema(fields)
        .with_metadata({SORT_BY: "\x1f".join(route.sort_by)} if route.sort_by else None)
        .serialize()
        .to_pybytes()
    )
    return data


def null_counts(route: DatasetRoute) -> list[dict[str, int | None]]:
    """Of each shard: how many values are missing, by column, as far as statistics say."""
    return [{one.name: one.null_count for one in shard.stats} for shard in route.shards]


def told_of_missing(nulls: Sequence[Mapping[str, int | None]], column: Column) -> dict[str, str]:
    """What is known of missing values in `column`, from the source's schema and `null_counts`."""
    is_float = column.type in FLOATS
    found = {NAN: "0"} if is_float else {}
    if not column.nullable and not is_float:
        return {**found, NULLS: "never"}
    if not nulls:
        return found
    counts = [shard.get(column.name) for shard in nulls]
    if any(counts):
        return {**found, NULLS: "some"}
    return found if None in counts else {**found, NULLS: "0"}
