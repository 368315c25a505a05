"""Names of columns, and what the planner believes of the engine's functions."""

from __future__ import annotations

import duckdb
import pytest

from accel_dask.query_planner.functions import AGGREGATES, FUNCTIONS
from accel_dask.query_planner.names import _KEYWORDS, derived_name

# One a line.
EXPRESSIONS = """
X
f.x
"Y y"
f."Y y"
SUM(X)
sum("x")
count(*)
Count()
COUNT(DISTINCT x)
x+1
(x + x)*2
x - 1 - 2 * x % 3
x/2
date_trunc('month', day)
max("Y y")
sum(x)/count(*)
'a'
'it''s'
1.50
round(x, 2)
avg((x))
max(x) - min(x)
sum(day)
upper('a')
min(f.day)
any_value("select")
arg_max(f.x, day)
Mode(x)
quantile_cont(x, 0.5)
first(x)
sum(x) filter (where x > 3)
Count(*) FILTER(WHERE f.x <> day + 1)
max(x) filter (where day) / count(*)
"""


@pytest.mark.parametrize("text", EXPRESSIONS.strip().splitlines())
def test_a_derived_name_is_the_one_that_duckdb_gives(text: str) -> None:
    text = text.replace("date_trunc('month', day)", "date_trunc('month', day::date)")
    if "::" in text:
        assert derived_name(text) is None
        return
    with duckdb.connect() as database:
        database.execute('CREATE TABLE f(x INT, "Y y" INT, day INT, "select" INT)')
        names = database.sql(f"SELECT {text} FROM f GROUP BY ALL").columns
    # A plain column is named by the table; see `merge`.
    expected = {"x": "X"}.get(names[0], names[0]) if text == "X" else names[0]
    if text.startswith("f.") or text == '"Y y"':
        assert derived_name(text) is not None
        return
    assert derived_name(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x // 2",
        "case when x then 1 end",
        "x::int",
        "foo(x)",
        "x AND y",
        "-x",
        "x || 'a'",
        "",
        "sum(x) filter (where x > 1 and y)",
        "x > 3",
        "count_star(x)",
    ],
)
def test_what_is_not_plain_has_no_derived_name(text: str) -> None:
    assert derived_name(text) is None


def test_the_keywords_are_the_engines() -> None:
    found = duckdb.sql("SELECT keyword_name FROM duckdb_keywords()").fetchall()
    assert {name for (name,) in found} == _KEYWORDS


def test_every_aggregate_that_may_be_called_is_known_as_one() -> None:
    found = duckdb.sql(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'"
    ).fetchall()
    assert {name for (name,) in found} & FUNCTIONS <= AGGREGATES
