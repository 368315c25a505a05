"""Row filters whose result depends on more than the row."""

from __future__ import annotations

import duckdb
import pytest

from accel_dask.model.row_filter import UNSTABLE, refusal, unstable_part


@pytest.mark.parametrize(
    "text",
    [
        "random() < 0.5",
        "ts > now()",
        "ts > now ( ) - INTERVAL 1 DAY",
        "day < current_date",
        "ts < CURRENT_TIMESTAMP",
        '"random"() < 1',
        "random/* no */() < 1",
        "id = nextval('s')",
        "age(ts) > INTERVAL 1 DAY",
        "name = user",
        "id IN (SELECT 1)",
        "EXISTS (FROM t)",
        "uuid() IS NOT NULL",
        "x.random() > 1",
        "CASE WHEN today() > day THEN true ELSE false END",
    ],
)
def test_what_gives_another_result_each_time_is_found(text: str) -> None:
    assert unstable_part(text) is not None
    told = refusal("acme.flights", text)
    assert told is not None
    assert told.startswith("acme.flights: its row_filter has ")


@pytest.mark.parametrize(
    "text",
    [
        "delay > 10 AND carrier = 'now() random()'",
        "random > 5",
        "\"user\" = 'ann'",
        "\"current_date\" > DATE '2024-01-01'",
        "extract(year FROM ts) = 2024",
        "substring(name FROM 2) = 'x'",
        "a IS DISTINCT FROM b",
        "ts::TIMESTAMP WITH TIME ZONE > TIMESTAMPTZ '2024-01-01 00:00:00+00'",
        "name = $$now()$$ -- random()",
        "lower(name) LIKE 'a%' AND date_trunc('day', ts) = DATE '2024-01-01'",
        "knows(name)",
    ],
)
def test_what_depends_on_the_row_alone_is_not(text: str) -> None:
    assert refusal("acme.flights", text) is None


def test_truncated_dates_in_a_way_that_is_not_understood_are_refused() -> None:
    told = refusal("acme.flights", "'hour'.date_trunc(day) = DATE '2024-01-01'")
    assert told is not None
    assert "write date_trunc('hour', x)" in told


def test_no_filter_is_a_filter_too() -> None:
    assert refusal("acme.flights", None) is None


def test_every_function_that_the_engine_calls_volatile_is_known() -> None:
    found = duckdb.execute(
        "SELECT DISTINCT lower(function_name) FROM duckdb_functions() "
        "WHERE function_type = 'scalar' AND stability <> 'CONSISTENT'"
    ).fetchall()
    assert found
    assert {name for (name,) in found} <= UNSTABLE
