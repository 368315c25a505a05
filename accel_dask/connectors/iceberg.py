"""Iceberg tables as sources: a catalog (SQL, REST, ...) or a table's metadata file.

Options: `table` ("namespace.name") in the catalog at `catalog_uri` (with `catalog_type`, `sql` by
default, `warehouse`, and any `catalog.<property>` of pyiceberg), or `metadata_location` alone.
`catalog_name` is only needed where one SQL catalog database holds the table under two names.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    ForbiddenError,
    NoSuchNamespaceError,
    NoSuchPropertyException,
    NoSuchTableError,
    NotInstalledError,
    OAuthError,
    UnauthorizedError,
)
from pyiceberg.table import StaticTable, Table
from requests import Session
from sqlalchemy import select

from accel_dask.connectors.iceberg_plan import (
    choose_snapshot,
    equality_deletes_message,
    plan_snapshot,
)
from accel_dask.connectors.projection import check_options
from accel_dask.errors import (
    AccelError,
    ConfigError,
    NotAcceleratable,
    SnapshotGone,
    SourceUnavailable,
)
from accel_dask.model.dataset import Dataset
from accel_dask.model.snapshot import SourceSnapshot

logger = logging.getLogger(__name__)

_OPTIONS = frozenset(
    {"catalog_uri", "catalog_type", "catalog_name", "warehouse", "table", "metadata_location"}
)
_REST_SECONDS = 30.0
_TAG_PREFIX = "accel-"
_TAG_ATTEMPTS = 4
_SQLITE_FILE = re.compile(r"sqlite(\+\w+)?:///(?P<path>[^?]+)")
_PASSWORD = re.compile(r"(://[^:/@]+:)[^@/]+@")


class _BoundedRestCatalog(RestCatalog):
    """A REST catalog whose calls end; pyiceberg sets no time limit."""

    def _create_session(self) -> Session:
        session = super()._create_session()
        session.request = functools.partial(  # type: ignore[method-assign]
            session.request, timeout=_REST_SECONDS
        )
        return session


class IcebergSource:
    """One table of an Iceberg catalog; see `SnapshotSource`."""

    def __init__(self, dataset: Dataset) -> None:
        """Open the catalog and find the table.

        Raises:
            ConfigError: options that do not fit, or a catalog or table that does not exist.
            SourceUnavailable: the catalog did not answer.
        """
        check_options(dataset, _OPTIONS, ("catalog.",))
        self._dataset = dataset
        self._metadata_location = dataset.source.option("metadata_location")
        self._catalog: Catalog | None = None
        if not self._metadata_location:
            _check_catalog_options(dataset)
            with self._opening():
                self._catalog = _open_catalog(dataset)
        try:
            self._load_table()
        except BaseException:
            self.close()
            raise

    def current_version(self) -> str:
        """Table, snapshot and schema: unlike the metadata file's name, our own tags leave it."""
        table = self._load_table()
        newest = table.current_snapshot()
        snapshot = newest.snapshot_id if newest else 0
        return f"{table.metadata.table_uuid}/{snapshot}/{table.schema().schema_id}"

    def plan(self, snapshot: str | None) -> SourceSnapshot:
        table = self._load_table()
        planned = choose_snapshot(self._dataset, table, snapshot)
        with self._reading(planned.where):
            return plan_snapshot(planned)

    def pin(self, planned: SourceSnapshot, label: str) -> None:
        if self._catalog is None or not planned.snapshot_id.snapshot.isdecimal():
            return
        name, snapshot_id = _tag_name(label), int(planned.snapshot_id.snapshot)
        try:
            self._set_tag(name, snapshot_id)
        except Exception as error:  # noqa: BLE001 - any refusal of the catalog means: not pinned
            logger.warning(
                "%s: snapshot %s is not pinned, its files may expire while it is held: %s",
                self._dataset.dataset_id,
                snapshot_id,
                error,
            )

    def unpin(self, label: str) -> None:
        if self._catalog is None:
            return
        name = _tag_name(label)
        try:
            self._set_tag(name, None)
        except Exception as error:  # noqa: BLE001 - any refusal of the catalog leaves the tag
            logger.warning(
                "%s: tag %s stays on its table: %s", self._dataset.dataset_id, name, error
            )

    def pinned_labels(self, prefix: str) -> tuple[str, ...]:
        if self._catalog is None:
            return ()
        return tuple(
            name for name in self._load_table().metadata.refs if name.startswith(_tag_name(prefix))
        )

    def _set_tag(self, name: str, wanted: int | None) -> None:
        """Make the tag point at the snapshot `wanted`, or remove it."""
        for attempt in range(_TAG_ATTEMPTS):
            table = self._load_table()
            there = table.metadata.refs.get(name)
            if (there.snapshot_id if there else None) == wanted:
                return
            change = table.manage_snapshots()
            if there is not None:
                change = change.remove_tag(name)
            if wanted is not None:
                change = change.create_tag(wanted, name)
            try:
                change.commit()
            except CommitFailedException:  # someone else wrote to the table meanwhile
                if attempt == _TAG_ATTEMPTS - 1:
                    raise

    def close(self) -> None:
        if self._catalog is not None:
            self._catalog.close()

    def _load_table(self) -> Table:
        """The table as it is now."""
        with self._opening():
            if self._catalog is not None:
                return self._catalog.load_table(self._dataset.source.option("table") or "")
            assert self._metadata_location
            return StaticTable.from_metadata(self._metadata_location)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        option = self._dataset.source.option
        at = self._metadata_location or f"catalog {_without_password(option('catalog_uri') or '')}"
        where = f"{self._dataset.dataset_id}: {at}"
        try:
            yield
        except AccelError:
            raise
        except (NoSuchTableError, NoSuchNamespaceError) as error:
            raise ConfigError(f"{where} has no table {option('table')!r}") from error
        except (NoSuchPropertyException, NotInstalledError, ValueError) as error:
            raise ConfigError(f"{where} cannot be opened: {error}") from error
        except (UnauthorizedError, ForbiddenError, OAuthError) as error:
            raise ConfigError(f"{where} refuses our credentials: {error}") from error
        except FileNotFoundError as error:
            raise ConfigError(f"{where}: the table's metadata is not there: {error}") from error
        except Exception as error:  # drivers of any catalog raise anything
            told = _without_password(str(error)).splitlines() or [type(error).__name__]
            raise SourceUnavailable(f"{where} does not answer: {told[0][:500]}") from error

    @contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        """Errors while manifests and footers are read."""
        try:
            yield
        except AccelError:
            raise
        except FileNotFoundError as error:
            raise SnapshotGone(
                f"{where}: a file of the snapshot is gone ({error}); publish the newest snapshot"
            ) from error
        except pa.ArrowInvalid as error:
            raise NotAcceleratable(f"{where}: a data file is not Parquet: {error}") from error
        except ValueError as error:
            if "equality deletes" in str(error):
                raise NotAcceleratable(equality_deletes_message(where)) from error
            raise NotAcceleratable(f"{where}: cannot be planned: {error}") from error
        except Exception as error:  # file systems and drivers raise anything
            raise SourceUnavailable(
                f"{where}: planning failed: {type(error).__name__}: {str(error)[:500]}"
            ) from error


def _check_catalog_options(dataset: Dataset) -> None:
    for name in ("catalog_uri", "table"):
        if not dataset.source.option(name):
            raise ConfigError(
                f"{dataset.dataset_id}: the iceberg connector needs {name!r} "
                "(or metadata_location alone)"
            )
    if "." not in (dataset.source.option("table") or ""):
        raise ConfigError(
            f"{dataset.dataset_id}: table must be 'namespace.name', "
            f"not {dataset.source.option('table')!r}"
        )


def _open_catalog(dataset: Dataset) -> Catalog:
    options = dict(dataset.source.options)
    properties = {
        name.removeprefix("catalog."): value
        for name, value in options.items()
        if name.startswith("catalog.")
    }
    properties["uri"] = options["catalog_uri"]
    if "warehouse" in options:
        properties["warehouse"] = options["warehouse"]
    name = options.get("catalog_name", "accel")
    kind = options.get("catalog_type", "sql")
    if kind == "rest":
        return _BoundedRestCatalog(name, **properties)
    if kind != "sql":
        return load_catalog(name, type=kind, **properties)
    _check_sqlite_file(dataset, options["catalog_uri"])
    # We only read: a wrong URI must not become a new, empty catalog.
    catalog = SqlCatalog(name, **{"init_catalog_tables": "false"} | properties)
    if "catalog_name" not in options:
        catalog.name = _name_in_database(dataset, catalog, options["table"])
    return catalog


def _name_in_database(dataset: Dataset, catalog: SqlCatalog, table: str) -> str:
    """The catalog's name under which its database holds the table: part of the rows' key there,
    and nothing that users know."""
    namespace, _, table_name = table.rpartition(".")
    query = select(IcebergTables.catalog_name).where(
        IcebergTables.table_namespace == namespace, IcebergTables.table_name == table_name
    )
    with catalog.engine.connect() as connection:
        names = sorted(connection.execute(query.distinct()).scalars())
    if not names:
        raise NoSuchTableError(table)
    if len(names) > 1:
        raise ConfigError(
            f"{dataset.dataset_id}: the catalog database holds {table} under the names "
            f"{', '.join(names)}; set catalog_name to one of them"
        )
    return names[0]


def _check_sqlite_file(dataset: Dataset, uri: str) -> None:
    found = _SQLITE_FILE.fullmatch(uri)
    if found and found["path"] != ":memory:" and not Path(found["path"]).is_file():
        raise ConfigError(f"{dataset.dataset_id}: catalog {uri} does not exist")


def _tag_name(label: str) -> str:
    return label if label.startswith(_TAG_PREFIX) else _TAG_PREFIX + label


def _without_password(text: str) -> str:
    return _PASSWORD.sub(r"\1***@", text)
