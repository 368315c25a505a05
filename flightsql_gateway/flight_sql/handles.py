"""Tickets and prepared-statement handles: signed and self-contained, so that any gateway can
redeem any of them and none has to be remembered or closed."""

from __future__ import annotations

from dataclasses import dataclass

from accel_dask.codec import decode, encode
from accel_dask.errors import InvalidQuery, InvariantViolated, Unauthenticated
from accel_dask.model.ids import TenantId
from accel_dask.model.ticket import sign, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementHandle:
    """A statement, and the values bound to it."""

    version: int = 1
    tenant: TenantId
    sql: str
    parameters: bytes = b""
    """Arrow IPC stream with one row."""
    parameter_count: int = 0


def issue(handle: StatementHandle, key: bytes) -> bytes:
    """`handle` in the form that clients hold."""
    return sign(encode(handle), key)


def redeem(data: bytes, tenant: TenantId, key: bytes) -> StatementHandle:
    """The handle that `data` is, for a user of `tenant`.

    Raises:
        InvalidQuery: it is none of ours, or another tenant's.
    """
    try:
        handle = decode(verify(data, key), StatementHandle)
    except (InvariantViolated, Unauthenticated) as error:
        raise InvalidQuery("the statement handle is not one of this cluster's") from error
    if handle.tenant != tenant:
        raise InvalidQuery("the statement handle is not one of this cluster's")
    return handle
