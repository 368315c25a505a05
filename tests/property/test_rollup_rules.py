"""Which queries a rollup answers, and that they are answered as without it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from planner_spread_world import ACME, SpreadWorld, plain_database, spread_world

from accel_dask.errors import ScanLimit
from accel_dask.model.ids import DatasetId
from accel_dask.model.routing import RoutingTable
from accel_dask.model.tenant import Quota
from accel_dask.query_planner.cache import PlanCache
from accel_dask.query_planner.pipeline import explain, plan_query
from accel_dask.query_planner.plan import QueryPlan

ROLLUPS = {
    "flights": (
        (
            "daily: date_trunc('day', \"at\"), carrier, flag; "
            "count(*), sum(price), avg(x), min(delay), max(name), sum(gap), count(gap)"
        ),
        'byday: day, carrier; count(*), avg(small), max("at"), sum(delay), avg(fee)',
        "notes: note; count(*), avg(fee)",
        "weekly: date_trunc('week', \"at\"); count(*)",
        "monthly: date_trunc('month', day), small; count(*), sum(price)",
    )
}


@pytest.fixture(scope="module")
def worlds() -> Iterator[tuple[SpreadWorld, ...]]:
    """On one executor, and on three."""
    plain = plain_database()
    worlds = tuple(spread_world(3, plain, hosts=hosts, rollups=ROLLUPS) for hosts in (1, 3))
    yield worlds
    for world in worlds:
        world.sharded.close()
    plain.close()


def used(plan: QueryPlan) -> str:
    return ", ".join(one.rollup for one in plan.datasets if one.rollup)


# One a line.
# ruff: noqa: E501
ANSWERED = """
weekly | select count(*) from flights
daily | select carrier, count(*), sum(price) from flights group by carrier
daily | select CARRIER, Count(*) N from flights F group by carrier
daily | select date_trunc('month', "at") as m, count(*) n, avg(x), min(delay), max(name), count(gap), sum(gap) from flights where "at" >= '2013-01-01' and "at" < '2013-01-02' group by 1 order by 1
daily | select carrier, count(*) + 1, sum(price)/count(*) from flights where flag group by carrier having count(*) > 2 order by sum(price) desc, carrier limit 3
daily | select carrier, count(*) filter (where flag) as n, avg(x) filter (where carrier > 2) as a from flights group by carrier
daily | select a.label, count(*), sum(price) from flights f left join airlines a on a.carrier = f.carrier group by all
daily | select label, count(*), sum(price), count(label), count(distinct label), max(kind) from flights join airlines using (carrier) group by all
daily | select kind, avg(x) from airlines a join flights f on a.carrier = f.carrier and f.flag where a.kind < 5 group by kind
daily | select carrier, sum(price) from flights semi join airlines using (carrier) group by carrier
daily | with t as (select carrier c, count(*) n from flights group by carrier) select max(n), sum(n) from t
daily | select * from (select carrier, sum(price) as p from flights group by all) q join airlines using (carrier) order by p
daily | select a.label, (select sum(price) from flights where carrier = 2) as s from airlines a
daily | select carrier, sum(x) from flights group by carrier union all select carrier, count(*) from flights group by carrier
daily | select count(x), avg(x), sum(x), min(carrier), count(distinct carrier), count("at"), count(1), max(year("at")) from flights where flag is not null
daily | select sum(price), avg(x), count(*), min(delay) from flights where carrier = 99
daily | select count(*), sum(price) from flights where carrier in (select carrier from airlines where kind = 1)
daily | select 'x' || carrier as k, date_trunc('day', "at") as "at", count(*) from acme.flights as f group by 1, 2 order by "at", 1
daily | select count(*) from flights where extract(year from "at") = 2013 and "at"::date = '2013-01-01' and strftime("at", '%Y-%m-%d') > '2012' and carrier = 1
daily | select cast(f."at" as date) d, dayname(f."at"), hour(date_trunc('day', f."at")), count(*) from flights f group by all having min(date_part('dow', f."at")) < 7
daily | select bool_and(flag), bool_or(carrier = 1), max(carrier + 1), sum(distinct carrier), count(distinct (carrier, flag)) from flights
daily | select carrier, flag, sum(price) from flights group by cube (carrier, flag)
daily | select count(*) from flights where not ("at" >= timestamp '2013-01-02 00:00:00') and carrier = 3
daily | select distinct flag from flights
daily | select carrier, count(*) from flights f where not exists (select 1 from airlines where kind = 7) group by 1
daily | select carrier, rank() over (order by sum(price) desc) as r, sum(count(*)) over () as n from flights group by carrier
daily | select carrier, flag, avg(sum(price)) over (partition by carrier order by flag) as a, count(*) over () as c from flights group by carrier, flag
daily | select carrier, sum(price) as price from flights group by carrier order by price desc, carrier
byday | select distinct carrier, year(day) from flights where day between '2013-01-02' and '2013-01-05'
byday | select day, carrier, avg(small) from flights group by grouping sets ((day), (carrier), ())
notes | select count(note), count(coalesce(note, 'x')) as c, count(upper(note)), avg(fee) from flights where note <> 'x' or note is null
byday | select carrier from flights group by carrier having max("at") > '2013-01-01 05:00' order by carrier
byday | select avg(fee), avg(small), avg(fee) * 2 as b from flights where day < date '2013-01-04'
weekly | select date_trunc('week', "at") w, week("at"), count(*) from flights where "at" < '2013-01-07' group by all
monthly | select year(day), quarter(day), sum(price) from flights where day >= '2013-01-01' group by all
monthly | select small, last_day(day), count(*) from flights group by all
"""

REFUSED = """
it asks for rows | select carrier from flights
gap is not one of its dimensions | select count(*) from flights where gap > 3
at is used in another way than by day or coarser | select "at", count(*) from flights group by "at"
at is used in another way than by day or coarser | select count(*) from flights where "at" > '2013-01-01' and carrier = 1
at is used in another way than by day or coarser | select count(*) from flights where "at" <= '2013-01-01' and carrier = 1
at is used in another way than by day or coarser | select count(*) from flights where "at" = '2013-01-01' and carrier = 1
at is used in another way than by day or coarser | select count(*) from flights where "at" between '2013-01-01' and '2013-01-02'
at is used in another way than by day or coarser | select count(*) from flights where "at" >= '2013-01-01 10:00:00'
at is used in another way than by day or coarser | select hour("at"), count(*) from flights group by 1
at is used in another way than by day or coarser | select strftime("at", '%H'), count(*) from flights group by 1
at is used in another way than by day or coarser | select count(*) from flights where "at" >= carrier::varchar::timestamp
at is used in another way than by week or coarser | select date_trunc('month', "at"), avg(fee) from flights group by all
day is used in another way than by month or coarser | select year(day), week(day), sum(price) from flights group by all
day is used in another way than by month or coarser | select sum(price) from flights where day < '2013-01-07'
a column of it has a name that only DuckDB knows | select rank() over (order by sum(price)), carrier from flights group by carrier
it has a window over rows | select count(*) over () as n, carrier from flights
it has a window over rows | select distinct carrier, rank() over (order by carrier) as r from flights
x is not one of its dimensions | select carrier, max(x) over () as m, count(*) from flights group by carrier, x
it has QUALIFY | select carrier, count(*) from flights group by carrier qualify rank() over (order by carrier) < 3
it has a * | select distinct * from flights
it has DISTINCT ON | select distinct on (carrier) carrier, count(*) from flights group by all
stddev(x) is not one of its measures | select stddev(x) from flights group by carrier
sum(x + 1) is not one of its measures | select sum(x + 1) from flights
sum(carrier) is not one of its measures | select sum(carrier) from flights
at is used in another way than by day or coarser | select min("at") from flights
it has IGNORENULLS | select any_value(carrier) from flights
string_agg is called with more than a column | select string_agg(name, ',' order by name) from flights
max is called with more than a column | select max(name, 2) from flights
x is not one of its dimensions | select count(distinct x) from flights
delay is not one of its dimensions | select sum(price) filter (where delay > 2) as s from flights
a column of it has a name that only DuckDB knows | select count(*) filter (where flag or flag) from flights
a join of it may add rows | select count(*) from flights full join airlines using (carrier)
a join of it may add rows | select count(*) from flights right join airlines using (carrier)
a join of it may add rows | select count(*) from airlines left join flights using (carrier)
a join of it may add rows | select count(*) from flights natural join airlines
a join of it may add rows | select label, count(*) from airlines semi join flights using (carrier) group by label
it is joined by x, which is not one of its dimensions | select count(*) from flights join hops using (x)
sum(a.kind) is not one of its measures | select sum(a.kind) from flights f join airlines a using (carrier)
where a subquery's columns come from is not plain to see | select count(*) from flights f where exists (select 1 from airlines a where a.carrier = f.carrier)
carrier is a column of several of its tables | select carrier, count(*) from flights f, airlines a where f.carrier = a.carrier group by f.carrier, 1
random function is not understood | select count(*) from flights where random() < 2
what nope refers to is not plain to see | select nope, count(*) from flights group by 1
what nope refers to is not plain to see | select f.nope, count(*) from flights f group by 1
what y refers to is not plain to see | select s.y, count(*) from flights group by 1
it has a name behind a dot | select (s).y, count(*) from flights group by 1
count is called with more than a column | select count(distinct carrier order by carrier) from flights
"""


def listed(text: str) -> list[tuple[str, str]]:
    return [tuple(map(str.strip, line.split("|", 1))) for line in text.strip().splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize(("rollup", "sql"), listed(ANSWERED))
def test_a_rollup_gives_the_same_answer(
    worlds: tuple[SpreadWorld, ...], rollup: str, sql: str
) -> None:
    for world in worlds:
        plan = world.plan(sql)
        assert used(plan) == rollup, plan.rollups
        assert any(f"rollup {rollup} of acme.flights (" in reason for reason in plan.reasons)
        expected, found = world.expected(sql), world.run(plan)
        assert (found.names, found.types) == (expected.names, expected.types)
        assert _rounded(found.rows) == _rounded(expected.rows)


_DOUBLE = re.compile(r"(?<![\w.'])-?\d+\.\d+(?:e[-+]\d+)?(?![\w.'])")


def _rounded(rows: list[str]) -> list[str]:
    """An average may differ in its last digit."""
    return sorted(_DOUBLE.sub(lambda found: f"{float(found[0]):.14g}", row) for row in rows)


@pytest.mark.parametrize(("why", "sql"), listed(REFUSED))
def test_what_a_rollup_cannot_prove_is_answered_from_the_rows(
    worlds: tuple[SpreadWorld, ...], why: str, sql: str
) -> None:
    plan = worlds[0].plan(sql)
    assert not used(plan), plan.rollups
    assert why in " ".join(plan.rollups)
    assert not any("rollup" in reason for reason in plan.reasons)
    assert "rollup_" not in plan.fragments[0].sql


def test_parameters_keep_their_places(worlds: tuple[SpreadWorld, ...]) -> None:
    sql = (
        "select carrier + ? as k, avg(x) filter (where carrier > ?) as a, count(*) from flights "
        "where flag = ? group by all having count(*) > ?"
    )
    values: list[object] = [10, 1, True, 0]
    for world in worlds:
        plan = world.plan(sql)
        assert used(plan) == "daily"
        assert plan.parameters == 4
        assert plan.parameter_columns == ("", "carrier", "flag", "")
        found, expected = world.run(plan, values), world.expected(sql, values)
        assert (found.names, found.types) == (expected.names, expected.types)
        assert _rounded(found.rows) == _rounded(expected.rows)
    sql = 'select count(*) from flights where "at" >= ? and carrier = 1'
    assert not used(worlds[0].plan(sql))


def test_explain_names_the_rollup_or_why_there_is_none(worlds: tuple[SpreadWorld, ...]) -> None:
    text = explain(worlds[0].plan("select carrier, count(*) from flights group by 1"))
    assert "\nrollup: daily of acme.flights (" in text
    text = explain(worlds[0].plan("select x, count(*) from flights group by 1"))
    assert "\nrollup: none of acme.flights: daily: x is not one of its dimensions; byday: " in text
    assert "rollup" not in explain(worlds[0].plan("select count(*) from airlines"))


def with_route(world: SpreadWorld, **changes: object) -> SpreadWorld:
    datasets = dict(world.context.routing.datasets)
    key = DatasetId(ACME, "flights")
    datasets[key] = replace(datasets[key], **changes)  # type: ignore[arg-type]
    routing = RoutingTable(2, datasets, {}, {}, b"")
    return replace(world, context=replace(world.context, routing=routing))


def test_only_a_rollup_that_all_shards_have_and_that_is_smaller_is_read(
    worlds: tuple[SpreadWorld, ...],
) -> None:
    world, sql = worlds[0], "select carrier, count(*) from flights group by 1"
    route = world.context.routing.datasets[DatasetId(ACME, "flights")]
    rows = route.rollup_rows
    assert not used(with_route(world, rollup_rows=()).plan(sql))
    assert not used(with_route(world, rollup_rows=(*rows[:-1], ())).plan(sql))
    large = tuple((60,) * 5 for _ in rows)
    plan = with_route(world, rollup_rows=large).plan(sql)
    if all(shard.rows is not None for shard in route.shards):
        assert "not smaller than the rows" in plan.rollups[0]


def test_shards_that_are_not_in_memory_have_no_rollup(worlds: tuple[SpreadWorld, ...]) -> None:
    world, sql = worlds[1], "select carrier, count(*) from flights group by 1"
    route = world.context.routing.datasets[DatasetId(ACME, "flights")]
    assert used(world.plan(sql)) == "daily"
    gone = frozenset(one.address for one in route.executors)
    plan = plan_query(sql, replace(world.context, avoid=gone))
    assert not used(plan)
    assert "not all of its shards are in memory" in plan.rollups[0]


def test_bounds_are_those_of_the_rollup(worlds: tuple[SpreadWorld, ...]) -> None:
    world = worlds[0]
    context = replace(world.context, quota=Quota(max_scan_rows=50))
    with pytest.raises(ScanLimit):
        plan_query("select x, count(*) from flights group by x", context)
    plan = plan_query("select carrier, count(*) from flights group by 1", context)
    assert plan.verdict.scan_rows is not None
    assert plan.verdict.scan_rows <= 40


def test_a_cached_plan_goes_with_its_rollup(worlds: tuple[SpreadWorld, ...]) -> None:
    world, sql = worlds[0], "select carrier, count(*) from flights group by 1"
    cache = PlanCache()
    first = cache.plan(sql, world.context)
    assert used(first) == "daily"
    assert cache.plan(sql, replace(world.context, routing=_same(world, 9))) is first
    changed = with_route(world, rollups=(), rollup_rows=(), snapshot_id=None)
    routing = changed.context.routing
    key = DatasetId(ACME, "flights")
    newer = replace(routing.datasets[key], shards=routing.datasets[key].shards[:1])
    datasets = {**routing.datasets, key: newer}
    context = replace(world.context, routing=RoutingTable(10, datasets, {}, {}, b""))
    assert not used(cache.plan(sql, context))


def _same(world: SpreadWorld, revision: int) -> RoutingTable:
    return RoutingTable(revision, dict(world.context.routing.datasets), {}, {}, b"")


def test_values_are_looked_at_anew_where_the_statement_is_known(
    worlds: tuple[SpreadWorld, ...],
) -> None:
    sql = (
        "select carrier, avg(x) filter (where flag) as a, count(*) from flights "
        "where \"at\" >= '{}' and carrier <> {} group by all"
    )
    for world in worlds:
        cache = PlanCache()
        for number, (day, rollup) in enumerate(
            [
                ("2013-01-01", "daily"),
                ("2013-01-02", "daily"),
                ("2013-01-01 07:00:00", ""),
                ("2013-01-03", "daily"),
                ("2013-01-01 00:00:00", "daily"),
            ]
        ):
            asked = sql.format(day, number)
            plan = cache.plan(asked, world.context)
            assert used(plan) == rollup
            assert plan.fragments == plan_query(asked, world.context).fragments
            expected, found = world.expected(asked), world.run(plan)
            assert (found.names, found.types) == (expected.names, expected.types)
            assert _rounded(found.rows) == _rounded(expected.rows)
