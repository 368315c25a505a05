"""A state store in this process's memory: the twin of etcd for tests and simulations.

One object is shared by everything that would be a client of one etcd cluster.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from accel_dask.errors import (
    CommitConflict,
    LeaseLost,
    StoreError,
    StoreUnavailable,
    WatchCompacted,
)
from accel_dask.store.base import (
    Compare,
    CreateRevisionIs,
    DeleteEvent,
    DeleteOp,
    Event,
    KeyValue,
    Listing,
    ModRevisionIs,
    NoneNewerUnder,
    NotNewer,
    PutEvent,
    PutOp,
    Transaction,
    WatchBatch,
)
from accel_dask.store.leases import LEASE_MARGIN, allows, tell
from accel_dask.store.transactions import check_transaction, covers

logger = logging.getLogger(__name__)

_MAX_BATCH_REVISIONS: Final = 1000


class MemoryStore:
    """Implements `StateStore`. With a `clock` of the test's own, leases move only when
    `check_leases` is called; without, a thread looks after them."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or time.monotonic
        self._own_clock = clock is None
        self._changed = threading.Condition(threading.RLock())
        self._items: dict[str, KeyValue] = {}
        self._revision = 1
        self._compacted = 0
        self._history: list[tuple[int, tuple[Event, ...]]] = []
        self._leases: dict[int, MemoryLease] = {}
        self._lease_ids = itertools.count(1)
        self._keeper: threading.Thread | None = None
        self._closed = False

    def read(self, prefix: str = "", *, keys_only: bool = False) -> Listing:
        with self._changed:
            self._check_open()
            items = sorted(
                (item for key, item in self._items.items() if key.startswith(prefix)),
                key=lambda item: item.key,
            )
            if keys_only:
                items = [
                    KeyValue(i.key, b"", i.create_revision, i.mod_revision, i.lease_id)
                    for i in items
                ]
            return Listing(self._revision, tuple(items))

    def get(self, key: str) -> KeyValue | None:
        with self._changed:
            self._check_open()
            return self._items.get(key)

    def commit(self, transaction: Transaction) -> int:
        check_transaction(transaction)
        with self._changed:
            self._check_open()
            for compare in transaction.compares:
                if not self._holds(compare):
                    raise CommitConflict(f"{compare} does not hold; nothing was changed")
            for op in transaction.ops:
                if isinstance(op, PutOp) and op.lease_id and op.lease_id not in self._leases:
                    raise LeaseLost(f"lease {op.lease_id:x} is gone; {op.key} was not written")
            return self._apply(transaction.ops)

    def watch(self, prefix: str, from_revision: int) -> MemoryWatch:
        return MemoryWatch(self, prefix, from_revision)

    def lease(
        self,
        ttl_seconds: float,
        may_renew: Callable[[], bool] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> MemoryLease:
        with self._changed:
            self._check_open()
            lease = MemoryLease(self, next(self._lease_ids), ttl_seconds, may_renew, on_lost)
            self._leases[lease.lease_id] = lease
            if self._own_clock and self._keeper is None:
                self._keeper = threading.Thread(
                    target=self._keep_leases, name="memory-store-leases", daemon=True
                )
                self._keeper.start()
            self._changed.notify_all()
            return lease

    def compact(self, revision: int) -> None:
        with self._changed:
            self._check_open()
            if revision > self._revision:
                raise StoreError(f"revision {revision} is in the future of {self._revision}")
            self._compacted = max(self._compacted, revision)
            kept = bisect.bisect_left(self._history, self._compacted, key=_revision_of)
            del self._history[:kept]
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            leases = tuple(self._leases.values())
        for lease in leases:
            lease.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            keeper = self._keeper
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def check_leases(self) -> None:
        """Renew the leases that are due and may be renewed, end those that have expired."""
        now = self._clock()
        with self._changed:
            leases = tuple(self._leases.values())
        for lease in leases:
            if now >= lease.expires_at:
                self.end_lease(lease)
                lease.report_loss()
            elif now >= lease.renew_at and lease.wants_renewal():
                lease.renew(now)

    def end_lease(self, lease: MemoryLease) -> None:
        """Delete the keys on `lease`, in one revision."""
        with self._changed:
            if self._leases.pop(lease.lease_id, None) is None:
                return
            keys = [k for k, item in self._items.items() if item.lease_id == lease.lease_id]
            self._apply(tuple(DeleteOp(key) for key in keys))

    def events_from(self, watch: MemoryWatch, timeout: float) -> WatchBatch | None:
        """The next batch of `watch`, waiting up to `timeout` seconds for one."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                self._check_open()
                batch = self._batch(watch)
                if batch is not None or watch.closed:
                    return batch
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return None

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def now(self) -> float:
        return self._clock()

    def _batch(self, watch: MemoryWatch) -> WatchBatch | None:
        if watch.from_revision <= self._compacted:
            raise WatchCompacted(
                f"revision {watch.from_revision} is compacted (up to {self._compacted})",
                self._compacted,
            )
        first = bisect.bisect_left(self._history, watch.from_revision, key=_revision_of)
        events: list[Event] = []
        revisions = 0
        for revision, of_revision in itertools.islice(self._history, first, None):
            found = [event for event in of_revision if _key(event).startswith(watch.prefix)]
            watch.from_revision = revision + 1
            if found:
                events += found
                revisions += 1
            if revisions >= _MAX_BATCH_REVISIONS:
                break
        if not events:
            return None
        last = events[-1]
        revision = last.mod_revision if isinstance(last, DeleteEvent) else last.item.mod_revision
        return WatchBatch(revision, tuple(events))

    def _holds(self, compare: Compare) -> bool:
        match compare:
            case ModRevisionIs(key, expected):
                item = self._items.get(key)
                return (item.mod_revision if item else 0) == expected
            case CreateRevisionIs(key, expected):
                item = self._items.get(key)
                return (item.create_revision if item else 0) == expected
            case NotNewer(key, revision):
                item = self._items.get(key)
                return item is None or item.mod_revision <= revision
            case NoneNewerUnder(prefix, revision):
                return all(
                    item.mod_revision <= revision
                    for key, item in self._items.items()
                    if key.startswith(prefix)
                )

    def _apply(self, ops: tuple[PutOp | DeleteOp, ...]) -> int:
        revision = self._revision + 1
        events: list[Event] = []
        for op in ops:
            if isinstance(op, PutOp):
                before = self._items.get(op.key)
                created = before.create_revision if before else revision
                item = KeyValue(op.key, op.value, created, revision, op.lease_id)
                self._items[op.key] = item
                events.append(PutEvent(item))
            else:
                gone = sorted(key for key in self._items if covers(op, key))
                for key in gone:
                    del self._items[key]
                    events.append(DeleteEvent(key, revision))
        if events:
            self._revision = revision
            self._history.append((revision, tuple(events)))
            self._changed.notify_all()
        return self._revision

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("this store is closed")

    def _keep_leases(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                due = min((lease.next_check() for lease in self._leases.values()), default=None)
                wait = 60.0 if due is None else due - self._clock()
                if wait > 0:
                    self._changed.wait(wait)
            self.check_leases()


@dataclass(eq=False)
class MemoryWatch:
    """Implements `Watch`."""

    store: MemoryStore
    prefix: str
    from_revision: int
    closed: bool = False

    def next(self, timeout: float) -> WatchBatch | None:
        return None if self.closed else self.store.events_from(self, timeout)

    def last_contact(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self.closed = True
        self.store.wake()


class MemoryLease:
    """Implements `Lease`."""

    def __init__(
        self,
        store: MemoryStore,
        lease_id: int,
        ttl_seconds: float,
        may_renew: Callable[[], bool] | None,
        on_lost: Callable[[], None] | None,
    ) -> None:
        self._store = store
        self._id = lease_id
        self._ttl = ttl_seconds
        self._may_renew = may_renew
        self._on_lost = on_lost
        self._lost = False
        self._closed = False
        self.renew(store.now())

    @property
    def lease_id(self) -> int:
        return self._id

    def valid_until(self) -> float:
        return self.renewed_at + self._ttl * (1 - LEASE_MARGIN)

    def is_lost(self) -> bool:
        return self._lost

    def is_unanswered(self) -> bool:
        return False

    def close(self) -> None:
        self._closed = True
        self._store.end_lease(self)
        self._lost = True

    def renew(self, now: float) -> None:
        self.renewed_at = now
        self.renew_at = now + self._ttl / 3
        self.expires_at = now + self._ttl

    def wants_renewal(self) -> bool:
        """Whether the watchdog lets the lease live; asked again soon if not."""
        if allows(self._may_renew):
            return True
        self.renew_at = self._store.now() + self._ttl / 10
        return False

    def next_check(self) -> float:
        return min(self.renew_at, self.expires_at)

    def report_loss(self) -> None:
        if self._lost:
            return
        self._lost = True
        if not self._closed:
            tell(self._on_lost)


def _revision_of(entry: tuple[int, tuple[Event, ...]]) -> int:
    return entry[0]


def _key(event: Event) -> str:
    return event.item.key if isinstance(event, PutEvent) else event.key
