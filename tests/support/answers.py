"""Answers of a cluster beside those of plain DuckDB: asking, typed refusals, and the difference."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import duckdb
import pyarrow as pa
from adbc_driver_flightsql import dbapi
from pyarrow import flight

from accel_dask import admin
from accel_dask.errors import (
    AccelError,
    InvalidQuery,
    LimitExceeded,
    NotResident,
    QueryError,
    UnknownTable,
)
from accel_dask.flight_errors import from_flight
from accel_dask.local import LocalAccelCluster
from accel_dask.model.dataset import Dataset
from accel_dask.model.ids import DatasetId, TenantId, WorkerId
from flightsql_gateway.flight_sql import messages

RELATIVE_TOLERANCE: Final = 1e-9
"""Of doubles alone: the order in which they are added up is nobody's promise."""
_SMALL: Final = 1e-9
_NAME = re.compile(r"\w+")

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows in the order in which they came."""

    names: tuple[str, ...]
    types: tuple[str, ...]
    """Arrow's."""
    rows: tuple[Row, ...]


class Refused(Exception):
    """The cluster said, with a code of the error tree, that it does not answer this query."""

    def __init__(self, error: AccelError) -> None:
        super().__init__(f"{error.code}: {error}")
        self.error = error
        self.code = error.code
        self.is_by_design = isinstance(error, QueryError | NotResident) and not isinstance(
            error, InvalidQuery | UnknownTable
        )
        """An answer was possible, but is not given here: bounds, or what is not served."""
        self.is_limit = isinstance(error, LimitExceeded)


def to_answer(table: pa.Table) -> Answer:
    columns = [column.to_pylist() for column in table.columns]
    return Answer(
        names=tuple(table.column_names),
        types=tuple(str(field.type) for field in table.schema),
        rows=tuple(zip(*columns, strict=True)) if columns else (),
    )


def without_rewrites(engine: duckdb.DuckDBPyConnection) -> None:
    """Make `engine` an oracle: as DuckDB's optimiser rewrites comparisons of `date_trunc`, it finds
    other rows; see `model.date_trunc`."""
    engine.execute("SET disabled_optimizers = 'expression_rewriter'")


def plain_answer(engine: duckdb.DuckDBPyConnection, sql: str) -> Answer:
    """What plain DuckDB says; of `date_trunc`, without its optimiser's rewriting of expressions,
    which others need to be answered in time.

    Raises:
        duckdb.Error: the query has none.
    """
    cursor = engine.cursor()
    is_rewritten_wrongly = "date_trunc" in sql.lower()
    try:
        if is_rewritten_wrongly:
            without_rewrites(cursor)
        return to_answer(cursor.sql(sql).to_arrow_table())
    finally:
        if is_rewritten_wrongly:  # the setting is the whole database's
            cursor.execute("RESET disabled_optimizers")
        cursor.close()


class GatewayClient:
    """An ADBC connection that is kept, and what it may be answered."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def ask(self, sql: str, parameters: Sequence[Any] | None = None) -> Answer:
        """
        Raises:
            Refused: a typed refusal.
            AssertionError: an error that is no such thing: a bug, whatever the query was.
        """
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql, parameters)
                return to_answer(cursor.fetch_arrow_table())
        except dbapi.Error as error:
            raise refusal(str(error)) from error


@contextmanager
def gateway_client(cluster: LocalAccelCluster, user: str, token: str) -> Iterator[GatewayClient]:
    with dbapi.connect(
        cluster.gateway_urls[0], db_kwargs={"username": user, "password": token}, autocommit=True
    ) as connection:
        yield GatewayClient(connection)


@contextmanager
def asks_flight(
    cluster: LocalAccelCluster, user: str, token: str
) -> Iterator[Callable[[str], pa.Table]]:
    """One Flight call for a statement and its answer."""
    with flight.FlightClient(cluster.gateway_urls[0]) as client:
        header = client.authenticate_basic_token(user, token)
        options = flight.FlightCallOptions(headers=[header], timeout=60)

        def ask(sql: str) -> pa.Table:
            command = messages.wrap(messages.new("CommandStatementQuery", query=sql))
            return client.do_get(flight.Ticket(command), options).read_all()

        yield ask


def refusal(text: str) -> Refused:
    """The refusal that an error's text says it is."""
    assert "Traceback" not in text, text[:2000]
    error = from_flight(pa.ArrowException(text))
    assert isinstance(error, QueryError | NotResident), f"not a typed refusal: {text[:2000]}"
    return Refused(error)


def publish_all(cluster: LocalAccelCluster, datasets: Iterable[Dataset]) -> None:
    """Declare and publish `datasets` at once; wait until every gateway serves them."""
    datasets = tuple(datasets)
    for dataset in datasets:
        cluster.create_dataset(dataset)
    requested = [admin.publish(cluster.store, one.dataset_id, by="test") for one in datasets]
    for one in requested:
        admin.wait_published(cluster.mirror, one, 120.0)
    cluster.wait_routed()


def hosts_of(cluster: LocalAccelCluster, tenant: str, dataset: str) -> frozenset[WorkerId]:
    """The hosts that hold shards of what `dataset` serves."""
    dataset_id = DatasetId(TenantId(tenant), dataset)
    epoch = cluster.view.serving_epoch(dataset_id)
    assert epoch is not None, f"{dataset_id} serves nothing"
    placement = cluster.view.placement(dataset_id, epoch.number)
    assert placement is not None
    return frozenset(worker for _, workers in placement.hosts for worker in workers)


def difference(expected: Answer, found: Answer, order: Sequence[int] | None = None) -> str:
    """What `found` has wrong, or nothing: columns, types and rows.

    `order` are the columns that the query orders by: rows that tie on them may come in any order.
    None: no order is asked for. Rows are a multiset either way.
    """
    if not _same_columns(expected, found):
        return (
            f"columns: expected {list(zip(expected.names, expected.types, strict=True))}, "
            f"found {list(zip(found.names, found.types, strict=True))}"
        )
    if len(expected.rows) != len(found.rows):
        return f"expected {len(expected.rows)} rows, found {len(found.rows)}" + _sample(
            expected, found
        )
    if all(map(same_row, expected.rows, found.rows)):
        return ""
    if order is not None:
        for number, (wanted, got) in enumerate(zip(expected.rows, found.rows, strict=True)):
            if not same_row([wanted[i] for i in order], [got[i] for i in order]):
                return f"order: row {number} is {got}, expected {wanted}"
    return _multiset_difference(expected, found)


def _same_columns(expected: Answer, found: Answer) -> bool:
    if expected.types != found.types:
        return False
    # Expressions without a name of their own: the engine and the gateway spell them differently.
    return all(
        wanted == got or not _NAME.fullmatch(wanted)
        for wanted, got in zip(expected.names, found.names, strict=True)
    )


def _multiset_difference(expected: Answer, found: Answer) -> str:
    wanted, got = sorted(expected.rows, key=_sort_key), sorted(found.rows, key=_sort_key)
    if all(map(same_row, wanted, got)):
        return ""
    # Doubles that differ in the last digit may have sorted rows apart.
    left = list(got)
    for row in wanted:
        match = next((i for i, other in enumerate(left) if same_row(row, other)), None)
        if match is None:
            return f"expected a row {row}, which is not there" + _sample(expected, found)
        del left[match]
    return ""


def _sample(expected: Answer, found: Answer) -> str:
    rows = "\n  ".join(str(row)[:400] for row in expected.rows[:8])
    others = "\n  ".join(str(row)[:400] for row in found.rows[:8])
    return f"\nexpected:\n  {rows}\nfound:\n  {others}"


def same_row(wanted: Sequence[Any], got: Sequence[Any]) -> bool:
    return all(map(same_value, wanted, got))


def same_value(wanted: Any, got: Any) -> bool:
    """Equal, of one type; doubles within the tolerance, and NaN is NaN."""
    if type(wanted) is not type(got):
        return False
    if isinstance(wanted, float):
        if math.isnan(wanted) or math.isnan(got):
            return math.isnan(wanted) and math.isnan(got)
        return math.isclose(wanted, got, rel_tol=RELATIVE_TOLERANCE, abs_tol=_SMALL)
    if isinstance(wanted, Decimal):
        return bool(wanted == got) and wanted.as_tuple().exponent == got.as_tuple().exponent
    if isinstance(wanted, dict):
        return wanted.keys() == got.keys() and all(same_value(wanted[k], got[k]) for k in wanted)
    if isinstance(wanted, list | tuple):
        return len(wanted) == len(got) and same_row(wanted, got)
    return bool(wanted == got)


def _sort_key(row: Row) -> str:
    return repr([f"{value:.6g}" if isinstance(value, float) else value for value in row])
