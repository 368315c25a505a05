"""Months and years of dates are computed in the cheaper way only where it is the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cut_site import ACME, Site, cut_site

EVENTS = """
SELECT i AS k, i % 5 AS g, i * 0.5 AS x, i::VARCHAR AS name,
    CASE i WHEN 3 THEN NULL WHEN 7 THEN DATE 'infinity' WHEN 9 THEN DATE '-infinity'
        WHEN 17 THEN DATE '0044-03-15 (BC)' WHEN 19 THEN DATE '1969-12-31'
        WHEN 21 THEN DATE '0001-01-01' WHEN 23 THEN DATE '9999-12-31'
        ELSE DATE '2019-12-28' + (i * 9)::INT END AS d,
    TIMESTAMP '2019-12-28 03:00:00' + INTERVAL (i * 9) DAY AS ts
FROM range(200) r(i)
"""
CHEAPER = "CAST(coalesce("


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with cut_site(EVENTS, rows=200) as site:
        yield site


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT date_trunc('month', d) AS month, sum(x) AS s FROM events GROUP BY month",
        "SELECT date_trunc('YEAR', e.D) y, count(*) FROM events e GROUP BY 1 ORDER BY 1",
        (
            "SELECT datetrunc('year', \"d\") AS y, g, max(x) FROM events WHERE k > 40 "
            "GROUP BY datetrunc('year', d), g ORDER BY datetrunc('year', d) DESC NULLS LAST, g"
        ),
        (
            "SELECT date_trunc('month', d) AS m, date_trunc('week', d) AS w, min(k) FROM events "
            "GROUP BY ALL HAVING min(k) > 3"
        ),
        "SELECT m, count(*) FROM (SELECT date_trunc('month', d) AS m FROM events) GROUP BY m",
        (
            "WITH a AS (SELECT g, date_trunc('year', d) AS y FROM events WHERE name <> 'y') "
            "SELECT y, count(DISTINCT g) FROM a GROUP BY y ORDER BY y"
        ),
        "SELECT DISTINCT date_trunc('month', d) AS \"date_trunc('month', d)\" FROM events",
        "SELECT date_trunc('month', d) AS m, 'date_trunc(''month'', d)' AS t FROM events",
    ],
)
def test_months_and_years_of_dates_are_the_same_the_cheaper_way(site: Site, sql: str) -> None:
    assert CHEAPER in site.physical(sql)
    assert site.differs(sql) == ""
    names, physical_names = site.names(sql)
    assert physical_names == names


@pytest.mark.parametrize(
    "sql",
    [
        # Of no date, or perhaps of none.
        "SELECT date_trunc('month', ts) AS month, sum(x) AS s FROM events GROUP BY month",
        "SELECT date_trunc('month', d) AS m FROM (SELECT ts AS d FROM events)",
        (
            "SELECT date_trunc('month', d) AS m FROM "
            "(SELECT d FROM events UNION ALL SELECT ts FROM events)"
        ),
        "SELECT date_trunc('month', d) AS m FROM (SELECT ts FROM events) e(d)",
        # Where the engine reads fewer row groups by it, or the two would not match any more.
        "SELECT date_trunc('month', d) AS m FROM events WHERE m = TIMESTAMP '2020-02-01'",
        "SELECT count(*) FROM events WHERE date_trunc('month', d) = TIMESTAMP '2020-02-01'",
        (
            "SELECT date_trunc('month', d) AS m FROM events GROUP BY date_trunc('month', d) "
            "HAVING date_trunc('month', d) > TIMESTAMP '2020-02-01'"
        ),
        (
            "SELECT date_trunc('month', d) + INTERVAL 1 DAY AS m FROM events "
            "GROUP BY date_trunc('month', d)"
        ),
        # Without a name of its own, or of another length.
        "SELECT date_trunc('month', d), count(*) FROM events GROUP BY 1",
        "SELECT date_trunc('quarter', d) AS q, date_trunc('day', d) AS day FROM events",
    ],
)
def test_all_other_truncations_stay_as_they_are_written(site: Site, sql: str) -> None:
    assert CHEAPER not in site.physical(sql)
    assert site.differs(sql) == ""


def test_a_plan_says_that_months_are_computed_another_way(site: Site) -> None:
    plan = site.plan("SELECT date_trunc('month', d) AS m, count(*) FROM events GROUP BY m")
    assert "date_trunc of a date is computed by its day" in plan.reasons
    assert plan.tenant == ACME
