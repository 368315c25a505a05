"""The snapshots that a session is in, and the answers that hold for as long as they last."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa

from accel_dask.client.provenance import Provenance

Pins = Mapping[str, int]
"""Dataset and epoch."""


class Snapshots:
    """Those that are open. A thread reads the one that it opened last; one that opened none, such
    as a worker thread, the newest of all. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[tuple[int, Pins]] = []
        """Each with the thread that opened it; 0: another process."""

    def current(self) -> Pins | None:
        """What this thread's queries are pinned to; None: nothing."""
        me = threading.get_ident()
        with self._lock:
            own = [pins for opener, pins in self._open if opener == me]
            found = own or [pins for _, pins in self._open]
        return found[-1] if found else None

    @contextmanager
    def opened(self, pins: Pins) -> Iterator[None]:
        one = (threading.get_ident(), pins)
        with self._lock:
            self._open.append(one)
        try:
            yield
        finally:
            with self._lock:
                # By identity: another thread may have opened an equal one.
                self._open = [other for other in self._open if other is not one]

    @property
    def is_any(self) -> bool:
        """Whether one is open."""
        with self._lock:
            return bool(self._open)

    def __reduce__(self) -> tuple[Callable[..., Snapshots], tuple[Pins | None]]:
        """Elsewhere, what is pinned here stays pinned."""
        return _travelled, (self.current(),)


def _travelled(pins: Pins | None) -> Snapshots:
    found = Snapshots()
    if pins is not None:
        found._open.append((0, pins))
    return found


_Key = tuple[str, tuple[tuple[str, int], ...]]


class AnswerCache:
    """The newest answers within snapshots, by SQL and all that is pinned, up to a size. Which
    datasets an SQL text reads is not asked: one that names no column of it may read it too.
    Safe to use from several threads; elsewhere it begins empty."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, tuple[pa.Table, Provenance]] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[type[AnswerCache], tuple[()]]:
        return AnswerCache, ()

    def get(self, sql: str, pins: Pins) -> tuple[pa.Table, Provenance] | None:
        key = _key(sql, pins)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        return found

    def put(
        self, sql: str, pins: Pins, table: pa.Table, provenance: Provenance, limit: int
    ) -> None:
        key = _key(sql, pins)
        with self._lock:
            before = self._kept.pop(key, None)
            self._bytes += table.nbytes - (before[0].nbytes if before else 0)
            self._kept[key] = table, provenance
            while self._bytes > limit and self._kept:
                _, (dropped, _) = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._bytes = 0


def _key(sql: str, pins: Pins) -> _Key:
    return sql, tuple(sorted(pins.items()))
