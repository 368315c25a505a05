"""CommandGetTableTypes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from flightsql_gateway.flight_sql.get_tables import TABLE_TYPE
from flightsql_gateway.flight_sql.request import Request

SCHEMA = pa.schema([pa.field("table_type", pa.string(), nullable=False)])


def schema(command: Any) -> pa.Schema:  # noqa: ARG001 - the same for every command file
    return SCHEMA


def answer(command: Any, request: Request) -> pa.Table:  # noqa: ARG001
    return pa.table({"table_type": [TABLE_TYPE]}, schema=SCHEMA)
