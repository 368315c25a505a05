"""What is asked becomes shapes, and shapes become rollups that would answer them."""

# ruff: noqa: E501 - SQL, one a line
from __future__ import annotations

import pytest

from accel_dask.errors import ConfigError
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.rollup import parse_rollup, read_rollups, told_rollup
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.query_planner.plan import PlanContext
from accel_dask.query_planner.shapes import shape_of
from accel_dask.query_planner.suggestions import AskedShape, Candidate, candidates
from accel_dask.suggest import collect_history, suggest
from flightsql_gateway.history import History

ACME = TenantId("acme")
FLIGHTS = DatasetId(ACME, "flights")


@pytest.mark.parametrize(
    ("sql", "shape"),
    [
        (
            "SELECT  Carrier, sum(x)\nFROM t -- why\nWHERE id IN (1,2, 3) AND n > 1.5e3 GROUP BY 1",
            "select carrier, sum(x) from t where id in (0) and n > 0 group by 1",
        ),
        (
            "select a from t where s = 'it''s' and \"Odd 5\" like '%5%' order by 2 desc, 1 limit 1;",
            "select a from t where s = '' and \"Odd 5\" like '' order by 2 desc, 1 limit 0",
        ),
        (
            "select date_trunc('day', ts), strftime(ts, '%Y-%m'), n::decimal(12,2) + 3 from t",
            "select date_trunc('day', ts), strftime(ts, '%Y-%m'), n::decimal(12,2) + 0 from t",
        ),
        (
            (
                "select 1 from t where ts >= '2024-03-01' and ts < timestamp '2024-03-05 10:00' "
                "and d > date '2023-01-01' and d < current_date - interval '7' day"
            ),
            (
                "select 0 from t where ts >= '2000-02-01' and ts < timestamp '2000-01-01 01:00:00' "
                "and d > date '2000-01-01' and d < current_date - interval '7' day"
            ),
        ),
        ("select n from t group by n, 1 having count(*) > 7", None),
    ],
)
def test_a_shape_has_no_values_and_keeps_what_rollups_depend_on(
    sql: str, shape: str | None
) -> None:
    found = shape_of(sql)
    assert found == (shape or "select n from t group by n, 1 having count(*) > 0")
    assert shape_of(found) == found
    assert shape_of("select '" + "x" * 2000 + "'") is None


def test_the_history_adds_up_by_shape_and_tenant() -> None:
    history = History()
    for number in range(2000):
        history.add(ACME, f"select {number} from t", 2.0, is_rollup=number < 500)
        history.add(ACME, f"select c{number} from t", 0.001, is_rollup=False)
        history.add(TenantId("rival"), "select secret from t", 1.0, is_rollup=False)
    found = history.shapes(ACME)
    assert found[0].shape == "select 0 from t"
    assert found[0].queries <= 2000
    assert found[0].total_ms == 2.0 * found[0].queries
    assert found[0].from_rollups <= 500
    assert len(found) <= 500
    assert "secret" not in str(found)
    assert history.shapes(TenantId("nobody")) == ()


def routing(*rollups: str, days: bool = True) -> RoutingTable:
    columns = [("ts", "TIMESTAMP"), ("carrier", "VARCHAR"), ("origin", "VARCHAR")]
    columns += [("delay", "DOUBLE"), ("price", "DECIMAL(12,2)"), ("day", "DATE")]
    shards = tuple(
        ShardSummary(
            shard_id=ShardId(f"{number:032x}"),
            rows=1000,
            source_bytes=1000,
            stats=(
                ColumnStats(
                    name="ts",
                    lower=f"2024-0{number + 1}-01 00:00:00",
                    upper=f"2024-0{number + 1}-28 12:00:00",
                ),
            )
            if days
            else (),
        )
        for number in range(4)
    )
    route = DatasetRoute(
        dataset_id=FLIGHTS,
        epoch=EpochNumber(1),
        snapshot_id=None,
        columns=tuple(Column(name=name, type=kind) for name, kind in columns),
        shards=shards,
        executors=(),
        rollups=tuple(map(parse_rollup, rollups)),
    )
    return RoutingTable(1, {FLIGHTS: route}, {}, {}, b"")


def asked(*queries: str) -> list[AskedShape]:
    return [
        AskedShape(sql=shape_of(sql) or "", queries=10, total_ms=100.0 + n)
        for n, sql in enumerate(queries)
    ]


def found_for(*queries: str, known: tuple[str, ...] = ()) -> list[Candidate]:
    context = PlanContext(tenant=ACME, routing=routing(*known))
    return list(candidates(asked(*queries), context))


def test_queries_of_one_kind_share_a_rollup_in_the_coarsest_grain_that_does() -> None:
    (one,) = found_for(
        "select date_trunc('day', ts) d, carrier, count(*) n from flights "
        "where ts >= '2024-01-05' and ts < '2024-02-01' group by all",
        "select carrier, date_trunc('day', ts) d, avg(price) p from flights group by all",
    )
    assert told_rollup(one.rollup) == (
        "by_carrier_day_ts: carrier, date_trunc('day', ts); avg(price), count(*)"
    )
    assert one.queries == 20
    assert one.total_ms == 201.0


def test_a_finer_rollup_also_answers_for_the_coarser() -> None:
    found = found_for(
        "select year(ts), count(*) n from flights group by 1",
        "select date_trunc('month', ts) m, origin, sum(delay) from flights group by 1, 2",
    )
    by_name = {one.rollup.name: one for one in found}
    assert set(by_name) == {"by_year_ts", "by_month_ts_origin"}
    assert by_name["by_month_ts_origin"].queries == 20
    assert by_name["by_year_ts"].queries == 10


def test_what_no_rollup_answers_or_one_answers_already_is_left_out() -> None:
    assert not found_for("select * from flights", "select ts, delay from flights where delay > 5")
    assert not found_for("select stddev(delay) from flights where carrier = 'x'")
    assert not found_for("select delay, count(*) from flights group by 1")
    assert not found_for(
        "select x from elsewhere", "not sql at all", "select count(*) from flights"
    )
    known = ("known: carrier, origin; count(*), sum(price)",)
    query = "select carrier, sum(price) from flights group by 1"
    assert found_for(query)
    assert not found_for(query, known=known)


def test_the_gain_is_measured_and_the_best_comes_first() -> None:
    def ask(sql: str) -> int:
        questions.append(sql)
        if "DISTINCT" not in sql:
            return 4000
        return {"carrier": 16, "origin": 3900}["carrier" if '"carrier"' in sql else "origin"]

    questions: list[str] = []
    shapes = asked(
        "select carrier, count(*) from flights group by 1",
        "select origin, count(*) from flights group by 1",
    )
    (one,) = suggest(shapes, ACME, routing(), ask)
    assert one.candidate.rollup.name == "by_carrier"
    assert (one.rows, one.rollup_rows) == (4000, 64)  # in each of four shards
    assert one.saved_ms == pytest.approx(100 * (1 - 64 / 4000))
    assert one.command == ("accel-dask dataset rollup acme.flights 'by_carrier: carrier; count(*)'")
    assert (
        'SELECT count(*) FROM (SELECT DISTINCT "carrier" FROM accel.acme."flights") AS groups'
        in (questions)
    )
    daily = asked("select date_trunc('month', ts), carrier, count(*) from flights group by 1, 2")
    (one,) = suggest(daily, ACME, routing(), ask)
    assert 16 <= one.rollup_rows <= 26  # shards are of one month each
    assert suggest(daily, ACME, routing(), ask, DatasetId(ACME, "others")) == ()


class Session:
    def __init__(self, *shapes: dict[str, object]) -> None:
        self._shapes = shapes

    def history(self) -> list[dict[str, object]]:
        return list(self._shapes)


def test_the_history_of_all_gateways_is_added_up() -> None:
    one = {"shape": "select 0", "queries": 4, "total_ms": 40.0, "from_rollups": 1}
    other = {"shape": "select 0", "queries": 2, "total_ms": 10.0, "from_rollups": 0}
    none = {"shape": "select b", "queries": 2, "total_ms": 10.0, "from_rollups": 2}
    found = collect_history([Session(one), Session(other, none)])  # type: ignore[list-item]
    assert found == (AskedShape(sql="select 0", queries=5, total_ms=40.0),)


def test_rollups_are_read_from_toml() -> None:
    text = """
    [[rollup]]
    name = "daily"
    dimensions = ["date_trunc('day', ts)", "carrier"]
    measures = ["count(*)"]
    """
    assert read_rollups(text) == (parse_rollup("daily: date_trunc('day', ts), carrier; count(*)"),)
    for wrong in ("rollup = 3", "[[rollup]]\nname = 'x'", "[[rollup", "[[other]]",
                  "[[rollup]]\nname = 'x'\ndimensions = 'a'\nmeasures = ['count(*)']"):  # fmt: skip
        with pytest.raises(ConfigError, match="rollup"):
            read_rollups(wrong)
