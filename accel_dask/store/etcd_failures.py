"""What a failed gRPC call to etcd means: was anything changed, may it be sent again?"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import grpc

from accel_dask.errors import ConfigError, LeaseLost, StoreError, StoreUnavailable, WatchCompacted


class Meaning(StrEnum):
    NOT_DONE = "not done"
    """The member did not take it; another one may."""
    UNKNOWN = "unknown"
    """It was sent and may be in place, or may yet come to be."""
    STALE_LOGIN = "stale login"
    """The member did not take it for want of a valid token."""
    REFUSED = "refused"
    """The cluster said no, and would again."""


_NOT_DONE_DETAILS = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "etcdserver: too many requests",
    "raft proposal dropped",
)
_TOKEN_DETAILS = (
    "invalid auth token",
    "revision of auth store is old",
    "auth: revision in header is old",
    "user name is empty",
)


def meaning_of(error: grpc.RpcError) -> Meaning:
    """Classify a failed call. What is not known to be harmless is `UNKNOWN`."""
    code, details = code_of(error), details_of(error)
    if any(text in details for text in _TOKEN_DETAILS) or code is grpc.StatusCode.UNAUTHENTICATED:
        return Meaning.STALE_LOGIN
    if any(text in details for text in _NOT_DONE_DETAILS):
        return Meaning.NOT_DONE
    # The same codes without etcd's own words come from the transport: no word on the outcome.
    if "etcdserver: " in details and code in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ):
        return Meaning.REFUSED
    return Meaning.UNKNOWN


def refusal(error: grpc.RpcError, what: str) -> StoreError | ConfigError:
    """The error to raise for a `REFUSED` call."""
    details = details_of(error)
    if "lease not found" in details:
        return LeaseLost(f"{what}: the lease is gone; nothing was changed")
    if "compacted" in details:
        return WatchCompacted(f"{what}: the revision is compacted")
    if "database space exceeded" in details:
        return StoreUnavailable(
            f"{what}: etcd's database is full (alarm NOSPACE); compact, defragment and disarm, "
            "or raise --quota-backend-bytes; nothing was changed"
        )
    if "too many operations" in details:
        return StoreError(f"{what}: start the members of etcd with --max-txn-ops=512 ({details})")
    if code_of(error) is grpc.StatusCode.PERMISSION_DENIED or "authentication failed" in details:
        return ConfigError(f"{what}: etcd refuses the configured user: {details}")
    return StoreError(f"{what}: etcd refused it: {details}")


def code_of(error: grpc.RpcError) -> Any:
    return error.code() if isinstance(error, grpc.Call) else None


def details_of(error: grpc.RpcError) -> str:
    return (error.details() or "") if isinstance(error, grpc.Call) else str(error)


def describe(error: grpc.RpcError) -> str:
    """One line for a log or an error's text."""
    code = code_of(error)
    return f"{code.name if code else type(error).__name__}: {details_of(error)[:300]}"
