"""Engines that speak MySQL's protocol: MariaDB, MySQL, StarRocks, Doris. Rows are Python values
on their way, about 20,000 a second, so answers should be small."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa

from accel_dask.connectors.olap.base import RunLimits
from accel_dask.connectors.olap.conform import conform_rows
from accel_dask.connectors.olap.pool import Pool
from accel_dask.connectors.olap.settings import EngineSettings
from accel_dask.connectors.olap.streams import LimitedStream
from accel_dask.errors import AccelError, ConfigError, EngineFailed, EngineUnavailable

log = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 5
_KILL_SECONDS: Final = 1
_METADATA_SECONDS: Final = 10.0
_BATCH_ROWS: Final = 1000
_GONE: Final = frozenset({1040, 1045, 1053, 1158, 1159, 1160, 1161, 1927, 2002, 2003, 2006, 2013})
_SESSION: Final[dict[str, tuple[str, ...]]] = {
    "mariadb": (
        "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'",
        "SET NAMES utf8mb4 COLLATE utf8mb4_nopad_bin",
        "SET SESSION time_zone = '+00:00'",
        "SET SESSION TRANSACTION READ ONLY",
    ),
    "mysql": (
        "SET SESSION sql_mode = 'STRICT_ALL_TABLES'",
        "SET NAMES utf8mb4 COLLATE utf8mb4_0900_bin",
        "SET SESSION time_zone = '+00:00'",
        "SET SESSION TRANSACTION READ ONLY",
    ),
    "starrocks": ("SET time_zone = 'UTC'",),
    "doris": ("SET time_zone = 'UTC'",),
}
"""Makes every session one in which what the dialect writes means what it should."""
_TIMEOUTS: Final[dict[str, Callable[[float], str]]] = {
    "mariadb": lambda seconds: f"SET SESSION max_statement_time = {seconds:.3f}",
    "mysql": lambda seconds: f"SET SESSION max_execution_time = {max(int(seconds * 1000), 1)}",
    "starrocks": lambda seconds: f"SET query_timeout = {max(round(seconds), 1)}",
    "doris": lambda seconds: f"SET query_timeout = {max(round(seconds), 1)}",
}


class MySqlEngine:
    """One engine, in the dialect of which its sessions are set up."""

    describes_by_arrow = False

    def __init__(self, settings: EngineSettings, dialect: str) -> None:
        if dialect not in _SESSION:
            raise ConfigError(
                f"{settings}: it has no dialect {dialect!r}; there are {', '.join(_SESSION)}"
            )
        self._settings: Final = settings
        self._dialect = dialect
        self._pool: Pool[Any] = Pool(
            self._open, _close_quietly, size=settings.pool_size, name=str(settings)
        )

    def _connect(self, seconds: float = _CONNECT_SECONDS) -> Any:
        import pymysql

        settings = self._settings
        context = None
        if settings.is_tls:
            context = ssl.create_default_context(cafile=settings.tls_ca_file or None)
        return pymysql.connect(
            host=settings.host,
            port=settings.port,
            user=settings.user,
            password=settings.password(),
            database=settings.database or None,
            charset="utf8mb4",
            connect_timeout=seconds,
            read_timeout=seconds,  # of the greeting too: a stopped server gives none
            write_timeout=seconds,
            autocommit=True,
            ssl=context,
            ssl_disabled=context is None,
            local_infile=False,
        )

    def _open(self) -> Any:
        try:
            connection = self._connect()
        except AccelError:
            raise
        except Exception as error:
            raise EngineUnavailable(f"{self._settings} does not answer: {_told(error)}") from error
        try:
            with connection.cursor() as cursor:
                for statement in _SESSION[self._dialect]:
                    cursor.execute(statement)
        except Exception as error:
            _close_quietly(connection)
            raise self._translated(error) from error
        return connection

    def columns(self, table: Sequence[str], quoted: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG002
        *schema, name = table
        where = "table_schema = %s" if schema else "table_schema = database()"
        sql = (
            "SELECT column_name, column_type FROM information_schema.columns "  # noqa: S608
            f"WHERE {where} AND table_name = %s"
        )
        with self._cursor(_METADATA_SECONDS) as cursor:
            cursor.execute(sql, (*schema[-1:], name))
            return tuple((str(column), str(kind)) for column, kind in cursor.fetchall())

    @contextlib.contextmanager
    def _cursor(self, seconds: float) -> Iterator[Any]:
        connection = self._pool.take(seconds)
        is_good = False
        try:
            with connection.cursor() as cursor:
                self._prepare(connection, cursor, seconds)
                yield cursor
                is_good = True
        except AccelError:
            raise
        except Exception as error:
            raise self._translated(error) from error
        finally:
            self._pool.give(connection, is_good=is_good)

    def _prepare(self, connection: Any, cursor: Any, seconds: float) -> None:
        # A server that has gone silent: the socket's own limit is the last resort.
        connection._read_timeout = seconds + 1  # noqa: SLF001 - it has no other way per statement
        cursor.execute(_TIMEOUTS[self._dialect](seconds))

    def run(self, sql: str, schema: pa.Schema, limits: RunLimits) -> LimitedStream:
        from pymysql.cursors import SSCursor

        connection = self._pool.take(limits.seconds)
        cursor = connection.cursor(SSCursor)

        def release(is_good: bool) -> None:
            if is_good:
                cursor.close()
            elif cursor._result is not None:  # noqa: SLF001 - else it reads the rest when it goes
                cursor._result.unbuffered_active = False  # noqa: SLF001
                cursor._result = None  # noqa: SLF001
            self._pool.give(connection, is_good=is_good)

        def batches() -> Iterator[pa.RecordBatch]:
            with connection.cursor() as plain:
                self._prepare(connection, plain, limits.seconds)
            cursor.execute(sql)
            while rows := cursor.fetchmany(_BATCH_ROWS):
                yield conform_rows(rows, schema)

        return LimitedStream(
            batches(),
            limits,
            engine=str(self._settings),
            translate=self._translated,
            cancel=lambda: self._kill(connection),
            release=release,
        )

    def _kill(self, connection: Any) -> None:
        """Stop the statement at the server; then its socket, so that nobody waits for the end."""
        try:
            other = self._connect(_KILL_SECONDS)
            with other, other.cursor() as cursor:
                cursor.execute(f"KILL QUERY {int(connection.thread_id())}")
        except Exception as error:  # noqa: BLE001 - the closed socket ends it as well, later
            log.info("%s: a query could not be killed: %s", self._settings, _told(error))
        _force_close(connection)

    def _translated(self, error: BaseException) -> AccelError:
        number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        if number in _GONE or isinstance(error, OSError):
            self._pool.drop_idle()
            return EngineUnavailable(f"{self._settings} went away: {_told(error)}")
        return EngineFailed(f"{self._settings} did not answer the query: {_told(error)}")

    def ping(self) -> None:
        with self._cursor(_METADATA_SECONDS) as cursor:
            cursor.execute("SELECT 1")

    def close(self) -> None:
        self._pool.close()


def _force_close(connection: Any) -> None:
    sock = getattr(connection, "_sock", None)
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(2)


def _close_quietly(connection: Any) -> None:
    with contextlib.suppress(Exception):
        connection._force_close()  # noqa: SLF001 - its close() may wait for a server


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
