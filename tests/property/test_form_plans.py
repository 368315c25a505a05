"""A statement of a form that is known gets the plan of a first look, whatever its values are and
whatever has changed between."""

# ruff: noqa: E501 - a statement is easier to read in one line

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routes import executor_route
from test_pruning_property import COLUMNS, DAYS, World, conditions, make_world, of

from accel_dask.errors import AccelError
from accel_dask.literals import form_of
from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.executor import Attachment, ExecutorKind
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute, RoutingTable
from accel_dask.model.tenant import Quota
from accel_dask.query_planner import form_plans
from accel_dask.query_planner.cache import PlanCache
from accel_dask.query_planner.form_plans import FormPlans
from accel_dask.query_planner.pipeline import plan_query
from accel_dask.query_planner.plan import PlanContext, QueryPlan

ACME, EPOCH = TenantId("acme"), EpochNumber(1)
WORLDS = 20


@pytest.fixture(scope="module")
def worlds() -> Iterator[list[World]]:
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        yield [make_world(engine, seed) for seed in range(WORLDS)]


class Strict:
    """In place of a log: whatever is told there is a fault."""

    def error(self, message: str, *args: object) -> None:
        raise AssertionError(message % args)

    exception = error


@pytest.fixture(autouse=True, scope="module")
def _nothing_goes_wrong_in_silence() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(form_plans, "log", Strict())
        yield


def executors(rng: random.Random, routes: dict[str, DatasetRoute]) -> tuple[ExecutorRoute, ...]:
    """Most of them have everything, one may read the source's files."""
    everything = [
        Attachment(name, EPOCH, one.shard_id)
        for name, found in routes.items()
        for one in found.shards
    ]
    found = []
    for number in range(rng.randint(1, 4)):
        share = rng.choice([1.0, 1.0, 0.7])
        is_cold = number > 0 and rng.random() < 0.25
        found.append(
            executor_route(
                (one for one in everything if rng.random() < share),
                worker=f"w{number}",
                generation=rng.randint(1, 2),
                kind=ExecutorKind.COLD if is_cold else ExecutorKind.HOT,
            )
        )
    return tuple(found)


def held_by(world: World, hosts: int) -> RoutingTable:
    """Of each dataset's shards each host has its part."""
    everything = [
        Attachment(name, EPOCH, one.shard_id)
        for name, found in world.routes.items()
        for one in found.shards
    ]
    found = tuple(
        executor_route(everything[number::hosts], worker=f"w{number}") for number in range(hosts)
    )
    routes = {
        DatasetId(ACME, key): replace(one, executors=found) for key, one in world.routes.items()
    }
    return RoutingTable(1, routes, {}, {}, b"")


def routing(rng: random.Random, world: World, revision: int) -> RoutingTable:
    """The world's datasets somewhere, some of them of other shards than it has."""
    routes = dict(world.routes)
    if rng.random() < 0.3:
        name = rng.choice("tu")
        shards = tuple(
            replace(one, rows=rng.choice([0, 5, None]), shard_id=ShardId(f"{one.shard_id}x"))
            for one in routes[name].shards
        )
        routes[name] = replace(routes[name], shards=shards[: rng.randint(1, len(shards))])
    hosts, cold = executors(rng, routes), rng.choice(list(ColdPolicy))
    found = {
        DatasetId(ACME, name): replace(one, executors=hosts, cold=cold)
        for name, one in routes.items()
    }
    return RoutingTable(revision, found, {}, {}, b"")


def rebuilt(table: RoutingTable) -> RoutingTable:
    """The same, of other objects."""
    found = {
        key: replace(
            one,
            shards=tuple(replace(shard) for shard in one.shards),
            executors=tuple(replace(host) for host in one.executors),
        )
        for key, one in table.datasets.items()
    }
    return RoutingTable(int(table.revision) + 1, found, {}, {}, b"")


def with_other_values(rng: random.Random, sql: str) -> str:
    """`sql` with other digits in its literals; most dates are ones."""
    form = form_of(sql)
    for start, end in form.literals if form is not None else ():
        text = sql[start:end]
        day = re.search(r"\d{4}-\d\d-\d\d", text)
        if rng.random() < 0.2:
            continue
        if day is not None and rng.random() < 0.9:
            text = text.replace(day[0], rng.choice(DAYS))
        elif not text.startswith("'20") or rng.random() < 0.2:
            text = re.sub(r"\d", lambda _: rng.choice("0123579"), text)
        sql = sql[:start] + text + sql[end:]
    return sql


STATEMENTS = (
    "SELECT i, s, day FROM t WHERE {0}",
    "SELECT * FROM t WHERE {0} ORDER BY i LIMIT 10",
    "SELECT date_trunc('month', day) AS m, sum(d) FROM t WHERE {0} GROUP BY 1",
    "WITH late AS (SELECT * FROM t WHERE {0}) SELECT a.s, count(*) FROM late a JOIN u b ON a.i = b.i WHERE {1} GROUP BY 1",
    "SELECT a.i, b.s FROM t a JOIN u b ON a.day = b.day AND {2} WHERE {1}",
    "SELECT a.i, b.s FROM t a LEFT JOIN u b ON a.i = b.i WHERE {1}",
    "SELECT a.i FROM t a FULL JOIN u b USING (i) WHERE {2}",
    "SELECT x.i FROM (SELECT i, day FROM t WHERE {0} UNION ALL SELECT i, day FROM u WHERE {0}) x WHERE x.i > 15 AND x.day <= DATE '2013-02-01'",
    "SELECT i FROM t WHERE {0} AND i IN (SELECT i FROM u WHERE {0})",
    "SELECT i FROM t WHERE i + 15 > 20 AND i + 1 BETWEEN 10 AND 20 AND 5 < i AND {0}",
    "SELECT i FROM t WHERE day BETWEEN DATE '2013-01-01' AND DATE '2013-01-01' + 29 AND {0}",
    "SELECT i FROM t WHERE DATE '2013-01-01' BETWEEN day AND ts AND {0}",
    "SELECT i FROM t WHERE 1 = 10 OR {0}",
)  # fmt: skip


@st.composite
def statements(draw: st.DrawFn) -> str:
    plain = draw(conditions(list(COLUMNS), depth=1, unknown=False))
    ours = draw(conditions(of("a"), depth=1, unknown=False))
    both = draw(conditions([*of("a"), *of("b")], depth=1, unknown=False))
    return draw(st.sampled_from(STATEMENTS)).format(plain, ours, both)


def planned(make: object, sql: str, context: PlanContext) -> QueryPlan | str:
    try:
        plan: QueryPlan = make(sql, context)  # type: ignore[operator]
    except AccelError as error:
        return f"{type(error).__name__}: {error}"
    return plan


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(seed=st.integers(0, 10**6), form=statements())
def test_a_known_form_is_planned_as_at_first_sight(
    worlds: list[World], seed: int, form: str
) -> None:
    rng = random.Random(seed)
    world, cache = worlds[seed % WORLDS], PlanCache()
    quotas = [Quota(), Quota(max_result_rows=7), Quota(max_scan_rows=2)]
    context = PlanContext(tenant=ACME, routing=routing(rng, world, 1), quota=quotas[0])
    if rng.random() < 0.5:
        context = replace(context, seed="same")
    sent: set[str] = set()
    for _ in range(12):
        chance = rng.random()
        if chance < 0.1:
            context = replace(context, routing=routing(rng, world, rng.randint(2, 10**9)))
        elif chance < 0.2:
            context = replace(context, routing=rebuilt(context.routing))
        elif chance < 0.3:
            context = replace(context, quota=rng.choice(quotas))
        sql = with_other_values(rng, form)
        if sql in sent:  # is answered out of plans by statement
            continue
        sent.add(sql)
        if rng.random() < 0.3:
            planned(cache.check, sql, context)
        assert planned(cache.plan, sql, context) == planned(plan_query, sql, context)


PARTED = (
    "SELECT day, sum(i) FROM t WHERE i > 5 AND b <> 77 GROUP BY day",
    "SELECT a.i FROM (SELECT i FROM t WHERE i > 1 LIMIT 3) a JOIN (SELECT i FROM t WHERE i > 2 LIMIT 3) b ON a.i = b.i WHERE a.i <> 77",
    "SELECT x.i FROM (SELECT i FROM t WHERE i > 1 UNION ALL SELECT i FROM t WHERE i > 2) x WHERE x.i + 1 <> 77",
    "SELECT i FROM u WHERE i IN (SELECT i FROM t WHERE i > 1) AND s IN (SELECT s FROM t WHERE i > 2) AND i <> 77",
    "SELECT a.i, count(*) FROM t a JOIN u b ON a.i = b.i WHERE a.i > 1 AND b.i < 5 AND a.b <> 77 GROUP BY 1",
    "SELECT date_trunc('month', day) AS m, median(i) FROM t WHERE i < 5 AND b <> 77 GROUP BY m ORDER BY m LIMIT 10",
    "SELECT max(i) FROM t WHERE i > 1 AND b <> 77 UNION ALL SELECT max(i) FROM t WHERE i > 2",
)  # fmt: skip


@settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(seed=st.integers(0, 10**6), form=st.sampled_from(PARTED), hosts=st.integers(2, 3))
def test_a_known_form_is_cut_into_parts_as_at_first_sight(
    worlds: list[World], seed: int, form: str, hosts: int
) -> None:
    rng = random.Random(seed)
    cache, table = PlanCache(), held_by(worlds[seed % WORLDS], hosts)
    for number in range(40):
        context = PlanContext(tenant=ACME, routing=table, seed=rng.choice("ab"))
        sql = re.sub(r"(?<=[<>] )\d\b", lambda _: rng.choice("05"), form)
        sql = sql.replace("77", str(number + 10))  # else it is answered out of plans by statement
        expected = planned(plan_query, sql, context)
        assert planned(cache.plan, sql, context) == expected


def test_most_statements_of_a_known_form_are_not_planned_again(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, seen = FormPlans.plan, Counter[str]()

    def counted(*args: object) -> QueryPlan | None:
        found = plan(*args)  # type: ignore[arg-type]
        seen["known" if found is not None else "unknown"] += 1
        seen["spread"] += found is not None and bool(found.fragments[0].inputs)
        return found

    monkeypatch.setattr(FormPlans, "plan", counted)
    rng = random.Random(5)
    tables = [held_by(worlds[0], hosts) for hosts in (1, 2)]
    forms = [
        STATEMENTS[number].format(
            "i > 5 AND day BETWEEN DATE '2013-01-01' AND DATE '2013-02-01' AND NOT b IN (1, 2)",
            "(a.m < 1.50 OR a.ts >= TIMESTAMP '2013-01-01 00:00:00')",
            "a.i <> 3 AND b.day = '2013-01-15'",
        )
        for number in range(11)
    ]
    for context in (PlanContext(tenant=ACME, routing=one) for one in tables):
        cache = PlanCache()
        for form in forms:
            for _ in range(60):
                planned(cache.plan, with_other_values(rng, form), context)
    assert seen["known"] > seen["unknown"]
    assert seen["spread"] > 100
