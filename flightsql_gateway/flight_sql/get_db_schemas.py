"""CommandGetDbSchemas: a tenant sees one schema, named as itself."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from accel_dask.query_planner.plan import CATALOG
from flightsql_gateway.flight_sql.patterns import matches, optional
from flightsql_gateway.flight_sql.request import Request

SCHEMA = pa.schema(
    [
        pa.field("catalog_name", pa.string()),
        pa.field("db_schema_name", pa.string(), nullable=False),
    ]
)


def schema(command: Any) -> pa.Schema:  # noqa: ARG001 - the same for every command file
    return SCHEMA


def answer(command: Any, request: Request) -> pa.Table:
    tenant = request.identity.tenant
    found = optional(command, "catalog") in (None, CATALOG) and matches(
        optional(command, "db_schema_filter_pattern"), tenant
    )
    names = [tenant] if found else []
    return pa.table(
        {"catalog_name": [CATALOG] * len(names), "db_schema_name": names}, schema=SCHEMA
    )
