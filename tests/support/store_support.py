"""What tests of the state store share: real members on tmpfs, waiting, and a faulty network."""

from __future__ import annotations

import itertools
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accel_dask.config import StoreSettings
from accel_dask.store.base import Event, PutEvent, PutOp, StateStore, Transaction, Watch
from accel_dask.store.etcd_server import EmbeddedEtcd
from accel_dask.store.memory import MemoryStore

_PREFIXES = (f"/accel/test{n}/v1" for n in itertools.count())


@contextmanager
def etcd_members(members: int = 1) -> Iterator[EmbeddedEtcd]:
    """A real etcd that is gone, with its data, at the end."""
    with tmpfs_dir() as data_dir, EmbeddedEtcd(data_dir, members, allow_faulty=True) as running:
        yield running


@contextmanager
def tmpfs_dir() -> Iterator[Path]:
    data_dir = Path(tempfile.mkdtemp(prefix="accel-etcd-", dir="/dev/shm"))
    try:
        yield data_dir
    finally:
        shutil.rmtree(data_dir)


def fresh_settings(*endpoints: str) -> StoreSettings:
    """Settings with a prefix that no other test uses."""
    return StoreSettings(endpoints=endpoints, prefix=next(_PREFIXES))


def short_ttl(store: StateStore) -> float:
    """Seconds of a lease that this store keeps to; etcd gives none shorter."""
    return 1.0 if isinstance(store, MemoryStore) else 2.0


def put(store: StateStore, key: str, value: bytes = b"v", lease_id: int = 0) -> int:
    return store.commit(Transaction(ops=(PutOp(key, value, lease_id),)))


def events_until(
    watch: Watch, done: Callable[[list[Event]], bool], seconds: float = 10
) -> list[Event]:
    deadline = time.monotonic() + seconds
    events: list[Event] = []
    while not done(events):
        assert time.monotonic() < deadline, f"only {len(events)}: {events[-5:]}"
        batch = watch.next(0.5)
        events += batch.events if batch else ()
    return events


def revision_of(event: Event) -> int:
    return event.item.mod_revision if isinstance(event, PutEvent) else event.mod_revision


def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        threading.Event().wait(0.02)


class FaultyProxy:
    """A TCP proxy on 127.0.0.1 that can cut, swallow or refuse what passes."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._links: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self.refuse = False
        self.swallow_answers = False
        """Answers vanish; requests still arrive."""
        self.black_hole = False
        """Nothing passes any more, and nobody is told."""
        self.cut_after_bytes: int | None = None
        """Cut all connections when one has passed this many bytes of answers ..."""
        self.cuts_left = 0
        """... this many times."""
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections now."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            for end in link:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        self.refuse = True
        self._listener.close()
        self.cut()

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.refuse:
                    raise OSError("refused by the test")
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self.connections += 1
            with self._lock:
                self._links.append((client, server))
            threading.Thread(target=self._pump, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        passed = 0
        try:
            while data := source.recv(16384):
                if self.black_hole or (answers and self.swallow_answers):
                    continue
                sink.sendall(data)
                passed += len(data)
                if answers and self._is_exhausted(passed):
                    self.cut()
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _is_exhausted(self, passed: int) -> bool:
        with self._lock:
            cut = self.cuts_left > 0 and passed > (self.cut_after_bytes or 0)
            self.cuts_left -= cut
            return cut
