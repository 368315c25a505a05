"""Takes tickets: checks them, has the engine run them, and knows what is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from accel_dask.codec import decode
from accel_dask.errors import InvariantViolated, StaleEpoch, StoreUnavailable, Unauthenticated
from accel_dask.model.ticket import (
    Cancellation,
    Ticket,
    check_inputs,
    fence,
    signature_of,
    verify,
)
from accel_dask.worker_plugin.executor.engine import Engine
from accel_dask.worker_plugin.executor.limits import resident_bytes
from accel_dask.worker_plugin.executor.running import RunningQuery


class Standing:
    """Whether this executor may serve: its lease, and whether it drains."""

    def __init__(self, lease_deadline: float, grace_seconds: float) -> None:
        self.lease_deadline = lease_deadline
        """Monotonic seconds, which all processes of a host share."""
        self.is_draining = False
        self._extended_at = lease_deadline
        self._grace_seconds = grace_seconds

    def extend(self, lease_deadline: float) -> None:
        """The host has renewed the lease, until then."""
        if lease_deadline > self.lease_deadline:
            self.lease_deadline = lease_deadline
            self._extended_at = time.monotonic()

    def check_blind(self) -> None:
        """Raise `StoreUnavailable` if this host hears from the store: a lease is renewed well
        before half of its life has passed."""
        if time.monotonic() < (self._extended_at + self.lease_deadline) / 2:
            raise StoreUnavailable(
                "this gateway has lost touch with the state store, and others have not; send the "
                "query to another gateway"
            )

    def check(self) -> None:
        """Raise `StaleEpoch` if no ticket may be taken."""
        if self.is_draining:
            raise StaleEpoch("this executor is being replaced; plan the query again")
        if time.monotonic() > self.lease_deadline + self._grace_seconds:
            raise StaleEpoch("this executor has lost its lease; plan the query again")


class Job:
    """A ticket under way, until it is closed."""

    def __init__(self, desk: TicketDesk, query_id: str, signature: str) -> None:
        self.query_id: Final = query_id
        self.signature: Final = signature
        self.is_cancelled = False
        self.query: RunningQuery | None = None
        self._desk = desk
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Give back everything. Safe to call twice."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if self.query is not None:
            self.query.close()
        self._desk.ended(self)


class TicketDesk:
    """Safe to use from several threads."""

    def __init__(self, engine: Engine, standing: Standing) -> None:
        self._engine = engine
        self._standing = standing
        self._key = bytes.fromhex(engine.spec.ticket_key)
        self._attached = frozenset(engine.spec.attachments)
        self._lock = threading.Lock()
        self._queries = 0
        self._in_flight = 0
        self._jobs: dict[str, list[Job]] = {}
        """By query: a spread one may have several parts here."""

    def stats(self) -> dict[str, int]:
        """Queries under way and taken so far, and resident bytes."""
        with self._lock:
            return {
                "in_flight": self._in_flight,
                "queries": self._queries,
                "rss_bytes": resident_bytes(),
            }

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def take(
        self, signed: bytes, is_gone: Callable[[], bool], started_at: float
    ) -> tuple[Job, RunningQuery]:
        """The query that a ticket orders, its first batch computed. Whoever calls closes the job.

        `is_gone` tells whether whoever sent the ticket is gone, and is called from another thread
        until the job is closed. `started_at`: monotonic seconds at which the ticket came.

        Raises:
            Unauthenticated: it is not signed by the cluster.
            StaleEpoch: it has expired, or is for data that is not here.
            StoreUnavailable: its gateway has lost touch with the state store; this host has not.
            AccelError: as `Engine.run`.
        """
        order = self._checked(signed)
        job = Job(self, order.query_id, signature_of(signed))
        with self._lock:
            self._in_flight += 1
            self._queries += 1
            self._jobs.setdefault(order.query_id, []).append(job)
        try:
            job.query = self._engine.run(order, lambda: job.is_cancelled or is_gone(), started_at)
        except BaseException:
            job.close()
            raise
        return job, job.query

    def cancel(self, signed: bytes) -> None:
        """Obey a `Cancellation`: the watchdog sees it at its next turn. Queries that have ended
        are no error."""
        order = decode(verify(signed, self._key), Cancellation)
        if order.tenant != self._engine.spec.tenant:
            return
        with self._lock:
            for job in self._jobs.get(order.query_id, ()):
                if order.signature in ("", job.signature):
                    job.is_cancelled = True

    def ended(self, job: Job) -> None:
        with self._lock:
            self._in_flight -= 1
            jobs = self._jobs[job.query_id]
            jobs.remove(job)
            if not jobs:
                del self._jobs[job.query_id]
        self._engine.make_spare()  # its answer is sent

    def _checked(self, signed: bytes) -> Ticket:
        self._standing.check()
        try:
            order = decode(verify(signed, self._key), Ticket)
            check_inputs(order)
        except InvariantViolated as error:
            raise Unauthenticated("the ticket is not one that this executor reads") from error
        if order.expires_at_ms < time.time() * 1000:
            raise StaleEpoch("the ticket has expired; plan the query again")
        fence(order, self._engine.spec.tenant, self._attached)
        if order.is_blind:
            self._standing.check_blind()
        return order
