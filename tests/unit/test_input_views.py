"""Connections stay for the next query with inputs of the same form, and nothing else of them."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from executor_builders import make_input, make_ticket
from peer_doubles import ALL, PeerWorld, batch

from accel_dask.errors import InvalidQuery, InvariantViolated, QueryCancelled
from accel_dask.worker_plugin.executor import input_views
from accel_dask.worker_plugin.executor.input_views import InputViews
from accel_dask.worker_plugin.executor.part_types import with_types
from accel_dask.worker_plugin.executor.watchdog import StopReason


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PeerWorld]:
    built = PeerWorld(tmp_path, frames=True)
    yield built
    built.close()


@pytest.fixture
def views() -> Iterator[InputViews]:
    with duckdb.connect() as database:
        built = InputViews(database.cursor)
        yield built
        built.close()


def kept(world: PeerWorld) -> int:
    return world.engine.input_views._count


def rows(cursor: duckdb.DuckDBPyConnection, sql: str = ALL) -> list[tuple[object, ...]]:
    return cursor.sql(sql).fetchall()


def test_the_next_query_of_the_same_form_has_the_connection_and_its_own_rows(
    world: PeerWorld,
) -> None:
    for number in range(5):
        found = world.rows(world.peer(batch(number), batch(-number)).source())
        assert found == [{"x": number}, {"x": -number}]
        assert kept(world) == 1
    assert world.rows(world.peer().source()) == []
    twice = "SELECT a.x FROM input_0 a JOIN input_0 b USING (x)"
    assert world.rows(world.peer(batch(3)).source(), sql=twice) == [{"x": 3}]
    assert kept(world) == 1
    with pytest.raises(InvalidQuery):
        world.engine.run(make_ticket(ALL))


def test_inputs_of_another_form_have_another_connection(views: InputViews) -> None:
    number, text = pa.table({"x": [1]}), pa.table({"x": ["a"]})
    huge = pa.table(
        [pa.array([1], pa.decimal128(38, 0))],
        schema=with_types(pa.schema({"x": pa.decimal128(38, 0)}), ["HUGEINT"]),
    )
    plain = huge.replace_schema_metadata(None)
    cursors = set()
    for tables, kind in (
        ({"input_0": number}, "BIGINT"),
        ({"input_0": text}, "VARCHAR"),
        ({"input_0": huge}, "HUGEINT"),
        ({"input_0": plain}, "DECIMAL(38,0)"),
        ({"input_0": number, "input_1": number}, "BIGINT"),
    ):
        for _ in range(2):
            shown = views.show(tables)
            cursors.add(shown.cursor)
            assert rows(shown.cursor, "SELECT typeof(x) FROM input_0") == [(kind,)]
            if len(tables) == 1:
                with pytest.raises(duckdb.Error):
                    shown.cursor.sql("FROM input_1")
            views.give_back(shown)
    assert len(cursors) == 5


def test_queries_at_once_have_connections_of_their_own(views: InputViews) -> None:
    shown = [views.show({"input_0": pa.table({"x": [n]})}) for n in range(4)]
    assert [rows(each.cursor) for each in shown] == [[(0,)], [(1,)], [(2,)], [(3,)]]
    for each in shown:
        views.give_back(each)
    again = [views.show({"input_0": pa.table({"x": [-n]})}) for n in range(4)]
    assert {id(each) for each in again} == {id(each) for each in shown}
    assert sorted(rows(each.cursor)[0] for each in again) == [(-3,), (-2,), (-1,), (0,)]


def test_nothing_of_a_query_stays(views: InputViews) -> None:
    table = pa.table({"x": pa.array(range(100))})
    memory = weakref.ref(table)
    shown = views.show({"input_0": table})
    assert len(rows(shown.cursor)) == 100
    views.give_back(shown)
    del table
    gc.collect()
    assert memory() is None
    with pytest.raises((duckdb.Error, InvariantViolated)):  # and never an empty answer
        rows(shown.cursor)


def test_many_rows_are_read_as_a_table_of_known_size_and_nothing_is_kept(
    views: InputViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_views, "SMALL_ROWS", 5)
    shown = views.show({"input_0": pa.table({"x": range(4)}), "input_1": pa.table({"x": [1, 2]})})
    assert len(rows(shown.cursor)) == 4
    views.give_back(shown)
    assert views._count == 0
    with pytest.raises(duckdb.Error):
        shown.cursor.execute("SELECT 1")


def test_no_more_are_kept_than_a_few(views: InputViews, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_views, "_MAX_KEPT", 3)
    shown = [views.show({"input_0": pa.table({f"c{n}": [n]})}) for n in range(5)]
    for each in shown:
        views.give_back(each)
    assert views._count == 3
    for n, each in enumerate(shown):
        if n < 2:
            with pytest.raises(duckdb.Error):
                each.cursor.execute("SELECT 1")
        else:
            assert views.show({"input_0": pa.table({f"c{n}": [n]})}) is each
    assert views._count == 0


def test_after_a_query_that_failed_or_was_stopped_its_connection_is_closed(
    world: PeerWorld,
) -> None:
    with pytest.raises(InvalidQuery):
        world.rows(world.peer(batch(1)).source(), sql="SELECT (x || 'a')::INTEGER FROM input_0")
    assert kept(world) == 0
    many = 'SELECT a.x FROM "input_0" a, "input_0" b'
    inputs = (make_input(world.peer(batch(*range(2000))).source()),)
    query = world.engine.run(make_ticket(many, inputs=inputs, max_result_rows=10_000_000))
    next(query)
    query.stop(StopReason.CANCELLED)
    with pytest.raises(QueryCancelled):
        list(query)
    query.close()
    assert kept(world) == 0


def test_an_interruption_that_comes_too_late_meets_no_other_query(world: PeerWorld) -> None:
    """Whoever stops a query may hold its cursor while the query ends well."""
    ticket = make_ticket(ALL, inputs=(make_input(world.peer(batch(2)).source()),))
    engine = world.engine
    verify = engine.verify

    def stop(ticket: object) -> None:
        for watched in tuple(engine.watchdog._watched):
            watched.stop(StopReason.CANCELLED)

    engine.verify = stop  # type: ignore[method-assign]
    try:
        with contextlib.suppress(QueryCancelled):
            engine.run(ticket)
    finally:
        engine.verify = verify  # type: ignore[method-assign]
    assert kept(world) == 0


def test_what_counts_its_cost_or_tells_its_form_keeps_nothing(world: PeerWorld) -> None:
    assert world.rows(world.peer(batch(1)).source(), measure=True) == [{"x": 1}]
    assert world.rows(world.peer(batch(1)).source(), describe_only=True) == []
    assert kept(world) == 0
