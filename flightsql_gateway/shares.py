"""This gateway's shares of the tenants' concurrency, on a thread of its own; see `model/share.py`.

Queries look at a number in memory and at the lease's clock, nothing else. Past the time for which
the lease surely lives the gateway runs nothing, with one exception: when the store leaves its
renewals unanswered, it goes on with what it had, *blindly*, for it may be that nobody reaches the
store. Its tickets say so, and an executor whose own host has heard from the store refuses them:
then it is this gateway alone that is cut off, and others may have its share by now.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from typing import Final

from accel_dask.errors import AccelError, CommitConflict
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit, Delete, unchanged
from accel_dask.model.ids import GatewayId, Revision, TenantId
from accel_dask.model.member import Gateway, Share
from accel_dask.model.share import (
    Holding,
    aim,
    concurrency_of,
    next_move,
    share_commit,
    shares_by_tenant,
)
from accel_dask.model.tenant import Quota, Tenant
from accel_dask.store.base import Lease, StateStore
from accel_dask.store.records import commit_records, read_view
from flightsql_gateway.admission import Admission

log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1.0
_DRAIN_SECONDS: Final = 0.05
"""How often running queries are counted while a share is to shrink."""
_PAUSE_SECONDS: Final = 0.02
"""Between two rounds, at least."""
_REST: Final = 10
"""So many times as long as a round took, too."""
_MEMORY_SECONDS: Final = 2.0
"""How long a tenant's most queries at once are remembered as what it wants."""


@dataclass(slots=True)
class _Wish:
    """What a tenant wanted lately."""

    count: int = 0
    until: float = 0.0

    def seen(self, peak: int, now: float) -> int:
        if peak >= self.count or now >= self.until:
            self.count, self.until = peak, now + _MEMORY_SECONDS
        return self.count


class Shares:
    """Safe to use from several threads."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._gateway = GatewayId("")
        self._admission: Admission | None = None
        self._lock = threading.Lock()
        """Between a lease and what is held on it."""
        self._lease: Lease | None = None
        self._held: dict[TenantId, int] = {}
        """Slots that the store has confirmed on this lease and that were not given up."""
        self._written: dict[TenantId, Revision] = {}
        self._wishes: dict[TenantId, _Wish] = {}
        self._known: dict[TenantId, tuple[Revision, ...]] = {}
        """Of the tenant and its shares, when its turn came last and all was well."""
        self._gateways: tuple[GatewayId, ...] = ()
        self._view = ClusterView(0, {})
        self._wake = threading.Event()
        self._is_ready = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="shares", daemon=True)

    # Asked by every query

    def limit(self, tenant: TenantId, quota: Quota) -> int:
        """How many queries of `tenant` may run in this gateway now."""
        lease = self._lease
        if lease is None or lease.is_lost():
            return 0
        held = self._held.get(tenant, 0)
        if time.monotonic() < lease.valid_until():
            return min(held, quota.concurrency)
        return max(min(held, quota.concurrency), 1) if lease.is_unanswered() else 0

    def is_blind(self) -> bool:
        """Whether nobody vouches for the shares any more."""
        lease = self._lease
        return lease is None or lease.is_lost() or time.monotonic() >= lease.valid_until()

    def wake(self) -> None:
        """A query waits."""
        self._wake.set()

    # Told by the gateway

    def serve(self, gateway: GatewayId, admission: Admission) -> None:
        """Whose shares they are."""
        self._gateway, self._admission = gateway, admission

    def start(self, seconds: float) -> None:
        """Begin; wait up to `seconds` for the first shares."""
        self._thread.start()
        if not self._is_ready.wait(seconds):
            log.warning("%s begins without shares of the tenants' concurrency", self._gateway)

    def applied(self, view: ClusterView) -> None:
        """`view` is the newest."""
        self._view = view
        self._wake.set()

    def leased(self, lease: Lease) -> None:
        """The gateway's record is on `lease` from now on."""
        with self._lock:
            if lease is self._lease:
                return
            self._held = {}  # before the lease: what was confirmed was on another
            self._known = {}
            self._lease = lease
        self._wake.set()

    def close(self) -> None:
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        pause = _TICK_SECONDS
        while not self._is_closing:
            self._wake.wait(pause)
            self._wake.clear()
            started = time.thread_time()
            try:
                pause = _DRAIN_SECONDS if self.decide() else _TICK_SECONDS
            except AccelError as error:
                log.info("%s keeps its shares as they are: %s", self._gateway, error)
                pause = _TICK_SECONDS
            except Exception:  # without the thread no share would ever change
                log.exception("a round of %s's shares failed", self._gateway)
                pause = _TICK_SECONDS
            # However many tenants there are, and whatever happens: a small part of a core.
            time.sleep(max(_PAUSE_SECONDS, _REST * (time.thread_time() - started)))

    def decide(self) -> bool:
        """Look at all tenants once; True: some share has still to shrink."""
        view, lease = self._view, self._lease
        assert self._admission is not None
        if view.revision == 0 or lease is None or lease.is_lost():
            return False
        if view.find(Gateway, (Gateway.KIND, self._gateway)) is None:
            view = read_view(self._store)  # the mirror may take seconds after an outage
            if view.find(Gateway, (Gateway.KIND, self._gateway)) is None:
                return True
        shares = shares_by_tenant(view)
        known = self._marks(view)
        self._admission.keep_only(known)
        self._admission.limits_changed()  # a lease that was renewed late
        is_draining = has_failed = False
        busy = self._admission.busy() | {t for t, wish in self._wishes.items() if wish.count}
        for tenant, mark in known.items():
            if tenant not in busy and self._known.get(tenant) == mark:
                continue  # nobody asks here, and nothing has changed
            self._known.pop(tenant, None)
            try:
                if self._look(view, lease, tenant, shares.get(tenant, ())):
                    is_draining = True
                elif lease is self._lease:
                    self._known[tenant] = mark
            except CommitConflict as error:
                has_failed = True
                log.debug("%s decides again: %s", self._gateway, error)
        self._drop_deleted(view, shares)
        if not has_failed:
            self._is_ready.set()
        return is_draining or has_failed

    def _marks(self, view: ClusterView) -> dict[TenantId, tuple[Revision, ...]]:
        """What a tenant's division depends on, in short; of all tenants."""
        gateways = tuple(gateway.gateway for gateway in view.records(Gateway))
        if gateways != self._gateways:
            self._gateways = gateways
            self._known.clear()
        revisions = {found.record.tenant: [found.mod_revision] for found in view.of(Tenant)}
        for found in view.of(Share):
            if found.record.tenant in revisions:
                revisions[found.record.tenant].append(found.mod_revision)
        return {tenant: tuple(found) for tenant, found in revisions.items()}

    def _look(
        self, view: ClusterView, lease: Lease, tenant: TenantId, shares: tuple[Share, ...]
    ) -> bool:
        """One tenant; True: it must be looked at again, whatever happens."""
        assert self._admission is not None
        if view.revision < self._written.get(tenant, 0):
            return True  # the view does not have what was written last
        held = self._held.get(tenant, 0)
        holding = Holding(
            tenant=tenant,
            gateway=self._gateway,
            held=held,
            running=0,
            wanted=self._wanted(view, tenant),
        )
        target = aim(view, holding, shares)
        if target < held:
            # First nobody new begins, then who runs is counted: see `Admission.demand`.
            held = self._held[tenant] = target
        demand = self._admission.demand(tenant)
        holding = replace(holding, held=held, running=demand.running)
        move = next_move(view, holding, shares)
        if move.share is not None:
            self._write(view, lease, move.share, move.target)
        own = next((share for share in shares if share.gateway == self._gateway), None)
        slots = move.share.slots if move.share is not None else own.slots if own else 0
        return slots > move.target

    def _wanted(self, view: ClusterView, tenant: TenantId) -> int:
        assert self._admission is not None
        demand = self._admission.demand(tenant)
        concurrency = concurrency_of(view, tenant)
        if concurrency < len(view.of(Gateway)):
            return min(demand.present, concurrency)  # slots go round: only who needs one now
        wish = self._wishes.setdefault(tenant, _Wish())
        return min(wish.seen(demand.peak, time.monotonic()), concurrency)

    def _write(self, view: ClusterView, lease: Lease, share: Share, target: int) -> None:
        commit = share_commit(view, share, lease.lease_id)
        self._written[share.tenant] = commit_records(self._store, commit)
        with self._lock:
            if lease is self._lease:
                self._held[share.tenant] = min(share.slots, target)
        assert self._admission is not None
        self._admission.limits_changed()

    def _drop_deleted(self, view: ClusterView, shares: dict[TenantId, tuple[Share, ...]]) -> None:
        for tenant, found in shares.items():
            if view.tenant(tenant) is not None:
                continue
            for kept in (self._held, self._written, self._wishes, self._known):
                kept.pop(tenant, None)
            for share in found:
                if share.gateway == self._gateway:
                    self._drop(view, share)

    def _drop(self, view: ClusterView, share: Share) -> None:
        commit = Commit(
            requirements=(unchanged(view, share.path),),
            changes=(Delete(share.path),),
            because=f"tenant {share.tenant} was deleted",
        )
        try:
            commit_records(self._store, commit)
        except AccelError as error:
            log.info("%s could not drop its share of %s: %s", self._gateway, share.tenant, error)
