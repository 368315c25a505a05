"""The Flight server: dispatches calls to the command files, and nothing else.

Whatever a handler raises leaves as a typed Flight error with nothing of the inside in it.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import pyarrow as pa
from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.errors import AccelError, InvalidQuery, ResourceExhausted, UnsupportedQuery
from accel_dask.flight_errors import to_flight
from accel_dask.query_planner.plan import FragmentKind
from flightsql_gateway.answer import Answer
from flightsql_gateway.auth import Authenticator, Identity, purpose_key
from flightsql_gateway.flight_sql import (
    get_catalogs,
    get_db_schemas,
    get_keys,
    get_sql_info,
    get_table_types,
    get_tables,
    get_xdbc_type_info,
    handshake,
    messages,
    own_actions,
    prepared_statement,
    session_actions,
    shard_actions,
    statement_query,
    updates,
)
from flightsql_gateway.flight_sql.handles import redeem
from flightsql_gateway.flight_sql.request import Request
from flightsql_gateway.logins import Logins
from flightsql_gateway.query_service import QueryService
from flightsql_gateway.receipts import Receipts
from flightsql_gateway.request_limits import PREFIX, read_limits
from flightsql_gateway.request_pins import (
    pin_of,
    read_may_fall_back,
    read_pins,
    read_request_name,
    read_shard,
)
from flightsql_gateway.routing_cache import RoutingCache

log = logging.getLogger(__name__)

T = TypeVar("T")

_METADATA: Final[dict[str, ModuleType]] = {
    "CommandGetCatalogs": get_catalogs,
    "CommandGetDbSchemas": get_db_schemas,
    "CommandGetTables": get_tables,
    "CommandGetTableTypes": get_table_types,
    "CommandGetSqlInfo": get_sql_info,
    "CommandGetXdbcTypeInfo": get_xdbc_type_info,
    "CommandGetPrimaryKeys": get_keys,
    "CommandGetExportedKeys": get_keys,
    "CommandGetImportedKeys": get_keys,
    "CommandGetCrossReference": get_keys,
}
_QUERIES: Final[dict[str, ModuleType]] = {
    "CommandStatementQuery": statement_query,
    "CommandPreparedStatementQuery": prepared_statement,
}


class _Action(NamedTuple):
    description: str
    run: Callable[[bytes, Request], bytes | None]


_ACTIONS: Final[dict[str, _Action]] = {
    "CreatePreparedStatement": _Action("prepare a statement", prepared_statement.create),
    "ClosePreparedStatement": _Action("always succeeds: nothing is held", lambda *_: None),
    "GetSessionOptions": _Action("catalog and schema", session_actions.get_options),
    "SetSessionOptions": _Action("agrees to what is so already", session_actions.set_options),
    "CloseSession": _Action("always succeeds: nothing is held", session_actions.close),
    "CancelFlightInfo": _Action("end the query's stream instead", session_actions.cancel),
    "accel.receipts": _Action(
        'receipts of queries: {"last": 10}, {"last": 1, "mine": true} or {"query_id": "..."}',
        own_actions.receipts,
    ),
    "accel.history": _Action("queries by shape, with their totals", own_actions.history),
    "accel.datasets": _Action("datasets and the epochs they serve", own_actions.datasets),
    "accel.shards": _Action(
        'the shards that {"sql": ...} reads of a dataset', shard_actions.shards
    ),
    "accel.ticket": _Action(
        'a ticket to read {"sql": ..., "shard": ...} from an executor', shard_actions.ticket
    ),
    "accel.cancel": _Action('end the call {"request": "..."}', own_actions.cancel),
    "accel.explain": _Action('the plan of {"sql": "..."} as text', own_actions.explain),
}
_SMALL_ROWS: Final = 4096
_SMALL_BYTES: Final = 256 * 1024
_RECEIPT_TRAILER: Final = "x-accel-receipt"
_TRAILER_PARTS: Final = 16
"""A receipt with more parts is sent without them; the action has them all."""
_CODE_TRAILER: Final = "x-accel-code"
_RETRY_TRAILER: Final = "x-accel-retry-after-ms"
"""With RESOURCE_EXHAUSTED: when to come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where to listen, and with which certificate."""

    host: str
    port: int
    certificate: bytes = b""
    private_key: bytes = b""

    @property
    def location(self) -> str:
        scheme = "grpc+tls" if self.certificate else "grpc"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"


class FlightSqlServer(flight.FlightServerBase):  # type: ignore[misc]
    """Listens from its construction on."""

    def __init__(
        self,
        address: ServerAddress,
        service: QueryService,
        routing: RoutingCache,
        authenticator: Authenticator,
        receipts: Receipts,
    ) -> None:
        # Before the base class: it takes calls as soon as it is constructed.
        self._service = service
        self._routing = routing
        self._receipts = receipts
        self._logins = Logins()
        certificates = [(address.certificate, address.private_key)] if address.certificate else None
        super().__init__(
            address.location,
            auth_handler=handshake.NoHandshake(),
            tls_certificates=certificates,
            middleware={
                handshake.MIDDLEWARE: handshake.SessionMiddlewareFactory(
                    authenticator, self._logged_in
                )
            },
        )

    # Flight's calls

    def get_flight_info(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.FlightInfo:
        return self._guard(context, lambda request: self._flight_info(descriptor, request))

    def get_schema(
        self, context: flight.ServerCallContext, descriptor: flight.FlightDescriptor
    ) -> flight.SchemaResult:
        return self._guard(
            context, lambda request: flight.SchemaResult(self._schema(descriptor, request))
        )

    def do_get(
        self, context: flight.ServerCallContext, ticket: flight.Ticket
    ) -> flight.FlightDataStream:
        return self._guard(context, lambda request: self._get(context, ticket.ticket, request))

    def do_put(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
    ) -> None:
        self._guard(context, lambda request: self._put(descriptor, reader, writer, request))

    def do_action(
        self, context: flight.ServerCallContext, action: flight.Action
    ) -> Iterator[flight.Result]:
        results = self._guard(context, lambda request: self._act(action, request))
        return iter([flight.Result(pa.py_buffer(result)) for result in results])

    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:
        return self._guard(
            context, lambda _: [(name, action.description) for name, action in _ACTIONS.items()]
        )

    def list_flights(
        self,
        context: flight.ServerCallContext,
        criteria: bytes,  # noqa: ARG002
    ) -> Iterator[flight.FlightInfo]:
        flights: list[flight.FlightInfo] = self._guard(context, lambda _: [])
        return iter(flights)

    def do_exchange(
        self,
        context: flight.ServerCallContext,
        descriptor: flight.FlightDescriptor,  # noqa: ARG002
        reader: flight.MetadataRecordBatchReader,  # noqa: ARG002
        writer: flight.MetadataRecordBatchWriter,  # noqa: ARG002
    ) -> None:
        self._guard(context, lambda _: _refuse("DoExchange is not served here"))

    # What they do

    def _logged_in(self, identity: Identity) -> None:
        self._logins.admit(identity.tenant, self._routing.current().quota_of(identity.tenant))

    def _flight_info(
        self, descriptor: flight.FlightDescriptor, request: Request
    ) -> flight.FlightInfo:
        name, command = _command(descriptor)
        if name in _METADATA:
            return _info(descriptor, descriptor.command, _METADATA[name].schema(command))
        if name in _QUERIES:
            # Without a schema: it is the stream's, whichever epoch that will be read from.
            return _info(descriptor, _QUERIES[name].ticket(command, request), None)
        return _refuse(f"{name} has no result to fetch")

    def _schema(self, descriptor: flight.FlightDescriptor, request: Request) -> pa.Schema:
        name, command = _command(descriptor)
        if name in _METADATA:
            return _METADATA[name].schema(command)
        if name in _QUERIES:
            return _QUERIES[name].schema(command, request)
        return _refuse(f"{name} has no result to describe")

    def _get(
        self, context: flight.ServerCallContext, ticket: bytes, request: Request
    ) -> flight.FlightDataStream:
        name, command = messages.unwrap(ticket)
        if name in _METADATA:
            return flight.RecordBatchStream(_METADATA[name].answer(command, request))
        if name == "TicketStatementQuery":
            answer = statement_query.run_ticket(command, request)
        elif name == "CommandStatementQuery":
            answer = statement_query.run(command, request)
        else:
            return _refuse(f"{name} is no ticket")
        # Not when the generator is dropped: an exception's frames can keep it beyond the call.
        context.get_middleware(handshake.MIDDLEWARE).on_end = answer.close
        batches = _first_batches(answer)
        if batches and batches[-1] is None:  # complete: Arrow can send it alone
            _send_receipt(answer, context)
            return flight.RecordBatchStream(pa.Table.from_batches(batches[:-1], answer.schema))
        return flight.GeneratorStream(answer.schema, _Batches(answer, context, batches))

    def _put(
        self,
        descriptor: flight.FlightDescriptor,
        reader: flight.MetadataRecordBatchReader,
        writer: flight.FlightMetadataWriter,
        request: Request,
    ) -> None:
        # Updates come without a schema: the reader must not be touched before this is decided.
        name, command = _command(descriptor)
        if name == "CommandPreparedStatementQuery":
            writer.write(pa.py_buffer(prepared_statement.bind(command, request, reader)))
            return
        if name == "CommandStatementUpdate":
            rows = updates.refuse_update(command.query)
        elif name == "CommandPreparedStatementUpdate":
            handle = redeem(
                command.prepared_statement_handle, request.identity.tenant, request.handle_key
            )
            rows = updates.refuse_update(handle.sql)
        elif name == "CommandStatementIngest":
            updates.refuse_ingest()
        else:
            _refuse(f"{name} cannot be put")
        result = messages.new("DoPutUpdateResult", record_count=rows)
        writer.write(pa.py_buffer(result.SerializeToString()))

    def _act(self, action: flight.Action, request: Request) -> list[bytes]:
        handler = _ACTIONS.get(action.type)
        if handler is None:
            return _refuse(f"the action {action.type[:60]!r} is not served here")
        result = handler.run(action.body.to_pybytes() if action.body else b"", request)
        return [] if result is None else [result]

    def _guard(self, context: flight.ServerCallContext, work: Callable[[Request], T]) -> T:
        """`work`'s result for the caller of `context`; its errors made fit to send."""
        try:
            return work(self._request(context))
        except AccelError as error:
            log.info("%s: %s", error.code, error)
            _tell(context, error)
            raised = to_flight(error)
        except Exception as error:  # a traceback must never reach a client
            log.exception("a handler failed unexpectedly")
            raised = to_flight(error)
        raise raised

    def _request(self, context: flight.ServerCallContext) -> Request:
        session = context.get_middleware(handshake.MIDDLEWARE)
        plain = Request(
            identity=session.identity,
            table=self._routing.current(),
            service=self._service,
            receipts=self._receipts,
            handle_key=purpose_key(self._routing.ticket_key(), "handle"),
            is_cancelled=context.is_cancelled,
        )
        headers = {
            name: values for name, values in session.headers.items() if name.startswith(PREFIX)
        }
        if not headers:  # as of most
            return plain
        shard = read_shard(headers, session.identity.tenant)
        return replace(
            plain,
            limits=read_limits(headers),
            pins=(*read_pins(headers), *pin_of(shard)),
            shard=shard,
            may_fall_back=read_may_fall_back(headers),
            name=read_request_name(headers),
        )


def _first_batches(answer: Answer) -> list[pa.RecordBatch | None]:
    """What can be read of `answer` without holding up its start: executors fill a batch unless
    there is no more. None at the end: that is all."""
    fragments = answer.plan.fragments
    if not fragments or fragments[0].kind is FragmentKind.OLAP:
        return []
    first = answer.read()
    if first is None or first.num_rows > _SMALL_ROWS or first.nbytes > _SMALL_BYTES:
        return [first]
    return [first, answer.read()]


class _Batches:
    """A query's batches for Flight."""

    def __init__(
        self,
        answer: Answer,
        context: flight.ServerCallContext,
        first: list[pa.RecordBatch | None],
    ) -> None:
        """`first`: those that were read already."""
        self._answer = answer
        self._context = context
        self._first = deque(first)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            batch = self._first.popleft() if self._first else self._answer.read()
        except AccelError as error:
            log.info("%s: %s", error.code, error)
            _tell(self._context, error)
            raised = to_flight(error)
        except Exception as error:  # a traceback must never reach a client
            log.exception("a stream failed unexpectedly")
            raised = to_flight(error)
        else:
            if batch is not None:
                return batch
            _send_receipt(self._answer, self._context)
            raise StopIteration
        raise raised


def _send_receipt(answer: Answer, context: flight.ServerCallContext) -> None:
    summary = answer.summary
    if summary is not None:
        # Trailers must be small, and plain ASCII.
        if len(summary.parts) > _TRAILER_PARTS:
            summary = replace(summary, parts=())
        text = encode(summary).decode()
        text = text if text.isascii() else json.dumps(json.loads(text))
        _add_trailer(context, _RECEIPT_TRAILER, text)


def _tell(context: flight.ServerCallContext, error: AccelError) -> None:
    """What programs look at in place of the message."""
    _add_trailer(context, _CODE_TRAILER, error.code)
    if isinstance(error, ResourceExhausted):
        _add_trailer(context, _RETRY_TRAILER, str(error.retry_after_ms))


def _add_trailer(context: flight.ServerCallContext, name: str, value: str) -> None:
    context.add_trailer(name, value)


def _command(descriptor: flight.FlightDescriptor) -> tuple[str, Any]:
    if descriptor.descriptor_type != flight.DescriptorType.CMD or not descriptor.command:
        raise InvalidQuery("the request has no command")
    return messages.unwrap(descriptor.command)


def _info(
    descriptor: flight.FlightDescriptor, ticket: bytes, schema: pa.Schema | None
) -> flight.FlightInfo:
    # Without a location: the same connection redeems the ticket.
    endpoint = flight.FlightEndpoint(flight.Ticket(ticket), [])
    return flight.FlightInfo(schema, descriptor, [endpoint], -1, -1)


def _refuse(message: str) -> NoReturn:
    raise UnsupportedQuery(message)
