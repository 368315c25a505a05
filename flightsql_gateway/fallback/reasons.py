"""Which errors are a reason to ask the engine. Pure."""

from __future__ import annotations

from accel_dask.errors import (
    AccelError,
    LimitExceeded,
    NotResident,
    ResourceExhausted,
    RoutingError,
)
from accel_dask.model.fallback import FallbackReason


def reason_of(error: AccelError) -> FallbackReason | None:
    """None: the engine could not do better, or must not."""
    if isinstance(error, NotResident):
        return FallbackReason.MISS
    if not error.falls_back and not isinstance(error, RoutingError):
        return None
    if isinstance(error, ResourceExhausted):
        return FallbackReason.OVERLOAD
    if isinstance(error, LimitExceeded):
        return FallbackReason.BREACH
    return FallbackReason.ERROR if isinstance(error, RoutingError) else None
