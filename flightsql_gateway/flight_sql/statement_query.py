"""CommandStatementQuery, and the tickets that it gives out."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from flightsql_gateway.answer import Answer
from flightsql_gateway.flight_sql import messages
from flightsql_gateway.flight_sql.handles import StatementHandle, issue, redeem
from flightsql_gateway.flight_sql.request import Request
from flightsql_gateway.query import Query


def ticket(command: Any, request: Request) -> bytes:
    """The ticket for a statement that the gate lets through. The query is planned when the
    ticket is redeemed, on the routing table of that moment."""
    request.service.check(command.query, request.identity)
    return ticket_for(StatementHandle(tenant=request.identity.tenant, sql=command.query), request)


def ticket_for(handle: StatementHandle, request: Request) -> bytes:
    """The ticket that runs `handle`."""
    signed = issue(handle, request.handle_key)
    return messages.wrap(messages.new("TicketStatementQuery", statement_handle=signed))


def schema(command: Any, request: Request) -> pa.Schema:
    """The exact schema of the answer."""
    return request.service.describe(
        command.query, request.identity, request.is_cancelled, request.limits
    )[1]


def run(command: Any, request: Request) -> Answer:
    """A statement sent as its own ticket: one round trip for clients that know of it."""
    return run_handle(StatementHandle(tenant=request.identity.tenant, sql=command.query), request)


def run_ticket(command: Any, request: Request) -> Answer:
    """Redeem a ticket."""
    handle = redeem(command.statement_handle, request.identity.tenant, request.handle_key)
    return run_handle(handle, request)


def run_handle(handle: StatementHandle, request: Request) -> Answer:
    query = Query(
        sql=handle.sql,
        identity=request.identity,
        parameters=handle.parameters,
        parameter_count=handle.parameter_count,
        limits=request.limits,
        pins=request.pins,
        shard=request.shard,
        may_fall_back=request.may_fall_back,
        name=request.name,
    )
    return request.service.run(query, request.is_cancelled)
