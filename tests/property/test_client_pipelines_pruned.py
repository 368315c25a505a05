"""Random pipelines of the client: each statement passes the gate, is bounded, and keeps predicates
on the shard key so that the planner prunes by them as if they had been written by hand."""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pyarrow as pa
import pytest
from client_world import LocalTransport
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routes import executor_route

from accel_dask.client.options import Options
from accel_dask.client.session import Session
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.query_planner.pipeline import plan_query
from accel_dask.query_planner.plan import PlanContext, QueryPlan

EXAMPLES = int(os.environ.get("ACCEL_CLIENT_EXAMPLES", "60"))
ACME: Final = TenantId("acme")
CAP: Final = 50
FIRST: Final = dt.date(2024, 1, 1)
DAYS: Final = [FIRST + dt.timedelta(days=number) for number in range(10)]
ROWS: Final = pa.table(
    {
        "day": pa.array([day for day in DAYS for _ in range(3)], pa.date32()),
        "k": ["a", "b", None] * 10,
        "n": pa.array(range(30), pa.int64()),
        "f": [0.5, float("nan"), None] * 10,
    }
)
DIM: Final = pa.table({"k": ["a", "b"], "label": ["x", "y"]})


def _route(name: str, table: dict[str, str], bounds: list[dt.date | None]) -> DatasetRoute:
    shards = tuple(
        ShardSummary(
            shard_id=ShardId(f"{name:.1s}{number:031d}".replace("f", "1").replace("d", "2")),
            rows=3,
            source_bytes=1,
            stats=(
                (ColumnStats(name="day", null_count=0, lower=str(day), upper=str(day)),)
                if day is not None
                else ()
            ),
        )
        for number, day in enumerate(bounds)
    )
    columns = tuple(Column(name=column, type=kind) for column, kind in table.items())
    return DatasetRoute(
        dataset_id=DatasetId(ACME, name), epoch=EpochNumber(1), snapshot_id=None, columns=columns,
        shards=shards, executors=(),
    )  # fmt: skip


def _routing() -> RoutingTable:
    kinds = {"day": "DATE", "k": "VARCHAR", "n": "BIGINT", "f": "DOUBLE"}
    found = [
        _route("flights", kinds, list(DAYS)),
        _route("dim", {"k": "VARCHAR", "label": "VARCHAR"}, [None]),
    ]
    executor = executor_route(
        Attachment(route.dataset_id.name, EpochNumber(1), shard.shard_id)
        for route in found
        for shard in route.shards
    )
    routes = {
        route.dataset_id: DatasetRoute(
            dataset_id=route.dataset_id, epoch=route.epoch, snapshot_id=None,
            columns=route.columns, shards=route.shards, executors=(executor,),
        )
        for route in found
    }  # fmt: skip
    return RoutingTable(1, routes, {}, {}, b"")


CONTEXT: Final = PlanContext(tenant=ACME, routing=_routing())


def planned(sql: str) -> QueryPlan:
    return plan_query(sql, CONTEXT)


def shards_read(plan: QueryPlan) -> int:
    return {one.dataset_id.name: one.shards for one in plan.datasets}["flights"]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    transport = LocalTransport()
    transport.put("unknown", ROWS, ("day", "n"))
    transport.put("flights", ROWS, ("day", "n"), loaded=True)
    transport.put("dim", DIM)
    with Session(transport, Options(max_rows=CAP)) as made:
        yield made


def _day(index: int) -> str:
    return str(DAYS[index])


PREDICATES: Final[dict[str, tuple[Callable[[Any, int, int], Any], Callable[[int, int], str]]]] = {
    "ge": (lambda df, a, _: df.day >= _day(a), lambda a, _: f"day >= '{_day(a)}'"),
    "lt": (lambda df, a, _: df.day < _day(a), lambda a, _: f"day < '{_day(a)}'"),
    "eq": (lambda df, a, _: df.day == _day(a), lambda a, _: f"day = '{_day(a)}'"),
    "date": (lambda df, a, _: df.day <= DAYS[a], lambda a, _: f"day <= '{_day(a)}'"),
    "between": (
        lambda df, a, b: df.day.between(_day(min(a, b)), _day(max(a, b))),
        lambda a, b: f"day BETWEEN '{_day(min(a, b))}' AND '{_day(max(a, b))}'",
    ),
    "in": (
        lambda df, a, b: df.day.isin([DAYS[a], DAYS[b]]),
        lambda a, b: f"day IN ('{_day(a)}', '{_day(b)}')",
    ),
    "not": (lambda df, a, _: ~(df.day < _day(a)), lambda a, _: f"day >= '{_day(a)}'"),
    "or": (
        lambda df, a, b: (df.day == _day(a)) | (df.day == _day(b)),
        lambda a, b: f"day = '{_day(a)}' OR day = '{_day(b)}'",
    ),
    "and": (
        lambda df, a, _: (df.n > 1) & (df.day > _day(a)) & (df.k != "b"),
        lambda a, _: f"day > '{_day(a)}'",
    ),
    "query": (
        lambda df, a, b: df.query(f"n >= 0 and day >= '{_day(a)}' and day <= '{_day(b)}'"),
        lambda a, b: f"day >= '{_day(a)}' AND day <= '{_day(b)}'",
    ),
}
BEFORE: Final[dict[str, Callable[[Any, Session], Any]]] = {
    "assign": lambda df, _: df.assign(f=df.f * 2, m=df.n % 3),
    "rename": lambda df, _: df.rename(columns={"f": "F2"}).rename(columns={"F2": "f"}),
    "sort": lambda df, _: df.sort_values(["f", "n"], ascending=[False, True]),
    "filter": lambda df, _: df[df.n > -1],
    "select": lambda df, _: df[["day", "k", "n", "f"]],
    "fill": lambda df, _: df.assign(f=df.f.fillna(0)),
    "join": lambda df, session: df.merge(session.table("dim"), on="k").drop(columns=["label"]),
    "left join": lambda df, session: df.merge(session.table("dim"), on="k", how="left").drop(
        columns=["label"]
    ),
}
AFTER: Final[dict[str, Callable[[Any, Session], Any]]] = {
    **BEFORE,
    "group": lambda df, _: (
        df.groupby(["day", "k"]).agg(n=("n", "sum"), f=("f", "mean")).reset_index()
    ),
    "head": lambda df, _: df.sort_values(["day", "n"]).head(7),
    "window": lambda df, _: df.sort_values(["day", "n"]).assign(
        n=lambda x: x.n.cumsum(), f=lambda x: x.groupby("k").f.shift(1)
    ),
    "time window": lambda df, _: df.sort_values(["day", "n"]).assign(
        f=lambda x: x.rolling("3D", on="day")["f"].mean()
    ),
    "distinct": lambda df, _: df.drop_duplicates(),
    "first": lambda df, _: df.sort_values(["day", "n"]).drop_duplicates(subset=["k"]),
}
LAST: Final[dict[str, Callable[[Any], Any]]] = {
    "rows": lambda df: df,
    "counts": lambda df: df.k.value_counts(),
    "mean": lambda df: df.groupby("k").f.mean(),
    "bins": lambda df: df.assign(day=df.day.dt.floor("D")).groupby("day").n.max(),
    "describe": lambda df: df[["n", "f"]].describe(),
}


@given(
    table=st.sampled_from(["flights", "flights", "unknown"]),
    before=st.lists(st.sampled_from(sorted(BEFORE)), max_size=3),
    predicate=st.sampled_from(sorted(PREDICATES)),
    days=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    after=st.lists(st.sampled_from(sorted(AFTER)), max_size=4),
    last=st.sampled_from(sorted(LAST)),
)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES < 100,
          suppress_health_check=list(HealthCheck))  # fmt: skip
def test_pipelines_are_bounded_and_pruned_by_the_shard_key(
    session: Session, table: str, before: list[str], predicate: str, days: tuple[int, int],
    after: list[str], last: str,
) -> None:  # fmt: skip
    joins = 0
    df = session.table(table)
    chosen, written = PREDICATES[predicate]
    for step in before:
        joins += "join" in step
        df = BEFORE[step](df, session)
    found = chosen(df, *days)
    df = found if predicate == "query" else df[found]
    for step in after:
        joins += "join" in step
        # More joins than the gate lets through are an error, which is told elsewhere.
        df = AFTER[step](df, session) if "join" not in step or joins < 4 else df
    made = LAST[last](df)
    # The columns that nothing is known of are those of the same dataset.
    sql = made.sql.replace('"unknown"', '"flights"')
    plan = planned(sql)
    wanted = planned(f"SELECT n FROM flights WHERE {written(*days)}")
    assert shards_read(plan) == shards_read(wanted), sql
    assert plan.verdict.result_rows is not None, sql
    assert plan.verdict.result_rows <= CAP + 1, sql
    assert last == "describe" or re.search(rf" LIMIT (\d|[1-4]\d|50|{CAP + 1})\b", sql), sql
    for never in ("SELECT *", "CROSS", "RECURSIVE", "FULL"):
        assert never not in sql.upper(), sql
    assert len(made.compute()) <= CAP
