"""Flight SQL over pyarrow: a statement is one round trip, its own ticket.

The gateway takes the command as the ticket of a DoGet, so that no FlightInfo is asked for first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import pyarrow as pa
from pyarrow import flight

from accel_dask.errors import ConfigError, ExecutorUnavailable, Unauthenticated
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight
from accel_dask.flight_trailers import TrailerReader

_TYPE_PREFIX: Final = "type.googleapis.com/arrow.flight.protocol.sql."
_RECEIPT: Final = "x-accel-receipt"
_TIMEOUT: Final = "x-accel-deadline-ms"
_REQUEST: Final = "x-accel-request"
_CONNECT_SECONDS: Final = 30.0


class Answering(Protocol):
    """An answer that is coming in."""

    @property
    def schema(self) -> pa.Schema: ...

    def batches(self) -> Iterator[pa.RecordBatch]: ...

    def receipt(self) -> dict[str, Any]:
        """What the gateway tells of it, once all batches are read."""
        ...

    def cancel(self) -> None: ...


class Transport(Protocol):
    """What a session needs of a gateway."""

    @property
    def where(self) -> tuple[str, str, str]:
        """The gateway, the user and the token."""
        ...

    def query(
        self, sql: str, *, timeout_ms: int, headers: Mapping[str, str], name: str
    ) -> Answering:
        """`name`: for `cancel`."""
        ...

    def cancel(self, name: str) -> None:
        """End a query at the server, also while `query` waits for its first batch."""
        ...

    def describe(self, sql: str) -> pa.Schema: ...

    def tables(self) -> dict[str, pa.Schema]:
        """The schemas of all datasets that can be asked."""
        ...

    def action(self, name: str, body: Mapping[str, Any]) -> Any:
        """One of the gateway's own actions."""
        ...

    def close(self) -> None: ...


class FlightTransport:
    """A connection to one gateway. Safe to use from several threads.

    Raises:
        ConfigError: `url` is not an address.
        Unauthenticated: user and token do not match.
        ExecutorUnavailable: there is no gateway at `url`.
    """

    def __init__(self, url: str, user: str, token: str) -> None:
        self._open(url, user, token)
        try:
            self._authenticate()
        except ExecutorUnavailable as error:
            self._client.close()
            raise ExecutorUnavailable(f"no gateway answers at {url}: {error}") from error
        except BaseException:
            self._client.close()
            raise

    def _open(self, url: str, user: str, token: str) -> None:
        self.where = (url, user, token)
        self._headers = _BearerFactory()
        self._trailers = TrailerReader()
        try:
            self._client = flight.FlightClient(url, middleware=[self._headers, self._trailers])
        except pa.ArrowInvalid as error:
            raise ConfigError(f"{url!r} is no gateway's address; write grpc://host:port") from error

    @classmethod
    def later(cls, url: str, user: str, token: str) -> FlightTransport:
        """One that connects at its first call."""
        made = cls.__new__(cls)
        made._open(url, user, token)
        return made

    def __reduce__(self) -> tuple[Callable[..., FlightTransport], tuple[str, str, str]]:
        """Elsewhere it connects again, as the same user, once it is used. A frame on its way to
        a Dask worker passes the scheduler, which must not wait for a gateway."""
        return FlightTransport.later, self.where

    def query(
        self, sql: str, *, timeout_ms: int, headers: Mapping[str, str], name: str
    ) -> Answering:
        """Run `sql`; its first batch is computed when this returns.

        Raises:
            AccelError: as the gateway answered.
        """
        ticket = flight.Ticket(_command("CommandStatementQuery", sql))
        limits = {_TIMEOUT: str(timeout_ms), _REQUEST: name, **headers}
        # A little more than the gateway's: its own message says more.
        seconds = timeout_ms / 1000 + 5
        found: Answering = self._retried(
            lambda: _FlightAnswer(
                self._client, ticket, self._options(limits, seconds), self._trailers
            )
        )
        return found

    def cancel(self, name: str) -> None:
        """End the query of that name at the server."""
        self.action("accel.cancel", {"request": name})

    def describe(self, sql: str) -> pa.Schema:
        """The schema of the answer to `sql`."""
        descriptor = flight.FlightDescriptor.for_command(_command("CommandStatementQuery", sql))
        return self._retried(
            lambda: self._client.get_schema(descriptor, self._options({}, _CONNECT_SECONDS)).schema
        )

    def tables(self) -> dict[str, pa.Schema]:
        """The schemas of all datasets that have an epoch."""
        ticket = flight.Ticket(_wrapped("CommandGetTables", b"\x28\x01"))  # include_schema
        table = self._retried(
            lambda: self._client.do_get(ticket, self._options({}, _CONNECT_SECONDS)).read_all()
        )
        return {
            name: pa.ipc.read_schema(pa.py_buffer(schema))
            for name, schema in zip(
                table["table_name"].to_pylist(), table["table_schema"].to_pylist(), strict=True
            )
        }

    def action(self, name: str, body: Mapping[str, Any]) -> Any:
        """The JSON answer of an action."""
        sent = flight.Action(name, json.dumps(dict(body)).encode())
        results = self._retried(
            lambda: list(self._client.do_action(sent, self._options({}, _CONNECT_SECONDS)))
        )
        return json.loads(results[0].body.to_pybytes()) if results else None

    def close(self) -> None:
        self._client.close()

    def _authenticate(self) -> None:
        _, user, token = self.where
        options = flight.FlightCallOptions(timeout=_CONNECT_SECONDS)
        try:
            self._client.authenticate_basic_token(user, token, options)
        except FLIGHT_FAILURES as error:
            raise from_flight(error) from error

    def _options(self, headers: Mapping[str, str], seconds: float) -> flight.FlightCallOptions:
        bearer = self._headers.bearer
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        if bearer:
            pairs.append((b"authorization", bearer.encode()))
        return flight.FlightCallOptions(headers=pairs, timeout=seconds)

    def _retried(self, call: Any) -> Any:
        """`call`'s result; once more with a new bearer token if the old one has expired."""
        for is_last in (False, True):
            try:
                return call()
            except FLIGHT_FAILURES as error:
                told = from_flight(error)
                if is_last or not isinstance(told, Unauthenticated):
                    raise told from error
            self._headers.bearer = ""
            self._authenticate()
        raise AssertionError("a loop without an end")


class _FlightAnswer:
    """A stream of one statement."""

    def __init__(
        self,
        client: flight.FlightClient,
        ticket: flight.Ticket,
        options: flight.FlightCallOptions,
        trailers: TrailerReader,
    ) -> None:
        with trailers.reading() as self._trailers:
            self._reader = client.do_get(ticket, options)
        self.schema: pa.Schema = self._reader.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            while True:
                yield self._reader.read_chunk().data
        except StopIteration:
            return
        except FLIGHT_FAILURES as error:
            raise from_flight(error) from error

    def receipt(self) -> dict[str, Any]:
        text = self._trailers.get(_RECEIPT)
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    def cancel(self) -> None:
        self._reader.cancel()


class _BearerFactory(flight.ClientMiddlewareFactory):  # type: ignore[misc]
    """Takes over the bearer token that a gateway hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.bearer = ""

    def start_call(self, info: flight.CallInfo) -> _Bearer:
        return _Bearer(self)


class _Bearer(flight.ClientMiddleware):  # type: ignore[misc]
    def __init__(self, factory: _BearerFactory) -> None:
        super().__init__()
        self._factory = factory

    def received_headers(self, headers: dict[str, list[str]]) -> None:
        for value in headers.get("authorization", ()):
            if value.startswith("Bearer "):
                self._factory.bearer = value


def read_ticket(address: str, ticket: bytes, seconds: float) -> pa.Table:
    """All rows that the executor at `address` gives for a ticket.

    Raises:
        AccelError: as the executor answered; RoutingError: it does not, or not any more.
    """
    client = flight.FlightClient(address)
    try:
        reader = client.do_get(flight.Ticket(ticket), flight.FlightCallOptions(timeout=seconds))
        return reader.read_all()
    except FLIGHT_FAILURES as error:
        raise from_flight(error) from error
    finally:
        client.close()


def _command(name: str, query: str) -> bytes:
    """A command whose first field is the SQL text."""
    text = query.encode()
    return _wrapped(name, b"\x0a" + _varint(len(text)) + text)


def _wrapped(name: str, message: bytes) -> bytes:
    """A Flight SQL message in a `google.protobuf.Any`, without protobuf: its two fields."""
    url = (_TYPE_PREFIX + name).encode()
    return b"\x0a" + _varint(len(url)) + url + b"\x12" + _varint(len(message)) + message


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
