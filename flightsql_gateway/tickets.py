"""Signed tickets of a plan: the fragment's own, and those of the parts that it asks peers for."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from accel_dask.codec import encode
from accel_dask.model.ticket import Input, Piece, Source, Ticket, sign
from accel_dask.query_planner.plan import Fragment, Part, PartInput, QueryPlan

TICKET_VERSION: Final = 1
COUNTED_ROWS: Final = 5_000_000
"""The cost of a query that reads as many is counted by the engine."""
_SPARE_MS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketContext:
    """What the tickets of one query have in common."""

    query_id: str
    parameters: bytes
    describe_only: bool
    key: bytes
    is_blind: bool = False


def ticket_of(
    plan: QueryPlan, fragment: Fragment, context: TicketContext, remaining_seconds: float
) -> bytes:
    """The signed ticket of `fragment`, to be run within `remaining_seconds`."""
    timeout_ms = max(int(remaining_seconds * 1000), 1)
    ticket = Ticket(
        version=TICKET_VERSION,
        query_id=context.query_id,
        tenant=plan.tenant,
        sql=fragment.sql,
        parameters=select_parameters(context.parameters, fragment.parameters),
        tokens=fragment.tokens,
        expires_at_ms=int(time.time() * 1000) + timeout_ms + _SPARE_MS,
        timeout_ms=timeout_ms,
        max_result_rows=plan.limits.max_result_rows,
        max_result_bytes=plan.limits.max_result_bytes,
        max_cpu_ms=plan.limits.max_cpu_ms,
        measure=is_worth_counting(plan),
        describe_only=context.describe_only,
        is_blind=context.is_blind,
    )
    inputs = tuple(
        Input(
            name=one.name,
            pieces=tuple(_piece(ticket, one, part, context) for part in one.parts),
            max_rows=one.max_rows,
            max_bytes=one.max_bytes,
        )
        for one in fragment.inputs
    )
    return sign(encode(replace(ticket, inputs=inputs)), context.key)


def is_worth_counting(plan: QueryPlan) -> bool:
    """Whether the engines should count what they read: not for short queries, which would feel
    it, each engine by a third of a millisecond."""
    rows = plan.verdict.scan_rows
    engines = 1 + sum(len(one.parts) for one in plan.fragments[0].inputs)
    return rows is None or rows >= COUNTED_ROWS * engines


def _piece(ticket: Ticket, of: PartInput, part: Part, context: TicketContext) -> Piece:
    """The order for a peer's share, with the query's own deadline."""
    own = replace(
        ticket,
        sql=part.sql,
        parameters=select_parameters(context.parameters, part.parameters),
        tokens=part.tokens,
        max_result_rows=of.max_rows,
        max_result_bytes=of.max_bytes,
        is_part=True,
        is_blind=False,
    )
    signed = sign(encode(own), context.key)
    return Piece(
        alternatives=tuple(
            Source(address=one.address, ticket=signed, ticket_port=one.ticket_port)
            for one in part.candidates
        )
    )


def select_parameters(parameters: bytes, wanted: tuple[int, ...] | None) -> bytes:
    """The columns `wanted` of `parameters`, an Arrow IPC stream of one row; None: all."""
    if not parameters or wanted is None:
        return parameters
    if not wanted:
        return b""
    row = pa.ipc.open_stream(parameters).read_all()
    selected = pa.Table.from_arrays(
        [row.column(index) for index in wanted], [f"p{n}" for n in range(len(wanted))]
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, selected.schema) as writer:
        writer.write_table(selected)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def has_nan(parameters: bytes) -> bool:
    """Whether a value of `parameters`, as above, is NaN, or a text that may become one."""
    if not parameters:
        return False
    (row,) = pa.ipc.open_stream(parameters).read_all().to_pylist()
    return any(_is_nan(value) for value in row.values())


def _is_nan(value: object) -> bool:
    if isinstance(value, str):
        return value.strip().lower().lstrip("+-") == "nan"
    return isinstance(value, float) and math.isnan(value)
