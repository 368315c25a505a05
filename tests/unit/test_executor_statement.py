"""What an executor says of a statement does not depend on what it was asked before."""

from __future__ import annotations

import random
import re

import duckdb
import pytest

from accel_dask.errors import AccelError
from accel_dask.worker_plugin.executor import statement
from accel_dask.worker_plugin.executor.statement import check_select

STATEMENTS = (
    'SELECT a1, "b2" FROM "s_c4cf6348"."main"."data" AS t3 WHERE d = DATE \'1994-07-04\' AND k = 6',
    "WITH c1 AS (SELECT 1 AS x), c2 AS (SELECT 2 AS x) SELECT * FROM c1, c2",
    "SELECT sum(x) OVER w1, sum(x) OVER w2 FROM t WINDOW w1 AS (ORDER BY x), w2 AS (ORDER BY y)",
    "SELECT #1 FROM t ORDER BY 1 LIMIT 10 OFFSET 2",
    "SELECT CAST(1e5 AS DECIMAL(15, 2)), x'AB12', 0x1F, 1_000, INT8 '7' FROM t1",
    "SELECT $1, $2 FROM t9",
    "SELECT $1, $1 FROM t9",
    "SELECT ?, 5 FROM t9",
    "SELECT 'é5' FROM t",
    "SELECT '1', '\\x41' FROM t",
    "SELECT 1; SELECT 2",
    "SELECT * FROM duckdb_tables1()",
    "SELECT * FROM read_csv2('x9')",
    "SELECT * FROM 's_12.duckdb'",
    "SELECT 'read_csv(1' FROM t",
    "SELECT 1 -- 2",
    "SELECT 1 /* 2 */",
    "INSERT INTO t1 VALUES (1)",
    "DROP TABLE t1",
    "SET threads = 9",
    "SELECT 1 FRO M 2 2",
    "SELECT '1",
    "",
)


def verdict(sql: str, check: object) -> object:
    try:
        return check(sql)  # type: ignore[operator]
    except (AccelError, duckdb.Error) as error:
        return type(error), str(error)


@pytest.mark.parametrize("sql", STATEMENTS)
def test_the_verdict_is_that_of_the_statement_itself_whatever_came_before(sql: str) -> None:
    chance = random.Random(sql)
    for _ in range(30):
        other = re.sub(r"\d", lambda _: chance.choice("0123456789"), sql)
        for each in (other, sql):
            assert verdict(each, check_select) == verdict(each, statement._check)


def test_statements_that_differ_in_digits_are_parsed_once() -> None:
    for text in (
        "SELECT 1 AS c1 FROM parsed_once_{n} WHERE x = {n}",
        "WITH c1 AS (SELECT 1), c2 AS (SELECT 2) SELECT * FROM parsed_once, c1, c2 WHERE x = {n}",
    ):
        check_select(text.format(n=10))
        before = statement._passed.cache_info()
        for n in range(11, 31):
            check_select(text.format(n=n))
        after = statement._passed.cache_info()
        assert after.misses == before.misses
        assert after.hits > before.hits
