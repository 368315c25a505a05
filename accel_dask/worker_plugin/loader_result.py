"""What a loader process answers; read by `load.py` without importing the engine."""

from __future__ import annotations

from dataclasses import dataclass

from accel_dask.model.load_plan import ShardManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderError:
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderResult:
    """The loader's one line on standard output: one of the two."""

    ok: ShardManifest | None = None
    error: LoaderError | None = None
