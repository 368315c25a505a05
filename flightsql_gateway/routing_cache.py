"""The current routing table, fed by the store's watch. Queries read it, and wait for newer ones."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from accel_dask.errors import StoreUnavailable, Unauthenticated
from accel_dask.model.cluster import ClusterView
from accel_dask.model.routing import RoutingTable, build_routing
from accel_dask.store.base import StateStore
from accel_dask.store.mirror import Mirror

log = logging.getLogger(__name__)


class RoutingCache:
    """Publishes a routing table for every view. While the store is away the last one serves on."""

    def __init__(
        self,
        store: StateStore,
        *,
        frozen_serving_seconds: float,
        on_applied: Callable[[ClusterView], None] | None = None,
    ) -> None:
        """`on_applied` is told of a view once every query from then on is routed by it."""
        self._frozen_serving_seconds = frozen_serving_seconds
        self._on_applied = on_applied
        self._changed = threading.Condition()
        self._view = ClusterView(0, {})
        self._table = build_routing(self._view)
        self._mirror = Mirror(store, on_change=self._apply)

    def start(self, timeout_seconds: float = 30.0) -> None:
        """Follow the store.

        Raises:
            StoreUnavailable: it gave no listing in time.
        """
        deadline = time.monotonic() + timeout_seconds
        self._mirror.start(timeout_seconds)
        with self._changed:  # the mirror has its view a moment before it tells
            is_routing = self._changed.wait_for(
                lambda: self._view.revision > 0, max(deadline - time.monotonic(), 1.0)
            )
        if not is_routing:
            raise StoreUnavailable("there is no routing table although the store was read")

    def _apply(self, view: ClusterView) -> None:
        table = build_routing(view)
        with self._changed:
            self._table = table
            self._view = view
            self._changed.notify_all()
        log.debug("routing by revision %d", table.revision)
        if self._on_applied is not None:
            self._on_applied(view)

    @property
    def view(self) -> ClusterView:
        """The view that the table is of."""
        with self._changed:
            return self._view

    def current(self) -> RoutingTable:
        """The newest table.

        Raises:
            StoreUnavailable: the store has been away for longer than `frozen_serving_seconds`.
        """
        silence = time.monotonic() - self._mirror.last_contact
        if silence > self._frozen_serving_seconds:
            raise StoreUnavailable(
                f"this gateway has not heard from the state store for {silence:.0f} s; it serves "
                f"from its last routing table for at most {self._frozen_serving_seconds:.0f} s"
            )
        return self._table

    def ticket_key(self) -> bytes:
        """The cluster's signing key.

        Raises:
            Unauthenticated: the cluster has none yet, so nobody can be let in.
        """
        key = self._table.ticket_key
        if not key:
            raise Unauthenticated("the cluster is not set up yet")
        return key

    def wait_newer(self, than: RoutingTable, timeout_seconds: float) -> None:
        """Wait until there is a newer table, or `timeout_seconds` have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._table is not than, timeout_seconds)

    def close(self) -> None:
        self._mirror.close()
