"""What DuckDB's optimiser answers wrongly is planned so that it does not, and pruned rightly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import pytest
from cut_site import CUTS, Site, cut_site

from accel_dask.errors import UnsupportedQuery
from accel_dask.model.date_trunc import rewritten, short_truncations
from accel_dask.query_planner.pipeline import plan_query

EVENTS = """
SELECT i AS k, CASE WHEN i % 11 <> 7 THEN DATE '2020-02-27' + (i // 8)::INT END AS d,
    CASE WHEN i % 13 <> 5 THEN t END AS ts, t::TIMESTAMP_S AS tss, t::TIMESTAMP_MS AS tsm,
    t::TIMESTAMP_NS AS tsn, t::TIMESTAMPTZ AS tz,
    struct_pack(d := DATE '2020-02-27' + (i // 8)::INT) AS s
FROM (SELECT i, TIMESTAMP '2020-02-27' + INTERVAL (i * 3) HOUR AS t FROM range(40) r(i))
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with cut_site(EVENTS) as site:
        yield site


UNITS = ("millisecond", "second", "Minute", "hours", "day", "week", "month", "year")
COLUMNS = ("d", "ts", "tss", "tsm", "tsn", "tz", "ts::DATE", "e.D")
CONSTANTS = (
    "DATE '2020-02-29'", "'2020-02-29 03:00:00'", "TIMESTAMP '2020-02-29 03:30:00'",
    "TIMESTAMP '2020-03-01' - INTERVAL 1 DAY", "DATE '2020-02-01'", "NULL",
)  # fmt: skip
OPERATORS = (
    "=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"
)  # fmt: skip


def comparisons(unit: str, column: str, constant: str) -> list[str]:
    call = f"date_trunc('{unit}', {column})"
    sides = [(call, constant), (constant, call)]
    return [f"{left} {operator} {right}" for left, right in sides for operator in OPERATORS]


@pytest.mark.parametrize("unit", UNITS)
def test_truncated_times_are_compared_with_constants_as_without_the_optimiser(
    site: Site, unit: str
) -> None:
    for column, constant in product(COLUMNS, CONSTANTS):
        conditions = comparisons(unit, column, constant)
        items = ", ".join(f"{condition} AS c{n}" for n, condition in enumerate(conditions))
        assert site.differs(f"SELECT k, {items} FROM events e") == ""


def test_truncated_dates_in_a_where_keep_their_rows_and_shards(site: Site) -> None:
    for constant in CONSTANTS[:3]:
        for condition in comparisons("hour", "d", constant):
            assert site.differs(f"SELECT k FROM events WHERE {condition}") == ""
            assert site.differs(f"SELECT k FROM events WHERE NOT ({condition})") == ""


FORMS = """
SELECT k FROM events WHERE date_trunc('hour', d) BETWEEN DATE '2020-02-28' AND DATE '2020-02-29'
SELECT k FROM events WHERE date_trunc('hour', d) NOT BETWEEN DATE '2020-02-28' AND DATE '2020-02-29'
SELECT k FROM events WHERE date_trunc('hour', d) IN (DATE '2020-02-28', TIMESTAMP '2020-02-29')
SELECT k FROM events WHERE NOT (date_trunc('hour', d) = DATE '2020-02-29')
SELECT k FROM events WHERE datetrunc('hour', d) = DATE '2020-02-29'
SELECT k FROM events WHERE "date_trunc"('hour', "D") = DATE '2020-02-29' OR k = 1
SELECT k FROM events WHERE main.date_trunc('hour', events.d) = DATE '2020-02-29'
SELECT k FROM events WHERE date_trunc('h' || 'our', d) = DATE '2020-02-29'
SELECT k FROM events WHERE date_trunc('hour', date_trunc('minute', d)) = DATE '2020-02-29'
SELECT k FROM events WHERE date_trunc('hour', coalesce(d)) = DATE '2020-02-29'
SELECT k FROM events WHERE date_trunc('hour', CASE WHEN true THEN d END) = DATE '2020-02-29'
SELECT k FROM events WHERE date_trunc('hour', s.d) = DATE '2020-02-29'
SELECT k FROM events WHERE date_trunc('hour', d)::TIMESTAMP < TIMESTAMP '2020-02-29 03:00:00'
SELECT k, date_trunc('hour', d) = DATE '2020-02-29' AS is_leap FROM events
SELECT k, CASE WHEN date_trunc('hour', d) >= TIMESTAMP '2020-02-29 01:00:00' THEN 1 END AS one FROM events
SELECT date_trunc('hour', d) AS h, k FROM events WHERE h = DATE '2020-02-29'
SELECT date_trunc('hour', d) AS h, h = DATE '2020-02-29' AS is_leap FROM events
SELECT date_trunc('hour', d), count(*) FROM events GROUP BY date_trunc('hour', d) HAVING date_trunc('hour', d) = DATE '2020-02-29'
SELECT d, count(*) FROM events GROUP BY d HAVING date_trunc('hour', d) <> DATE '2020-02-29'
SELECT count(*) FILTER (WHERE date_trunc('hour', d) = DATE '2020-02-29') AS n FROM events
SELECT a.k, b.k FROM events a JOIN events b ON a.k = b.k AND date_trunc('hour', a.d) = DATE '2020-02-29'
SELECT a.k, b.k FROM events a LEFT JOIN events b ON a.k = b.k AND DATE '2020-02-29' = date_trunc('hour', b.d)
SELECT k FROM (SELECT k, ts::DATE AS d FROM events) WHERE date_trunc('hour', d) = DATE '2020-02-29'
SELECT k FROM (SELECT k, d AS ts FROM events) WHERE date_trunc('hour', ts) = DATE '2020-02-29'
WITH e(k, ts) AS (SELECT k, d FROM events) SELECT k FROM e WHERE date_trunc('hour', ts) = DATE '2020-02-29'
SELECT k FROM (SELECT k, d FROM events) AS e(k, ts) WHERE date_trunc('hour', e.ts) = DATE '2020-02-29'
SELECT k FROM (SELECT * REPLACE (d AS ts) FROM events) WHERE date_trunc('hour', ts) = DATE '2020-02-29'
SELECT k FROM (SELECT * EXCLUDE (ts) RENAME (d AS ts) FROM events) WHERE date_trunc('hour', ts) = DATE '2020-02-29'
SELECT tsm FROM (SELECT unnest(struct_pack(tsm := d)) FROM events) WHERE date_trunc('hour', tsm) = DATE '2020-02-29'
SELECT count(*) FROM events WHERE date_trunc('hour', d) = (SELECT DATE '2020-02-29')
SELECT k FROM events WHERE EXISTS (SELECT 1 FROM events o WHERE o.k = events.k AND date_trunc('hour', o.d) = DATE '2020-02-29')
SELECT k FROM events QUALIFY row_number() OVER (PARTITION BY d ORDER BY k) = 1 AND date_trunc('hour', d) = DATE '2020-02-29'
SELECT max(k) FROM events GROUP BY ALL HAVING date_trunc('hour', max(d)) > DATE '2020-02-29'
"""  # noqa: E501 - one a line


@pytest.mark.parametrize("sql", FORMS.strip().splitlines())
def test_dates_are_truncated_and_compared_rightly_wherever_that_stands(
    site: Site, sql: str
) -> None:
    assert site.differs(sql) == ""
    expected, found = site.names(sql)
    assert found == expected


def test_parameters_are_constants_to_the_optimiser(site: Site) -> None:
    sql = "SELECT k FROM events WHERE date_trunc('hour', d) = ? OR date_trunc('minute', d) < ?"
    assert site.differs(sql, ("2020-02-29", "2020-02-27 05:00:00")) == ""


def test_truncated_timestamps_are_left_to_the_optimiser(site: Site) -> None:
    for column in ("ts", "tss", "tsm", "tsn", "tz", "events.TS"):
        sql = f"SELECT count(*) FROM events WHERE date_trunc('hour', {column}) = '2020-02-29'"
        assert "coalesce" not in site.physical(sql)
    assert "coalesce" not in site.physical("SELECT date_trunc('month', d) FROM events")
    assert "coalesce" in site.physical("SELECT date_trunc('hour', d) FROM events")


def test_columns_that_are_written_anew_keep_their_names(site: Site) -> None:
    sql = "SELECT DATE_TRUNC('hour',d), k, date_trunc('minute', e.d) FROM events e"
    expected, found = site.names(sql)
    assert found == expected == ("date_trunc('hour', d)", "k", "date_trunc('minute', e.d)")


def test_shards_without_a_row_are_pruned_by_truncated_dates(site: Site) -> None:
    sql = "SELECT count(*) FROM events WHERE date_trunc('hour', d) = DATE '2020-02-27'"
    plan = plan_query(sql, site.context)
    assert plan.datasets[0].shards < CUTS
    assert any("errs where it is of a date" in reason for reason in plan.reasons)
    assert site.differs(sql) == ""


@pytest.mark.parametrize("call", ["'hour'.date_trunc(d)", "date_trunc('hour', d, 1)"])
def test_date_trunc_in_an_unusual_way_is_refused(site: Site, call: str) -> None:
    with pytest.raises(UnsupportedQuery, match="date_trunc"):
        site.physical(f"SELECT k FROM events WHERE {call} = DATE '2020-02-29'")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT k FROM events WHERE -k::DOUBLE < 'NaN'::DOUBLE",
        "SELECT -k AS n, n > CAST('-nan' AS DOUBLE) FROM events",
        "SELECT k FROM events WHERE - (k) BETWEEN 1 AND 'nan'::FLOAT",
    ],
)
def test_negated_columns_are_not_compared_with_nan(site: Site, sql: str) -> None:
    with pytest.raises(UnsupportedQuery, match="NaN"):
        site.physical(sql)


@pytest.mark.parametrize(
    ("condition", "minds"),
    [
        ("-k::DOUBLE < ?", True),
        ("? BETWEEN -(k)::DOUBLE AND 5", True),
        ("-k::DOUBLE = ?", False),
        ("k < ?", False),
        ("-1 < ?", False),
    ],
)
def test_parameters_that_are_nan_are_minded_beside_negated_columns(
    site: Site, condition: str, minds: bool
) -> None:
    plan = plan_query(f"SELECT k FROM events WHERE {condition}", site.context)
    assert plan.minds_nan is minds


def test_the_engine_still_errs_on_parameters_that_are_nan(site: Site) -> None:
    """If this fails, DuckDB may have been mended: `minds_nan` may go then."""
    sql = "SELECT count(*) FROM (VALUES (1.0::DOUBLE), (-2.0)) t(x) WHERE {} < ?"
    assert site.oracle.execute(sql.format("0 - x"), [math.nan]).fetchall() == [(2,)]
    assert site.engine.execute(sql.format("-x"), [math.nan]).fetchall() == [(0,)]


def test_nan_is_compared_with_columns_themselves(site: Site) -> None:
    for condition in ("k < 'NaN'::DOUBLE", "0 - k < 'nan'::DOUBLE", "-k = 'nan'::DOUBLE", "-1 < k"):
        assert site.differs(f"SELECT k FROM events WHERE {condition}") == ""


def test_the_engine_still_needs_this(site: Site) -> None:
    """If this fails, DuckDB may have been mended: `model.date_trunc` may go then."""
    sql = f"SELECT count(*) FROM ({EVENTS}) WHERE date_trunc('hour', d) = DATE '2020-02-29'"
    assert site.oracle.execute(sql).fetchall() == [(7,)]
    assert site.engine.execute(sql).fetchall() == [(0,)]


def test_calls_are_found_between_texts_comments_and_other_calls() -> None:
    assert rewritten("date_trunc('hour', f(a, (b)) -- x, y)\n ) > 1") == (
        "date_trunc('hour', coalesce( f(a, (b)) -- x, y)\n , NULL)) > 1"
    )
    for text in (
        "'date_trunc(''hour'', d)' = x", "date_trunc('days', d)", "date_trunc('hour', ?)",
        "/* date_trunc('hour', d) */ d", "$$date_trunc('hour', d)$$", "date_trunc", "date_trunc(",
    ):  # fmt: skip
        assert rewritten(text) == text
    (found,) = short_truncations('f(date_trunc(\'hour\', "a ""b"."D"))')
    assert found.column == "d"
