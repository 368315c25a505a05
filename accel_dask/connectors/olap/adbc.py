"""Engines spoken to by ADBC: any with Arrow Flight SQL, and PostgreSQL."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from accel_dask.connectors.olap.base import RunLimits
from accel_dask.connectors.olap.conform import conform_batch
from accel_dask.connectors.olap.pool import Pool
from accel_dask.connectors.olap.settings import EngineSettings
from accel_dask.connectors.olap.streams import LimitedStream
from accel_dask.errors import AccelError, EngineFailed, EngineUnavailable

log = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 5.0
_METADATA_SECONDS: Final = 10.0
_GONE: Final = (
    "unavailable", "connection refused", "connection reset", "could not connect", "no connection",
    "server closed the connection", "terminating connection", "broken pipe", "eof", "shutting down",
    "the database system is", "io:", "connection", "unauthenticated",
)  # fmt: skip

_BROKEN: Final = "driver is in unknown state"
"""Said by a driver in Go after a panic, as some nonsense on the wire gives; it never recovers."""


class AdbcEngine:
    """Common to both: a pool of DBAPI connections, and answers streamed from a cursor."""

    describes_by_arrow = True

    def __init__(self, settings: EngineSettings) -> None:
        self._settings: Final = settings
        self._pool: Pool[Any] = Pool(
            self._open, _close_quietly, size=settings.pool_size, name=str(settings)
        )

    def _connect(self) -> Any:
        raise NotImplementedError

    def _prepare(self, cursor: Any, seconds: float) -> None:
        """Tell the driver or server how long the next statement may take."""
        raise NotImplementedError

    def _open(self) -> Any:
        try:
            return self._connect()
        except AccelError:
            raise
        except Exception as error:
            raise EngineUnavailable(f"{self._settings} does not answer: {_told(error)}") from error

    def columns(self, table: Sequence[str], quoted: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG002
        schema = self._schema_of(f"SELECT * FROM {quoted} LIMIT 0")  # noqa: S608 - quoted
        return tuple((field.name, str(field.type)) for field in schema)

    def _schema_of(self, sql: str) -> pa.Schema:
        with self._cursor(_METADATA_SECONDS) as cursor:
            cursor.execute(sql)
            return cursor.fetch_arrow_table().schema

    @contextlib.contextmanager
    def _cursor(self, seconds: float) -> Iterator[Any]:
        connection = self._pool.take(seconds)
        is_good = False
        try:
            cursor = connection.cursor()
            try:
                self._prepare(cursor, seconds)
                yield cursor
                is_good = True
            finally:
                _close_quietly(cursor)
        except AccelError:
            raise
        except Exception as error:
            raise self._translated(error) from error
        finally:
            self._pool.give(connection, is_good=is_good)

    def run(self, sql: str, schema: pa.Schema, limits: RunLimits) -> LimitedStream:
        connection = self._pool.take(limits.seconds)
        try:
            cursor = connection.cursor()
        except Exception as error:
            self._pool.give(connection, is_good=False)
            raise self._translated(error) from error

        def release(is_good: bool) -> None:
            _close_quietly(cursor)
            self._pool.give(connection, is_good=is_good)

        def batches() -> Iterator[pa.RecordBatch]:
            # The driver asks when the first batch is wanted, so that a cancel reaches it.
            self._prepare(cursor, limits.seconds)
            cursor.execute(sql)
            for batch in cursor.fetch_record_batch():
                yield conform_batch(batch, schema)

        return LimitedStream(
            batches(),
            limits,
            engine=str(self._settings),
            translate=self._translated,
            cancel=lambda: _cancel(cursor),
            release=release,
        )

    def _translated(self, error: BaseException) -> AccelError:
        told = _told(error)
        if any(word in told.lower() for word in _GONE):
            self._pool.drop_idle()
            return EngineUnavailable(f"{self._settings} went away: {told}")
        return EngineFailed(f"{self._settings} did not answer the query: {told}")

    def ping(self) -> None:
        with self._cursor(_METADATA_SECONDS) as cursor:
            cursor.execute("SELECT 1")
            cursor.fetch_arrow_table()

    def close(self) -> None:
        self._pool.close()


def _cancel(cursor: Any) -> None:
    try:
        cursor.adbc_cancel()
    except Exception as error:  # noqa: BLE001 - it may have ended by itself meanwhile
        log.info("a query could not be cancelled: %s", _told(error))


def _close_quietly(thing: Any) -> None:
    try:
        thing.close()
    except Exception as error:  # noqa: BLE001 - of a connection that is given up anyway
        log.debug("closing a connection: %s", _told(error))


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if _BROKEN in text:
        log.critical("a driver broke, for all engines of its kind in this process: %s", text)
        return f"its driver broke in this process; restart the gateway ({text[:200]})"
    return text[:400] or type(error).__name__


class FlightSqlEngine(AdbcEngine):
    """Any engine with Arrow Flight SQL: Sail, StarRocks >= 3.5, Dremio, Doris."""

    def _connect(self) -> Any:
        from adbc_driver_flightsql import DatabaseOptions, dbapi

        settings = self._settings
        options = {
            "adbc.flight.sql.rpc.timeout_seconds.connect": str(_CONNECT_SECONDS),
            DatabaseOptions.WITH_MAX_MSG_SIZE.value: str(64 * 1024 * 1024),
        }
        if settings.user:
            options |= {"username": settings.user, "password": settings.password()}
        if settings.tls_ca_file:
            ca = Path(settings.tls_ca_file).read_text(encoding="utf-8")
            options[DatabaseOptions.TLS_ROOT_CERTS.value] = ca
        scheme = "grpc+tls" if settings.is_tls else "grpc"
        uri = f"{scheme}://{settings.host}:{settings.port}"
        return dbapi.connect(uri, db_kwargs=options, autocommit=True)

    def _prepare(self, cursor: Any, seconds: float) -> None:
        from adbc_driver_flightsql import StatementOptions

        cursor.adbc_statement.set_options(
            **{
                StatementOptions.TIMEOUT_QUERY.value: f"{seconds:.3f}",
                StatementOptions.TIMEOUT_FETCH.value: f"{seconds:.3f}",
                StatementOptions.TIMEOUT_UPDATE.value: f"{seconds:.3f}",  # of preparing too
            }
        )


class PostgresEngine(AdbcEngine):
    """PostgreSQL. Every connection is read-only and in UTC."""

    describes_by_arrow = False

    def _connect(self) -> Any:
        from adbc_driver_postgresql import dbapi

        connection = dbapi.connect(_conninfo(self._settings), autocommit=True)
        try:
            with connection.cursor() as cursor:
                for statement in (
                    "SET default_transaction_read_only = on",
                    "SET TimeZone = 'UTC'",
                    "SET client_encoding = 'UTF8'",
                    "SET standard_conforming_strings = on",
                    "SET extra_float_digits = 1",
                ):
                    cursor.execute(statement)
        except BaseException:
            _close_quietly(connection)
            raise
        return connection

    def _prepare(self, cursor: Any, seconds: float) -> None:
        cursor.execute(f"SET statement_timeout = {max(int(seconds * 1000), 1)}")

    def columns(self, table: Sequence[str], quoted: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG002
        name = quoted.replace("'", "''")
        sql = (
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod)::text "  # noqa: S608
            f"FROM pg_attribute a WHERE a.attrelid = to_regclass('{name}') "
            "AND a.attnum > 0 AND NOT a.attisdropped"
        )
        with self._cursor(_METADATA_SECONDS) as cursor:
            cursor.execute(sql)
            return tuple((str(name), str(kind)) for name, kind in cursor.fetchall())


def _conninfo(settings: EngineSettings) -> str:
    """libpq's connection string; every value quoted."""
    values = {
        "host": settings.host,
        "port": str(settings.port),
        "dbname": settings.database or "postgres",
        "user": settings.user,
        "password": settings.password(),
        "connect_timeout": str(int(_CONNECT_SECONDS)),
        "application_name": "accel-dask",
        "sslmode": "verify-full" if settings.is_tls else "prefer",
        "sslrootcert": settings.tls_ca_file,
    }
    return " ".join(f"{name}='{_escaped(value)}'" for name, value in values.items() if value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
