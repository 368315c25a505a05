"""This gateway's record in the store: alive, how far its routing has come, what it has served.

`applied_revision` is a promise to the master: every query admitted from now on uses a table of
that revision or a later one. So it is written after the table is in place, promptly when an
epoch waits to retire, and else at most every two seconds.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from typing import Final

from accel_dask.errors import AccelError
from accel_dask.model.cluster import ClusterView
from accel_dask.model.epoch import Epoch, EpochState
from accel_dask.model.ids import GatewayId, Revision
from accel_dask.model.member import Gateway
from accel_dask.model.placement import Serving
from accel_dask.store.base import Lease, StateStore
from accel_dask.store.records import put_record
from flightsql_gateway.admission import Admission
from flightsql_gateway.fallback.governor import Fallback
from flightsql_gateway.load_figures import LoadFigures
from flightsql_gateway.shares import Shares

log = logging.getLogger(__name__)

_REFRESH_SECONDS: Final = 2.0
_RETRY_SECONDS: Final = 1.0


class Registration:
    """Keeps the `Gateway` record on a lease, on a thread of its own."""

    def __init__(
        self,
        store: StateStore,
        figures: LoadFigures,
        admission: Admission,
        shares: Shares,
        fallback: Fallback,
        *,
        address: str,
        lease_seconds: float,
    ) -> None:
        self.gateway = GatewayId(f"gateway-{secrets.token_hex(4)}")
        self._store = store
        self._figures = figures
        self._admission = admission
        self._shares = shares
        self._fallback = fallback
        self._address = address
        self._lease_seconds = lease_seconds
        self._lease: Lease | None = None
        self._wake = threading.Condition()
        self._applied = Revision(0)
        self._awaited = Revision(0)
        """The master waits for this revision to be applied."""
        self._written = Revision(0)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def applied(self, view: ClusterView) -> None:
        """Every query admitted from now on is routed by `view` or a later one."""
        with self._wake:
            self._applied = max(self._applied, view.revision)
            self._awaited = _awaited_revision(view)
            if self._awaited > self._written:
                self._wake.notify_all()

    def close(self) -> None:
        """Take the record back."""
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)
        if self._lease is not None:
            try:
                self._lease.close()
            except AccelError as error:
                log.info("the lease of %s runs out by itself: %s", self.gateway, error)

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self._write()
            except AccelError as error:
                log.warning("%s could not renew its record: %s", self.gateway, error)
                self._pause(_RETRY_SECONDS, until=lambda: self._is_closing)
            except Exception:  # without the thread the gateway would seem to be gone
                log.exception("%s could not renew its record", self.gateway)
                self._pause(_RETRY_SECONDS, until=lambda: self._is_closing)
            else:
                self._pause(
                    _REFRESH_SECONDS,
                    until=lambda: (
                        self._is_closing or self._awaited > self._written or self._has_lost_lease()
                    ),
                )

    def _has_lost_lease(self) -> bool:
        return self._lease is not None and self._lease.is_lost()

    def _wake_up(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _pause(self, seconds: float, until: Callable[[], bool]) -> None:
        with self._wake:
            self._wake.wait_for(until, seconds)

    def _write(self) -> None:
        lease = self._lease
        if lease is None or lease.is_lost():
            lease = self._lease = self._store.lease(self._lease_seconds, on_lost=self._wake_up)
            self._shares.leased(lease)
        with self._wake:
            applied = self._applied
        load = self._figures.summary()
        record = Gateway(
            gateway=self.gateway,
            address=self._address,
            applied_revision=applied,
            queries=load.queries,
            failed=load.failed,
            queries_per_second=load.queries_per_second,
            p50_ms=load.p50_ms,
            p99_ms=load.p99_ms,
            per_tenant=load.per_tenant,
            admission=self._admission.loads(),
            engines=tuple(way.load() for way in self._fallback.ways()),
        )
        put_record(self._store, record, lease.lease_id)
        with self._wake:
            self._written = applied


def _awaited_revision(view: ClusterView) -> Revision:
    """The newest revision at which an epoch began to retire or a serving pointer moved."""
    revisions = [found.mod_revision for found in view.of(Serving)]
    revisions += [
        found.mod_revision for found in view.of(Epoch) if found.record.state is EpochState.RETIRING
    ]
    return max(revisions, default=Revision(0))
