"""The campaign for leadership among masters, and the fencing token that its winner holds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from accel_dask.codec import encode
from accel_dask.errors import AccelError, CommitConflict, OutcomeUnknown, WatchCompacted
from accel_dask.model.ids import Revision
from accel_dask.model.member import LEADER_PATH, META_PATH, ClusterMeta, FencingToken, Leader
from accel_dask.store.base import (
    CreateRevisionIs,
    Lease,
    PutEvent,
    PutOp,
    StateStore,
    Transaction,
    Watch,
)
from accel_dask.store.keys import key_of
from accel_dask.store.leases import allows
from accel_dask.store.records import get_record

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 0.5


class Campaign:
    """Runs for leadership for ever: leads while its lease lives, else waits for its turn.

    Callbacks come from the campaign's thread. `may_renew` ties leadership to the progress of
    the master's loop: once it says no for `ttl_seconds`, somebody else is elected.
    """

    def __init__(
        self,
        store: StateStore,
        make_leader: Callable[[], Leader],
        ttl_seconds: float,
        may_renew: Callable[[], bool] | None = None,
        on_elected: Callable[[FencingToken], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._make_leader = make_leader
        self._ttl = ttl_seconds
        self._may_renew = may_renew
        self._on_elected = on_elected
        self._on_lost = on_lost
        self._key = key_of(LEADER_PATH)
        self._won: tuple[FencingToken, Lease] | None = None
        self._lease: Lease | None = None
        self._closing = threading.Event()
        self._resigning = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader-campaign", daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def token(self) -> FencingToken | None:
        """Ours, while we were elected and the lease certainly lives; else None."""
        won = self._won
        if won is None:
            return None
        token, lease = won
        if lease.is_lost() or time.monotonic() >= lease.valid_until():
            return None
        return token

    def resign(self) -> None:
        """Give up leadership, if we have it, and let the others run first for a while."""
        self._resigning.set()

    def close(self) -> None:
        """Stop running; leadership, if we have it, ends now."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(10)

    def __enter__(self) -> Self:
        return self if self._thread.is_alive() else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._one_term()
            except AccelError as error:
                logger.warning("the campaign for leadership begins again: %s", error)
                self._closing.wait(_RETRY_SECONDS)
            except Exception:  # a cluster without a leader is worse than one more try
                logger.exception("the campaign for leadership begins again")
                self._closing.wait(_RETRY_SECONDS)
            finally:
                self._end_term()
            if self._resigning.is_set():
                self._closing.wait(self._ttl)
                self._resigning.clear()

    def _one_term(self) -> None:
        """Wait until nobody leads, run, and lead until it is over."""
        listing = self._store.read(self._key)
        leader = next((item for item in listing.items if item.key == self._key), None)
        if leader is not None:
            self._follow(leader.create_revision, listing.revision + 1)
            return
        if not allows(self._may_renew):
            self._closing.wait(_RETRY_SECONDS)
            return
        meta = get_record(self._store, META_PATH)
        if meta is None or not isinstance(meta.record, ClusterMeta):
            logger.info("no election yet: the cluster has no meta record")
            self._closing.wait(_RETRY_SECONDS)
            return
        self._lease = lease = self._store.lease(self._ttl, self._may_renew)
        create_revision = self._run_for(lease)
        if create_revision:
            token = FencingToken(meta.record.incarnation, Revision(create_revision))
            self._won = (token, lease)
            logger.info("elected, with fencing token %s", token)
            self._call(self._on_elected, token)
            self._follow(create_revision, create_revision + 1)

    def _run_for(self, lease: Lease) -> int:
        """The create revision of our leader record; 0 if somebody else was elected."""
        record = encode(self._make_leader())
        transaction = Transaction(
            compares=(CreateRevisionIs(self._key, 0),),
            ops=(PutOp(self._key, record, lease.lease_id),),
        )
        try:
            return self._store.commit(transaction)
        except CommitConflict:
            return 0
        except OutcomeUnknown:
            found = self._store.get(self._key)
            return found.create_revision if found and found.lease_id == lease.lease_id else 0

    def _follow(self, create_revision: int, from_revision: int) -> None:
        """Return when the leader record created at `create_revision` is gone, or, if it is
        ours, when our term is over."""
        watch = self._store.watch(self._key, from_revision)
        try:
            while not self._closing.is_set() and not self._term_is_over():
                if self._is_gone(watch, create_revision):
                    return
        except WatchCompacted:
            logger.debug("looking at the leader record again: the watch was compacted")
            found = self._store.get(self._key)
            if found is not None and found.create_revision == create_revision:
                self._follow(create_revision, found.mod_revision + 1)
        finally:
            watch.close()

    def _is_gone(self, watch: Watch, create_revision: int) -> bool:
        batch = watch.next(min(_POLL_SECONDS, self._ttl / 10))
        for event in batch.events if batch else ():
            if isinstance(event, PutEvent):
                if event.item.key == self._key and event.item.create_revision != create_revision:
                    return True
            elif event.key == self._key:
                return True
        return False

    def _term_is_over(self) -> bool:
        if self._won is None:
            return False
        return self._resigning.is_set() or self._won[1].is_lost()

    def _end_term(self) -> None:
        won, self._won = self._won, None
        lease, self._lease = self._lease, None
        if won is not None:
            logger.warning("no longer leader (fencing token %s)", won[0])
            self._call(self._on_lost)
        if lease is not None:
            lease.close()

    def _call(self, callback: Callable[..., None] | None, *values: object) -> None:
        try:
            if callback is not None:
                callback(*values)
        except Exception:  # the campaign must outlive a fault of its listener
            logger.exception("a listener failed on a change of leadership")
