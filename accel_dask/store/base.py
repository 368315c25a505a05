"""What a state store must do; `etcd.py` and `memory.py` do it, one contract suite tests both.

Stores speak bytes and string keys below the cluster's prefix. `records.py` puts typed records
and commits on top, `mirror.py` a watch-fed view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

MAX_TRANSACTION_OPS: Final = 512
"""Compares, and operations, of one transaction. Our own etcd members are started with it;
an external cluster needs `--max-txn-ops=512` (etcd's default is 128)."""
MAX_REQUEST_BYTES: Final = 1_500_000
"""Keys and values of one transaction; etcd's own limit is 1.5 MiB."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key with its value and revisions. `key` has no cluster prefix."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys under a prefix at one revision, in key order."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class PutEvent:
    item: KeyValue


@dataclass(frozen=True, slots=True)
class DeleteEvent:
    key: str
    mod_revision: int


Event = PutEvent | DeleteEvent


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All events of one or more whole revisions, in order. Never half a revision.

    Without events it is progress: nothing up to `revision` is still to come.
    """

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class ModRevisionIs:
    """The key was last written at `mod_revision`; 0: it does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class CreateRevisionIs:
    """The key was created at `create_revision`; 0: it does not exist."""

    key: str
    create_revision: int


@dataclass(frozen=True, slots=True)
class NoneNewerUnder:
    """No key under `prefix` has a mod revision above `revision` (blind to deletions)."""

    prefix: str
    revision: int


@dataclass(frozen=True, slots=True)
class NotNewer:
    """The key has no mod revision above `revision`; it may be absent."""

    key: str
    revision: int


Compare = ModRevisionIs | CreateRevisionIs | NoneNewerUnder | NotNewer


@dataclass(frozen=True, slots=True)
class PutOp:
    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class DeleteOp:
    """Delete one key, or with `prefix` all keys that begin with it."""

    key: str
    prefix: bool = False


Op = PutOp | DeleteOp


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """`ops` all at once if every compare holds, else nothing."""

    compares: tuple[Compare, ...] = ()
    ops: tuple[Op, ...]
    idempotent: bool = False
    """The same transaction may be applied twice without harm, so that a lost answer may be
    retried; otherwise a lost answer raises `OutcomeUnknown`."""


class Lease(Protocol):
    """A lease that renews itself until closed, on a thread of the store."""

    @property
    def lease_id(self) -> int: ...

    def valid_until(self) -> float:
        """Monotonic seconds until which the lease certainly lives: the send time of its last
        successful renewal plus its time to live, less a margin."""

    def is_lost(self) -> bool:
        """True once the store said that the lease is gone. Final."""

    def is_unanswered(self) -> bool:
        """True if the store has left two attempts in a row to renew it without an answer. One
        could be this process's own fault: it may have been stopped meanwhile."""

    def close(self) -> None:
        """Stop renewing and revoke: keys on it vanish now."""


class Watch(Protocol):
    """A stream of batches without gap or duplicate, over reconnects and member losses."""

    def next(self, timeout: float) -> WatchBatch | None:
        """The next batch; None when there was none within `timeout` seconds.

        Raises:
            WatchCompacted: revisions not yet delivered are no longer kept.
            StoreMismatch: another cluster, or a history that went back, answered.
        """

    def last_contact(self) -> float:
        """Monotonic seconds of the last sign of life from the store."""

    def close(self) -> None: ...


class StateStore(Protocol):
    """Safe to use from several threads. Not to be used across a fork.

    Every method may raise `StoreUnavailable` (nothing was changed) and `StoreMismatch`.
    """

    def read(self, prefix: str = "", *, keys_only: bool = False) -> Listing:
        """Everything under `prefix` at one (linearizable) revision; with `keys_only` the
        values are empty."""

    def get(self, key: str) -> KeyValue | None:
        """One key, linearizable."""

    def commit(self, transaction: Transaction) -> int:
        """Apply `transaction`; the revision at which it was applied.

        Raises:
            CommitConflict: a compare did not hold; nothing was changed.
            OutcomeUnknown: the answer was lost; the caller must read to find out.
            LeaseLost: an operation names a lease that is gone; nothing was changed.
            StoreError: it writes a key twice or exceeds a limit; nothing was changed.
        """

    def watch(self, prefix: str, from_revision: int) -> Watch:
        """Events under `prefix` from `from_revision` (>= 1) on, that revision included.

        A compaction at or above the next revision to deliver ends it with `WatchCompacted`.
        """

    def lease(
        self,
        ttl_seconds: float,
        may_renew: Callable[[], bool] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> Lease:
        """A new lease, renewed every third of its life for as long as `may_renew` says so
        (a watchdog: it ties the lease to the progress of the work it guards)."""

    def compact(self, revision: int) -> None:
        """Forget history before `revision`."""

    def close(self) -> None:
        """End all watches, leases (revoked) and connections."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
