"""The one error tree; every part of accel-dask raises these and nothing else.

AccelError
├─ ConfigError
├─ StoreError               StoreUnavailable · OutcomeUnknown · CommitConflict ·
│                           WatchCompacted · LeaseLost · StoreMismatch · WaitTimedOut
├─ IllegalTransition · InvariantViolated
├─ LoadError                SourceUnavailable · SnapshotGone · NotAcceleratable ·
│                           SchemaUnsupported · ValidationFailed · ShardDamaged ·
│                           LoaderCrashed
├─ AdmissionError           QuotaExceeded · ResourceExhausted
├─ AuthError                Unauthenticated
├─ QueryError               InvalidQuery · UnknownTable · UnsupportedQuery ·
│                           ReadOnly
│  └─ LimitExceeded         RowLimit · ByteLimit · ScanLimit · CpuLimit · MemoryLimit ·
│                           DeadlineExceeded · TextLimit
├─ RoutingError             NotResident · StaleEpoch · EpochRetired ·
│                           ExecutorUnavailable · ColdReadFailed
├─ FallbackError            NotPortable · EngineUnavailable · EngineFailed ·
│                           EngineDisagrees
├─ QueryCancelled
└─ ClientError              UnsupportedOperation · OrderRequired · AlignmentError ·
                            UnknownColumn · ResultTooLarge · SchemaChanged ·
                            FallbackForbidden

Two attributes say what a caller may do: `retryable` (the same request may succeed
when it is sent again) and `falls_back` (another engine may answer it). `code` is the
stable, machine-readable name that clients see.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

_RETRY_AFTER: Final = re.compile(r"retry after (\d+) ms")


class AccelError(Exception):
    """Base of everything that accel-dask raises on purpose."""

    retryable: ClassVar[bool] = False
    falls_back: ClassVar[bool] = False
    code: ClassVar[str] = "ACCEL_ERROR"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()


class ConfigError(AccelError):
    """A setting is missing, malformed or contradicts another."""


class StoreError(AccelError):
    """The state store could not do what was asked."""


class StoreUnavailable(StoreError):
    """No member of the store answered in time; nothing was changed."""

    retryable = True


class OutcomeUnknown(StoreError):
    """A write was sent but its answer was lost: it may or may not be in place."""


class CommitConflict(StoreError):
    """A requirement of the commit did not hold; nothing was changed."""

    retryable = True


class WatchCompacted(StoreError):
    """The revision asked for is no longer kept; read afresh and watch from there."""

    retryable = True

    def __init__(self, message: str, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class LeaseLost(StoreError):
    """The lease expired or was revoked; whatever it guarded is no longer ours."""


class StoreMismatch(StoreError):
    """The store that answered is another cluster, or one whose history went back."""


class WaitTimedOut(StoreError):
    """What was waited for did not come to be in the cluster's records in time."""


class IllegalTransition(AccelError):
    """A record was asked to move to a state that its own does not lead to."""


class InvariantViolated(AccelError):
    """The cluster's records contradict each other: a bug, never a user's fault."""


class LoadError(AccelError):
    """A snapshot could not become an epoch."""


class SourceUnavailable(LoadError):
    """The source did not answer; it may later."""

    retryable = True


class SnapshotGone(LoadError):
    """The snapshot, or a file of it, is no longer at the source."""


class NotAcceleratable(LoadError):
    """The snapshot uses a feature that we would not read right, so we refuse it."""


class SchemaUnsupported(LoadError):
    """The engine cannot hold a column of this type, or the declared column is absent."""


class ValidationFailed(LoadError):
    """What was loaded is not what the source's statistics say is there."""


class ShardDamaged(LoadError):
    """A shard file is not the one that its manifest describes."""

    retryable = True


class LoaderCrashed(LoadError):
    """The loader process ended without a result."""

    retryable = True


class AdmissionError(AccelError):
    """The tenant's quota does not admit it."""


class QuotaExceeded(AdmissionError):
    """More memory than the tenant's or the host's budget holds."""


class ResourceExhausted(AdmissionError):
    """More was asked at once than there are places for; what all overload is refused with."""

    retryable = True
    falls_back = True

    @property
    def retry_after_ms(self) -> int:
        """When to come back, as its message says; 0: it does not."""
        found = _RETRY_AFTER.search(str(self))
        return int(found[1]) if found else 0


class AuthError(AccelError):
    """Who is asking is not known."""


class Unauthenticated(AuthError):
    """No token, or one that is wrong or has expired."""


class QueryError(AccelError):
    """The query itself cannot be answered as it stands."""


class InvalidQuery(QueryError):
    """The text is not a SQL query that parses and binds."""


class UnknownTable(QueryError):
    """No dataset of that name for this tenant (or not his: the answer is the same)."""


class UnsupportedQuery(QueryError):
    """A construct, function or statement outside what is served here."""


class ReadOnly(QueryError):
    """The statement would change something; this is a read-only cache."""


class LimitExceeded(QueryError):
    """A bound of the request or of the tenant was reached."""

    falls_back = True


class TextLimit(LimitExceeded):
    """The SQL text, its nesting or its lists are larger than the gate accepts."""

    falls_back = False


class RowLimit(LimitExceeded):
    """The answer has more rows than the tenant's limit."""


class ByteLimit(LimitExceeded):
    """The answer has more bytes than the limit."""


class CpuLimit(LimitExceeded):
    """The query used more CPU time than the limit."""


class ScanLimit(LimitExceeded):
    """The query would read, or move between executors, more than the tenant's limit."""


class MemoryLimit(LimitExceeded):
    """The query needs more memory than the executor's budget."""


class DeadlineExceeded(LimitExceeded):
    """The total time allowed for the query has passed."""


class RoutingError(AccelError):
    """The plan could not be brought to an executor."""


class NotResident(RoutingError):
    """The dataset has no epoch in memory (yet)."""

    falls_back = True


class StaleEpoch(RoutingError):
    """The ticket names an epoch that this executor does not serve (any more)."""

    retryable = True


class EpochRetired(RoutingError):
    """The query is pinned to an epoch that its dataset does not serve (any more)."""


class ExecutorUnavailable(RoutingError):
    """The executor did not answer, or went away before the first batch."""

    retryable = True
    falls_back = True


class ColdReadFailed(RoutingError):
    """A file of the snapshot is gone, was replaced or cannot be read; nothing was answered."""

    retryable = True
    falls_back = True


class FallbackError(AccelError):
    """The engine behind memory could not answer in its place."""


class NotPortable(FallbackError):
    """The engine might answer this query otherwise than we do, so it is not asked."""


class EngineUnavailable(FallbackError):
    """The engine did not answer, or it has failed so often that it is left alone a while."""

    retryable = True


class EngineFailed(FallbackError):
    """The engine refused the query, or failed on it."""


class EngineDisagrees(FallbackError):
    """What the engine says is not what it must say: other types, rows beyond a LIMIT, half an
    answer. It is never shown."""


class QueryCancelled(AccelError):
    """The client went away or cancelled."""


class ClientError(AccelError):
    """A frame of the notebook client cannot do what was asked; nothing was sent."""


class UnsupportedOperation(ClientError, NotImplementedError):
    """It has no bounded SQL. The message says what to write instead."""


class UnsupportedAttribute(UnsupportedOperation, AttributeError):
    """The same of an attribute, so that `hasattr` says that it is not there."""


class OrderRequired(ClientError):
    """The result depends on the order of rows, and the frame has none."""


class AlignmentError(ClientError):
    """Two series are not of the same rows."""


class UnknownColumn(ClientError, KeyError):
    """The frame has no column of that name."""

    __str__ = Exception.__str__  # KeyError's own is the repr


class ResultTooLarge(ClientError):
    """The answer has more rows than the session fetches."""


class SchemaChanged(ClientError):
    """The dataset's columns are no longer those that the frame was made for."""


class FallbackForbidden(ClientError):
    """The answer came from the OLAP engine, which the session forbids."""


def error_class(code: str) -> type[AccelError]:
    """The class of the tree whose `code` this is; `AccelError` for an unknown one."""
    pending: list[type[AccelError]] = [AccelError]
    while pending:
        cls = pending.pop()
        if cls.code == code:
            return cls
        pending.extend(cls.__subclasses__())
    return AccelError
