"""What to ask of which engine: a gated statement and the datasets' fallbacks to one query there.

Pure. Raises `NotPortable` where the engine might answer
otherwise, and `ConfigError` where a dataset's fallback is declared wrongly.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

from accel_dask.connectors.olap.settings import EngineSettings, engine_settings
from accel_dask.errors import NotPortable
from accel_dask.model.fallback import FallbackPolicy, FallbackReason
from accel_dask.model.ids import TenantId
from accel_dask.model.routing import FallbackRoute, RoutingTable
from accel_dask.query_planner.plan import CATALOG, ParsedQuery, TableReference
from accel_dask.query_planner.portable import literals
from accel_dask.query_planner.portable.compile import PortableQuery, compile_portable
from accel_dask.query_planner.portable.dialects import dialect_named
from accel_dask.query_planner.portable.engine_choice import engine_table, travels, writer_of
from accel_dask.query_planner.portable.from_clause import Table
from accel_dask.query_planner.portable.tree import Node
from accel_dask.query_planner.portable.write import EngineTable, Writer
from flightsql_gateway.arrow_types import arrow_type


@dataclass(frozen=True, slots=True)
class Target:
    """One query at one engine."""

    tenant: TenantId
    settings: EngineSettings
    dialect: str
    sql: str
    schema: pa.Schema
    query: PortableQuery
    tables: tuple[tuple[FallbackRoute, EngineTable, str], ...]
    """Each with its name as the dialect writes it."""
    is_pinned: bool
    """Whether every table is read as of the snapshot that memory serves."""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for queries that have the same answer."""
        return (
            self.tenant,
            self.settings,
            self.dialect,
            self.sql,
            self.schema.serialize().to_pybytes(),
        )

    @property
    def told(self) -> str:
        """The engine and how it reads, for receipts."""
        pinned = "as of the served snapshot" if self.is_pinned else "as it is there now, not pinned"
        return f"{self.settings}, {self.dialect}; {pinned}"


def routes_of(
    parsed: ParsedQuery, tenant: TenantId, table: RoutingTable
) -> list[FallbackRoute] | None:
    """The fallback of each of the statement's tables; None: one of them has none."""
    found = []
    for reference in parsed.tables:
        route = _route_of(reference, tenant, table)
        if route is None:
            return None
        found.append(route)
    return found or None


def _route_of(
    reference: TableReference, tenant: TenantId, table: RoutingTable
) -> FallbackRoute | None:
    qualifiers = [part.lower() for part in reference.parts[:-1]]
    if qualifiers not in ([], [tenant.lower()], [CATALOG, tenant.lower()]):
        return None
    name = reference.table.lower()
    if table.alike.get((tenant, name)):
        return None
    own = (key for key in table.fallbacks if key.tenant == tenant and key.name.lower() == name)
    key = next(own, None)
    return table.fallbacks[key] if key is not None else None


def is_allowed(routes: Sequence[FallbackRoute], reason: FallbackReason) -> bool:
    """Whether the policies of all datasets have the engine asked for this reason. Where one of
    them is always answered by its engine, the others go along."""
    if reason is FallbackReason.POLICY:
        return any(route.spec.policy is FallbackPolicy.ALWAYS for route in routes)
    return all(route.spec.allows(reason) for route in routes)


def target_of(
    parsed: ParsedQuery,
    routes: Sequence[FallbackRoute],
    tenant: TenantId,
    parameters: Sequence[Node],
) -> Target:
    """
    Raises:
        NotPortable: the engine might answer this otherwise than memory.
        ConfigError: a dataset's fallback is declared wrongly.
    """
    engines = {_engine_of(route) for route in routes}
    if len(engines) > 1:
        raise NotPortable(
            "the query's datasets have different fallback engines: "
            + ", ".join(sorted(f"{settings} ({dialect})" for settings, dialect in engines))
        )
    settings, dialect = engines.pop()
    tables = {
        id(reference.node): Table(route.dataset_id, route.columns, route.row_filter)
        for reference, route in zip(parsed.tables, routes, strict=True)
    }
    query = compile_portable(parsed, tables, parameters)
    writer = dialect_named(dialect)
    by_dataset = {route.dataset_id: route for route in routes}
    named = {key: _table_of(route, writer) for key, route in by_dataset.items()}
    write = writer(named)
    return Target(
        tenant=tenant,
        settings=settings,
        dialect=dialect,
        sql=write.write(query.query),
        schema=pa.schema([pa.field(one.name, arrow_type(str(one.type))) for one in query.outputs]),
        query=query,
        tables=tuple(
            (route, named[key], write.table(named[key])) for key, route in by_dataset.items()
        ),
        is_pinned=all(one.snapshot is not None for one in named.values()),
    )


def _engine_of(route: FallbackRoute) -> tuple[EngineSettings, str]:
    settings = engine_settings(route.spec, f"dataset {route.dataset_id}")
    return settings, writer_of(route.spec, route.dataset_id).name


def _table_of(route: FallbackRoute, writer: type[Writer]) -> EngineTable:
    return engine_table(
        route.spec,
        route.dataset_id,
        route.source_table,
        route.snapshot_id.snapshot if route.snapshot_id else None,
        pins=travels(route.spec, route.dataset_id, route.connector, writer),
    )


def parameter_nodes(parameters: bytes, count: int, *, describe_only: bool) -> list[Node]:
    """The values of a statement's parameters.

    Raises:
        NotPortable: a value of a type that is not sent to engines.
    """
    if not parameters:
        return [literals.null()] * count if describe_only else []
    row = pa.ipc.open_stream(parameters).read_all()
    return [_value_node(column[0].as_py(), column.type) for column in row.columns]


def _value_node(value: Any, kind: pa.DataType) -> Node:
    if value is None:
        return literals.null()
    match value:
        case bool():
            return literals.boolean(value)
        case int():
            return literals.integer(value)
        case float() if pa.types.is_float64(kind):
            return literals.double(value)
        case str():
            return literals.text(value)
        case dt.datetime() if value.tzinfo is None:
            return literals.timestamp_of(value.isoformat(" ", "microseconds"))
        case dt.date() if not isinstance(value, dt.datetime):
            return literals.date_of(value.isoformat())
        case Decimal() if value.is_finite():
            sign = literals.negated if value < 0 else _same
            return sign(literals.number(f"{abs(value):f}"))
        case _:
            raise NotPortable(f"a parameter of type {kind} is not sent to the fallback engine")


def _same(node: Node) -> Node:
    return node
