"""CommandGetCatalogs: there is one catalog."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from accel_dask.query_planner.plan import CATALOG
from flightsql_gateway.flight_sql.request import Request

SCHEMA = pa.schema([pa.field("catalog_name", pa.string(), nullable=False)])


def schema(command: Any) -> pa.Schema:  # noqa: ARG001 - the same for every command file
    return SCHEMA


def answer(command: Any, request: Request) -> pa.Table:  # noqa: ARG001
    return pa.table({"catalog_name": [CATALOG]}, schema=SCHEMA)
