"""PostgreSQL (Debian `postgresql`): texts compared by an ICU locale, as many real ones do."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

from accel_dask.connectors.olap.servers.processes import NotInstalled, ServerProcess, program

_HOW = "apt-get install --no-install-recommends postgresql"


class PostgresServer:
    """A running PostgreSQL whose user `accel` needs no password."""

    kind = "postgresql"
    dialect = "postgres"

    def __init__(self) -> None:
        """
        Raises:
            NotInstalled: it is not.
            EngineUnavailable: it does not start.
        """
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        server = program("postgres", *map(str, versions), how=_HOW)
        initdb = str(Path(server).resolve().parent / "initdb")
        self.process = process = ServerProcess("postgresql", owner=_owner())
        data = process.directory / "data"
        process.initialise(
            [
                initdb,
                f"--pgdata={data}",
                "--username=accel",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--locale-provider=icu",
                "--icu-locale=en-US",
                "--no-sync",
            ]
        )
        self.uri = f"postgresql://127.0.0.1:{process.port}/postgres"
        argv = [
            server,
            "-D",
            str(data),
            "-p",
            str(process.port),
            "-h",
            "127.0.0.1",
            "-k",
            str(process.directory),
            "-F",
        ]
        process.start(argv, self._is_ready)

    def connect(self) -> Any:
        from adbc_driver_postgresql import dbapi

        uri = f"postgresql://accel@127.0.0.1:{self.process.port}/postgres?connect_timeout=5"
        return dbapi.connect(uri, autocommit=True)

    def _is_ready(self) -> bool:
        self.execute("SELECT 1")
        return True

    def execute(self, *statements: str) -> None:
        with self.connect() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def load(self, table: str, rows: Any) -> None:
        """Create a table with the rows and types of an Arrow table."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.adbc_ingest(table, rows, mode="replace")

    def close(self) -> None:
        self.process.stop()


def _owner() -> int | None:
    """PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_uid
    except KeyError:
        raise NotInstalled(f"there is no user postgres on this machine; {_HOW}") from None
