"""The state store that the settings name."""

from __future__ import annotations

from accel_dask.config import StoreSettings
from accel_dask.store.base import StateStore
from accel_dask.store.etcd import EtcdStore


def open_store(settings: StoreSettings) -> StateStore:
    """Connected at its first use. Open it in the process that uses it, after any fork."""
    return EtcdStore(settings)
