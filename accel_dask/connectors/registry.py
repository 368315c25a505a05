"""From a dataset's declaration to the connector that reads its source."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, cast

from accel_dask.connectors.base import SnapshotSource
from accel_dask.errors import ConfigError
from accel_dask.model.dataset import Dataset

# Connector: (module, class, pip extra that brings what it imports). Imported when first used.
_CONNECTORS: Final[Mapping[str, tuple[str, str, str]]] = MappingProxyType(
    {
        "iceberg": ("accel_dask.connectors.iceberg", "IcebergSource", "accel-dask"),
        "parquet": ("accel_dask.connectors.parquet", "ParquetSource", "accel-dask"),
    }
)


def open_source(dataset: Dataset) -> SnapshotSource:
    """The source of `dataset`, opened. Close it.

    Raises:
        ConfigError: unknown connector, wrong options, or a package that is not installed.
        SourceUnavailable: the source did not answer.
    """
    connector = dataset.source.connector
    if connector not in _CONNECTORS:
        raise ConfigError(
            f"{dataset.dataset_id}: unknown connector {connector!r}; "
            f"there are {', '.join(sorted(_CONNECTORS))}"
        )
    module_name, class_name, extra = _CONNECTORS[connector]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{dataset.dataset_id}: the {connector} connector needs {error.name}; "
            f"pip install '{extra}'"
        ) from error
    return cast("SnapshotSource", getattr(module, class_name)(dataset))
