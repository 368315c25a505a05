"""What the client's frames compile to, what they refuse, and how they are bounded."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pyarrow as pa
import pytest
from client_world import LocalTransport, local_session

from accel_dask.client import dtypes
from accel_dask.client.nodes import Field
from accel_dask.client.session import Session, _is_compatible
from accel_dask.errors import (
    AlignmentError,
    OrderRequired,
    ResultTooLarge,
    UnknownColumn,
    UnknownTable,
    UnsupportedOperation,
)

FLIGHTS = pa.table(
    {
        "flight_date": pa.array([1, 2, 3, 4], pa.int32()).cast(pa.date32()),
        "carrier": ["AA", "UA", None, "AA"],
        "delay": [1.5, None, 3.0, -2.0],
        "distance": pa.array([100, 200, 300, 400], pa.int64()),
    }
)


@pytest.fixture
def world() -> Iterator[tuple[Session, LocalTransport]]:
    session, transport = local_session(max_rows=100)
    transport.put("flights", FLIGHTS)
    transport.put("sorted", FLIGHTS, ("flight_date",))
    yield session, transport
    session.close()


def test_predicates_stay_raw_on_the_scan_and_only_used_columns_are_read(
    world: tuple[Session, LocalTransport],
) -> None:
    df = world[0].table("flights")
    out = df[df.flight_date >= "2013-01-01"].groupby("carrier").agg(n=("distance", "sum"))
    assert "WHERE t0.\"flight_date\" >= CAST('2013-01-01' AS DATE)" in out.sql
    assert "delay" not in out.sql
    assert out.sql.endswith("LIMIT 101")
    assert out.sql.count("SELECT") == 1


def test_filters_on_both_sides_of_a_join_stay_on_the_scans(
    world: tuple[Session, LocalTransport],
) -> None:
    df = world[0].table("flights")
    one = df[df.flight_date < "1970-01-04"]
    other = df[df.distance > 100][["carrier", "delay"]]
    out = one.merge(other, on="carrier")
    assert out.sql.count("SELECT") == 1
    assert "\"flight_date\" < CAST('1970-01-04' AS DATE)" in out.sql
    assert "COALESCE" not in out.sql.partition("WHERE")[2]


def test_an_answer_larger_than_the_bound_is_an_error_with_three_ways_out(
    world: tuple[Session, LocalTransport],
) -> None:
    df = world[0].table("flights")
    with pytest.raises(ResultTooLarge, match=r"aggregate.*filter.*head") as raised:
        df.limit_rows(3).compute()
    assert "max_rows=3" in str(raised.value)
    assert len(df.limit_rows(4).compute()) == 4


def test_aggregates_of_one_row_need_no_limit(world: tuple[Session, LocalTransport]) -> None:
    session, transport = world
    assert session.table("flights").distance.sum() == 1000
    assert "LIMIT" not in transport.sent[-1]


def test_plain_repr_runs_no_query_and_the_html_preview_one(
    world: tuple[Session, LocalTransport],
) -> None:
    session, transport = world
    df = session.table("flights")
    assert "carrier: string" in repr(df)
    assert transport.sent == []
    assert "from memory" in df._repr_html_()
    assert len(transport.sent) == 1
    assert transport.sent[0].endswith("LIMIT 21")


def test_arrow_streams_asked_several_times_send_one_query(
    world: tuple[Session, LocalTransport],
) -> None:
    session, transport = world
    df = session.table("flights")
    assert pa.table(df).num_rows == pa.table(df).num_rows == 4
    assert len(transport.sent) == 1


def test_what_depends_on_order_asks_for_one(world: tuple[Session, LocalTransport]) -> None:
    df = world[0].table("flights")
    for operation in (
        lambda: df.head(2),
        lambda: df.delay.shift(1),
        lambda: df.distance.cumsum(),
        lambda: df.distance.rolling(2).sum(),
        lambda: df.groupby("carrier").delay.first(),
    ):
        with pytest.raises(OrderRequired, match="sort_values"):
            operation()
    assert len(world[0].table("sorted").head(2).compute()) == 2
    assert len(df.peek(2).compute()) == 2


def test_a_sort_key_may_be_projected_away(world: tuple[Session, LocalTransport]) -> None:
    df = world[0].table("flights")
    out = df.sort_values("distance", ascending=False)[["carrier"]].head(2)
    assert out.compute()["carrier"].tolist()[0] == "AA"
    kept = out[out.carrier.isna()].compute()
    assert len(kept) == 1


def test_series_of_other_rows_do_not_align(world: tuple[Session, LocalTransport]) -> None:
    df = world[0].table("flights")
    with pytest.raises(AlignmentError, match="not of the same rows"):
        _ = df.delay + df[df.distance > 1].delay
    with pytest.raises(AlignmentError):
        df.assign(x=df[df.distance > 1].delay)
    # A mask of the rows that these were filtered from is one of these, too.
    assert len(df[df.distance > 100][df.delay > 0].compute()) == 1


def test_what_is_not_served_says_what_to_write(world: tuple[Session, LocalTransport]) -> None:
    df = world[0].table("flights")
    assert not hasattr(df, "iloc"), "tools that look for pandas must not trip"
    for operation, advice in (
        (lambda: df.apply(len), "where/mask"),
        (lambda: df.carrier.map(len), "where/mask"),
        (lambda: df.sort_values("delay", inplace=True), "assign the result"),
        (lambda: df.iloc[0], "head"),
        (lambda: df.to_sql("t"), r"\.sql"),
        (lambda: df.groupby("carrier").apply(len), "agg"),
        (lambda: df.carrier.str.contains("(?=a)"), "simpler"),
        (lambda: df.groupby("carrier").sum(), "numeric_only"),
        (lambda: df.merge(df, how="cross"), "inner"),
        (lambda: df.rolling("7D")["delay"], "set_index"),
        (lambda: df.rolling("7D", on="carrier")["delay"], "set_index"),
        (lambda: df.rolling("ME", on="flight_date"), "fixed length"),
        (lambda: df.rolling("7D", on="flight_date", center=True), "ends with each row"),
        (lambda: df.rolling(3, closed="left"), "inclusive"),
        (lambda: df.distance.rolling(3).apply(len), "sum, mean"),
        (lambda: df.distance.idxmax(), "head"),
        (lambda: df.groupby("carrier").distance.sum().unstack(), "several keys"),
    ):
        with pytest.raises((UnsupportedOperation, AttributeError), match=advice):
            operation()


def test_unknown_names_suggest_known_ones(world: tuple[Session, LocalTransport]) -> None:
    df = world[0].table("flights")
    with pytest.raises(UnknownColumn, match="did you mean 'delay'"):
        df["dealy"]
    with pytest.raises(AttributeError, match="did you mean 'carrier'"):
        _ = df.carier
    with pytest.raises(UnknownTable, match="did you mean 'flights'"):
        world[0].table("flight")
    assert "carrier" in dir(df)
    assert df._ipython_key_completions_() == ["flight_date", "carrier", "delay", "distance"]


def test_a_frame_can_be_assigned_to_and_its_copies_do_not_change(
    world: tuple[Session, LocalTransport],
) -> None:
    df = world[0].table("flights")
    other = df.copy()
    other["double"] = other["distance"] * 2
    other.loc[other.carrier == "AA", "double"] = 0
    assert "double" not in df
    assert other["double"].sum() == 1000


def test_answers_carry_where_they_came_from(world: tuple[Session, LocalTransport]) -> None:
    session, _ = world
    out = session.table("flights").groupby("carrier").size().compute()
    assert out.attrs["accel"]["route"] == "hot"
    assert session.last_query is not None
    assert session.last_query.sql == out.attrs["accel"]["sql"]


def test_whole_numbers_are_exact_and_wide(world: tuple[Session, LocalTransport]) -> None:
    session, transport = world
    transport.put("big", pa.table({"x": pa.array([2**53 + 1, None, 5], pa.int64())}))
    df = session.table("big")
    assert df.x.sum() == 2**53 + 6
    with pytest.warns(UserWarning, match="kept exact"):
        out = df.compute()
    assert out["x"].dtype == pd.Int64Dtype()
    assert out["x"][0] == 2**53 + 1


def test_own_sql_can_be_gone_on_from(world: tuple[Session, LocalTransport]) -> None:
    df = world[0].sql("SELECT carrier, distance * 2 AS twice FROM flights;")
    assert df.groupby("carrier").twice.sum().compute().to_dict() == {"AA": 1000, "UA": 400}


def test_expressions_that_use_one_another_do_not_grow_without_end(
    world: tuple[Session, LocalTransport],
) -> None:
    df = world[0].table("flights")
    for _ in range(12):
        df = df.assign(distance=df.distance + df.distance)
    assert df.distance.sum() == 1000 * 2**12
    assert len(df.sql) < 20_000


def test_columns_are_shown_in_notebooks_too(world: tuple[Session, LocalTransport]) -> None:
    df = world[0].table("flights")
    assert "UA" in df.carrier._repr_html_()
    assert "AA" in df.carrier.value_counts()._repr_html_()


def test_tools_that_take_narwhals_send_one_query(world: tuple[Session, LocalTransport]) -> None:
    import narwhals as nw

    session, transport = world
    eager = nw.from_native(session.table("flights"), eager_only=True)
    assert eager.columns == ["flight_date", "carrier", "delay", "distance"]
    assert eager["distance"].sum() == 1000
    assert len(transport.sent) == 1


def test_what_is_known_of_missing_values_shapes_sql_and_dtypes(
    world: tuple[Session, LocalTransport],
) -> None:
    session, transport = world
    rows = FLIGHTS.append_column("stops", pa.array([1, None, 2, 3], pa.int32()))
    transport.put("loaded", rows, loaded=True)
    df, unknown = session.table("loaded"), session.table("flights")
    assert "ISNAN" not in df[df.delay > 1].sql
    assert "ISNAN" in unknown[unknown.delay > 1].sql
    assert "IS NULL" not in df.groupby("distance").agg(n=("delay", "sum")).sql
    assert str(df.dtypes["stops"]) == "float64", "integers with missing values are floats"
    assert str(df.distance.dtype) == "int64"
    computed = df.compute()
    assert {name: str(kind) for name, kind in computed.dtypes.items()} == {
        name: str(kind) for name, kind in df.dtypes.items()
    }


def test_means_of_decimals_add_them_up_as_they_are(world: tuple[Session, LocalTransport]) -> None:
    session, transport = world
    money = pa.table({"price": pa.array([1, 2, 4], pa.int32()).cast(pa.decimal128(15, 2))})
    transport.put("money", money)
    assert "CAST" not in session.table("money").agg({"price": "mean"}).sql
    assert session.table("money").price.mean() == pytest.approx(7 / 3)


def test_a_column_that_may_be_missing_from_now_on_is_another_column() -> None:
    always, maybe = Field("n", dtypes.INT, may_null=False), Field("n", dtypes.INT)
    assert _is_compatible((always,), (always,))
    assert _is_compatible((maybe,), (always,)), "a frame that expects them is right without"
    assert not _is_compatible((always,), (maybe,))


def test_windows_over_time_need_an_order_of_rows_of_one_instant(
    world: tuple[Session, LocalTransport],
) -> None:
    df = world[0].table("flights")
    with pytest.raises(OrderRequired, match="over time"):
        df.rolling("2D", on="flight_date")["delay"].sum()
    ordered = world[0].table("sorted")
    assert "RANGE BETWEEN" in ordered.rolling("2D", on="flight_date")["delay"].sum().sql
    found = ordered.rolling("2D", on="flight_date")["distance"].sum().compute()
    assert found.tolist() == [100.0, 300.0, 500.0, 700.0]
