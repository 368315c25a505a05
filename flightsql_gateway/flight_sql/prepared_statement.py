"""Prepared statements: created, bound, run and closed without any state here.

The handle is the statement itself, signed; binding gives a new handle that has the values in it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
from pyarrow import flight

from accel_dask.errors import InvalidQuery, TextLimit, UnsupportedQuery
from accel_dask.query_planner.plan import QueryPlan
from flightsql_gateway.arrow_types import arrow_type
from flightsql_gateway.flight_sql import messages
from flightsql_gateway.flight_sql.handles import StatementHandle, issue, redeem
from flightsql_gateway.flight_sql.request import Request
from flightsql_gateway.flight_sql.statement_query import ticket_for
from flightsql_gateway.flight_sql.updates import is_harmless

_MAX_PARAMETER_BYTES = 1024 * 1024


def create(body: bytes, request: Request) -> bytes:
    """The answer to ActionCreatePreparedStatementRequest."""
    name, command = messages.unwrap(body)
    if name != "ActionCreatePreparedStatementRequest":
        raise InvalidQuery(f"{name} prepares nothing")
    handle = StatementHandle(tenant=request.identity.tenant, sql=command.query)
    result = messages.new(
        "ActionCreatePreparedStatementResult",
        prepared_statement_handle=issue(handle, request.handle_key),
        is_update=is_harmless(command.query),
    )
    if not result.is_update:
        plan, schema_ = request.service.describe(
            command.query, request.identity, request.is_cancelled, request.limits
        )
        result.dataset_schema = schema_.serialize().to_pybytes()
        if plan.parameters:
            result.parameter_schema = _parameter_schema(plan).serialize().to_pybytes()
    return messages.wrap(result)


def _parameter_schema(plan: QueryPlan) -> pa.Schema:
    """A parameter compared with a column has its type; any other is text, which DuckDB casts."""
    types = {
        column.name.lower(): arrow_type(column.type)
        for route in plan.routes
        for column in route.columns
    }
    return pa.schema(
        [
            pa.field(str(position), types.get(column, pa.string()))
            for position, column in enumerate(plan.parameter_columns)
        ]
    )


def ticket(command: Any, request: Request) -> bytes:
    """The ticket for a prepared statement."""
    handle = redeem(command.prepared_statement_handle, request.identity.tenant, request.handle_key)
    request.service.check(handle.sql, request.identity)
    return ticket_for(handle, request)


def schema(command: Any, request: Request) -> pa.Schema:
    """The exact schema of the answer."""
    handle = redeem(command.prepared_statement_handle, request.identity.tenant, request.handle_key)
    return request.service.describe(
        handle.sql, request.identity, request.is_cancelled, request.limits
    )[1]


def bind(command: Any, request: Request, reader: flight.MetadataRecordBatchReader) -> bytes:
    """The answer to DoPut(CommandPreparedStatementQuery): a handle with the values in it."""
    handle = redeem(command.prepared_statement_handle, request.identity.tenant, request.handle_key)
    row = _one_row(reader)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    bound = replace(
        handle, parameters=sink.getvalue().to_pybytes(), parameter_count=row.num_columns
    )
    result = messages.new(
        "DoPutPreparedStatementResult",
        prepared_statement_handle=issue(bound, request.handle_key),
    )
    data: bytes = result.SerializeToString()
    return data


def _one_row(reader: flight.MetadataRecordBatchReader) -> pa.RecordBatch:
    found = None
    while True:
        try:
            batch = reader.read_chunk().data
        except StopIteration:
            break
        if batch is None or batch.num_rows == 0:
            continue
        if found is not None or batch.num_rows > 1:
            raise UnsupportedQuery("bind one row of parameters at a time")
        if batch.nbytes > _MAX_PARAMETER_BYTES:
            raise TextLimit(
                f"the parameters have {batch.nbytes:,} bytes; the limit is {_MAX_PARAMETER_BYTES:,}"
            )
        found = batch
    if found is None:
        raise InvalidQuery("no row of parameters was sent")
    return found
