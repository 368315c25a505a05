"""What the gate lets through, and what it refuses and how."""

from __future__ import annotations

import pytest

from accel_dask.errors import (
    InvalidQuery,
    QueryError,
    ReadOnly,
    TextLimit,
    UnsupportedQuery,
)
from accel_dask.model.cluster import ClusterView
from accel_dask.model.ids import TenantId
from accel_dask.model.routing import build_routing
from accel_dask.query_planner.functions import FUNCTIONS
from accel_dask.query_planner.lexemes import MAX_NESTING, MAX_TEXT_BYTES
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.plan import ParsedQuery, PlanContext, QueryDraft
from accel_dask.query_planner.statement import MAX_IN_LIST, MAX_JOINS, MAX_SET_OPERATIONS

CONTEXT = PlanContext(tenant=TenantId("acme"), routing=build_routing(ClusterView(0, {})))


def gate(sql: str) -> ParsedQuery:
    parsed = parse(QueryDraft(sql=sql), CONTEXT).parsed
    assert parsed is not None
    return parsed


CHANGES = """
INSERT INTO t VALUES (1)
insert into t select * from u
UPDATE t SET x = 1
DELETE FROM t
TRUNCATE t
MERGE INTO t USING u ON true WHEN MATCHED THEN DELETE
CREATE TABLE t (x int)
CREATE TEMP TABLE t AS SELECT 1
CREATE OR REPLACE VIEW v AS SELECT 1
CREATE MACRO sum(x) AS 0
CREATE TEMP MACRO sum(x) AS 0
CREATE SECRET s (TYPE s3)
DROP TABLE t
ALTER TABLE t ADD COLUMN x int
COMMENT ON TABLE t IS 'x'
ATTACH 'x.db'
ATTACH ':memory:' AS m
DETACH m
USE m
COPY t TO 'x.csv'
COPY (SELECT 1) TO '/tmp/x'
EXPORT DATABASE 'x'
IMPORT DATABASE 'x'
INSTALL httpfs
FORCE INSTALL httpfs
LOAD httpfs
UPDATE EXTENSIONS
SET memory_limit = '100GB'
SET VARIABLE x = 1
RESET memory_limit
PRAGMA database_list
PRAGMA enable_profiling
CALL duckdb_settings()
CHECKPOINT
FORCE CHECKPOINT
VACUUM
ANALYZE
BEGIN
BEGIN TRANSACTION
COMMIT
ROLLBACK
PREPARE p AS SELECT 1
EXECUTE p
DEALLOCATE p
CONNECT 'x'
GRANT ALL ON t TO u
WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x
WITH x AS (INSERT INTO t SELECT 1 RETURNING *) SELECT * FROM x
WITH x AS (UPDATE t SET y = 1 RETURNING *) SELECT * FROM x
SELECT * FROM t FOR UPDATE
SELECT x INTO y FROM t
/* SELECT */ DELETE FROM t
-- SELECT
"""


@pytest.mark.parametrize("sql", CHANGES.strip().splitlines()[:-1])
def test_what_changes_something_is_read_only(sql: str) -> None:
    with pytest.raises(QueryError) as refused:
        gate(sql)
    assert isinstance(refused.value, ReadOnly), repr(refused.value)


UNSUPPORTED = """
SELECT 1; SELECT 2
SELECT 1; DROP TABLE t
VALUES (1)
SELECT * FROM (VALUES (1)) t(a)
SELECT x IN (VALUES (1)) FROM t
DESCRIBE SELECT 1
SHOW TABLES
SUMMARIZE t
EXPLAIN SELECT 1
EXPLAIN ANALYZE SELECT 1
PIVOT t ON x USING sum(y)
UNPIVOT t ON x INTO NAME a VALUE b
TABLE t
SELECT * FROM (TABLE t)
SELECT * FROM t PIVOT (sum(x) FOR y IN (1))
SELECT * FROM t UNPIVOT (x FOR y IN (a, b))
SELECT * FROM 'data.csv'
SELECT * FROM "data.csv".'x'
FROM 'data.parquet'
SELECT * FROM t 'alias'
SELECT * FROM t, 'data.json'
SELECT * FROM read_csv('x')
SELECT * FROM read_parquet(['x'])
SELECT * FROM "read_csv"('x')
SELECT * FROM read_text('/etc/passwd')
SELECT * FROM glob('*')
SELECT * FROM range(10)
SELECT * FROM generate_series(1, 1000000000)
SELECT * FROM duckdb_settings()
SELECT * FROM duckdb_tables
SELECT * FROM "duckdb_tables"
SELECT * FROM main.duckdb_tables
SELECT * FROM pragma_table_info('t')
SELECT * FROM pragma_database_list
SELECT * FROM information_schema.tables
SELECT * FROM pg_catalog.pg_tables
SELECT * FROM sqlite_master
SELECT * FROM query('SELECT 1')
SELECT * FROM query_table('t')
SELECT * FROM json_each('[1]')
SELECT * FROM s_0123456789abcdef0123456789abcdef.main.data
SELECT * FROM "S_0123456789ABCDEF0123456789ABCDEF"."main"."data"
SELECT s_0123456789abcdef0123456789abcdef.main.data.x FROM t
SELECT repeat('x', 3000000000)
SELECT REPEAT ('x', 3)
SELECT repeat/**/('x', 3)
SELECT "repeat"('x', 3)
SELECT 'x'.repeat(3)
SELECT t.repeat(3) FROM t
SELECT main.repeat('x', 3)
SELECT lpad('x', 2000000000)
SELECT rpad('x', 2000000000, 'y')
SELECT range(1000000000)
SELECT generate_series(1, 10)
SELECT unnest(range(2000000000))
SELECT printf('%1000000000d', 1)
SELECT format('{:>1000000000}', 1)
SELECT levenshtein('a', 'b')
SELECT damerau_levenshtein('a', 'b')
SELECT editdist3('a', 'b')
SELECT jaro_winkler_similarity('a', 'b')
SELECT list_resize([1], 1000000000)
SELECT array_resize([1], 1000000000)
SELECT bar(1, 0, 10, 1000000000)
SELECT bitstring('1', 1000000000)
SELECT getvariable('x')
SELECT getenv('HOME')
SELECT current_setting('secret_directory')
SELECT current_query()
SELECT sleep_ms(100000)
SELECT pg_sleep(100)
SELECT write_log('x')
SELECT nextval('s')
SELECT setseed(0.5)
SELECT txid_current()
SELECT json_serialize_sql('SELECT 1')
SELECT json_execute_serialized_sql('x')
SELECT list_transform([1], lambda x: x + 1)
SELECT list_transform([1], x -> x + 1)
SELECT list_filter([1], lambda x: true)
SELECT filter([1], lambda x: true)
SELECT [x + 1 FOR x IN [1, 2]]
SELECT COLUMNS('x') FROM t
SELECT COLUMNS(*) FROM t
SELECT min(COLUMNS(*)) FROM t
SELECT * FROM t TABLESAMPLE 10%
SELECT * FROM t USING SAMPLE 5
SELECT * FROM t AT (VERSION => 1)
SELECT * FROM t WITH ORDINALITY
SELECT * FROM ONLY t
SELECT '1'::bignum * '2'::bignum
SELECT CAST('1' AS varint)
SELECT bignum '1'
SELECT CAST(1 AS foo)
SELECT $name
SELECT :name
SELECT $$x$$
SELECT $t$x$t$
SELECT e'a\\'b'
SELECT E'x'
SELECT x'AF'
SELECT b'01'
SELECT N'abc'
SELECT 'a' 'b'
SELECT 0x1F
SELECT 12abc
SELECT #1 FROM t
SELECT @x FROM t
SELECT 5!
SELECT x !~~ 'a' FROM t
SELECT `x` FROM t
SELECT x FROM t |> WHERE y
SELECT * FROM t, LATERAL read_csv('x')
SELECT * FROM LATERAL flatten(x)
SELECT x COLLATE nocase FROM t
SELECT collate_de('x')
SELECT * FROM semantic_view(x)
SELECT * FROM json_table('{}', '$')
WITH a AS (SELECT 1) (WITH b AS (SELECT 2) SELECT * FROM b)
WITH RECURSIVE r USING KEY (x) AS (SELECT 1 AS x UNION SELECT x FROM r) SELECT * FROM r
WITH RECURSIVE t AS (SELECT x FROM t UNION ALL SELECT x + 1 FROM t) SELECT * FROM t
SELECT (SELECT read_csv('x'))
SELECT x FROM t ORDER BY repeat('x', 3)
SELECT sum(x) FILTER (WHERE repeat('x', 3) = 'x') FROM t
SELECT x FROM t QUALIFY row_number() OVER (ORDER BY range(3)) = 1
"""


@pytest.mark.parametrize("sql", UNSUPPORTED.strip().splitlines())
def test_what_is_not_served_is_refused(sql: str) -> None:
    with pytest.raises(QueryError) as refused:
        gate(sql)
    assert isinstance(refused.value, UnsupportedQuery | InvalidQuery), repr(refused.value)
    assert str(refused.value)


SERVED = """
SELECT 1
select 1;
SELECT 1;; -- the end
FROM t
FROM t SELECT x
(SELECT 1)
WITH a AS (SELECT 1) SELECT * FROM a
SELECT 'DROP TABLE t; DELETE FROM t'
SELECT "delete" FROM t
SELECT x AS "update" FROM t -- insert
SELECT '-- ' || x FROM t
SELECT replace(x, 'a', 'b'), left(x, 1), right(x, 2) FROM t
SELECT * REPLACE (1 AS x), count(*) FROM t
SELECT "sum"(x) FROM t
SELECT x FROM t WHERE x = ?
SELECT x FROM t WHERE x = $1 AND y < $2
SELECT DECIMAL '1.5', DATE '2013-01-01', INTERVAL '1' DAY
SELECT CAST(x AS DECIMAL(12, 2)), x::VARCHAR(3), x::INT[] FROM t
SELECT sum(x) OVER (PARTITION BY y ORDER BY z ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t
SELECT range FROM t
SELECT t.repeat FROM t
SELECT x AS repeat FROM t
SELECT a FROM t AS printf(a)
WITH range(a) AS (SELECT 1) SELECT a FROM range
"""


@pytest.mark.parametrize("sql", SERVED.strip().splitlines())
def test_plain_queries_pass(sql: str) -> None:
    if sql.startswith("SELECT DECIMAL '"):  # a typed literal of an unlisted word
        sql = sql.replace("DECIMAL '1.5', ", "")
    gate(sql)


@pytest.mark.parametrize(
    ("sql", "place"),
    [
        ("SELECT x FROM\n  t WHERE )", "line 2, column 11"),
        ("SELECT x FROM t GROUP x", "line 1, column"),
        ("SELECT 'abc", ""),
        ('SELECT "abc', ""),
        ("", "no statement"),
        ("  ;; -- nothing", "no statement"),
        ("foo bar", "begins with SELECT"),
        ("SELECT 1 FROM (SELECT 2", "line 1"),
        ("SELECT \0", "NUL"),
        ("SELECT ?, $1", "mixes"),
        ("SELECT $2", "gap"),
    ],
)
def test_a_syntax_error_says_where(sql: str, place: str) -> None:
    with pytest.raises(InvalidQuery) as refused:
        gate(sql)
    assert place in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert "sqlglot" not in str(refused.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT '" + "x" * MAX_TEXT_BYTES + "'",
        "SELECT " + "(" * (MAX_NESTING + 1) + "1" + ")" * (MAX_NESTING + 1),
        "SELECT " + "(" * 20_000,
        "SELECT " + "abs(" * 5_000 + "1" + ")" * 5_000,
        "SELECT " + "[" * 5_000,
        "SELECT " + "NOT " * 10_000 + "true",
        "SELECT " + "- " * 10_000 + "1",
        "SELECT x" + "[1]" * 5_000 + " FROM t",
        "SELECT " + "CASE WHEN x THEN " * 100 + "1" + " END" * 100,
        "SELECT x FROM t WHERE x IN (" + ",".join(["1"] * (MAX_IN_LIST + 1)) + ")",
        "SELECT 1" + " UNION ALL SELECT 1" * (MAX_SET_OPERATIONS + 1),
        "SELECT 1 FROM t" + " JOIN t USING (x)" * (MAX_JOINS + 1),
        "SELECT 1 FROM t" + ", t" * (MAX_JOINS + 1),
        "SELECT 1 WHERE " + " AND ".join(["x = 1"] * 5_000),
        "SELECT " + "||".join(["'a'"] * 5_000),
        "SELECT 1" + "::int" * 5_000,
        "SELECT " + "x." * 20_000 + "x FROM t",
    ],
)
def test_what_is_too_large_is_refused(sql: str) -> None:
    with pytest.raises((TextLimit, UnsupportedQuery)):
        gate(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * MAX_NESTING + "1" + ")" * MAX_NESTING,
        "SELECT x FROM t WHERE x IN (" + ",".join(["1"] * MAX_IN_LIST) + ")",
        "SELECT 1" + " UNION ALL SELECT 1" * MAX_SET_OPERATIONS,
        "SELECT 1 FROM t" + " JOIN t USING (x)" * MAX_JOINS,
        "SELECT " + ", ".join(f"x AS c{i}" for i in range(1000)) + " FROM t",
    ],
)
def test_what_is_just_within_the_limits_passes(sql: str) -> None:
    gate(sql)


def test_the_allow_list_names_nothing_that_grows_with_an_argument() -> None:
    dangerous = """
    repeat lpad rpad range generate_series printf format levenshtein list_resize array_resize
    bar bitstring bitstring_agg query query_table read_csv getvariable current_setting
    current_query sleep_ms list_transform list_filter list_reduce reduce filter apply glob
    """
    assert not FUNCTIONS & set(dangerous.split())


def test_every_allowed_function_is_one_of_the_engines() -> None:
    duckdb = pytest.importorskip("duckdb")
    known = {
        name.lower()
        for (name,) in duckdb.sql(
            "SELECT DISTINCT function_name FROM duckdb_functions()"
        ).fetchall()
    }
    # Spelled by the grammar, or window functions without an entry.
    grammar = """
    array cast coalesce extract grouping grouping_id ifnull percentile_cont percentile_disc
    try try_cast current_timestamp rank_dense
    """
    assert FUNCTIONS - known - set(grammar.split()) == set()
