"""The state store on etcd, by its v3 gRPC API."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from accel_dask.config import StoreSettings
from accel_dask.errors import CommitConflict, OutcomeUnknown, StoreUnavailable, WatchCompacted
from accel_dask.store import etcd_messages as pb
from accel_dask.store.base import (
    Compare,
    CreateRevisionIs,
    KeyValue,
    Listing,
    ModRevisionIs,
    NoneNewerUnder,
    NotNewer,
    Op,
    PutOp,
    Transaction,
)
from accel_dask.store.etcd_channel import Deadlines, EtcdChannel
from accel_dask.store.etcd_lease import EtcdLease
from accel_dask.store.etcd_watch import EtcdWatch, KeySpace
from accel_dask.store.transactions import check_transaction

logger = logging.getLogger(__name__)

_PAGE_KEYS: Final = 500


class EtcdStore:
    """Implements `StateStore`. Connects at the first use."""

    def __init__(self, settings: StoreSettings, deadlines: Deadlines | None = None) -> None:
        self._channel = EtcdChannel(settings, deadlines)
        self._keys = KeySpace(settings.prefix)
        self._lock = threading.Lock()
        self._leases: WeakSet[EtcdLease] = WeakSet()
        self._watches: WeakSet[EtcdWatch] = WeakSet()
        self._closed = False

    def read(self, prefix: str = "", *, keys_only: bool = False) -> Listing:
        while True:
            try:
                return self._read_pages(prefix, keys_only)
            except WatchCompacted:
                logger.info("listing %r again: its revision was compacted between pages", prefix)

    def get(self, key: str) -> KeyValue | None:
        answer = self._channel.read("Range", pb.RangeRequest(key=self._keys.key(key)))
        return self._keys.key_value(answer.kvs[0]) if answer.kvs else None

    def commit(self, transaction: Transaction) -> int:
        check_transaction(transaction)
        request = pb.TxnRequest(
            compare=[self._compare(compare) for compare in transaction.compares],
            success=[self._op(op) for op in transaction.ops],
        )
        answer, repeated = self._channel.write("Txn", request, idempotent=transaction.idempotent)
        if answer.succeeded:
            return int(answer.header.revision)
        compares = ", ".join(map(str, transaction.compares[:5]))
        if repeated:
            # The first attempt may be what made the compare fail.
            raise OutcomeUnknown(
                f"a repeated transaction found that one of these fails: {compares}"
            )
        raise CommitConflict(f"one of these does not hold, nothing was changed: {compares}")

    def watch(self, prefix: str, from_revision: int) -> EtcdWatch:
        with self._lock:
            self._check_open()
            watch = EtcdWatch(self._channel, self._keys, prefix, from_revision)
            self._watches.add(watch)
            return watch

    def lease(
        self,
        ttl_seconds: float,
        may_renew: Callable[[], bool] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> EtcdLease:
        self._check_open()
        lease = EtcdLease(self._channel, ttl_seconds, may_renew, on_lost)
        with self._lock:
            self._leases.add(lease)
        return lease

    def compact(self, revision: int) -> None:
        try:
            self._channel.write("Compact", pb.CompactionRequest(revision=revision), idempotent=True)
        except WatchCompacted:
            logger.debug("revision %d was compacted before", revision)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            watches, leases = tuple(self._watches), tuple(self._leases)
        for watch in watches:
            watch.close()
        for lease in leases:
            lease.stop_renewing()
        reachable = True
        for lease in leases:
            reachable = lease.revoke(send=reachable)
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("this store is closed")

    def _read_pages(self, prefix: str, keys_only: bool) -> Listing:
        first, end = self._keys.span(prefix)
        items: list[KeyValue] = []
        revision = 0
        more = True
        while more:
            request = pb.RangeRequest(
                key=first,
                range_end=end,
                limit=_PAGE_KEYS,
                revision=revision,
                keys_only=keys_only,
            )
            answer = self._channel.read("Range", request)
            items += map(self._keys.key_value, answer.kvs)
            revision = revision or answer.header.revision
            more = answer.more
            if more:
                first = answer.kvs[-1].key + b"\0"
        return Listing(revision, tuple(items))

    def _compare(self, compare: Compare) -> Any:
        match compare:
            case ModRevisionIs(key, revision):
                return pb.Compare(
                    result=pb.EQUAL,
                    target=pb.MOD,
                    key=self._keys.key(key),
                    mod_revision=revision,
                )
            case CreateRevisionIs(key, revision):
                return pb.Compare(
                    result=pb.EQUAL,
                    target=pb.CREATE,
                    key=self._keys.key(key),
                    create_revision=revision,
                )
            case NotNewer(key, revision):
                return pb.Compare(
                    result=pb.LESS,
                    target=pb.MOD,
                    key=self._keys.key(key),
                    mod_revision=revision + 1,
                )
            case NoneNewerUnder(prefix, revision):
                first, end = self._keys.span(prefix)
                return pb.Compare(
                    result=pb.LESS,
                    target=pb.MOD,
                    key=first,
                    range_end=end,
                    mod_revision=revision + 1,
                )

    def _op(self, op: Op) -> Any:
        if isinstance(op, PutOp):
            put = pb.PutRequest(key=self._keys.key(op.key), value=op.value, lease=op.lease_id)
            return pb.RequestOp(request_put=put)
        if op.prefix:
            first, end = self._keys.span(op.key)
        else:
            first, end = self._keys.key(op.key), b""
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=first, range_end=end))
