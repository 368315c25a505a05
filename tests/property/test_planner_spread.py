"""Queries over datasets that are spread on several executors answer as plain DuckDB does."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

import duckdb
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from planner_spread_world import (
    ACME,
    MAY_ANSWER,
    Result,
    SpreadWorld,
    cooled,
    plain_database,
    spread_world,
)

from accel_dask.model.ids import DatasetId

WORLDS = 12
EXAMPLES = int(os.environ.get("ACCEL_TEST_EXAMPLES", "500"))
_FLOAT = re.compile(r"-?\d+\.\d{3,}(?:e[-+]?\d+)?|-0\.0\b")


@pytest.fixture(scope="module")
def worlds() -> Iterator[list[SpreadWorld]]:
    plain = plain_database()
    worlds = [spread_world(seed, plain) for seed in range(WORLDS)]
    worlds = [cooled(one, seed) if seed % 3 == 2 else one for seed, one in enumerate(worlds)]
    yield worlds
    for world in worlds:
        world.sharded.close()
    plain.close()


def check(
    world: SpreadWorld, sql: str, *, is_ordered: bool = False, is_random: bool = False
) -> None:
    """The same names, types and rows as in plain DuckDB; or an error there and here."""
    try:
        expected = world.expected(sql)
    except duckdb.Error as error:
        if is_random and isinstance(error, MAY_ANSWER):
            return
        with pytest.raises(duckdb.Error):
            world.answer(sql)
        return
    plan = world.plan(sql)
    got = world.run(plan)
    assert got.types == expected.types, plan.fragments[0].sql
    assert got.names in (expected.names, world.names(sql)), plan.fragments[0].sql
    ours, theirs = _normal(got), _normal(expected)
    assert Counter(ours) == Counter(theirs), plan.fragments[0]
    if is_ordered:
        assert ours == theirs, plan.fragments[0].sql
    bound = plan.verdict.result_rows
    assert bound is None or len(got.rows) <= bound, plan.verdict


def _normal(result: Result) -> list[str]:
    """Sums of floats depend on the order of the rows in the last digits; -0.0 equals 0.0."""
    return [_FLOAT.sub(_rounded, row) for row in result.rows]


def _rounded(found: re.Match[str]) -> str:
    return "0.0" if found[0] == "-0.0" else f"{float(found[0]):.11g}"


# One a line.
# ruff: noqa: E501
ORDERED = """
select carrier, count(*), sum(x), min(name), max(delay), avg(price), avg(x) as ax from flights group by carrier order by carrier
select f.carrier as c, sum(price) filter (where x > 10) / count(*) as r from flights f where x < 50 group by c having count(*) > 2 order by r desc, c limit 3
select carrier, count(distinct name) as n from flights group by all order by all
select date_trunc('month', day) as m, sum(price) from flights group by 1 order by 1
select x, name from flights order by x desc limit 3 offset 2
select * from flights order by x limit 5
select distinct carrier, flag from flights order by 2, 1
select a.label, sum(f.price) as s from flights f join airlines a on f.carrier = a.carrier where a.kind = 1 group by a.label order by s desc, 1
select carrier, n from (select carrier, count(*) as n from flights group by carrier) q where n > 3 order by n, carrier
with t as (select carrier, sum(price) as p from flights group by carrier) select a.label, t.p from t join airlines a using (carrier) order by 1
select carrier, sum(price) as p from flights group by carrier having sum(price) > (select avg(price) * 10 from flights) order by carrier
select big, count(*) from flights group by big order by big
select note, count(note), count(*) from flights group by note order by note nulls first
select upper(name) as u, x + 1 from flights where x in (1,2,3) order by u desc, x
select carrier from flights where carrier in (select carrier from airlines where kind = 0) group by carrier order by 1
select x from flights order by delay desc nulls first, x limit 4
select name, max(at) as last from flights group by name order by max(at) desc, name limit 2
select x as n from flights order by -x limit 3
select carrier + 1 as carrier, count(*) from flights group by 1 order by carrier
select carrier as x, count(*) from flights group by carrier order by x
select x % 3 as carrier, count(*) from flights group by carrier order by count(*), carrier
select name as n, n || '!' as m from flights order by x limit 2
select distinct on (carrier) carrier, x from flights order by carrier, x
select carrier, sum(gap) as gap from flights group by carrier order by gap, 1
select carrier, sum(gap) as gap from flights group by carrier having gap > 10 order by 1
select count(*) as n, carrier from flights group by carrier having n > 3 order by n + carrier, carrier
select day, count(*) from flights where at < timestamp '2013-01-02' + interval 3 hour group by day order by day limit 1 offset 1
select flag, bool_and(x > 0), bool_or(x > 50), bit_xor(x), bit_and(small), bit_or(small) from flights group by flag order by flag
select upper(name) || carrier as k, count(*) from flights group by upper(name) || carrier order by k
select carrier, name, count(*) from flights group by carrier, name order by 3 desc, 1, 2 limit 4
select x, name from flights where flag order by all desc limit 4
select x, name from flights where not flag order by all limit 3 offset 1
select distinct carrier, name from flights order by all nulls first
select carrier, -sum(x) as x from flights group by all order by x limit 3
select carrier, flag, sum(x), grouping(carrier, flag) from flights group by rollup (carrier, flag) order by 1, 2, 4
select carrier as c, name, count(*) as n from flights group by cube (1, name) having count(*) > 2 order by n desc, c, name limit 9
select carrier, flag, count(distinct name), max(x) from flights group by grouping sets ((carrier), (flag, carrier), ()) order by 1, 2, 4
select carrier, sum(x) as s, sum(sum(x)) over (order by carrier) as t, sum(x) / sum(sum(x)) over () as share from flights group by carrier order by carrier
select carrier, flag, count(*) as n from flights group by 1, flag qualify rank() over (partition by flag order by sum(x) desc) < 3 order by flag, carrier
select name, median(x), quantile_cont(delay, 0.3) as q, count(*), list(gap order by x) as l from flights where not flag group by name having median(x) > 12 order by median(x) desc, 1 limit 4
select carrier, arg_max(name, x), arg_min(at, x) filter (where flag) as a, max_by(gap, x), min_by(note, x) from flights group by carrier order by carrier
select carrier, string_agg(name, ',' order by x desc) as names, count(*) from flights f group by carrier order by 1
select f.x, f.name, lag(x) over (partition by carrier order by x) as l from flights f order by f.x
select x, day, row_number() over (partition by x order by day) as r, sum(gap) over w as s from flights window w as (partition by x order by at) order by x, day
select *, row_number() over (partition by x order by day) as r from flights qualify r = 1 order by x limit 5
select x, median(gap), list(name order by name) as l, count(*) over (partition by x) as c from flights group by x having count(*) > 0 order by x desc limit 7
select day, x, quantile_disc(delay, [0.1, 0.9]) as q from flights where carrier < 4 group by x, day order by day, x limit 6 offset 1
select x, name, rank() over (partition by x order by name) as r from flights where x > 2 qualify rank() over (partition by x order by name) = 1 order by all limit 3
select distinct x, sum(small) over (partition by x) as s from flights order by s, x limit 8
select a.label, median(f.x) as m, list(f.x order by f.x) filter (where x > 50) as f from flights f join airlines a using (carrier) group by a.label order by m, 1
select carrier, first(x order by x) as f, last(x order by x) as l, any_value(carrier) as a from flights group by carrier order by 1
select distinct on (name) name, x, gap from flights where x > 3 order by name, x desc
select max(x, 3) as m, min(name, 2) as n, arg_max(name, x, 2) as a, carrier from flights group by carrier order by carrier
select carrier, count(*) as n, rank() over (order by count(*) desc, carrier) as r from flights group by carrier order by r
with q as (select 1 as a from nothing) select distinct cast(9.5 as decimal(9, 2)) as c from flights f where f.delay is distinct from -1.25 order by 1
select carrier, count(*) from flights where carrier in (select carrier from airlines where kind = 1 union all select 2) group by carrier order by 1
select x from flights where carrier in (select carrier from airlines union select leg from hops) order by x limit 4
"""
UNORDERED = """
select carrier, count(*) from flights where date_trunc('hour', day) = date '2013-01-03' group by carrier
select day, count(*) from flights group by day having date_trunc('minute', day) <> date '2013-01-03'
select date_trunc('hour', day), count(*), max(date_trunc('hour', day)) from flights group by date_trunc('hour', day) having date_trunc('hour', day) > timestamp '2013-01-03 01:00:00'
select max(x) filter (where date_trunc('hour', f.day) in (date '2013-01-03')) from flights f
select h.label from hops h join flights f on f.x = h.x and date_trunc('hour', f.day) >= date '2013-01-03'
select date_trunc('hour', day) = date '2013-01-03' as e, median(x) from flights group by 1
select f.x, lag(x) over (order by date_trunc('hour', f.day), x) from flights f where timestamp '2013-01-03' < date_trunc('second', "day")
select unnest(list(x order by x)) as u from flights
select count(*) as n, unnest([1, 2]) as u from flights
select count(*), sum(x), avg(gap), min(day), stddev(small) from flights where x > 1000
select count(distinct name), count(*), sum(distinct carrier) from flights
select count(distinct name), avg(distinct carrier), avg(delay), max(distinct x) from flights where flag
select sum(x) from flights union all select sum(leg) from hops
select max(big), typeof(sum(big)), sum(big), typeof(avg(price)), typeof(sum(price)), sum(price) from flights
select variance(delay), corr(x, delay), bool_and(flag), bit_xor(small), regr_slope(x, delay), skewness(gap) from flights
select median(x), quantile_cont(delay, 0.3), list(x order by x), string_agg(name, ',' order by x) from flights
select arg_max(name, x), arg_min(x, at), any_value(1), approx_count_distinct(name) from flights
select kurtosis(x), entropy(carrier), favg(delay), product(small), geomean(x + 1) from flights
select grouping(carrier), carrier, sum(x) from flights group by rollup (carrier)
select carrier, flag, count(*) from flights group by grouping sets ((carrier), (flag), ())
select carrier, rank() over (order by sum(x)) from flights group by carrier
select *, row_number() over (partition by carrier order by x) as r from flights qualify r = 1
select count(*) from flights f full join hops h on f.x = h.x
select f.x, h.label from flights f left join hops h on f.x = h.x and h.leg > 1 where f.x < 9
select f.x, h.label from hops h left join flights f on f.x = h.x and f.flag where h.leg = 1
select a.label, count(f.x) from airlines a left join flights f on a.carrier = f.carrier group by a.label
select a.label, count(f.x) from flights f right join airlines a on a.carrier = f.carrier group by a.label
select a.label, f.x from airlines a right join flights f on a.carrier = f.carrier and a.kind = 0 where x < 20
select count(*) from flights semi join airlines using (carrier)
select count(*) from flights anti join airlines using (carrier)
select count(*) from airlines semi join flights using (carrier)
select count(*) from airlines anti join flights using (carrier)
select max(f.x), a.kind from flights f asof join airlines a on f.carrier >= a.carrier group by a.kind
select max(f.x), a.kind from airlines a asof join flights f on f.x <= a.carrier group by a.kind
select sum(q.n) from (select carrier, count(*) as n from flights group by carrier) q
select (select count(*) from flights), (select max(cost) from hops)
select x from flights f where exists (select 1 from hops h where h.x = f.x and h.cost > 1)
select x, (select count(*) from hops h where h.x = f.x) as n from flights f where f.x < 12
select carrier, (select label from airlines a where a.carrier = f.carrier) as l, count(*) from flights f group by carrier
select x from flights except select x from hops
select x, carrier from flights intersect select x, leg from hops
select carrier from flights union select leg from hops
select count(*) from (select distinct name, flag from flights)
select sum(x) from flights where x not in (select x from hops where x is not null)
with recursive r as (select min(x) as n from flights union all select n + 7 from r where n < 40) select * from r
with recursive r as (select 1 as n union all select f.x from r join flights f on f.x = r.n * 2) select * from r
with a as (select * from flights where x > 5), b as (select carrier, count(*) as n from a group by 1) select sum(n) from b, airlines where b.carrier = airlines.carrier
select a, count(*) from nothing group by a
select count(*), max(a), sum(a) from nothing
select n.a, f.x from flights f left join nothing n on n.a = f.x where f.x < 3
select f.x from flights f join nothing n on true
select sum(l[1]), s.z, count(*) from flights group by s.z
select unnest(l) as u from flights where x < 4
select count(*) from flights, unnest(l) as t(v) where v > 10
select f.x, q.z from flights f, lateral (select f.x + 1 as z) q where f.x < 5
select * exclude (s, l, odd) from flights where x < 7
select flights.* from flights join airlines using (carrier) where kind = 1
select count(flights) from flights
select f from (select x, name from flights where x < 3) f
select sum(x) over (partition by carrier) from flights
select x from flights limit 0
select sum(x) from flights limit 0
select sum(x) from flights offset 1
select name, count(*) from flights where name like 'n1%' or name in ('n2', 'n3') group by name
select count(*) from flights where day between '2013-01-03' and date '2013-01-05' and not flag
select count(*) from flights where gap is null or odd = 'nan'
select odd, count(*), min(odd), max(odd), sum(odd) from flights group by odd
select max(x) - min(x) from flights
select carrier, count(*) as n from flights group by all qualify rank() over (order by sum(x) desc) < 3
select sum(price * 2) / count(*), sum(x + small), sum(delay) from flights
select SUM(X), Count(*), f.Name from flights f group by f.Name
select acme.flights.carrier, max(acme.flights.x) from acme.flights group by acme.flights.carrier
select carrier, 'a' as lit, 1 + count(*) from flights group by carrier
select case when carrier > 2 then 'hi' else 'lo' end as b, count(*) from flights group by b
select case when carrier > 2 then 'hi' else 'lo' end, count(*) as n from flights group by all
select coalesce(note, '-') as n, count(*) from flights group by coalesce(note, '-')
select x from flights where x = (select max(x) from flights)
select avg(carrier), avg(small), avg(delay), avg(fee), avg(price), avg(big), avg(x::decimal(9,1)), avg(x * 1.5) from flights
select avg(x) filter (where x > 20), count(*) filter (where flag), sum(price) filter (where not flag) from flights group by carrier
select count(x), count(gap), count(1), count(null) from flights
from flights select carrier, count(*) group by carrier
select x: carrier, n: count(*) from flights group by carrier
select sum(x) s from (flights) where x > 3
select * from (select carrier, sum(x) from flights group by carrier) t(a, b) where b > 100
select f.carrier, g.n from flights f join (select carrier, count(*) as n from flights group by carrier) g using (carrier) where f.x < 5
select interval 1 day * sum(small) from flights
select max(day), max(at), min(at), max(flag), max(l), max(s) from flights
select sum(cost), label from hops group by label having max(leg) > 1
select h.leg, count(*) from hops h join airlines a on h.leg = a.carrier group by h.leg
select min(x) from flights having count(*) > 100
select max(x) from flights group by ()
select 1 from flights group by carrier
select null as n, carrier from flights where x > 30
select distinct null as n, 1 as one, 'a' as a, carrier from flights
select carrier, count(*) as n from flights group by carrier union all select leg, 1 from hops
select x from flights where x < 4 union all select x from hops where x > 12 union all select max(x) from flights
select count(*) from flights f join (select * from airlines order by carrier limit 2) a using (carrier)
select f.x, a.n from flights f, (select kind, row_number() over (order by carrier) as n from airlines) a where f.x < 3
select carrier, count(*) from airlines right join flights using (carrier) group by carrier
select carrier, count(*) from flights right join airlines using (carrier) group by carrier
select airlines.carrier, count(*) from airlines right join flights using (carrier) group by carrier
select carrier, kind, sum(x) from flights natural join airlines group by carrier, kind
select avg(price * (1 - fee)), avg(x + 0.5), avg(-gap), avg(delay / 2), avg(small * big) from flights
select avg(price * 2) filter (where x > 1000), sum(x) filter (where false) from flights
select max(day) - min(day), count(*) * 100.0 / sum(x) from flights
select (select label from airlines a where a.carrier = f.carrier) as l, f.x from flights f where f.x < 8
select f.x from flights f where f.carrier = (select max(a.carrier) from airlines a where a.kind = f.x % 2)
select f."x" as "select", F.CARRIER from Flights as F where F.X < 3
select current_schema(), count(*) from flights
select carrier, current_schema() as d, count(*) from flights group by carrier, d
select sum(sum(x)) over () from flights group by carrier
select 'x' || carrier || 'y' from flights where flag
select count(*) from (select x from flights order by x limit 7) q
(select carrier from flights order by x limit 3) union all (select x from hops order by x, leg limit 2)
with f as (select x, carrier from flights) select carrier, count(*) from f group by carrier
select product(small + 1), count_if(flag), regr_count(x, delay), sem(x), kurtosis_pop(x), favg(delay), fsum(x), kahan_sum(price) from flights
select product(small), count_if(flag), regr_count(x, delay), sem(x), arg_max(x, name), any_value(x) from flights where x < 0
select carrier, product(small + 1), count_if(x > 30), regr_count(x, delay) filter (where flag) from flights group by carrier
select median(distinct x), bool_or(distinct flag), stddev(distinct gap), product(distinct small) from flights
select approx_count_distinct(name), approx_count_distinct(x), approx_count_distinct(x + 1), approx_count_distinct(odd) from flights
select arg_max(x, odd) filter (where x > 3 and x < 40 and odd = 'nan') is not null, arg_min(x, null) from flights
select arg_max(gap, x), arg_max(note, x) filter (where carrier = 2), arg_min(l, x) from flights
select mad(x), entropy(carrier), histogram(name), geomean(x + 1), list(distinct carrier order by carrier) from flights
select string_agg(distinct name, ',' order by name) as s, list(x order by x desc) filter (where flag) as l from flights
select carrier, list_sort(list(distinct name)) as n from flights group by rollup (carrier)
select grouping_id(carrier, flag) as g, median(x) from flights group by cube (carrier, flag)
select count(*), sum(x) from flights group by grouping sets ((), ())
select upper(name) as u, count(*) from flights group by rollup (upper(name))
select carrier, count(*) from flights group by rollup (carrier, carrier)
select sum(x), carrier from flights group by carrier, rollup (flag)
select count(*) from nothing group by rollup (a)
select a, count(*), max(b) from nothing group by grouping sets ((a), ())
select carrier, (select max(leg) from hops) as m, median(x) from flights group by carrier
select x, row_number() over (order by x) as r from flights where name = 'n3'
select ntile(3) over (order by x) as n, x from flights f where f.x in (select h.x from hops h)
select f.x, h.label, count(*) over (partition by f.x) from flights f left join hops h on f.x = h.x
select f.x, a.label, count(*) over (partition by f.x) as n from flights f join airlines a on a.carrier >= f.carrier
select carrier, max(x) over (partition by carrier, day) from flights qualify count(*) over (partition by x) > 0
select median(n) from (select carrier, count(*) as n from flights group by carrier) q
select carrier + 1 as carrier, median(x) from flights group by carrier
select x % 3 as carrier, median(x) as x from flights group by 1 having median(flights.x) > 3
select count(*) over () as n, carrier from flights group by carrier having sum(x) > 10
with f as (select carrier, sum(x) as s from flights group by carrier) select a.s, b.s from f a join f b on a.carrier = b.carrier + 1
"""


@pytest.mark.parametrize("sql", ORDERED.strip().splitlines())
def test_an_ordered_query_over_a_spread_dataset(worlds: list[SpreadWorld], sql: str) -> None:
    for world in worlds:
        check(world, sql, is_ordered=True)


@pytest.mark.parametrize("sql", UNORDERED.strip().splitlines())
def test_a_query_over_a_spread_dataset(worlds: list[SpreadWorld], sql: str) -> None:
    for world in worlds:
        check(world, sql)


# Random queries.

_NUMBERS = ["x", "carrier", "gap", "price", "small", "delay", "big", "fee"]
_KEYS = ["carrier", "name", "flag", "day", "note", "small", "big", "gap", "odd"]
_CONDITIONS = [
    "{0}x > 20",
    "{0}x between 5 and 44",
    "{0}carrier in (1, 3)",
    "{0}gap is null",
    "not {0}flag",
    "{0}note like 'it%'",
    "{0}day >= date '2013-01-04'",
    "{0}day = '2013-01-02'",
    "{0}name = 'n3' or {0}carrier = 2",
    "{0}price * 2 > 7.5",
    "{0}gap + {0}carrier > 9",
    "{0}x in (select h.x from hops h where h.leg = 1)",
    "exists (select 1 from airlines e where e.carrier = {0}carrier and e.kind = 1)",
    "{0}x > (select avg(x) from hops)",
    "{0}x < 0",
]
_AGGREGATES = [
    "count(*)",
    "count({0}gap)",
    "sum({0}x)",
    "sum({0}price)",
    "sum({0}gap * 2)",
    "min({0}name)",
    "max({0}day)",
    "max({0}gap)",
    "avg({0}x)",
    "avg({0}price)",
    "avg({0}gap)",
    "sum({0}delay)",
    "bool_or({0}flag)",
    "count(*) filter (where {0}x > 30)",
    "sum({0}small) filter (where {0}flag)",
    "count(distinct {0}name)",
    "count(distinct {0}carrier)",
    "sum({0}price) / count(*)",
    "max({0}x) - min({0}x)",
    "stddev({0}x)",
    "median({0}x)",
    "sum({0}big)",
    "coalesce(sum({0}gap), -1)",
    "case when count(*) > 5 then 'many' else 'few' end",
    "list({0}x order by {0}x)",
    "arg_max({0}name, {0}x)",
    "arg_min({0}gap, {0}x) filter (where {0}flag)",
    "quantile_disc({0}price, 0.4)",
    "string_agg({0}name, ',' order by {0}x)",
    "count(distinct {0}gap) filter (where {0}flag)",
    "sum(count(*)) over ()",
    "rank() over (order by count(*), min({0}x))",
    "approx_count_distinct({0}name)",
    "median(distinct {0}small)",
    "mad({0}small)",
]
_SOURCES = [
    ("flights f", ""),
    ("flights f", ""),
    ("acme.flights f", ""),
    ("flights f join airlines a on f.carrier = a.carrier", "a.kind"),
    ("flights f left join airlines a on f.carrier = a.carrier and a.kind = 1", "a.label"),
    ("airlines a join flights f using (carrier)", "a.label"),
    ("airlines a left join flights f on f.carrier = a.carrier", "a.label"),
    ("airlines a right join flights f on f.carrier = a.carrier + 1", "a.kind"),
    ("flights f full join airlines a on f.carrier = a.carrier + 2", "a.kind"),
    ("flights f join hops h on f.x = h.x", "h.leg"),
    ("flights f left join hops h on f.x = h.x and h.leg > 1", "h.label"),
    ("flights f left join nothing n on n.a = f.x", "n.b"),
    ("flights f, airlines a", "a.label"),
    ("flights f semi join hops h on f.x = h.x", ""),
    ("flights f anti join airlines a on f.carrier = a.carrier", ""),
    ("(select * from flights where x > 3) f", ""),
    (
        "flights f join (select leg, count(*) as n from hops group by leg) g on g.leg = f.carrier",
        "g.n",
    ),
]


@st.composite
def _blocks(draw: st.DrawFn, shapes: tuple[str, ...]) -> tuple[str, int]:
    """A SELECT and how many columns it has."""
    source, other = draw(st.sampled_from(_SOURCES))
    q = draw(st.sampled_from(["f.", "f."] if other else ["f.", ""]))
    conditions = draw(st.lists(st.sampled_from(_CONDITIONS), max_size=2, unique=True))
    where = (
        " where " + " and ".join(f"({one.format(q)})" for one in conditions) if conditions else ""
    )
    shape = draw(st.sampled_from(shapes))
    keys = [q + one for one in draw(st.lists(st.sampled_from(_KEYS), max_size=2, unique=True))]
    if other and draw(st.booleans()):
        keys.append(other)
    if shape == "rows":
        numbers = draw(st.lists(st.sampled_from(_NUMBERS), min_size=1, max_size=3, unique=True))
        items = [*(q + one for one in numbers), *keys, f"{q}x + {q}carrier as sum_of"]
        distinct = "distinct " if draw(st.integers(0, 4)) == 0 else ""
        return f"select {distinct}{', '.join(items)} from {source}{where}", len(items)
    calls = draw(st.lists(st.sampled_from(_AGGREGATES), min_size=1, max_size=3, unique=True))
    items = [*keys, *(one.format(q) + f" as a{n}" for n, one in enumerate(calls))]
    how = draw(st.sampled_from(["names", "positions", "all", "names", "rollup", "cube", "sets"]))
    group = ""
    if keys:
        positions, names = ", ".join(str(n + 1) for n in range(len(keys))), ", ".join(keys)
        ways = {
            "names": names,
            "positions": positions,
            "all": "all",
            "rollup": f"rollup ({names})",
            "cube": f"cube ({positions})",
            "sets": f"grouping sets (({names}), ({keys[0]}), ())",
        }
        group = f" group by {ways[how]}"
    having = draw(st.sampled_from(["", "", " having count(*) > 3", f" having max({q}x) > 40"]))
    return f"select {', '.join(items)} from {source}{where}{group}{having}", len(items)


@st.composite
def _statements(draw: st.DrawFn) -> str:
    sql, width = draw(_blocks(("rows", "groups", "groups")))
    shape = draw(
        st.sampled_from(["plain", "plain", "ordered", "ordered", "derived", "cte", "union"])
    )
    if shape == "ordered":
        ways = draw(st.lists(st.sampled_from(["", " desc", " nulls first", " desc nulls last"]),
                             min_size=width, max_size=width))  # fmt: skip
        by = ", ".join(f"{n + 1}{way}" for n, way in enumerate(ways))
        limit = draw(st.sampled_from(["", " limit 3", " limit 5 offset 2", " offset 4"]))
        return f"{sql} order by {by}{limit}"
    if shape == "derived":
        return f"select count(*), count(distinct q) from ({sql}) q"
    if shape == "cte":
        return f"with q as ({sql}) select (select count(*) from q) as n, q.* from q where n > 1"
    if shape == "union":
        other, _ = draw(_blocks(("rows", "groups")))
        return f"select count(*) from ({sql}) union all select count(*) from ({other})"
    return sql


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sql=_statements(), number=st.integers(0, WORLDS - 1))
def test_random_queries_answer_as_on_plain_tables(
    worlds: list[SpreadWorld], sql: str, number: int
) -> None:
    world = worlds[number]
    inputs = world.plan(sql).fragments[0].inputs
    kinds = sorted({one.because.split(": ")[1].split(" of ")[0] for one in inputs})
    event(", ".join(kinds) or "one executor")
    check(world, sql, is_ordered="order by 1" in sql, is_random=True)


PREPARED = """
select carrier, count(*) from flights where x > ? and name <> ? group by carrier having count(*) > ?|5,n3,1
select count(*) from flights where x between ? and ?|3,40
select sum(x) + ? from flights where carrier = ?|100,2
select median(x) from flights where x < ? and carrier <> ?|30,1
select x + ? as y, count(*) from flights group by x + ?|1,1
select x + $1 as y, count(*) from flights where x < $2 group by y|1,9
select x, $1 from flights where x in ($2, $3, $1) order by x limit 2|4,5,6
select count(*) from flights f join hops h on f.x = h.x where h.leg = ? and f.carrier > ?|1,0
"""


@pytest.mark.parametrize("line", PREPARED.strip().splitlines())
def test_parameters_reach_every_part_that_uses_them(worlds: list[SpreadWorld], line: str) -> None:
    sql, _, given_values = line.partition("|")
    values: list[object] = [int(v) if v.isdigit() else v for v in given_values.split(",")]
    for world in worlds:
        try:
            expected = world.expected(sql, values)
        except duckdb.Error:
            with pytest.raises(duckdb.Error):
                world.answer(sql, values)
            continue
        got = world.answer(sql, values)
        assert (got.types, Counter(got.rows)) == (expected.types, Counter(expected.rows))


def test_most_plain_aggregates_move_no_rows(worlds: list[SpreadWorld]) -> None:
    for world in worlds:
        for sql in ORDERED.strip().splitlines()[:8]:
            for one in world.plan(sql).fragments[0].inputs:
                is_replicated = "airlines" not in sql or world.is_replicated("airlines")
                assert not is_replicated or not one.because.split(": ")[1].startswith("rows")


SHAPES = """
partial results|select carrier, arg_max(name, x), arg_min(x, at) filter (where flag), product(small) from flights group by carrier
partial results|select approx_count_distinct(name), count_if(flag), regr_count(x, delay), sem(x), favg(delay) from flights
partial results|select carrier, flag, sum(x), grouping(carrier) from flights group by rollup (carrier, flag)
partial results|select name, sum(sum(price)) over (order by name) as t from flights group by name
partial results|select name, count(*) as n from flights group by name qualify rank() over (order by count(*) desc, name) < 4
partial results|select median(distinct carrier), count(distinct name) from flights
rows joined and filtered|select name, median(x) as m from flights where x * 2 > 5 group by name
rows joined and filtered|select string_agg(name, ',' order by x) as names from flights
rows joined and filtered|select row_number() over (order by at, x) as r, x from flights where length(name) > 1
"""


@pytest.mark.parametrize("line", SHAPES.strip().splitlines())
def test_shapes_move_no_more_than_they_must(worlds: list[SpreadWorld], line: str) -> None:
    wanted, _, sql = line.partition("|")
    found = [one.because for world in worlds for one in world.plan(sql).fragments[0].inputs]
    assert found
    assert all(because.split(": ")[1].startswith(wanted) for because in found), found


COMPLETE = """
select x, median(gap) from flights group by x
select x, count(*) as n from flights group by x having count(*) > 1 order by n desc limit 3
select *, row_number() over (partition by x order by at) as r from flights qualify r = 1
select f.x, a.label, rank() over (partition by f.x, f.day order by f.at) as r from flights f left join airlines a using (carrier)
"""


@pytest.mark.parametrize("sql", COMPLETE.strip().splitlines())
def test_whole_groups_and_partitions_are_computed_where_they_are(
    worlds: list[SpreadWorld], sql: str
) -> None:
    kinds = set()
    for world in worlds:
        route = world.context.routing.datasets[DatasetId(ACME, "flights")]
        has_stats = all(shard.stats for shard in route.shards)
        for one in world.plan(sql).fragments[0].inputs:
            is_complete = one.because.split(": ")[1].startswith("complete results")
            assert has_stats or not is_complete
            kinds.add(is_complete)
    assert kinds == {True, False}
