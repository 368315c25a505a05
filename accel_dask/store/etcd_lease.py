"""Leases on etcd, each renewed by a thread that turns to another member when one fails."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

import grpc

from accel_dask.errors import AccelError, LeaseLost, StoreUnavailable
from accel_dask.store import etcd_messages as pb
from accel_dask.store.etcd_channel import EtcdChannel, Member
from accel_dask.store.etcd_failures import Meaning, describe, meaning_of
from accel_dask.store.leases import LEASE_MARGIN, allows, tell

logger = logging.getLogger(__name__)

_REVOKE_SECONDS: Final = 2.0


class EtcdLease:
    """Implements `Lease`."""

    def __init__(
        self,
        channel: EtcdChannel,
        ttl_seconds: float,
        may_renew: Callable[[], bool] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._channel = channel
        self._ttl = ttl_seconds
        self._may_renew = may_renew
        self._on_lost = on_lost
        self._closing = threading.Event()
        self._lost = False
        self._unanswered = 0
        self._member = 0
        self._renewed_at = time.monotonic()
        # A grant whose answer is lost leaves a lease that nobody renews; it ends by itself.
        answer, _ = channel.write(
            "LeaseGrant", pb.LeaseGrantRequest(TTL=math.ceil(ttl_seconds)), idempotent=True
        )
        if answer.error:
            raise StoreUnavailable(f"etcd granted no lease: {answer.error}")
        self._id = int(answer.ID)
        self._thread = threading.Thread(
            target=self._run, name=f"etcd-lease-{self._id:x}", daemon=True
        )
        self._thread.start()

    @property
    def lease_id(self) -> int:
        return self._id

    def valid_until(self) -> float:
        return self._renewed_at + self._ttl * (1 - LEASE_MARGIN)

    def is_lost(self) -> bool:
        return self._lost

    def is_unanswered(self) -> bool:
        return self._unanswered > 1

    def close(self) -> None:
        self.stop_renewing()
        self.revoke()

    def stop_renewing(self) -> None:
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def revoke(self, *, send: bool = True) -> bool:
        """End the lease, if it lives; without `send` let it expire. False if the store could
        not be reached, or was not asked."""
        if self._lost:
            return send
        self._lost = True
        if not send:
            return False
        try:
            request = pb.LeaseRevokeRequest(ID=self._id)
            self._channel.write("LeaseRevoke", request, idempotent=True, seconds=_REVOKE_SECONDS)
        except LeaseLost:
            logger.debug("lease %x had ended before", self._id)
        except AccelError as error:
            logger.warning("lease %x not revoked, it will expire: %s", self._id, error)
            return False
        return True

    def _run(self) -> None:
        pause = self._renewed_at + self._ttl / 3 - time.monotonic()
        while not self._closing.wait(max(0.0, pause)):
            if not allows(self._may_renew):
                if time.monotonic() >= self._renewed_at + self._ttl:
                    logger.warning("lease %x ends: its holder makes no progress", self._id)
                    self.revoke()
                    self._report_loss()
                    return
                pause = self._ttl / 10
                continue
            try:
                renewed = self._renew()
            except LeaseLost:
                self._report_loss()
                return
            pause = self._ttl / 3 if renewed else min(0.1, self._ttl / 30)

    def _renew(self) -> bool:
        """Whether the member whose turn it is renewed the lease; else it is the next one's."""
        members = self._channel.members
        member = members[self._member % len(members)]
        sent_at = time.monotonic()
        try:
            ttl = self._keep_alive(member)
        except Exception as error:  # noqa: BLE001  whatever it is, the next member may do it
            text = describe(error) if isinstance(error, grpc.RpcError) else error
            logger.info("lease %x not renewed by %s: %s", self._id, member.address, text)
            if not self._closing.is_set():
                self._channel.report_failure(member)
            self._member += 1
            self._unanswered += 1
            return False
        if ttl <= 0:
            raise LeaseLost(f"lease {self._id:x} has expired")
        self._renewed_at = sent_at
        self._unanswered = 0
        return True

    def _keep_alive(self, member: Member) -> int:
        """Seconds that the store gives the lease; 0: it is gone."""
        token = self._channel.token
        call = member.stream(
            "LeaseKeepAlive",
            iter((pb.LeaseKeepAliveRequest(ID=self._id),)),
            self._channel.deadlines.read_attempt,
            self._channel.metadata(),
        )
        try:
            answer = next(call)
        except grpc.RpcError as error:
            if meaning_of(error) is Meaning.STALE_LOGIN:
                self._channel.renew_token(token)
            raise
        finally:
            call.cancel()
        self._channel.guard.check_cluster(answer.header, member.address)
        return int(answer.TTL)

    def _report_loss(self) -> None:
        self._lost = True
        logger.warning("lease %x is lost", self._id)
        if not self._closing.is_set():
            tell(self._on_lost)
