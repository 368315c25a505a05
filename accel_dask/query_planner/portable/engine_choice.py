"""Which dialect a dataset's fallback is written in, and where its rows are there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from accel_dask.errors import ConfigError, NotPortable
from accel_dask.model.fallback import FallbackSpec
from accel_dask.model.ids import DatasetId
from accel_dask.query_planner.portable.dialects import dialect_named
from accel_dask.query_planner.portable.write import EngineTable, Writer

DIALECTS_OF: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "flightsql": ("spark", "starrocks", "doris", "dremio"),
        "mysql": ("mariadb", "mysql", "starrocks", "doris"),
        "postgresql": ("postgres",),
    }
)
"""By kind of engine; the first is taken where none is named."""


def writer_of(spec: FallbackSpec, dataset: DatasetId) -> type[Writer]:
    """The writer of the fallback's dialect.

    Raises:
        ConfigError: there is none, or it is not for this kind of engine, or it was never compared
            with a running engine and the operator has not accepted that.
    """
    known = DIALECTS_OF.get(spec.engine, ())
    dialect = spec.option("dialect") or next(iter(known), "")
    writer = dialect_named(dialect)
    if dialect not in known:
        raise ConfigError(
            f"dataset {dataset}: a {spec.engine} engine speaks {', '.join(known)}, not {dialect}"
        )
    if not writer.is_verified and spec.option("unverified_dialect") != "accept":
        raise ConfigError(
            f"dataset {dataset}: the dialect {dialect} is written from its documentation and was "
            "never compared with a running engine; set unverified_dialect=accept to use it"
        )
    return writer


def travels(spec: FallbackSpec, dataset: DatasetId, connector: str, writer: type[Writer]) -> bool:
    """Whether the engine reads the dataset's own table, as of its snapshot.

    Raises:
        ConfigError: it cannot, but is declared to.
    """
    travel = spec.option("time_travel", "never")
    if travel not in {"iceberg", "never"}:
        raise ConfigError(f"dataset {dataset}: time_travel is iceberg or never, not {travel!r}")
    if travel == "iceberg" and not (writer.can_pin and connector == "iceberg"):
        raise ConfigError(
            f"dataset {dataset}: time_travel=iceberg needs an iceberg source and a dialect that "
            f"reads Iceberg snapshots; this is {connector} and {writer.name}"
        )
    return travel == "iceberg"


def engine_table(
    spec: FallbackSpec, dataset: DatasetId, source_table: str, snapshot: str | None, *, pins: bool
) -> EngineTable:
    """
    Raises:
        NotPortable: it is to be read as of a snapshot that is not known.
    """
    if pins and snapshot is None:
        raise NotPortable(f"no snapshot of dataset {dataset} is known yet")
    name = spec.option("table") or source_table or dataset.name
    return EngineTable(tuple(name.split(".")), snapshot if pins else None)
