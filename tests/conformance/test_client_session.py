"""The notebook client through a real gateway, with executors that stand in for real ones."""

from __future__ import annotations

import _thread
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from gateway_world import World, flights, wait_until

import accel_dask.client.pandas as apd
from accel_dask.client import Session, connect, magic
from accel_dask.client.transport import _command, _wrapped
from accel_dask.errors import (
    EpochRetired,
    ExecutorUnavailable,
    InvalidQuery,
    SchemaChanged,
    Unauthenticated,
)
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId
from accel_dask.store.records import put_record
from flightsql_gateway.flight_sql import messages
from flightsql_gateway.request_pins import read_pins


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    made.start()
    made.token = made.tenant("acme")  # type: ignore[attr-defined]
    made.serve("acme", {"flights": (1, [flights(1, 100)])})
    yield made
    made.close()


def test_the_messages_are_those_of_flight_sql() -> None:
    sql = "SELECT '" + "é" * 300 + "'"
    command = messages.new("CommandStatementQuery", query=sql)
    assert _command("CommandStatementQuery", sql) == messages.wrap(command)
    tables = messages.new("CommandGetTables", include_schema=True)
    assert _wrapped("CommandGetTables", b"\x28\x01") == messages.wrap(tables)


def test_a_frame_runs_and_says_where_it_ran(session: Session) -> None:
    df = session.table("flights")
    out = df[df.delay >= 1].groupby("carrier").agg(n=("id", "count"), last=("id", "max")).compute()
    assert out["n"].to_dict() == {"C0": 33, "C1": 32, "C2": 33}
    told = out.attrs["accel"]
    assert told["route"] == "hot"
    assert [(one["dataset"], one["epoch"]) for one in told["datasets"]] == [("flights", 1)]
    assert session.last_query is not None
    assert session.last_query.server_ms > 0


def test_the_environment_may_say_where(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCEL_URL", world.url)
    monkeypatch.setenv("ACCEL_USER", "acme")
    monkeypatch.setenv("ACCEL_TOKEN", "secret-of-acme")
    with connect() as session:
        assert session.tables() == ["flights"]


def test_errors_are_those_of_the_tree(world: World, session: Session) -> None:
    with pytest.raises(InvalidQuery):
        session.sql("SELECT nonsense FROM flights").compute()
    with pytest.raises(Unauthenticated):
        connect(world.url, user="acme", token="wrong")
    with pytest.raises(ExecutorUnavailable, match="no gateway answers"):
        connect("grpc://127.0.0.1:1", user="acme", token="x")


def test_explain_shows_the_sql_and_the_plan(session: Session) -> None:
    text = session.table("flights").groupby("carrier").size().explain()
    assert "GROUP BY" in text
    assert "reads    flights.carrier" in text


def test_batches_come_while_they_arrive(session: Session) -> None:
    df = session.table("flights")
    assert sum(len(batch) for batch in df.to_pandas_batches()) == 100


def test_a_snapshot_pins_epochs_and_keeps_answers(world: World, session: Session) -> None:
    df = session.table("flights")
    with session.snapshot() as epochs:
        assert epochs == {"flights": 1}
        first = df.version.max()
        assert df.version.max() == first == 1
        assert session.last_query is not None
        assert session.last_query.is_cached


def test_a_pinned_epoch_that_is_gone_is_an_error_and_never_another_answer() -> None:
    made = World()
    try:
        made.start()
        made.tenant("acme")
        made.serve("acme", {"flights": (1, [flights(1, 10)])})
        with connect(made.url, user="acme", token="secret-of-acme") as session:
            df = session.table("flights")
            with session.snapshot():
                assert df.version.max() == 1
                made.serve("acme", {"flights": (2, [flights(2, 10)])}, generation=2)
                with pytest.raises(EpochRetired, match=r"epoch 2 by now.*pinned to 1"):
                    df.version.min()
            assert df.version.min() == 2
    finally:
        made.close()


@pytest.mark.parametrize("pins", ["FLIGHTS@1", "Flights@1,other@7"])
def test_a_pin_holds_in_whatever_case_its_dataset_is_named(pins: str) -> None:
    made = World()
    try:
        made.start()
        made.tenant("acme")
        made.serve("acme", {"flights": (2, [flights(2, 10)])})
        header = {"adbc.flight.sql.rpc.call_header.x-accel-epochs": pins}
        with (
            made.connect("acme", "secret-of-acme", **header) as connection,
            connection.cursor() as cursor,
            pytest.raises(Exception, match=r"epoch 2 by now.*pinned to 1"),
        ):
            cursor.execute("SELECT max(version) FROM flights")
    finally:
        made.close()


def test_a_dataset_pinned_to_two_epochs_is_refused() -> None:
    with pytest.raises(InvalidQuery, match="two epochs"):
        read_pins({"x-accel-epochs": ["flights@1", "flights@2"]})


def test_columns_that_change_with_an_epoch_are_an_error_and_not_a_guess() -> None:
    made = World()
    try:
        made.start()
        made.tenant("acme")
        made.serve("acme", {"flights": (1, [flights(1, 10)])})
        with connect(made.url, user="acme", token="secret-of-acme") as session:
            df = session.table("flights")
            text = session.sql("SELECT id, version FROM flights WHERE id < 9")
            text = text[text.id > 0]
            assert df.version.max() == text.version.max() == 1
            other = flights(2, 10)
            other = other.set_column(3, "version", other["version"].cast("double"))
            made.serve("acme", {"flights": (2, [other])}, generation=2)
            for frame in (df, text):
                with pytest.raises(SchemaChanged, match="make the frame again"):
                    frame.version.max()
            session.refresh()
            assert session.table("flights").version.max() == 2.0
            for frame in (df, text):  # which were made for other types
                with pytest.raises(SchemaChanged, match="make the frame again"):
                    frame[["version"]].compute()
    finally:
        made.close()


def test_an_interrupted_query_ends_at_the_server(world: World, session: Session) -> None:
    started, cancelled = threading.Event(), threading.Event()
    executor = world.executors[0]

    def hang(order: Any) -> None:
        started.set()
        wait_until(executor.is_gone[order.query_id], 20)
        cancelled.set()

    df = session.table("flights")
    executor.before = hang
    # Shells have what they start in the background ignore the signal.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter = threading.Thread(
            target=lambda: started.wait(20) and _thread.interrupt_main(), daemon=True
        )
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            df[df.id == 4711].compute()
        assert cancelled.wait(20)
        interrupter.join(20)
    finally:
        signal.signal(signal.SIGINT, usual)
        executor.before = lambda order: None


def test_a_declared_order_is_known(world: World, session: Session) -> None:
    made = Dataset(
        tenant=TenantId("acme"), name="flights", source=SourceSpec(connector="parquet"),
        sort_by=("id",),
    )  # fmt: skip
    put_record(world.store, made)
    world.wait_applied()
    session.refresh()
    assert session.table("flights").head(2).compute()["id"].tolist() == [0, 1]


def test_frames_are_dask_collections(session: Session) -> None:
    df = session.table("flights")
    counts, top = df.groupby("carrier").size(), df.delay.sort_values(ascending=False).head(1)
    assert dask.is_dask_collection(counts)
    one, other = dask.compute(counts, top)
    assert one.to_dict() == {"C0": 34, "C1": 33, "C2": 33}
    assert other.tolist() == [49.5]
    assert dask.compute(dask.delayed(len)(counts))[0] == 3


def test_a_frame_travels_and_connects_again(session: Session) -> None:
    frame = pickle.loads(pickle.dumps(session.table("flights").groupby("carrier").size()))
    try:
        assert frame.compute().to_dict() == {"C0": 34, "C1": 33, "C2": 33}
    finally:
        frame._session.close()


def test_cells_of_sql_run_on_the_default_session(session: Session) -> None:
    shell = FakeShell()
    magic.load_ipython_extension(shell)
    apd.use_session(session)
    shell.magics["accel"]("found", "SELECT carrier, count(*) AS n FROM flights GROUP BY 1")
    assert shell.variables["found"].set_index("carrier")["n"].to_dict() == {
        "C0": 34, "C1": 33, "C2": 33,
    }  # fmt: skip


class FakeShell:
    """What of IPython's shell the magic uses."""

    def __init__(self) -> None:
        self.magics: dict[str, Any] = {}
        self.variables: dict[str, Any] = {}

    def register_magic_function(self, function: Any, kind: str, name: str) -> None:
        assert kind == "line_cell"
        self.magics[name] = function

    def push(self, variables: dict[str, Any]) -> None:
        self.variables.update(variables)
