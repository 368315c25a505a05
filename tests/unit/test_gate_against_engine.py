"""Whatever passes the gate is read by DuckDB's own parser as the gate has read it.

Statements are mangled at random. Those that the gate lets through are planned, and DuckDB's parse
tree of the physical SQL may then name only attached shards, CTEs and allowed functions.
"""

from __future__ import annotations

import json
import os
import random
import re
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routes import executor_route

from accel_dask.errors import AccelError
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.functions import (
    FUNCTIONS,
    KEYWORDS_BEFORE_PARENTHESIS,
    TYPES_WITH_ARGUMENTS,
)
from accel_dask.query_planner.pipeline import plan_query
from accel_dask.query_planner.plan import PlanContext

ACME, EPOCH = TenantId("acme"), EpochNumber(1)
SHARDS = {"flights": ["a" * 32, "b" * 32], "airlines": ["c" * 32]}
# What the grammar makes of syntax: lists, structs, operators, IN, EXTRACT and the like.
SYNTAX_NAMES = """
array_extract array_slice array_value ceil constant_or_null construct_array contains count_star
date_part ilike_escape json_extract json_extract_string like_escape list_extract list_slice
list_value map not_ilike_escape not_like_escape pg_typeof regexp_full_match row struct_concat
struct_extract struct_pack timezone to_centuries to_days to_decades to_hours to_microseconds
to_millennia to_milliseconds to_minutes to_months to_quarters to_seconds to_weeks to_years unnest
"""
WORDS_BEFORE_PARENTHESIS = TYPES_WITH_ARGUMENTS | KEYWORDS_BEFORE_PARENTHESIS
"""None of these is a function of the engine; a test below makes sure."""
SYNTAX = frozenset(SYNTAX_NAMES.split()) | WORDS_BEFORE_PARENTHESIS
OPERATORS = re.compile(r"[^a-z]+|~~~?\*?|!~~\*?|is distinct from|is not distinct from|xor")


def _context() -> PlanContext:
    executor = executor_route(
        Attachment(name, EPOCH, ShardId(shard)) for name, ids in SHARDS.items() for shard in ids
    )
    routes = {
        DatasetId(ACME, name): DatasetRoute(
            dataset_id=DatasetId(ACME, name),
            epoch=EPOCH,
            snapshot_id=None,
            columns=(Column(name="x", type="BIGINT"), Column(name="y", type="VARCHAR")),
            shards=tuple(
                ShardSummary(shard_id=ShardId(shard), rows=1, source_bytes=1) for shard in ids
            ),
            executors=(executor,),
        )
        for name, ids in SHARDS.items()
    }
    return PlanContext(tenant=ACME, routing=RoutingTable(1, routes, {}, {}, b""))


CONTEXT = _context()
ENGINE = duckdb.connect()


def engine_reads(sql: str) -> list[str]:
    """What DuckDB would do with `sql` that it must not; empty also if it does not parse."""
    (text,) = ENGINE.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()  # type: ignore[misc]
    parsed = json.loads(text)
    if parsed["error"]:
        return [] if parsed.get("error_type") in {"parser", "syntax"} else _not_a_select(sql)
    found: list[str] = []
    if len(parsed["statements"]) != 1:
        found.append(f"{len(parsed['statements'])} statements")
    for statement in parsed["statements"]:
        _walk(statement, frozenset(), found)
    return found


def _not_a_select(sql: str) -> list[str]:
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error:
        return []
    kinds = [statement.type.name for statement in statements]
    return [] if kinds == ["SELECT"] else [f"statement types {kinds}"]


def _walk(node: Any, ctes: frozenset[str], found: list[str]) -> None:
    if isinstance(node, list):
        for child in node:
            _walk(child, ctes, found)
    if not isinstance(node, dict):
        return
    for entry in (node.get("cte_map") or {}).get("map") or []:
        _walk(entry["value"], ctes, found)
        ctes |= {entry["key"].lower()}
    if node.get("type") == "RECURSIVE_CTE_NODE":
        ctes |= {node["cte_name"].lower()}
    _check_node(node, ctes, found)
    for key, child in node.items():
        if key != "cte_map":
            _walk(child, ctes, found)


def _check_node(node: dict[str, Any], ctes: frozenset[str], found: list[str]) -> None:
    kind = node.get("type")
    if kind == "BASE_TABLE":
        _check_table(node, ctes, found)
    elif kind in {"TABLE_FUNCTION", "PIVOT", "SHOW_REF", "COLUMN_DATA"}:
        name = node.get("function", {}).get("function_name", kind)
        if name != "unnest":
            found.append(f"{kind} {name}")
    if "function_name" in node:
        name = node["function_name"].lower()
        if name not in FUNCTIONS | SYNTAX and not OPERATORS.fullmatch(name):
            found.append(f"function {name}")


def _check_table(node: dict[str, Any], ctes: frozenset[str], found: list[str]) -> None:
    path = (node["catalog_name"], node["schema_name"], node["table_name"])
    shards = {f"s_{shard}" for ids in SHARDS.values() for shard in ids}
    if path[0] in shards and path[1:] == ("main", "data"):
        return
    if path[:2] == ("", "") and path[2].lower() in ctes:
        return
    found.append(f"table {'.'.join(path)}")


# ruff: noqa: ISC004, E501
SEEDS = [
    "SELECT x, count(*) FROM flights f JOIN airlines USING (x) WHERE y LIKE 'a%' GROUP BY x",
    "WITH a AS (SELECT * FROM flights), b AS (FROM a) SELECT (SELECT max(x) FROM b) FROM airlines",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
    "FROM f: flights SELECT f.x, z: 1 ORDER BY 1 LIMIT 3",
    "SELECT * FROM (flights CROSS JOIN airlines) , LATERAL (SELECT x) q , unnest([1, 2]) AS u(v)",
    "SELECT CASE WHEN x IN (1, 2) THEN 'a' ELSE y END, x::VARCHAR(3), CAST(x AS DECIMAL(9,2)) "
    "FROM acme.flights WHERE EXISTS (SELECT 1 FROM accel.acme.airlines a WHERE a.x = flights.x)",
    "SELECT sum(x) FILTER (WHERE x > 1) OVER (PARTITION BY y ORDER BY x ROWS 1 PRECEDING), "
    "{'a': x}, [x, 1][1:2], y[1], x BETWEEN 1 AND 2, NOT x IS NULL, INTERVAL 1 DAY, "
    "DATE '2013-01-01', -x, x // 2, y || 'b' FROM flights f QUALIFY row_number() OVER () = 1",
    "(SELECT x FROM flights UNION ALL BY NAME FROM airlines) EXCEPT SELECT 1 FROM flights AS t(a, b)",
    "SELECT * EXCLUDE (x) REPLACE (1 AS y), f.*, COUNT(DISTINCT x) FROM flights AS f SEMI JOIN "
    "airlines a ON f.x = a.x POSITIONAL JOIN airlines b ASOF JOIN flights c ON f.x >= c.x",
]
WORDS = """
SELECT FROM WHERE WITH AS JOIN ON USING , ( ) [ ] { } . ; : :: := -> => * - + / % = < > || ? $1
'x' 'f.csv' "q" "range" 1 1.5 .5 NULL TRUE x y f flights airlines acme accel main memory data
range repeat read_csv duckdb_tables information_schema pg_catalog query lambda COLUMNS VALUES TABLE
LATERAL UNNEST PIVOT UNPIVOT IN ANY ALL EXISTS NOT AND OR CASE WHEN THEN ELSE END CAST UNION EXCEPT
INTERSECT RECURSIVE MATERIALIZED ORDER BY GROUP LIMIT OFFSET WINDOW OVER PARTITION FILTER INTERVAL
DATE TIMESTAMP ARRAY MAP STRUCT ROW DESCRIBE SHOW SUMMARIZE EXPLAIN DELETE INSERT COPY ATTACH SET
SEMI ANTI ASOF POSITIONAL NATURAL CROSS LEFT FULL AT SAMPLE TABLESAMPLE ORDINALITY FOR ONLY
REPLACE EXCLUDE RENAME DISTINCT QUALIFY HAVING ESCAPE LIKE COLLATE BETWEEN IS INTO RETURNING
/**/ /*x*/ --c\n /* ' */ $$ e'\\'' x'00' \u00a0 \u2003 é
""".replace("\\n", "\n").split(" ")
TOKENS = re.compile(r"\w+|'[^']*'|\"[^\"]*\"|::|->>?|\|\||//|\s+|.", re.DOTALL)


def mangled(rng: random.Random) -> str:
    """A seed with a few parts dropped, doubled, swapped, spliced from another, or made nasty."""
    parts = TOKENS.findall(rng.choice(SEEDS))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(parts))
        match rng.randrange(6):
            case 0:
                del parts[at]
            case 1:
                parts.insert(at, parts[at])
            case 2:
                other = rng.randrange(len(parts))
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts.insert(at, f" {rng.choice(WORDS)} ")
            case 4:
                parts[at] = rng.choice(WORDS)
            case _:
                donor = TOKENS.findall(rng.choice(SEEDS))
                start = rng.randrange(len(donor))
                parts[at:at] = [" ", *donor[start : start + rng.randint(1, 12)], " "]
        if not parts:
            break
    return "".join(parts)


def check(sql: str) -> bool:
    """Whether the gate let it through; fails if DuckDB reads it otherwise."""
    try:
        plan = plan_query(sql, CONTEXT)
    except AccelError:
        return False
    physical = plan.fragments[0].sql
    assert engine_reads(physical) == [], f"{sql!r} became {physical!r}"
    return True


@settings(max_examples=int(os.environ.get("ACCEL_GATE_EXAMPLES", "300")), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_passes_the_gate_is_read_alike_by_the_engine(seed: int) -> None:
    check(mangled(random.Random(seed)))


@pytest.mark.parametrize("sql", SEEDS)
def test_the_seeds_themselves_pass(sql: str) -> None:
    assert check(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('x')",
        "SELECT repeat('x', 3)",
        "SELECT * FROM other",
        "WITH a AS (SELECT 1) SELECT * FROM b",
        "SELECT 1; SELECT 2",
        "SELECT list_transform([1], lambda x: x)",
        "SELECT * FROM (SELECT * FROM duckdb_tables)",
        "SELECT (SELECT max(x) FROM main.flights)",
    ],
)
def test_the_oracle_notices(sql: str) -> None:
    assert engine_reads(sql)


def test_no_type_or_keyword_is_a_function_that_the_list_does_not_allow() -> None:
    functions = ENGINE.execute("SELECT DISTINCT lower(function_name) FROM duckdb_functions()")
    assert {name for (name,) in functions.fetchall()} & WORDS_BEFORE_PARENTHESIS <= FUNCTIONS
