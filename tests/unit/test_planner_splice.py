"""What the planner splices gives what DuckDB gives on plain tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from routes import executor_route

from accel_dask.errors import InvalidQuery
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.pipeline import plan_query
from accel_dask.query_planner.plan import PlanContext

ACME = TenantId("acme")
EPOCH = EpochNumber(7)


@dataclass
class Twin:
    """The same rows as plain tables of a schema `acme`, and cut into shards."""

    plain: duckdb.DuckDBPyConnection
    sharded: duckdb.DuckDBPyConnection
    context: PlanContext

    def rows(self, sql: str) -> tuple[list[str], list[str]]:
        """Rows on the plain tables and through the planner, sorted."""
        physical = plan_query(sql, self.context).fragments[0].sql
        return _rows(self.plain, sql), _rows(self.sharded, physical)

    def names(self, sql: str) -> tuple[list[str], list[str]]:
        physical = plan_query(sql, self.context).fragments[0].sql
        return _names(self.plain, sql), _names(self.sharded, physical)


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    return sorted(map(repr, connection.execute(sql).fetchall()))


def _names(connection: duckdb.DuckDBPyConnection, sql: str) -> list[str]:
    return [column[0] for column in connection.execute(sql).description or ()]


FLIGHTS = """
SELECT i AS x, i % 3 AS carrier, DATE '2013-01-01' + (i % 10)::INT AS day,
    {'y': i, 'z': 'q'} AS s, [i, i + 1] AS l, i / 2.0 AS delay, 'n' || i AS name,
    CASE WHEN i % 5 > 0 THEN i END AS gap
FROM range(50) t(i)
"""
TABLES = {
    "flights": (FLIGHTS, 3),
    "airlines": ("SELECT i AS carrier, 'name' || i AS label FROM range(3) t(i)", 1),
    "nothing": ("SELECT 1 AS a, 'x' AS b WHERE false", 0),
    "Mixed Case": ('SELECT 5 AS "Odd ""name", 6 AS plain', 2),
}


@pytest.fixture(scope="module")
def twin() -> Iterator[Twin]:
    plain, sharded = duckdb.connect(), duckdb.connect()
    plain.execute("CREATE SCHEMA acme")
    datasets: dict[DatasetId, DatasetRoute] = {}
    attachments: set[Attachment] = set()
    for name, (select, cuts) in TABLES.items():
        plain.execute(f'CREATE TABLE acme."{name}" AS {select}')
        table = plain.sql(f'FROM acme."{name}"').to_arrow_table()
        shards = [
            _attach(sharded, name, index, _slice(table, index, cuts)) for index in range(cuts)
        ]
        attachments |= {Attachment(name, EPOCH, shard.shard_id) for shard in shards}
        columns = plain.execute(f'DESCRIBE acme."{name}"').fetchall()
        dataset = DatasetId(ACME, name)
        datasets[dataset] = DatasetRoute(
            dataset_id=dataset,
            epoch=EPOCH,
            snapshot_id=None,
            columns=tuple(Column(name=row[0], type=row[1]) for row in columns),
            shards=tuple(shards),
            executors=(),
        )
    executor = executor_route(attachments)
    datasets = {
        key: DatasetRoute(
            dataset_id=route.dataset_id,
            epoch=route.epoch,
            snapshot_id=None,
            columns=route.columns,
            shards=route.shards,
            executors=(executor,),
        )
        for key, route in datasets.items()
    }
    plain.execute("USE acme")
    yield Twin(
        plain, sharded, PlanContext(tenant=ACME, routing=RoutingTable(1, datasets, {}, {}, b""))
    )
    plain.close()
    sharded.close()


def _slice(table: pa.Table, index: int, cuts: int) -> pa.Table:
    size = -(-table.num_rows // cuts)
    return table.slice(index * size, size)


def _attach(
    connection: duckdb.DuckDBPyConnection, name: str, index: int, rows: pa.Table
) -> ShardSummary:
    shard = ShardId(f"{sorted(TABLES).index(name) * 16 + index:032x}")
    connection.execute(f"ATTACH ':memory:' AS s_{shard}")
    connection.register("rows", rows)
    connection.execute(f"CREATE TABLE s_{shard}.main.data AS FROM rows")
    connection.unregister("rows")
    return ShardSummary(shard_id=shard, rows=rows.num_rows, source_bytes=0)


# One a line.
# ruff: noqa: E501
QUERIES = """
select count(*) from flights
select * from flights order by x limit 3
select flights.x, acme.flights.carrier from acme.flights
select f.* from acme.flights as f where f.x < 3
from flights select x
from flights
from f: flights select f.x
select y: x from flights
select (select max(x) from flights), x in (select carrier from airlines) from flights
with flights as (select x from flights where x > 10) select count(*) from flights
with flights as (select 1 as one) select (select count(*) from acme.flights), one from flights
with a as (select * from flights), b as (select x from a) select * from b union all select carrier from airlines
with a as (select * from flights) select * from (with flights as (from a limit 1) select count(*) from flights)
with recursive r as (select 0 as n union all select n+1 from r where n<5) select * from r
with recursive flights as (select 1 as x union all select x+1 from flights where x<3) select * from flights
with a as materialized (select * from flights), b as not materialized (select x from a) (select * from b order by x limit 2)
select * from (flights join airlines using (carrier)) order by x
select * from flights f join airlines a on f.carrier=a.carrier and exists (select 1 from flights g where g.x=f.x)
select * from flights semi join airlines using (carrier)
select * from flights anti join airlines on flights.x = airlines.carrier
select * from flights positional join airlines
select f.x, a.label from flights f left join (airlines a cross join nothing) on true
select * from flights, lateral (select flights.x+1 as z) q
select label, sum(delay) filter (where x>3) from flights natural join airlines group by all having count(*)>1 order by all
select distinct on (carrier) carrier, x from flights order by carrier, x
select x, row_number() over (partition by carrier order by x) r from flights qualify r=1
select count(*) over w from flights window w as (order by x)
select x from flights where day between date '2013-01-02' and date '2013-01-04' and name like 'n1%' escape '!'
select s.y, s['y'], l[1], l[1:2], {'a': x}, [x, 2], s.y.z from (select {'y': {'z': 1}} as s, [1] as l, 1 as x)
select s.y, acme.flights.s.y, flights.s.y from acme.flights
select * exclude (s) replace (x+1 as x) from flights
select * rename (x as xx) from flights
select * like 'x' from flights
select unnest(l) from flights
select * from flights, unnest(flights.l) as u(v)
select a from flights as f(a)
select x::varchar(3), cast(x as decimal(10,2)), try_cast(name as int) from flights
select count(*) from nothing
select * from nothing e full join airlines on true
select x from flights union by name select carrier as x from airlines
(select x from flights) union all (select carrier from airlines) order by 1 limit 3
select x from flights except select carrier from airlines
select x from flights intersect all select carrier from airlines
select flights from flights limit 1
select x from flights order by x limit (select count(*) from airlines) offset 2
select count(*) from (select x from flights limit 10%)
select x from flights order by (select max(x) from airlines a2, flights), x desc nulls last limit 5
select x=-1, x>-1, x- -1, x%2, x//2, x**2, -x, ~x, x<<1, x&1|2, name||'a' from flights
select sum(x), carrier from flights group by grouping sets ((carrier),())
select max(x), carrier from flights group by cube(carrier, day)
select percentile_cont(0.5) within group (order by x) from flights
select array(select x from flights order by x)
select x = any(select carrier from airlines), x > all(select carrier from airlines) from flights
select acme.flights.x + (select count(*) from acme.airlines) from acme.flights
select "X" from "Flights"
select "Odd ""name", PLAIN from "Mixed Case"
select t."Odd ""name" from "mixed case" t
select größe from (select 1 as größe)
select 'it''s -- no comment', "x" as "a ""b" from flights /* c */ -- d
select 1e5, 1.5, .5, 5., 1_000 from flights
select max(x) from flights where x > (select avg(f2.x) from flights f2 where f2.carrier = flights.carrier)
select * from flights where (x, carrier) in (select x, carrier from flights)
select x from flights asof join airlines a on flights.x >= a.carrier
select (from airlines select max(carrier)) from flights
select '{"a":1}'::json->'a', '{"a":1}'->>'$.a', json_extract('{"a":1}', '$.a') from flights
select array_agg(x order by x desc), string_agg(name, ',' order by x), first(x order by day, x), arg_max(name, x) from flights
select strftime(day, '%Y-%m'), date_trunc('month', day), day + 1, epoch(day), day + interval '1 month', interval 1 day from flights
select x from flights where 'a' < name and name similar to 'n.*' and name not ilike '%Z' and name glob 'n*'
select lag(x, 1) over (order by x rows between unbounded preceding and current row exclude ties) from flights
select struct_pack(a := x, b := 2), row(x,1), (x,1), map {'a': x} from flights
select x from flights where case when carrier = 1 then true else x in (1, 2, 3) end
select extract(year from day), position('1' in name), substring(name from 1 for 2), trim(both 'n' from name) from flights
select count(distinct carrier), avg(gap), count(gap) from flights where gap is not null or x is distinct from gap
select count(*) from flights f, flights g, airlines where f.x = g.x
select * from (select * from (select * from (select x from flights))) where x = 3
select exists(from flights where x = 100), not exists (select 1 from nothing)
"""


@pytest.mark.parametrize("sql", QUERIES.strip().splitlines())
def test_a_spliced_query_answers_as_on_plain_tables(twin: Twin, sql: str) -> None:
    plain, planned = twin.rows(sql)
    assert planned == plain


def test_text_around_table_names_is_left_as_it_was_written(twin: Twin) -> None:
    sql = "SELECT  \"x\" ,\n name || 'flights' FROM Flights AS flights WHERE flights.x<5"
    physical = plan_query(sql, twin.context).fragments[0].sql
    head, _, tail = physical.partition("(SELECT")
    assert head == "SELECT \"x\" , name || 'flights' FROM "
    assert tail.endswith(") AS flights WHERE flights.x<5")


def test_a_dataset_of_one_shard_is_read_without_a_subquery(twin: Twin) -> None:
    physical = plan_query("select label from airlines", twin.context).fragments[0].sql
    assert re.fullmatch(
        r'select label from "s_[0-9a-f]{32}"\."main"\."data" AS "airlines"', physical
    )


@pytest.mark.parametrize(
    "sql",
    [
        "select rowid from airlines",
        "select count(*) from airlines a where a.ROWID < 2",
        'select * from flights where x = 1 order by "rowid"',
        "select rowid from (select x as rowid from flights) join airlines using (rowid)",
        "select airlines.rowid from airlines, (select 1 as rowid) t",
    ],
)
def test_numbers_of_rows_within_a_shard_are_not_shown(twin: Twin, sql: str) -> None:
    with pytest.raises(InvalidQuery, match="no rowid"):
        plan_query(sql, twin.context)


@pytest.mark.parametrize(
    "sql",
    [
        "with a as (select 1 as rowid) select a.rowid, label from a join airlines on carrier = a.rowid",
        "select t.rowid, label from (select x as rowid from flights) t, airlines where t.rowid = 3",
        "select rowid from flights as f(rowid) where rowid = 3",
        "select 'rowid' as word from airlines",
    ],
)
def test_a_query_may_call_its_own_columns_rowid(twin: Twin, sql: str) -> None:
    plain, planned = twin.rows(sql)
    assert planned == plain


def test_no_column_is_named_by_physical_text(twin: Twin) -> None:
    for sql in QUERIES.strip().splitlines():
        _, names = twin.names(sql)
        assert not [name for name in names if "s_0" in name or '"data"' in name], sql


def test_plain_columns_keep_their_names(twin: Twin) -> None:
    sql = (
        "select day, flights.x, acme.flights.name, count(*), delay + 1, a.label as y "
        "from acme.flights join airlines a on flights.x = a.carrier group by all"
    )
    plain, planned = twin.names(sql)
    assert planned == plain


def test_the_session_is_asked_for_the_gateways_names(twin: Twin) -> None:
    sql = "select current_database(), current_schema() as s, 1"
    physical = plan_query(sql, twin.context).fragments[0].sql
    cursor = twin.sharded.execute(physical)
    assert [column[0] for column in cursor.description or ()] == ["current_database()", "s", "1"]
    assert cursor.fetchall() == [("accel", "acme", 1)]


# Random queries: every part that may hold a subquery does, to a small depth.

_columns = st.sampled_from(["x", "carrier", "gap", "delay"])
_tables = st.sampled_from(["flights", "acme.flights", '"flights"', "Flights"])


def _scalars(depth: int) -> st.SearchStrategy[str]:
    leaf = st.one_of(
        _columns.map(lambda c: f"t.{c}"), st.integers(-5, 50).map(str), st.just("NULL")
    )
    if depth == 0:
        return leaf
    inner = _scalars(depth - 1)
    return st.one_of(
        leaf,
        st.tuples(inner, st.sampled_from(["+", "-", "*", "%"]), inner).map(" ".join),
        st.tuples(inner, inner).map(lambda p: f"coalesce({p[0]}, {p[1]})"),
        st.tuples(_conditions(depth - 1), inner, inner).map(
            lambda p: f"CASE WHEN {p[0]} THEN {p[1]} ELSE {p[2]} END"
        ),
        st.tuples(_columns, _tables, _columns).map(
            lambda p: f"(SELECT max({p[0]}) FROM {p[1]} AS u WHERE u.{p[2]} = t.{p[2]})"
        ),
        inner.map(lambda text: f"(/* {text.replace('*', '')} */ {text} -- FROM x\n)"),
    )


def _conditions(depth: int) -> st.SearchStrategy[str]:
    scalar = _scalars(depth)
    leaf = st.tuples(scalar, st.sampled_from(["=", "<", ">=", "<>"]), scalar).map(" ".join)
    if depth == 0:
        return leaf
    inner = _conditions(depth - 1)
    return st.one_of(
        leaf,
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda p: f"({' '.join(p)})"),
        inner.map(lambda text: f"NOT ({text})"),
        st.tuples(scalar, _columns, _tables).map(
            lambda p: f"{p[0]} IN (SELECT {p[1]} FROM {p[2]} WHERE {p[1]} IS NOT NULL)"
        ),
        _tables.map(lambda name: f"EXISTS (FROM {name} AS e WHERE e.x = t.x + 1)"),
    )


@st.composite
def _queries(draw: st.DrawFn) -> str:
    source = draw(_tables)
    ctes = draw(st.sampled_from(["", "cte", "flights"]))
    head = ""
    if ctes:
        head = (
            f"WITH {ctes} AS (SELECT * FROM {draw(_tables)} WHERE x < {draw(st.integers(0, 60))}) "
        )
        source = draw(st.sampled_from([source, ctes]))
    condition = draw(_conditions(2))
    shape = draw(st.sampled_from(["rows", "group", "union", "derived", "join"]))
    scalar = draw(_scalars(2))
    if shape == "group":
        return (
            f"{head}SELECT carrier, count(*) AS n, sum(delay) AS d FROM {source} AS t WHERE "
            f"{condition} GROUP BY carrier HAVING count(*) > (SELECT count(*) FROM airlines) - 3"
        )
    if shape == "union":
        return (
            f"{head}SELECT {scalar} AS v FROM {source} t WHERE {condition} UNION ALL "
            f"SELECT carrier FROM airlines"
        )
    if shape == "derived":
        return f"{head}SELECT * FROM (SELECT {scalar} AS v, t.x FROM {source} t) q WHERE q.x < 20"
    if shape == "join":
        return (
            f"{head}SELECT t.x, a.label, {scalar} AS v FROM {source} t LEFT JOIN airlines a ON "
            f"t.carrier = a.carrier AND {condition}"
        )
    return f"{head}SELECT {scalar} AS v, t.* FROM {source} AS t WHERE {condition}"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sql=_queries())
def test_random_queries_answer_as_on_plain_tables(twin: Twin, sql: str) -> None:
    physical = plan_query(sql, twin.context).fragments[0].sql
    try:
        plain = _rows(twin.plain, sql)
    except (
        duckdb.OutOfRangeException,
        duckdb.ConversionException,
        duckdb.BinderException,
        duckdb.InvalidInputException,  # a division by zero
    ):
        with pytest.raises(duckdb.Error):
            _rows(twin.sharded, physical)
        return
    assert _rows(twin.sharded, physical) == plain
