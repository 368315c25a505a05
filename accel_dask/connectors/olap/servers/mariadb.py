"""MariaDB (Debian `mariadb-server-core`): the MySQL wire, with texts compared without case."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from accel_dask.connectors.olap.servers.processes import ServerProcess, program

_HOW = "apt-get install --no-install-recommends mariadb-server-core mariadb-client-core"


class MariaDbServer:
    """A running MariaDB with an empty database `accel`, whose user `root` has no password."""

    kind = "mysql"
    dialect = "mariadb"

    def __init__(self, *options: str) -> None:
        """
        Raises:
            NotInstalled: it is not.
            EngineUnavailable: it does not start.
        """
        server = program("mariadbd", how=_HOW)
        install = program("mariadb-install-db", how=_HOW)
        self.process = process = ServerProcess("mariadb")
        data = process.directory / "data"
        user = ["--user=root"] if os.geteuid() == 0 else []
        process.initialise(
            [
                install,
                "--no-defaults",
                *user,
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ]
        )
        self.uri = f"mysql://127.0.0.1:{process.port}/accel"
        argv = [
            server,
            "--no-defaults",
            *user,
            f"--datadir={data}",
            "--bind-address=127.0.0.1",
            f"--port={process.port}",
            f"--socket={process.directory}/socket",
            "--skip-name-resolve",
            # Not ours: what we need must be asked for, not be there by luck.
            "--character-set-server=utf8mb4",
            "--collation-server=utf8mb4_general_ci",
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
            "--max-connections=50",
            *options,
        ]
        process.start(argv, self._is_ready)

    def connect(self, database: str | None = "accel") -> Any:
        import pymysql

        return pymysql.connect(
            host="127.0.0.1", port=self.process.port, user="root", database=database,
            charset="utf8mb4", autocommit=True, connect_timeout=5,
        )  # fmt: skip

    def _is_ready(self) -> bool:
        with self.connect(None) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE IF NOT EXISTS accel")
        return True

    def load(
        self, table: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Any]]
    ) -> None:
        """Create a table and fill it."""
        names = ", ".join(f"`{name}` {kind}" for name, kind in columns)
        marks = ", ".join(["%s"] * len(columns))
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE OR REPLACE TABLE `{table}` ({names})")
            cursor.executemany(f"INSERT INTO `{table}` VALUES ({marks})", list(rows))  # noqa: S608

    def close(self) -> None:
        self.process.stop()
