"""The pure parts of fallbacks: reasons, policies, breaker, places, declarations, refusals."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from olap_world import TENANT, compile_sql

from accel_dask import admin
from accel_dask.connectors.olap.conform import conform_batch, conform_rows
from accel_dask.connectors.olap.settings import engine_settings
from accel_dask.errors import (
    AccelError,
    ColdReadFailed,
    ConfigError,
    EngineDisagrees,
    ExecutorUnavailable,
    InvalidQuery,
    MemoryLimit,
    NotPortable,
    NotResident,
    QueryCancelled,
    ResourceExhausted,
    ScanLimit,
    StaleEpoch,
    TextLimit,
    Unauthenticated,
    UnknownTable,
)
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.fallback import FallbackPolicy, FallbackReason, FallbackSpec
from accel_dask.model.ids import DatasetId
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.portable.dialects import DIALECTS
from accel_dask.query_planner.portable.from_clause import Table
from accel_dask.query_planner.portable.write import EngineTable
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import read_view
from flightsql_gateway.fallback.breaker import FAILURES, Breaker
from flightsql_gateway.fallback.places import Places
from flightsql_gateway.fallback.reasons import reason_of

pa = pytest.importorskip("pyarrow")
FACT = Table(
    DatasetId(TENANT, "fact"),
    tuple(
        Column(name=name, type=kind)
        for name, kind in (
            ("id", "BIGINT"), ("s", "VARCHAR"), ("x", "DOUBLE"), ("d", "DATE"),
            ("tags", "VARCHAR[]"), ("at", "TIMESTAMP WITH TIME ZONE"), ("f", "FLOAT"),
        )
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotResident, FallbackReason.MISS),
        (ScanLimit, FallbackReason.BREACH),
        (MemoryLimit, FallbackReason.BREACH),
        (ResourceExhausted, FallbackReason.OVERLOAD),
        (ExecutorUnavailable, FallbackReason.ERROR),
        (StaleEpoch, FallbackReason.ERROR),
        (ColdReadFailed, FallbackReason.ERROR),
        (TextLimit, None),
        (InvalidQuery, None),
        (UnknownTable, None),
        (Unauthenticated, None),
        (QueryCancelled, None),
        (AccelError, None),
    ],
)
def test_an_error_says_whether_and_why_the_engine_is_asked(
    error: type[AccelError], reason: FallbackReason | None
) -> None:
    assert reason_of(error("no")) is reason


def test_each_policy_includes_the_one_before() -> None:
    allowed = [
        {
            reason
            for reason in FallbackReason
            if FallbackSpec(engine="x", policy=policy).allows(reason)
        }
        for policy in FallbackPolicy
    ]
    assert [len(reasons) for reasons in allowed] == [0, 1, 3, 4, 5]
    assert all(before < after for before, after in pairwise(allowed))


def test_a_breaker_opens_after_failures_in_a_row_and_probes_one_at_a_time() -> None:
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker = breaker.failed(0.0, "down")
    assert not breaker.is_open(0.0)
    assert not breaker.succeeded().failed(0.0, "down").is_open(0.0)
    breaker = breaker.failed(0.0, "down")
    assert breaker.is_open(1.9)
    assert not breaker.is_open(2.1)
    probing = breaker.began(2.1, 10.0)
    assert probing.is_open(2.2)
    assert not probing.gave_no_sign().is_open(2.2)
    assert not probing.is_open(12.2)  # a probe that never ended
    assert not probing.succeeded().is_open(2.2)
    again = probing.failed(3.0, "still down")
    assert again.is_open(6.9)
    assert not again.is_open(7.1)
    for _ in range(20):
        again = again.failed(100.0, "still down")
    assert again.retry_after(100.0) == 60.0


def test_places_are_handed_over_in_order() -> None:
    places = Places()
    assert places.take("a", 1, time.monotonic() + 1, lambda: None)
    assert places.take("b", 1, time.monotonic() + 1, lambda: None)
    assert not places.take("a", 1, time.monotonic() + 0.05, lambda: None)
    order: list[int] = []

    def wait(number: int) -> None:
        assert places.take("a", 1, time.monotonic() + 10, lambda: None)
        order.append(number)
        places.give("a")

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        deadline = time.monotonic() + 5
        while len(places._lines["a"].waiting) <= number:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    places.give("a")
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3, 4]
    assert places.running("a") == 0


def test_who_gives_up_waiting_leaves_no_place_taken() -> None:
    places = Places()
    assert places.take("a", 1, time.monotonic() + 1, lambda: None)

    def gone() -> None:
        raise QueryCancelled("gone")

    with pytest.raises(QueryCancelled):
        places.take("a", 1, time.monotonic() + 5, gone)
    places.give("a")
    assert places.running("a") == 0


def spec(engine: str = "flightsql", **options: str) -> FallbackSpec:
    return FallbackSpec(engine=engine, options=tuple(sorted(options.items())))


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        (spec("oracle", uri="grpc://h:1"), "unknown fallback engine"),
        (spec(uri="http://h:1"), "must begin with one of grpc://"),
        (spec(uri="grpc://me:secret@h:1"), "no credentials in the fallback's uri"),
        (spec(uri="grpc://h:1", password="secret"), "no option 'password'"),
        (spec(uri="grpc://h:1", password_env="HOME"), "must begin with ACCEL_ENGINE_"),
        (spec(uri="grpc://h:1", pool_size="many"), "a number from 1 to 64"),
        (spec(uri="grpc://h:1", dialect="mariadb"), "a flightsql engine speaks spark"),
        (spec(uri="grpc://h:1", dialect="basic"), "unknown dialect"),
        (spec(uri="grpc://h:1", dialect="starrocks"), "unverified_dialect=accept"),
        (spec("mysql", uri="mysql://h:1", time_travel="iceberg"), "dialect that reads Iceberg"),
        (spec(uri="grpc://h:1", time_travel="delta"), "is iceberg or never"),
    ],
)
def test_a_fallback_that_cannot_work_is_refused_when_it_is_declared(
    declared: FallbackSpec, told: str
) -> None:
    store = MemoryStore()
    admin.create_tenant(store, "acme")
    dataset = Dataset(tenant=TENANT, name="fact", source=SourceSpec(connector="iceberg"))
    admin.create_dataset(store, dataset)
    with pytest.raises(ConfigError, match=told):
        admin.change_fallback(store, dataset.dataset_id, declared)
    good = spec(uri="grpc://h:1", time_travel="iceberg")
    admin.change_fallback(store, dataset.dataset_id, good)
    kept = read_view(store).dataset(dataset.dataset_id)
    assert kept is not None
    assert kept.fallback == good
    store.close()


def test_passwords_are_where_the_options_say_and_nowhere_else(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = engine_settings(spec(uri="grpc://h:1", password_env="ACCEL_ENGINE_X"), "d")
    with pytest.raises(ConfigError, match="no ACCEL_ENGINE_X"):
        settings.password({})
    assert settings.password({"ACCEL_ENGINE_X": "s3cret"}) == "s3cret"
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    "sql",
    [
        "select * from fact",
        "select tags from fact",
        "select at from fact",
        "select f from fact",
        "select count(distinct x) from fact group by sum(x)",
        "select id from fact where id in (select id from fact limit 3)",
        "select row_number() over (order by id) as r from fact",
        "select id from fact natural join fact b",
        "select x + 'a' as c from fact",
        "select random() as r from fact",
        "select current_date as r from fact",
        "select id from fact order by random()",
        "select id from (select id from fact) t(i)",
        "with recursive t as (select 1 as a union all select a + 1 from t) select a from t, fact",
        "select id from fact where d = '2020-13-01'",
        "select d + interval (id) day as c from fact",
        "select id from fact limit 10 percent",
        "select distinct on (s) s, id from fact",
        "select id * 99999999999999999999999999999999999999 as c from fact",
        "select unnest([1, 2]) as u from fact",
        "select struct_pack(a := id) as u from fact",
        "select s collate nocase as c from fact",
    ],
)
def test_what_is_not_proven_is_refused(sql: str) -> None:
    with pytest.raises(AccelError) as refused:
        compile_sql(sql, {"fact": FACT})
    assert refused.value.code in {"NOT_PORTABLE", "UNSUPPORTED_QUERY", "INVALID_QUERY"}


@pytest.mark.parametrize("row_filter", ["random() > 0.5", "id in (select 1)", "upper(s) = 'A'"])
def test_a_row_filter_that_is_not_portable_keeps_the_dataset_from_the_engine(
    row_filter: str,
) -> None:
    with pytest.raises(NotPortable):
        compile_sql("select id from fact", {"fact": replace(FACT, row_filter=row_filter)})


def test_no_name_or_text_escapes_from_its_quotes() -> None:
    evil = "x\"`'\\ ; drop table t --"
    table = Table(DatasetId(TENANT, "fact"), (Column(name=evil, type="VARCHAR"),))
    quoted = evil.replace('"', '""')
    text = evil.replace("'", "''")
    query = compile_sql(
        f"""select "{quoted}" as c from fact where "{quoted}" = '{text}'""", {"fact": table}
    )
    for writer in DIALECTS.values():
        sql = writer({table.dataset: EngineTable((evil, "t"))}).write(query.query)
        assert writer({}).quote(evil) in sql
        assert writer({}).text(evil) in sql


def test_an_answer_is_brought_to_its_schema_without_loss_or_not_at_all() -> None:
    wanted = pa.schema([pa.field("n", pa.int64()), pa.field("m", pa.decimal128(9, 2))])
    from decimal import Decimal

    good = conform_rows([(1, Decimal("1.5")), (Decimal(2), 3), (None, None)], wanted)
    assert good.schema == wanted
    assert good.column(1).to_pylist() == [Decimal("1.50"), Decimal("3.00"), None]
    for row in ((1.0, 1), (Decimal("1.5"), 1), ("1", 1), (1, Decimal("1.555")), (2**63, 1), (1,)):
        with pytest.raises(EngineDisagrees):
            conform_rows([row], wanted)
    batch = pa.record_batch([pa.array([1.0]), pa.array([1])], names=["a", "b"])
    with pytest.raises(EngineDisagrees):
        conform_batch(batch, wanted)
