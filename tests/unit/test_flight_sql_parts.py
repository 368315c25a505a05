"""Flight SQL's messages, types and patterns by themselves."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from accel_dask.errors import InvalidQuery, ReadOnly, UnsupportedQuery
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute
from accel_dask.model.snapshot import Column, ColumnStats
from flightsql_gateway.arrow_types import arrow_type
from flightsql_gateway.flight_sql import get_sql_info, messages
from flightsql_gateway.flight_sql.get_tables import null_counts, told_of_missing
from flightsql_gateway.flight_sql.handles import StatementHandle, issue, redeem
from flightsql_gateway.flight_sql.patterns import matches
from flightsql_gateway.flight_sql.updates import is_harmless, refuse_update

TYPES = [
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT",
    "UINTEGER", "UBIGINT", "FLOAT", "DOUBLE", "VARCHAR", "JSON", "UUID", "BLOB", "BIT", "DATE",
    "TIME", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS",
    "TIMESTAMP WITH TIME ZONE", "INTERVAL", "DECIMAL(18,3)", "DECIMAL(38,0)", "INTEGER[]",
    "INTEGER[3]", "VARCHAR[][]", "DECIMAL(9,2)[]", "STRUCT(a INTEGER, b VARCHAR)",
    'STRUCT("a b" INTEGER, "c,""d" DECIMAL(5,2), e STRUCT(f DATE[]))', "MAP(VARCHAR, INTEGER)",
    "MAP(VARCHAR, STRUCT(a INTEGER, b DOUBLE[]))[]",
]  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_a_columns_arrow_type_is_the_one_that_the_engine_sends(name: str) -> None:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        relation = connection.sql(f"SELECT CAST(NULL AS {name}) AS c")
        spelled = str(relation.types[0])
        assert arrow_type(spelled).equals(relation.to_arrow_table().schema.field("c").type)
    assert arrow_type(name).equals(arrow_type(spelled))


def test_an_unknown_type_is_text() -> None:
    assert arrow_type("GEOMETRY") == pa.string()


def test_messages_survive_the_wire() -> None:
    command = messages.new("CommandGetTables", catalog="", table_types=["a"], include_schema=True)
    name, decoded = messages.unwrap(messages.wrap(command))
    assert name == "CommandGetTables"
    assert decoded == command
    assert decoded.HasField("catalog")
    assert not decoded.HasField("db_schema_filter_pattern")


def test_our_messages_do_not_enter_the_process_wide_pool() -> None:
    from google.protobuf import descriptor_pool

    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(
            "arrow.flight.protocol.sql.CommandGetSqlInfo"
        )


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"\xff\xff",
        messages.new("Any", type_url="type.googleapis.com/x.CommandGetTables").SerializeToString(),
        messages.new("Any", type_url=messages.TYPE_PREFIX + "Nope").SerializeToString(),
        messages.new(
            "Any", type_url=messages.TYPE_PREFIX + "CommandStatementQuery", value=b"\x0a\x02\xff"
        ).SerializeToString(),
    ],
)
def test_what_is_no_message_is_an_error(data: bytes) -> None:
    with pytest.raises(InvalidQuery):
        messages.unwrap(data)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (None, "x", True),
        ("%", "anything", True),
        ("fl%s", "flights", True),
        ("fl_ghts", "FLIGHTS", True),
        ("fl_ghts", "flghts", False),
        ("flights", "flights2", False),
        ("", "x", False),
        ("a.c", "abc", False),
        (r"a\%c", "a%c", True),
        (r"a\%c", "abc", False),
        (r"a\_c", "a_c", True),
        ("[", "x", False),
        ("%" * 200, "x", True),
    ],
)
def test_patterns_are_those_of_like(pattern: str | None, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_a_handle_is_the_tenants_own() -> None:
    handle = StatementHandle(tenant=TenantId("acme"), sql="select 1", parameters=b"\x00\xff")
    data = issue(handle, b"key")
    assert redeem(data, TenantId("acme"), b"key") == handle
    for tenant, key, wrong in (
        ("rival", b"key", data),
        ("acme", b"other", data),
        ("acme", b"key", data[:-1]),
        ("acme", b"key", b""),
    ):
        with pytest.raises(InvalidQuery, match="not one of this cluster's") as refused:
            redeem(wrong, TenantId(tenant), key)
        assert "acme" not in str(refused.value)


@pytest.mark.parametrize(
    ("sql", "harmless"),
    [
        ("SET timezone = 'UTC'", True),
        ("set session time zone 'utc'", True),
        ("SET TimeZone TO 'Etc/UTC';", True),
        ("SET timezone = 'Europe/Berlin'", False),
        ("SET timezone = 'UTC'; DROP TABLE t", False),
        ("SET memory_limit = '1GB'", False),
    ],
)
def test_only_setting_what_is_set_is_harmless(sql: str, harmless: bool) -> None:
    assert is_harmless(sql) is harmless
    if harmless:
        assert refuse_update(sql) == 0
    else:
        with pytest.raises(ReadOnly):
            refuse_update(sql)


def test_a_query_sent_as_an_update_is_told_so() -> None:
    with pytest.raises(UnsupportedQuery, match="executemany"):
        refuse_update("  select 1")


def test_sql_info_is_complete_and_typed() -> None:
    command = messages.new("CommandGetSqlInfo")
    table = get_sql_info.answer(command, None)  # type: ignore[arg-type]
    table.validate(full=True)
    names = table["info_name"].to_pylist()
    assert set(range(9)) <= set(names)
    assert set(range(500, 577)) <= set(names)
    assert names == sorted(set(names))


def test_columns_tell_what_is_known_of_missing_values() -> None:
    columns = (
        Column(name="id", type="BIGINT", nullable=False),
        Column(name="x", type="DOUBLE", nullable=False),
        Column(name="k", type="VARCHAR"),
        Column(name="n", type="INTEGER"),
        Column(name="d", type="DATE"),
    )
    counts = [{"x": 0, "k": 0, "n": 0, "d": None}, {"x": 0, "k": 0, "n": 3}]
    shards = tuple(
        ShardSummary(
            shard_id=ShardId(f"{number:032x}"), rows=5, source_bytes=1,
            stats=tuple(ColumnStats(name=n, null_count=c) for n, c in found.items()),
        )
        for number, found in enumerate(counts)
    )  # fmt: skip
    route = DatasetRoute(
        dataset_id=DatasetId(TenantId("acme"), "t"), epoch=EpochNumber(1), snapshot_id=None,
        columns=columns, shards=shards, executors=(),
    )  # fmt: skip
    assert [told_of_missing(null_counts(route), column) for column in columns] == [
        {"accel:nulls": "never"},
        {"accel:nan": "0", "accel:nulls": "0"},  # required, but NaN becomes NULL
        {"accel:nulls": "0"},
        {"accel:nulls": "some"},
        {},
    ]
