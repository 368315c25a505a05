"""A view of the cluster that a watch keeps fresh; every process that decides has one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from accel_dask.errors import AccelError, StoreUnavailable, WaitTimedOut
from accel_dask.model.cluster import ClusterView, Record, Versioned
from accel_dask.model.ids import Path
from accel_dask.store.base import Event, Listing, PutEvent, StateStore, Watch
from accel_dask.store.keys import RECORDS, path_of
from accel_dask.store.records import versioned_of

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.5
_BURST_EVENTS: Final = 5000
"""Events that one new view may take in before it is shown."""
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 5.0


class Mirror:
    """All records, as of the last revision heard of. Lists, then watches, on its own thread;
    while the store is away the last view stays."""

    def __init__(
        self, store: StateStore, on_change: Callable[[ClusterView], None] | None = None
    ) -> None:
        self._store = store
        self._on_change = on_change
        self._entries: dict[Path, Versioned[Record]] = {}
        self._view = ClusterView(0, {})
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._last_contact = float("-inf")
        self._backoff = _FIRST_BACKOFF_SECONDS
        self._failure: AccelError | None = None
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._run, name="store-mirror", daemon=True)

    def start(self, timeout_seconds: float = 10.0) -> Self:
        """Begin, and wait for the first listing; with 0 do not wait.

        Raises:
            StoreUnavailable: there was none in time. The mirror is closed then.
        """
        self._thread.start()
        if timeout_seconds <= 0:
            return self
        with self._changed:
            self._changed.wait_for(
                lambda: self._view.revision > 0 or self._closing.is_set(), timeout_seconds
            )
        if self._view.revision == 0:
            self.close()
            raise StoreUnavailable(
                f"the state store gave no listing within {timeout_seconds:g} s: {self._failure}"
            )
        return self

    @property
    def view(self) -> ClusterView:
        """The newest view; of revision 0 and empty before the first listing."""
        return self._view

    @property
    def last_contact(self) -> float:
        """Monotonic seconds of the last sign of life from the store."""
        return self._last_contact

    def wait_for(
        self, predicate: Callable[[ClusterView], bool], timeout_seconds: float, what: str = ""
    ) -> ClusterView:
        """The first view for which `predicate` holds.

        Raises:
            WaitTimedOut: there was none in time; the message names `what`.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                view = self._view
                if predicate(view):
                    return view
                left = deadline - time.monotonic()
                if left <= 0 or self._closing.is_set():
                    break
                self._changed.wait(left)
        what = what or getattr(predicate, "__qualname__", repr(predicate))
        silence = time.monotonic() - self._last_contact
        raise WaitTimedOut(
            f"waited {timeout_seconds:g} s in vain for: {what} (the view is at revision "
            f"{view.revision}, the store was last heard {silence:.1f} s ago)"
        )

    def close(self) -> None:
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        watch = self._watch
        if watch is not None:
            watch.close()
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
                self._list_and_watch()
            except AccelError as error:
                self._failure = error
                if self._closing.is_set():
                    return
                logger.warning(
                    "the view stays at revision %d, listing again in %.1f s: %s",
                    self._view.revision,
                    self._backoff,
                    error,
                )
            except Exception:  # a fault of ours must not freeze the view for good
                logger.exception("the mirror begins again after revision %d", self._view.revision)
            self._closing.wait(self._backoff)
            self._backoff = min(2 * self._backoff, _MAX_BACKOFF_SECONDS)

    def _list_and_watch(self) -> None:
        listing = self._store.read(RECORDS)
        self._last_contact = time.monotonic()
        self._replace(listing)
        self._watch = watch = self._store.watch(RECORDS, listing.revision + 1)
        try:
            while not self._closing.is_set():
                self._follow(watch)
        finally:
            watch.close()

    def _follow(self, watch: Watch) -> None:
        batch = watch.next(_POLL_SECONDS)
        self._last_contact = max(self._last_contact, watch.last_contact())
        if batch is None:
            return
        self._backoff = _FIRST_BACKOFF_SECONDS
        events: list[Event] = list(batch.events)
        revision = batch.revision
        while len(events) < _BURST_EVENTS and (more := watch.next(0)) is not None:
            events += more.events
            revision = more.revision
        self._apply(events)
        self._show(revision)

    def _replace(self, listing: Listing) -> None:
        """Take over `listing`, decoding only what changed since the present entries."""
        entries: dict[Path, Versioned[Record]] = {}
        for item in listing.items:
            path = path_of(item.key)
            if path is None:
                continue
            known = self._entries.get(path)
            unchanged = (
                known is not None
                and known.mod_revision == item.mod_revision
                and known.create_revision == item.create_revision
            )
            entry = known if unchanged else versioned_of(item)
            if entry is not None:
                entries[path] = entry
        self._entries = entries
        self._show(listing.revision)

    def _apply(self, events: Iterable[Event]) -> None:
        latest = {e.item.key if isinstance(e, PutEvent) else e.key: e for e in events}
        for key, event in latest.items():
            path = path_of(key)
            if path is None:
                continue
            entry = versioned_of(event.item) if isinstance(event, PutEvent) else None
            if entry is not None:
                self._entries[path] = entry
            else:
                self._entries.pop(path, None)

    def _show(self, revision: int) -> None:
        view = ClusterView(revision, self._entries)
        with self._changed:
            self._view = view
            self._changed.notify_all()
        if self._on_change is not None:
            try:
                self._on_change(view)
            except Exception:  # the mirror must outlive a fault of its listener
                logger.exception("a listener failed on the view of revision %d", revision)
