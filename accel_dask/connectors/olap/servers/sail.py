"""Sail (PyPI `pysail`): Spark SQL over Arrow Flight SQL, reads Iceberg tables as of a snapshot.

Its one session knows tables by name; `register` gives a name to an Iceberg table's directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from accel_dask.connectors.olap.adbc import FlightSqlEngine
from accel_dask.connectors.olap.servers.processes import ServerProcess, program
from accel_dask.connectors.olap.settings import EngineSettings


class SailServer:
    """A running `sail flight server`."""

    kind = "flightsql"
    dialect = "spark"

    def __init__(self) -> None:
        """
        Raises:
            NotInstalled: pysail is not.
            EngineUnavailable: it does not start.
        """
        beside = str(Path(sys.executable).parent)
        sail = program("sail", beside, how="pip install 'accel-dask[test]' brings pysail")
        self.process = ServerProcess("sail")
        self.uri = f"grpc://127.0.0.1:{self.process.port}"
        self._engine = FlightSqlEngine(EngineSettings(kind=self.kind, uri=self.uri))
        argv = [sail, "flight", "server", "--ip", "127.0.0.1", "--port", str(self.process.port)]
        self.process.start(argv, self._is_ready)

    def _is_ready(self) -> bool:
        self._engine.ping()
        return True

    def execute(self, sql: str) -> None:
        with self._engine._cursor(30.0) as cursor:  # noqa: SLF001 - a tool of the same package
            cursor.execute(sql)
            cursor.fetch_arrow_table()

    def register(self, name: str, location: str) -> None:
        """Make the Iceberg table at `location` known as `name`."""
        where = location.replace("'", "\\'")
        self.execute(f"CREATE TABLE `{name}` USING iceberg LOCATION '{where}'")

    def close(self) -> None:
        self._engine.close()
        self.process.stop()
