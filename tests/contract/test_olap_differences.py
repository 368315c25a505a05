"""Why the portable subset spells things out or refuses them: engines really differ, here and now.

Each fact is one question in an engine's own words, to which it answers otherwise than DuckDB. If
one of them ever agrees, the rule that rests on it may go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest
from olap_world import Worlds, compile_sql, started

from accel_dask.errors import NotPortable

SPELLED_OUT = (
    ("texts compare without case", "mariadb", "select s = 'A' from t where s = 'a'", None),
    ("trailing spaces count", "mariadb", "select count(*) from t where s = 'a'", None),
    ("texts sort by code point", "postgresql", "select 'a' < 'B'", None),
    ("distinct texts", "mariadb", "select count(distinct s) from t where s in ('a', 'A')", None),
    ("NULLs come last", "mariadb", "select k from t order by k limit 1", None),
    ("NULLs come last", "sail", "select k from t order by k limit 1", None),
    ("NULLs come last going down", "postgresql", "select k from t order by k desc limit 1", None),
    ("/ of integers", "postgresql", "select 7 / 2", None),
    ("average of decimals", "sail", ("select avg(v) from (select cast(1 as decimal(9, 2)) as v "
      "union all select 2 union all select 2) q"), None),
    ("average of integers", "mariadb", ("select avg(v) from "
      "(select 1 as v union all select 2 union all select 2) q"), None),
    ("sums of 64-bit integers", "sail", ("select sum(v) from (select 9223372036854775807 as v "
      "union all select 9223372036854775807) q"), None),
    ("32-bit integers", "sail", "select cast(2147483647 as int) + cast(1 as int)", None),
    ("division of decimals", "mariadb",
     "select cast(1 as decimal(9, 2)) / cast(3 as decimal(9, 2))", None),
    ("truth values", "mariadb", "select true", None),
    ("doubled quotes", "sail", "select 'it''s'", None),
    ("backslashes", "mariadb", "select 'a\\b'", None),
    ("backslashes", "sail", "select 'a\\b'", None),
    ("backslashes in LIKE", "postgresql", "select 'a\\b' like 'a\\b'", None),
    ("day of week", "sail", "select dayofweek(date '2023-01-31')", None),
    ("day of week", "mariadb", "select dayofweek(date '2023-01-31')", None),
    ("weeks start on Monday", "mariadb", "select week(date '2023-01-01')",
     "select week(date '2023-01-01')"),
    ("date plus interval", "sail", "select date '2023-01-31' + interval '1' day", None),
    ("timestamps have no zone", "sail", "select timestamp '2023-01-31 00:00:00'", None),
    ("DISTINCT FROM", "mariadb", "select 1 is distinct from null", None),
)  # fmt: skip
"""Name, engine, its SQL, DuckDB's SQL where it is another."""

REFUSED = (
    ("select x / n as q from fact", "mariadb", "select 1e0 / 0e0", "select 1e0 / 0e0"),
    ("select m / n as q from fact", "postgresql", "select 1.5 / 0", None),
    ("select n % k as q from fact", "mariadb", "select 5 % 0", None),
    ("select round(x) as r from fact", "postgresql",
     "select round(cast(2.5 as double precision))", "select round(2.5::double)"),
    ("select round(x) as r from fact", "mariadb", "select round(2.5e0)", None),
    ("select cast(x as integer) as r from fact", "sail",
     "select cast(3.5e0 as int)", "select cast(3.5e0 as int)"),
    ("select upper(s) as u from fact", "sail", "select upper('ß')", None),
    ("select lower(s) as u from fact", "sail", "select lower('İ')", None),
    ("select least(n, k) as l from fact", "mariadb", "select least(1, null)", None),
    ("select greatest(n, k) as l from fact", "mariadb", "select greatest(1, null)", None),
    ("select concat(s, 'a') as c from fact", "sail", "select concat('a', null)", None),
    ("select concat(s, 'a') as c from fact", "mariadb", "select concat('a', null)", None),
    ("select id from fact where n = '5'", "mariadb", "select '5abc' = 5", None),
    ("select id from fact where s > 5", "mariadb", "select 'abc' < 5", None),
    ("select id from fact where d = '2020-01-01 10:00:00'", "mariadb",
     "select date '2020-01-01' = '2020-01-01 10:00:00'", None),
    ("select id from fact where b = 1", "postgresql", "select true = 1", None),
    ("select id from fact where b > 0", "postgresql", "select true > 0", None),
    ("select substring(s, 0, 2) as t from fact", "mariadb", "select substring('abc', 0, 2)", None),
    ("select substring(s, -2, 1) as t from fact", "postgresql",
     "select substring('abc', -2, 1)", None),
    ("select min(b) as t from fact", "postgresql",
     "select min(b) from (select true as b) q", None),
    ("select id from fact where s like label", "mariadb", "select 'a\\\\b' like 'a\\\\b'",
     "select 'a\\b' like 'a\\b'"),
    ("select s ilike 'a' as t from fact", "mariadb", "select 'a' ilike 'A'", None),
    ("select f.id from fact f full join dim d on f.k = d.k", "mariadb",
     "select count(*) from t a full join t b on a.k = b.k", None),
    ("select extract(hour from d) as h from fact", "postgresql",
     "select extract(hour from date '2020-01-01')", None),
    ("select k, count(*) as n from fact group by rollup(k)", "mariadb",
     "select count(*) from t group by rollup(k)", None),
    ("select id from fact qualify row_number() over (order by id) = 1", "postgresql",
     "select k from t qualify row_number() over (order by k) = 1", None),
    ("select try_cast(s as integer) as i from fact", "postgresql",
     "select try_cast('a' as integer)", None),
    ("select cast(s as integer) as i from fact", "mariadb", "select cast('1a' as signed)",
     "select cast('1a' as integer)"),
    ("select cast(x as varchar) as i from fact", "mariadb", "select cast(1e20 as char)",
     "select cast(1e20 as varchar)"),
    ("select cast(b as varchar) as i from fact", "mariadb", "select cast(true as char)",
     "select cast(true as varchar)"),
    ("select stddev(x) as i from fact", "mariadb",
     "select stddev(v) from (select 1e0 as v union all select 2e0) q", None),
    ("select median(n) as i from fact", "postgresql",
     "select median(k) from t", None),
    ("select s from fact where s similar to 'a.*'", "mariadb",
     "select 'ab' similar to 'a.*'", None),
    ("select regexp_matches(s, 'a') as i from fact", "mariadb",
     "select regexp_matches('a', 'a')", None),
    ("select id from fact where 5 in (select k from fact)", "sail",
     "select count(*) from t where 0.00 not in (select k + 0.5 from t)", None),
    ("select id from fact where n not in (select k from fact)", "sail",
     "select count(*) from t where k + 10 not in (select k from t) or s = 'b'", None),
    ("select id from fact where n in (select k from fact) or b", "sail",
     "select count(*) from t where not (k + 10 in (select k from t) and s <> 'a')", None),
    ("select n in (select k from fact) as i from fact", "sail",
     "select k + 10 in (select k from t) from t where k = 1", None),
    ("select sum(a) as t from (select 1.5 as a from fact) q", "sail",
     "select sum(a) from (select 1.5 as a from (select k as c from dim where k > 1000) q) r",
     "select cast(null as integer)"),
    ("select sum(x) as t from fact group by k having sum(x) = 1.5", "sail",
     "select 0.1e0 + 0.2e0 + 0.3e0", "select 0.3e0 + 0.2e0 + 0.1e0"),
)  # fmt: skip
"""What is refused, an engine, its words for the bare construct, DuckDB's where they are others."""


def asked(ask: Any) -> Any:
    try:
        rows = ask()
    except Exception as error:  # noqa: BLE001 - that it fails is a difference too
        return f"error: {type(error).__name__}"
    value = rows[0][0] if rows else None
    return (type(value).__name__, value)


@pytest.fixture(scope="module")
def plain() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t AS FROM (VALUES (1, 'a'), (2, 'A'), (NULL, 'a '), (NULL, 'b')) v(k, s)"
        )
        yield connection


@pytest.fixture(scope="module")
def with_facts(worlds: Worlds, plain: duckdb.DuckDBPyConnection) -> Worlds:
    """Each engine with a small table `t`."""
    rows = plain.sql("FROM t").to_arrow_table()
    for kind in ("mariadb", "postgresql", "sail"):
        try:
            world = worlds.start(kind)
        except Exception:  # noqa: BLE001 - the tests that want it are skipped
            continue
        if kind == "mariadb":
            types = [("k", "int"), ("s", "varchar(20)")]
            world.server.load("t", types, [tuple(row.values()) for row in rows.to_pylist()])
        elif kind == "postgresql":
            world.server.load("t", rows)
        else:
            world.server.execute(
                "CREATE OR REPLACE TEMP VIEW t AS SELECT * FROM VALUES (1, 'a'), (2, 'A'), "
                "(NULL, 'a '), (NULL, 'b') AS v(k, s)"
            )
    return worlds


@pytest.mark.parametrize(("name", "kind", "sql", "ours"), SPELLED_OUT)
def test_an_engine_answers_otherwise_what_its_dialect_spells_out(
    name: str,
    kind: str,
    sql: str,
    ours: str | None,
    with_facts: Worlds,
    plain: duckdb.DuckDBPyConnection,
) -> None:
    world = started(with_facts, kind)
    theirs = asked(lambda: world.raw(sql))
    assert theirs != asked(lambda: plain.execute(ours or sql).fetchall()), name


@pytest.mark.parametrize(("refused", "kind", "sql", "ours"), REFUSED)
def test_what_is_refused_an_engine_answers_otherwise(
    refused: str,
    kind: str,
    sql: str,
    ours: str | None,
    with_facts: Worlds,
    plain: duckdb.DuckDBPyConnection,
) -> None:
    with pytest.raises(NotPortable, match="is not sent to the fallback engine"):
        compile_sql(refused, with_facts.tables)
    world = started(with_facts, kind)
    theirs = asked(lambda: world.raw(sql))
    assert theirs != asked(lambda: plain.execute(ours or sql).fetchall())
