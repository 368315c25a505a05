"""Which cluster a command is for, and its state store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accel_dask.config import Settings, load_settings
from accel_dask.current import require_current
from accel_dask.store.base import StateStore
from accel_dask.store.connect import open_store


@contextmanager
def cluster_store(config: Path | None) -> Iterator[StateStore]:
    """The state store of the cluster of a settings file; of the local one, if none is given.

    Raises ConfigError: no cluster runs here, or the file cannot be read.
    """
    with open_store(_settings(config).store) as store:
        yield store


def is_local(config: Path | None) -> bool:
    """Whether the cluster that `accel-dask up` started is meant."""
    return config is None and "ACCEL_CONFIG" not in os.environ


def _settings(config: Path | None) -> Settings:
    if is_local(config):
        return load_settings(require_current().config_file)
    return load_settings(config)
