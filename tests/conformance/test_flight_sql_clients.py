"""What clients do: ADBC, pandas, plain Flight, against a gateway over fake executors."""

from __future__ import annotations

import json
import math
import threading
import time
from typing import Any

import adbc_driver_manager
import pandas as pd
import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi
from gateway_world import World, wait_until
from pyarrow import flight

from accel_dask.model.tenant import Quota
from flightsql_gateway.flight_sql import messages


@pytest.fixture
def connection(world: World) -> Any:
    with world.connect("acme", "secret-of-acme") as connection:
        yield connection


def rows(connection: Any, sql: str, parameters: Any = None) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def test_a_query_over_two_shards_and_a_join(connection: Any) -> None:
    found = rows(
        connection,
        "select c.name, count(*) n from flights f join carriers c using (carrier) "
        "group by 1 order by 1",
    )
    assert found == [("Ann", 34), ("Ben", 33), ("Cat", 33)]


def test_statements_without_tables(connection: Any) -> None:
    assert rows(connection, "SELECT 1") == [(1,)]
    assert rows(connection, "select current_database(), current_schema()") == [("accel", "acme")]
    assert rows(connection, "select version()")[0][0].startswith("v2.")


def test_parameters_of_every_plain_type(connection: Any) -> None:
    assert rows(connection, "select count(*) from flights where id < ?", [10]) == [(10,)]
    assert rows(connection, "select count(*) from flights where carrier = ?", ["C1"]) == [(33,)]
    assert rows(connection, "select ?, ?, ? is null", [1.5, "x", None]) == [(1.5, "x", True)]


@pytest.mark.parametrize("nan", [math.nan, " -NaN"])
def test_a_parameter_that_the_engine_errs_on_is_refused(connection: Any, nan: object) -> None:
    sql = "select count(*) from flights where {}id::double < ?"
    with pytest.raises(dbapi.Error, match="NaN"):
        rows(connection, sql.format("-"), [nan])
    assert rows(connection, sql.format("0 - "), [nan]) == [(100,)]
    assert rows(connection, sql.format("-"), [-90.0]) == [(9,)]


def test_the_same_prepared_statement_runs_with_other_values(connection: Any) -> None:
    with connection.cursor() as cursor:
        for value in (3, 4, 5):
            cursor.execute("select id, version from flights where id = ?", [value])
            assert cursor.fetchall() == [(value, 1)]


@pytest.mark.parametrize("values", [[], [1, 2]])
def test_the_wrong_number_of_parameters_is_an_error(connection: Any, values: list[int]) -> None:
    with pytest.raises(dbapi.ProgrammingError, match="has 1 parameters"):
        rows(connection, "select * from flights where id = ?", values or None)


def test_arrow_results_and_their_schema(connection: Any) -> None:
    with connection.cursor() as cursor:
        schema = cursor.adbc_execute_schema("select id, delay from flights")
        cursor.execute("select id, delay from flights order by id")
        table = cursor.fetch_arrow_table()
    assert table.schema.equals(schema)
    assert table["id"].to_pylist() == list(range(100))


def test_an_empty_result_has_its_columns(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select id, carrier from flights where false")
        table = cursor.fetch_arrow_table()
    assert table.num_rows == 0
    assert table.column_names == ["id", "carrier"]


def test_partitions_may_be_read_from_another_connection(world: World, connection: Any) -> None:
    with connection.cursor() as cursor:
        partitions, _ = cursor.adbc_execute_partitions("select id from flights")
    assert len(partitions) == 1
    with world.connect("acme", "secret-of-acme") as other, other.cursor() as cursor:
        cursor.adbc_read_partition(partitions[0])
        assert len(cursor.fetchall()) == 100
    with world.connect("rival", "secret-of-rival") as other, other.cursor() as cursor:
        with pytest.raises(dbapi.Error, match="statement handle") as refused:
            cursor.adbc_read_partition(partitions[0])
        assert "acme" not in str(refused.value)


def test_executemany_is_refused(connection: Any) -> None:
    with connection.cursor() as cursor, pytest.raises(dbapi.Error, match="executemany"):
        cursor.executemany("select * from flights where id = ?", [(1,), (2,)])


def test_several_rows_of_parameters_are_refused(connection: Any) -> None:
    with connection.cursor() as cursor, pytest.raises(dbapi.Error, match="one row of parameters"):
        cursor.execute(
            "select * from flights where id = ?",
            pa.record_batch([pa.array([1, 2])], names=["0"]),
        )


def test_updates_and_ingestion_are_read_only(connection: Any) -> None:
    statement = adbc_driver_manager.AdbcStatement(connection.adbc_connection)
    statement.set_sql_query("delete from flights")
    with pytest.raises(adbc_driver_manager.Error, match="READ_ONLY"):
        statement.execute_update()
    statement.close()
    with connection.cursor() as cursor, pytest.raises(dbapi.Error, match="READ_ONLY"):
        cursor.adbc_ingest("flights", pa.table({"id": [1]}))


@pytest.mark.parametrize(
    "zone", ["SET timezone = 'UTC'", "set TimeZone='utc'", "SET TIME ZONE 'UTC';"]
)
def test_setting_the_zone_that_is_set_changes_nothing_and_is_accepted(
    connection: Any, zone: str
) -> None:
    statement = adbc_driver_manager.AdbcStatement(connection.adbc_connection)
    statement.set_sql_query(zone)
    assert statement.execute_update() in (0, -1)
    statement.set_sql_query("SET timezone = 'America/New_York'")
    with pytest.raises(adbc_driver_manager.Error, match="READ_ONLY"):
        statement.execute_update()
    statement.close()


# Metadata


def test_info(connection: Any) -> None:
    info = connection.adbc_get_info()
    assert info["vendor_name"] == "accel-dask"
    assert info["vendor_version"].startswith("duckdb ")


@pytest.mark.parametrize("depth", ["catalogs", "db_schemas", "tables", "columns", "all"])
def test_objects_at_each_depth(connection: Any, depth: Any) -> None:
    (catalog,) = connection.adbc_get_objects(depth=depth).read_all().to_pylist()
    assert catalog["catalog_name"] == "accel"
    if depth == "catalogs":
        return
    (schema,) = catalog["catalog_db_schemas"]
    assert schema["db_schema_name"] == "acme"
    if depth == "db_schemas":
        return
    tables = schema["db_schema_tables"]
    assert [t["table_name"] for t in tables] == ["carriers", "flights"]
    assert {t["table_type"] for t in tables} == {"table"}
    if depth != "tables":
        columns = [(c["column_name"], c["xdbc_type_name"]) for c in tables[1]["table_columns"]]
        assert columns == [
            ("id", "BIGINT"),
            ("carrier", "VARCHAR"),
            ("delay", "DOUBLE"),
            ("version", "INTEGER"),
        ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("flights", ["flights"]),
        ("FLI%", ["flights"]),
        ("%r_e%", ["carriers"]),
        ("secrets", []),
        ("select * from flights where x = '%'", []),
        ("(", []),
        ("x" * 10_000, []),
        ("\\", []),
    ],
)
def test_table_name_patterns(connection: Any, pattern: str, expected: list[str]) -> None:
    objects = connection.adbc_get_objects(depth="tables", table_name_filter=pattern)
    found = [
        table["table_name"]
        for catalog in objects.read_all().to_pylist()
        for schema in catalog["catalog_db_schemas"] or []
        for table in schema["db_schema_tables"] or []
    ]
    assert found == expected


def test_filters_on_catalog_schema_and_type(connection: Any) -> None:
    def tables(**filters: Any) -> int:
        objects = connection.adbc_get_objects(depth="tables", **filters).read_all().to_pylist()
        return sum(
            len(schema["db_schema_tables"] or [])
            for catalog in objects
            for schema in catalog["catalog_db_schemas"] or []
        )

    assert tables(catalog_filter="accel", db_schema_filter="acme") == 2
    assert tables(table_types_filter=["table"]) == 2
    assert tables(table_types_filter=["view"]) == 0
    assert tables(db_schema_filter="rival") == 0


def test_a_tables_schema_is_what_a_query_gives(connection: Any) -> None:
    schema = connection.adbc_get_table_schema("flights", db_schema_filter="acme")
    with connection.cursor() as cursor:
        cursor.execute("select * from flights limit 0")
        assert cursor.fetch_arrow_table().schema.equals(schema)
    with pytest.raises(dbapi.Error):
        connection.adbc_get_table_schema("secrets")
    assert connection.adbc_get_table_types() == ["table"]


def test_current_catalog_and_schema(connection: Any) -> None:
    assert connection.adbc_current_catalog == "accel"
    assert connection.adbc_current_db_schema == "acme"


def command(name: str, **fields: Any) -> flight.FlightDescriptor:
    return flight.FlightDescriptor.for_command(messages.wrap(messages.new(name, **fields)))


METADATA = [
    ("CommandGetSqlInfo", {}),
    ("CommandGetSqlInfo", {"info": [0, 3, 504, 99999]}),
    ("CommandGetCatalogs", {}),
    ("CommandGetDbSchemas", {}),
    ("CommandGetTables", {}),
    ("CommandGetTables", {"include_schema": True}),
    ("CommandGetTableTypes", {}),
    ("CommandGetXdbcTypeInfo", {}),
    ("CommandGetXdbcTypeInfo", {"data_type": 12}),
    ("CommandGetPrimaryKeys", {"table": "flights"}),
    ("CommandGetExportedKeys", {"table": "flights"}),
    ("CommandGetImportedKeys", {"table": "flights"}),
    ("CommandGetCrossReference", {"pk_table": "a", "fk_table": "b"}),
]


@pytest.mark.parametrize(("name", "fields"), METADATA)
def test_metadata_streams_have_exactly_the_announced_schema(
    world: World, name: str, fields: dict[str, Any]
) -> None:
    client, options = world.client("acme", "secret-of-acme")
    descriptor = command(name, **fields)
    info = client.get_flight_info(descriptor, options)
    table = client.do_get(info.endpoints[0].ticket, options).read_all()
    assert table.schema.equals(info.schema, check_metadata=True)
    assert client.get_schema(descriptor, options).schema.equals(info.schema)
    if name == "CommandGetSqlInfo" and fields:
        assert table.to_pylist() == [
            {"info_name": 0, "value": "accel-dask"},
            {"info_name": 3, "value": True},
            {"info_name": 504, "value": '"'},
        ]
    client.close()


def test_pandas(connection: Any) -> None:
    frame = pd.read_sql(
        "select carrier, sum(delay) d from flights group by 1 order by 1", connection
    )
    assert frame.to_dict("list") == {"carrier": ["C0", "C1", "C2"], "d": [841.5, 808.5, 825.0]}
    assert len(pd.read_sql_query("select * from flights", connection)) == 100


# Plain Flight: one round trip, receipts, plans, cancelling


def statement_ticket(sql: str) -> flight.Ticket:
    return flight.Ticket(messages.wrap(messages.new("CommandStatementQuery", query=sql)))


def test_a_statement_is_its_own_ticket(world: World) -> None:
    client, options = world.client("acme", "secret-of-acme")
    table = client.do_get(statement_ticket("select count(*) n from flights"), options).read_all()
    assert table.to_pydict() == {"n": [100]}
    client.close()


def test_receipts_tell_of_the_tenants_own_queries(world: World, connection: Any) -> None:
    rows(connection, "select id from flights order by id limit 7")
    with pytest.raises(dbapi.Error):
        rows(connection, "select nonsense from flights")
    with world.connect("rival", "secret-of-rival") as other:
        rows(other, "select * from secrets")
    client, options = world.client("acme", "secret-of-acme")
    (result,) = client.do_action(flight.Action("accel.receipts", b'{"last": 5}'), options)
    receipts = json.loads(result.body.to_pybytes())
    assert [r["tenant"] for r in receipts] == ["acme"]
    (receipt,) = receipts
    assert receipt["outcome"] == "OK"
    assert receipt["rows"] == 7
    assert receipt["route"] == "hot"
    assert receipt["executor"] == "w1/1"
    (used,) = receipt["datasets"]
    assert (used["dataset"], used["epoch"], used["snapshot"]) == ("flights", 1, "1001")
    assert (used["shards"], used["total_shards"]) == (2, 2)
    assert receipt["total_ms"] >= receipt["run_ms"] > 0
    client.close()


def test_explain_shows_the_plan(world: World) -> None:
    client, options = world.client("acme", "secret-of-acme")
    body = json.dumps({"sql": "select * from flights"}).encode()
    (result,) = client.do_action(flight.Action("accel.explain", body), options)
    assert "prune: acme.flights@1" in json.loads(result.body.to_pybytes())
    client.close()


def test_the_clients_own_deadline_is_kept(world: World) -> None:
    release = threading.Event()
    world.executors[0].before = lambda _: release.wait(10) and None
    client = flight.FlightClient(world.url)
    header = client.authenticate_basic_token("acme", "secret-of-acme")
    options = flight.FlightCallOptions(headers=[header, (b"x-accel-deadline-ms", b"100")])
    started = time.monotonic()
    with pytest.raises(flight.FlightTimedOutError, match="DEADLINE_EXCEEDED"):
        client.do_get(statement_ticket("select 1 from flights"), options).read_all()
    assert time.monotonic() - started < 3
    release.set()
    client.close()


def test_a_clients_own_limits_are_those_of_its_tickets_and_no_other_clients(world: World) -> None:
    own = {"adbc.flight.sql.rpc.call_header.x-accel-max-result-rows": "7"}
    sql = "select count(*) from flights"
    for options, rows in ((own, 7), ({}, Quota().max_result_rows), (own, 7)):
        with world.connect("acme", "secret-of-acme", **options) as connection:
            cursor = connection.cursor()
            cursor.execute(sql)
            assert cursor.fetchall() == [(100,)]
        assert world.executors[0].tickets[-1].max_result_rows == rows


def test_a_clients_own_scan_limit_is_checked_before_the_query_runs(world: World) -> None:
    own = {"adbc.flight.sql.rpc.call_header.x-accel-max-scan-rows": "99"}
    with (
        world.connect("acme", "secret-of-acme", **own) as connection,
        pytest.raises(Exception, match=r"100 rows, most of them of flights .*client's own limit"),
    ):
        connection.cursor().execute("select count(*) from flights")
    assert world.executors[0].tickets == []


def test_a_malformed_limit_is_refused(world: World) -> None:
    own = {"adbc.flight.sql.rpc.call_header.x-accel-max-scan-rows": "many"}
    with (
        world.connect("acme", "secret-of-acme", **own) as connection,
        pytest.raises(Exception, match="x-accel-max-scan-rows must be a whole number"),
    ):
        connection.cursor().execute("select count(*) from flights")


def test_a_cancelled_query_is_cancelled_at_the_executor_before_its_first_batch(
    world: World,
) -> None:
    executor = world.executors[0]
    reached, release = threading.Event(), threading.Event()

    def block(ticket: Any) -> None:
        if not ticket.describe_only:
            reached.set()
            release.wait(10)

    executor.before = block
    with world.connect("acme", "secret-of-acme") as connection, connection.cursor() as cursor:
        errors: list[BaseException] = []

        def run() -> None:
            try:
                cursor.execute("select 1 from flights")
                cursor.fetchall()
            except dbapi.Error as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert reached.wait(10)
        cursor.adbc_cancel()
        started = time.monotonic()
        wait_until(executor.is_gone[executor.tickets[-1].query_id])
        assert time.monotonic() - started < 2
        release.set()
        thread.join(10)
        assert len(errors) == 1


def test_a_client_that_stops_reading_frees_its_place(world: World) -> None:
    big = pa.table({"id": pa.array(range(300_000), pa.int64())})
    world.serve("acme", {"big": (1, [big])}, worker="w2")
    client, options = world.client("acme", "secret-of-acme")
    reader = client.do_get(statement_ticket("select * from big"), options)
    reader.read_chunk()
    reader.cancel()
    service = world.app.service
    wait_until(lambda: service.load("acme") == (0, 0))
    client.close()
