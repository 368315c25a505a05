"""Who is refused, and what an error never says."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi
from gateway_world import World
from pyarrow import flight

from accel_dask.errors import Unauthenticated
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota, Tenant, User, hash_token
from accel_dask.store.records import delete_record, put_record
from accel_dask.ticket_stream import FrameKind, FrameReader, frame, read_error, send
from flightsql_gateway.flight_sql import (
    get_catalogs,
    get_tables,
    messages,
    own_actions,
    prepared_statement,
    statement_query,
    updates,
)


@pytest.fixture(autouse=True)
def _as_in_the_gateways_process() -> Iterator[None]:
    before = getattr(sys, "tracebacklimit", None)
    sys.tracebacklimit = 0
    yield
    if before is None:
        del sys.tracebacklimit
    else:
        sys.tracebacklimit = before


FORBIDDEN = re.compile(r'Traceback|File "|/work|/tmp|/usr|\.py\b|secrets|rival|s_[0-9a-f]{8}')


def ticket(sql: str) -> flight.Ticket:
    return flight.Ticket(messages.wrap(messages.new("CommandStatementQuery", query=sql)))


@pytest.mark.parametrize(
    ("user", "token"),
    [("acme", "wrong"), ("acme", ""), ("nobody", "secret-of-acme"), ("acme", "secret-of-rival")],
)
def test_a_wrong_user_or_token_is_refused_in_the_same_words(
    world: World, user: str, token: str
) -> None:
    with (
        pytest.raises(dbapi.Error, match="UNAUTHENTICATED") as refused,
        world.connect(user, token) as connection,
    ):
        connection.cursor().execute("select 1")
    assert "user name and token do not match" in str(refused.value)
    assert user not in str(refused.value).replace("UNAUTHENTICATED", "")
    assert not FORBIDDEN.search(str(refused.value))


@pytest.mark.parametrize("header", [None, "Bearer None", "Bearer abc", "Basic abc", "nonsense"])
def test_calls_without_a_valid_header_are_refused(world: World, header: str | None) -> None:
    client = flight.FlightClient(world.url)
    headers = [(b"authorization", header.encode())] if header else []
    options = flight.FlightCallOptions(headers=headers, timeout=10)
    for call in (
        lambda: client.do_get(ticket("select 1"), options).read_all(),
        lambda: list(client.do_action(flight.Action("accel.receipts", b""), options)),
        lambda: list(client.list_actions(options)),
        lambda: list(client.list_flights(options=options)),
    ):
        with pytest.raises(flight.FlightUnauthenticatedError):
            call()
    client.close()


def test_a_revoked_users_session_ends(world: World) -> None:
    put_record(
        world.store,
        User(name="guest", tenant=TenantId("acme"), token_sha256=hash_token("t")),
    )
    world.wait_applied()
    client, options = world.client("guest", "t")
    assert client.do_get(ticket("select 1"), options).read_all().num_rows == 1
    delete_record(world.store, ("user", "guest"))
    world.wait_applied()
    with pytest.raises(flight.FlightUnauthenticatedError):
        client.do_get(ticket("select 1"), options).read_all()
    client.close()


def test_a_tenant_that_connects_anew_all_the_time_waits_and_nobody_else(world: World) -> None:
    acme = Tenant(tenant=TenantId("acme"), quota=Quota(logins_per_second=2))
    put_record(world.store, acme)
    world.wait_applied()
    started = time.monotonic()
    with ThreadPoolExecutor(8) as pool:  # five at once, then two a second
        logins = [pool.submit(world.client, "acme", "secret-of-acme") for _ in range(8)]
        rival, _ = world.client("rival", "secret-of-rival")
        assert time.monotonic() - started < 1.0
        for login in logins:
            client, options = login.result()
            assert client.do_get(ticket("select 1"), options).read_all().num_rows == 1
            client.close()
    assert time.monotonic() - started > 1.0
    rival.close()


def test_another_tenants_dataset_reads_like_none(world: World) -> None:
    texts = []
    with world.connect("acme", "secret-of-acme") as connection, connection.cursor() as cursor:
        for name in ("secrets", "sikrets", "rival.secrets", "rival.sikrets", "other.sikrets"):
            with pytest.raises(dbapi.ProgrammingError) as refused:
                cursor.execute(f"select * from {name}")
            texts.append(str(refused.value).replace("sikrets", "secrets"))
    assert texts[0] == texts[1]
    assert texts[2] == texts[3] == texts[4].replace("other", "rival")


BAD_STATEMENTS = [
    "delete from flights",
    "select * from read_csv('/etc/passwd')",
    "select",
    "select nope from flights",
    "select 1 +",
    "select * from flights where id = 'x'",
    "select cast('abc' as int) from flights",
    "select sum(carrier) from flights",
    "select * from flights f join carriers c on f.nope = c.nope",
    "select (select id, carrier from flights) from flights",
    "select f.id from flights",
    "set memory_limit = '1TB'",
    "select 1; select 2",
]


@pytest.mark.parametrize("sql", BAD_STATEMENTS)
def test_errors_say_what_is_wrong_and_nothing_of_the_inside(world: World, sql: str) -> None:
    with (
        world.connect("acme", "secret-of-acme") as connection,
        connection.cursor() as cursor,
        pytest.raises(dbapi.Error) as refused,
    ):
        cursor.execute(sql).fetchall()
    assert re.search(r"\[[A-Z_]+\] \S", str(refused.value))
    assert not FORBIDDEN.search(str(refused.value))
    client, options = world.client("acme", "secret-of-acme")
    with pytest.raises(Exception, match=r"\[[A-Z_]+\] ") as raised:
        client.do_get(ticket(sql), options).read_all()
    assert not FORBIDDEN.search(str(raised.value))
    client.close()


class Boom(Exception):
    """Names everything that must not leak."""

    def __str__(self) -> str:
        return "/srv/rival/secrets.py exploded: rival"


HANDLERS: list[tuple[Any, str, Any]] = [
    (statement_query, "ticket", "info"),
    (statement_query, "run", "get"),
    (statement_query, "run_ticket", "get_ticket"),
    (statement_query, "schema", "schema"),
    (get_catalogs, "schema", "catalogs_info"),
    (get_catalogs, "answer", "catalogs_get"),
    (get_tables, "schema", "tables_schema"),
    (prepared_statement, "_one_row", "bind"),
    (updates, "refuse_update", "update"),
    (own_actions, "read_body", "action"),
]


@pytest.mark.parametrize(("module", "function", "call"), HANDLERS)
def test_no_handler_lets_an_unexpected_error_out(
    world: World, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, call: str
) -> None:
    client, options = world.client("acme", "secret-of-acme")
    query = messages.wrap(messages.new("CommandStatementQuery", query="select 1"))
    info = client.get_flight_info(flight.FlightDescriptor.for_command(query), options)
    prepared = messages.new("ActionCreatePreparedStatementRequest", query="select ?")
    (result,) = client.do_action(
        flight.Action("CreatePreparedStatement", messages.wrap(prepared)), options
    )
    _, created = messages.unwrap(result.body.to_pybytes())
    bind = messages.new(
        "CommandPreparedStatementQuery",
        prepared_statement_handle=created.prepared_statement_handle,
    )

    def explode(*_: Any) -> None:
        raise Boom

    monkeypatch.setattr(module, function, explode)
    catalogs = messages.wrap(messages.new("CommandGetCatalogs"))
    tables = messages.wrap(messages.new("CommandGetTables"))
    update = messages.wrap(messages.new("CommandStatementUpdate", query="drop table t"))
    calls: dict[str, Any] = {
        "info": lambda: client.get_flight_info(_descriptor(query), options),
        "schema": lambda: client.get_schema(_descriptor(query), options),
        "get": lambda: client.do_get(flight.Ticket(query), options).read_all(),
        "get_ticket": lambda: client.do_get(info.endpoints[0].ticket, options).read_all(),
        "catalogs_info": lambda: client.get_flight_info(_descriptor(catalogs), options),
        "catalogs_get": lambda: client.do_get(flight.Ticket(catalogs), options).read_all(),
        "tables_schema": lambda: client.get_schema(_descriptor(tables), options),
        "bind": lambda: _put(client, options, messages.wrap(bind)),
        "update": lambda: _put(client, options, update),
        "action": lambda: list(client.do_action(flight.Action("accel.receipts", b"{}"), options)),
    }
    # Flight gives errors of get_schema no status of their own.
    with pytest.raises((flight.FlightError, pa.ArrowException)) as raised:
        calls[call]()
    assert "internal error" in str(raised.value)
    assert not FORBIDDEN.search(str(raised.value))
    client.close()


def _descriptor(data: bytes) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(data)


def _put(client: flight.FlightClient, options: flight.FlightCallOptions, data: bytes) -> None:
    row = pa.record_batch([pa.array([1])], names=["0"])
    writer, reader = client.do_put(_descriptor(data), row.schema, options)
    with writer:
        writer.write_batch(row)
        writer.done_writing()
        reader.read()


def test_an_executor_that_explodes_shows_nothing_of_it(world: World) -> None:
    def explode(ticket: Any) -> None:
        raise Boom

    world.executors[0].before = explode
    client, options = world.client("acme", "secret-of-acme")
    with pytest.raises(flight.FlightError) as raised:
        client.do_get(ticket("select 1 from flights"), options).read_all()
    assert not FORBIDDEN.search(str(raised.value))
    client.close()


def test_nonsense_on_the_wire_is_an_error_and_no_more(world: World) -> None:
    client, options = world.client("acme", "secret-of-acme")
    garbage = [
        b"",
        b"\xff" * 100,
        messages.wrap(messages.new("CommandStatementQuery")),
        messages.new("Any", type_url="type.googleapis.com/x.Y", value=b"z").SerializeToString(),
        messages.wrap(messages.new("TicketStatementQuery", statement_handle=b"short")),
        messages.wrap(messages.new("TicketStatementQuery", statement_handle=b"x" * 5000)),
        messages.wrap(
            messages.new("CommandPreparedStatementQuery", prepared_statement_handle=b"y" * 99)
        ),
        messages.wrap(messages.new("CommandStatementSubstraitPlan")),
        messages.wrap(messages.new("CommandStatementUpdate", query="x")),
    ]
    for data in garbage:
        for call in (
            lambda data=data: client.do_get(flight.Ticket(data), options).read_all(),
            lambda data=data: client.get_flight_info(_descriptor(data), options),
            lambda data=data: client.get_schema(_descriptor(data), options),
            lambda data=data: list(
                client.do_action(flight.Action("CreatePreparedStatement", data), options)
            ),
        ):
            with pytest.raises(Exception) as raised:  # noqa: PT011 - of several classes
                call()
            assert not FORBIDDEN.search(str(raised.value))
    for name in ("BeginTransaction", "accel.unknown", ""):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            list(client.do_action(flight.Action(name, b""), options))
        assert not FORBIDDEN.search(str(raised.value))
    path = flight.FlightDescriptor.for_path("a", "b")
    with pytest.raises(Exception, match="no command"):
        client.get_flight_info(path, options)
    client.close()


def test_a_ticket_cannot_be_altered_or_used_for_another_purpose(world: World) -> None:
    client, options = world.client("acme", "secret-of-acme")
    query = messages.wrap(messages.new("CommandStatementQuery", query="select 1"))
    info = client.get_flight_info(_descriptor(query), options)
    _, command = messages.unwrap(info.endpoints[0].ticket.ticket)
    handle = bytearray(command.statement_handle)
    handle[-10] ^= 1
    altered = messages.wrap(messages.new("TicketStatementQuery", statement_handle=bytes(handle)))
    with pytest.raises(Exception, match="statement handle"):
        client.do_get(flight.Ticket(altered), options).read_all()
    with socket.create_connection(("127.0.0.1", world.executors[0].ticket_port), 10) as executor:
        send(executor, frame(FrameKind.TICKET, command.statement_handle))
        answer = FrameReader(executor).read()
    assert answer.kind is FrameKind.ERROR
    assert isinstance(read_error(answer.payload), Unauthenticated)
    client.close()
