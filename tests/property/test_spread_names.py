"""Names that stand for more than one thing mean the same over a spread dataset as in DuckDB."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import duckdb
import pytest
from planner_spread_world import SpreadWorld, world_of

WORLDS = 6
TABLES = {
    "pairs": """SELECT (i * 3) % 5 AS x, {'carrier': (i % 3)::BIGINT, 'kind': i % 2} AS air,
        CASE WHEN i % 3 > 0 THEN i END AS n FROM range(20) t(i)""",
    "hops": "SELECT (i * 5) % 17 AS x, i % 4 AS leg FROM range(24) t(i)",
    "airlines": "SELECT i::BIGINT AS carrier, 'name' || i AS label, i % 2 AS kind FROM range(5) t(i)",
}  # fmt: skip
ROLLUPS = {"hops": ("by_leg: leg; count(*), sum(x)",)}


@pytest.fixture(scope="module")
def worlds() -> Iterator[list[SpreadWorld]]:
    plain = duckdb.connect(config={"threads": "1"})
    plain.execute("CREATE SCHEMA acme")
    plain.execute("USE acme")
    for name, select in TABLES.items():
        plain.execute(f"CREATE TABLE acme.{name} AS {select}")
    worlds = []
    for seed in range(WORLDS):
        draw = random.Random(f"names {seed}")
        cuts = {}
        for name in TABLES:
            rows = plain.sql(f"FROM acme.{name}").to_arrow_table()
            at = [0, *sorted(draw.sample(range(rows.num_rows), 3)), rows.num_rows]
            cuts[name] = [rows.slice(a, b - a) for a, b in pairwise(at)]
        known = {"x", "carrier", "leg"}
        whole = {"airlines"}
        worlds.append(world_of(draw, plain, cuts, whole, 2 + seed % 2, known, ROLLUPS))
    yield worlds
    for world in worlds:
        world.sharded.close()
    plain.close()


def check(worlds: list[SpreadWorld], sql: str) -> None:
    for world in worlds:
        expected, got = world.expected(sql), world.answer(sql)
        assert got.types == expected.types
        if " order by " in sql:
            assert got.rows == expected.rows, world.plan(sql).fragments[0].sql
        else:
            assert sorted(got.rows) == sorted(expected.rows), world.plan(sql).fragments[0].sql


# One a line.
# ruff: noqa: E501
FIELDS = """
select air.carrier, (select count(*) from pairs p where p.x = air.carrier) as n from airlines air where air.carrier = 4
select air.carrier, (select count(*) from pairs where x = air.carrier) as n from airlines air where air.kind = 1
select air.carrier from airlines air where exists (select 1 from pairs where n > 18 and x = air.carrier)
select p.n, air.label from pairs p join airlines air on p.x = air.carrier where p.air.carrier = 2
select p.n from pairs p join airlines air on p.x = air.kind and p.air.carrier = 2 where air.kind = 1
select p.air.carrier, air.carrier, count(*) from pairs p join airlines air on p.x = air.carrier group by 1, 2 order by all
select p.air.carrier as a, count(distinct air.carrier) from pairs p join airlines air on p.x = air.carrier group by p.air.carrier order by 1
select count(*) from pairs p join hops air on p.x = air.leg where p.air.carrier = 1
select acme.airlines.label, acme.hops.x from acme.hops join acme.airlines on acme.hops.leg = acme.airlines.carrier where acme.hops.x > 3 and acme.airlines.kind = 1
"""


@pytest.mark.parametrize("sql", FIELDS.strip().splitlines())
def test_a_field_of_a_column_is_no_column_of_a_table_of_that_name(
    worlds: list[SpreadWorld], sql: str
) -> None:
    check(worlds, sql)


ROWS = """
select n as f, count(f) from pairs f group by n
select n as f, f is null as missing from pairs f
select n as f from pairs f where f is null
select max(n) as f, count(f) from pairs f
select leg as f, count(*), count(f) from hops f group by f.leg
select x, count(*) as hops from hops group by x order by hops desc, x
"""


@pytest.mark.parametrize("sql", ROWS.strip().splitlines())
def test_a_tables_name_is_its_row_and_not_an_alias_but_in_order_by(
    worlds: list[SpreadWorld], sql: str
) -> None:
    check(worlds, sql)


ORDERED = """
select x, leg as x from hops order by x, 1 limit 5
select x, leg as x from hops group by all order by x, 1 limit 7
select h.x, leg as x, count(*) from hops h group by 1, 2 order by x desc, 1
select leg as "sum(x)", sum(x) from hops group by leg order by "sum(x)"
select leg as "sum(x)", sum(x), count(distinct x) as n from hops group by leg order by "sum(x)"
select leg as "first(x)", first(x) is null from hops group by leg order by "first(x)"
select x, x from hops order by x limit 5
"""


@pytest.mark.parametrize("sql", ORDERED.strip().splitlines())
def test_a_name_of_several_columns_orders_by_the_one_that_duckdb_takes(
    worlds: list[SpreadWorld], sql: str
) -> None:
    check(worlds, sql)


def test_a_text_orders_nothing_here_either(worlds: list[SpreadWorld]) -> None:
    for world in worlds:
        with pytest.raises(duckdb.BinderException, match="ORDER BY non-integer literal"):
            world.answer("select x, leg from hops order by 'leg'")
