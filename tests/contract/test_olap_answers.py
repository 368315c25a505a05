"""Every engine's answers through its dialect are our own: values, types, names, order."""

from __future__ import annotations

import pytest
from answers import Answer, difference, plain_answer, same_row
from olap_world import EngineWorld, Worlds, compile_sql
from portable_queries import EDGE_QUERIES, QUERIES


def check_same(expected: Answer, found: Answer, sql: str) -> None:
    assert expected.names == found.names
    told = difference(expected, found)
    if not told and "order by" in sql.lower() and not all(map(same_row, expected.rows, found.rows)):
        told = f"order: expected {expected.rows[:10]}, found {found.rows[:10]}"
    assert not told, f"{sql}\n{told}"


def test_an_engine_has_the_tables_that_memory_holds(
    engine_world: EngineWorld, worlds: Worlds
) -> None:
    for table in worlds.tables:
        engine_world.check(compile_sql(f"select * from {table}", worlds.tables))


@pytest.mark.parametrize("sql", [*QUERIES, *EDGE_QUERIES])
def test_an_engine_answers_as_our_own(sql: str, engine_world: EngineWorld, worlds: Worlds) -> None:
    expected = plain_answer(worlds.duckdb, sql)
    query = compile_sql(sql, worlds.tables)
    check_same(expected, engine_world.ask(query), sql)
