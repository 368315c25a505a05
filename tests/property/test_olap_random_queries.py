"""Random queries: what the portable subset lets through, every engine answers as DuckDB does."""

from __future__ import annotations

import os
from collections import Counter

import duckdb
import pytest
from answers import difference, plain_answer, same_row
from olap_world import KINDS, EngineWorld, Worlds, compile_sql, started
from portable_random import EdgeQueries
from random_queries import QueryWriter, SeededChoices

from accel_dask.errors import EngineDisagrees, EngineFailed, NotPortable, QueryError
from accel_dask.query_planner.portable.compile import PortableQuery

QUERIES = int(os.environ.get("ACCEL_OLAP_QUERIES", "600"))
EDGE_QUERIES = int(os.environ.get("ACCEL_OLAP_EDGE_QUERIES", "200"))
SEED = os.environ.get("ACCEL_OLAP_SEED", "7")
LEAST_LET_THROUGH = 0.1


def portable_queries(worlds: Worlds) -> tuple[list[tuple[str, bool, PortableQuery]], Counter[str]]:
    """Queries that are let through and have an answer: SQL, whether its order is total."""
    found, refused = [], Counter[str]()
    for number in range(QUERIES):
        query = QueryWriter(SeededChoices(f"{SEED}.{number}"), worlds.random).query()
        try:
            portable = compile_sql(query.sql, worlds.tables)
        except (NotPortable, QueryError) as error:
            refused[str(error).rpartition(":")[2].strip()[:80]] += 1
            continue
        is_total = query.order is not None and len(query.order) == len(portable.outputs)
        found.append((query.sql, is_total, portable))
    return found, refused


def check(world: EngineWorld, worlds: Worlds, sql: str, *, is_total: bool) -> None:
    query = compile_sql(sql, worlds.tables)
    try:
        expected = plain_answer(worlds.duckdb, sql)
    except duckdb.Error:
        return  # it has no answer
    try:
        found = world.ask(query)
    except EngineFailed as error:
        if world.name == "sail" and "plan error" in str(error):
            return  # its planner trips over a few; an error is no wrong answer
        raise
    told = difference(expected, found)
    if not told and is_total and not all(map(same_row, expected.rows, found.rows)):
        told = f"order: {expected.rows[:10]} {found.rows[:10]}"
    assert not told, f"{world.name}: {sql}\n{world.sql(query)}\n{told}"


@pytest.mark.timeout(280)
def test_random_queries_answer_as_duckdb_does(worlds: Worlds) -> None:
    queries, refused = portable_queries(worlds)
    print(f"\n{len(queries)} let through; refused: {refused.most_common(12)}")
    assert len(queries) >= LEAST_LET_THROUGH * QUERIES
    engines = [started(worlds, kind) for kind in KINDS]
    for sql, is_total, _ in queries:
        for world in engines:
            check(world, worlds, sql, is_total=is_total)


def edge_queries(worlds: Worlds) -> list[tuple[str, bool]]:
    """Queries over values at the edges of their types that are let through and have an answer."""
    found = []
    for number in range(EDGE_QUERIES):
        sql, is_total = EdgeQueries(SeededChoices(f"{SEED}.{number}")).query()
        try:
            compile_sql(sql, worlds.tables)
            plain_answer(worlds.duckdb, sql)
        except (NotPortable, QueryError, KeyError):
            continue
        except (duckdb.Error, OverflowError):
            continue  # no answer, or none that Python's dates hold
        found.append((sql, is_total))
    return found


@pytest.mark.timeout(280)
def test_random_queries_over_values_at_the_edges_answer_as_duckdb_does(worlds: Worlds) -> None:
    """An engine may fail on such a value; it may not answer otherwise."""
    queries = edge_queries(worlds)
    assert len(queries) >= 0.2 * EDGE_QUERIES
    for world in (started(worlds, kind) for kind in KINDS):
        failed = 0
        for sql, is_total in queries:
            try:
                check(world, worlds, sql, is_total=is_total)
            except (EngineFailed, EngineDisagrees):
                failed += 1
        assert failed <= 0.1 * len(queries), world.name
