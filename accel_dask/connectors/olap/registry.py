"""From a dataset's fallback to the engine that it names."""

from __future__ import annotations

from accel_dask.connectors.olap.base import OlapEngine
from accel_dask.connectors.olap.settings import EngineSettings
from accel_dask.errors import ConfigError


def open_engine(settings: EngineSettings, dialect: str) -> OlapEngine:
    """The engine; it connects when it is first asked. Close it.

    Raises:
        ConfigError: the dialect is none of this kind, or a package is not installed.
    """
    try:
        if settings.kind == "mysql":
            import pymysql  # noqa: F401 - told now, not at the first query

            from accel_dask.connectors.olap.mysql import MySqlEngine

            return MySqlEngine(settings, dialect)
        from accel_dask.connectors.olap.adbc import FlightSqlEngine, PostgresEngine

        if settings.kind == "postgresql":
            import adbc_driver_postgresql  # noqa: F401

            return PostgresEngine(settings)
    except ImportError as error:
        raise ConfigError(
            f"{settings} needs {error.name}; pip install 'accel-dask[olap]'"
        ) from error
    return FlightSqlEngine(settings)
