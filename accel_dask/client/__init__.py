"""A lazy, pandas-like client: `connect()`, then frames that compile to one bounded query each."""

from __future__ import annotations

from accel_dask.client.frame import DataFrame
from accel_dask.client.groupby import Grouper, NamedAgg
from accel_dask.client.options import Fallback, Options
from accel_dask.client.provenance import Provenance
from accel_dask.client.series import Series
from accel_dask.client.session import Session, connect

__all__ = [
    "DataFrame",
    "Fallback",
    "Grouper",
    "NamedAgg",
    "Options",
    "Provenance",
    "Series",
    "Session",
    "connect",
]
