"""Watches on etcd that survive the loss of members without gap or duplicate."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from typing import Any, Final

import grpc

from accel_dask.errors import (
    AccelError,
    ConfigError,
    StoreError,
    StoreMismatch,
    StoreUnavailable,
    WatchCompacted,
)
from accel_dask.store import etcd_messages as pb
from accel_dask.store.base import DeleteEvent, Event, KeyValue, PutEvent, WatchBatch
from accel_dask.store.etcd_channel import EtcdChannel, Member, prefix_bytes
from accel_dask.store.etcd_failures import Meaning, describe, meaning_of

logger = logging.getLogger(__name__)

_SILENCE_SECONDS: Final = 1.0
"""After this much silence the member is asked for a sign of life."""
_PATIENCE_SECONDS: Final = 1.5
"""How long it may take to give one; doubled each time that a new stream stays silent too."""
_MAX_PATIENCE_SECONDS: Final = 12.0
_MAX_BACKOFF_SECONDS: Final = 1.0
_QUEUED_BATCHES: Final = 256
_QUEUED_RESPONSES: Final = 64

_Response = Any


class KeySpace:
    """The cluster's keys in etcd: all begin with its prefix, which callers never see."""

    def __init__(self, prefix: str) -> None:
        self._root = prefix_bytes(prefix)

    def key(self, key: str) -> bytes:
        return self._root + key.encode(errors="surrogateescape")

    def span(self, prefix: str) -> tuple[bytes, bytes]:
        """First key and the one after the last that begin with `prefix`."""
        first = self.key(prefix)
        return first, first[:-1] + bytes((first[-1] + 1,))

    def key_value(self, kv: Any) -> KeyValue:
        return KeyValue(self.name(kv), kv.value, kv.create_revision, kv.mod_revision, kv.lease)

    def name(self, kv: Any) -> str:
        return str(kv.key[len(self._root) :].decode(errors="surrogateescape"))


class WatchStream:
    """One watch on one member, for as long as the connection lasts."""

    def __init__(self, channel: EtcdChannel, member: Member, create: Any) -> None:
        self.member = member
        self.token = channel.token
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requests.put(pb.WatchRequest(create_request=create))
        self._responses: queue.Queue[_Response] = queue.Queue(_QUEUED_RESPONSES)
        self._closed = threading.Event()
        # A member that lost its leader ends the stream instead of staying silent.
        metadata = (*channel.metadata(), ("hasleader", "true"))
        self._call = member.stream("Watch", iter(self._requests.get, None), None, metadata)
        threading.Thread(target=self._pump, name="etcd-watch-stream", daemon=True).start()

    def receive(self, timeout: float) -> _Response | BaseException | None:
        """The next response, the error that ended the stream, or None after `timeout`."""
        try:
            return self._responses.get(timeout=max(timeout, 0.001))
        except queue.Empty:
            return None

    def ask_for_life(self) -> None:
        self._requests.put(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    def close(self) -> None:
        self._closed.set()
        self._requests.put(None)
        self._call.cancel()
        with contextlib.suppress(queue.Full):
            self._responses.put_nowait(StoreUnavailable("the stream is closed"))

    def _pump(self) -> None:
        try:
            for response in self._call:
                self._hand_over(response)
            ended: BaseException = StoreUnavailable("the member ended the stream")
        except (grpc.RpcError, ValueError) as error:  # ValueError: the channel was closed
            ended = error
        self._hand_over(ended)
        self._requests.put(None)

    def _hand_over(self, response: _Response) -> None:
        while not self._closed.is_set():
            try:
                self._responses.put(response, timeout=0.2)
            except queue.Full:
                continue
            return


class EtcdWatch:
    """Implements `Watch`. Its thread keeps a stream open and puts batches into a queue."""

    def __init__(
        self, channel: EtcdChannel, keys: KeySpace, prefix: str, from_revision: int
    ) -> None:
        self._channel = channel
        self._keys = keys
        self._prefix = prefix
        self._next_revision = from_revision
        self._batches: queue.Queue[WatchBatch | AccelError | None] = queue.Queue(_QUEUED_BATCHES)
        self._closing = threading.Event()
        self._last_contact = time.monotonic()
        self._final: AccelError | None = None
        self._patience = _PATIENCE_SECONDS
        self._backoff = 0.0
        self._fragments: list[Any] = []
        self._stream: WatchStream | None = None
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
        self._thread.start()

    def next(self, timeout: float) -> WatchBatch | None:
        if self._final is not None:
            raise self._final
        try:
            if self._closing.is_set():
                return None
            batch = self._batches.get(timeout > 0, timeout if timeout > 0 else None)
        except queue.Empty:
            return None
        if isinstance(batch, AccelError):
            self._final = batch
            raise batch
        return batch

    def last_contact(self) -> float:
        return self._last_contact

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._batches.put_nowait(None)
        stream = self._stream
        if stream is not None:
            stream.close()
        if self._thread is not threading.current_thread():
            self._thread.join(5)

    def _run(self) -> None:
        avoid: Member | None = None
        while not self._closing.wait(self._backoff):
            self._backoff = min(max(0.05, 2 * self._backoff), _MAX_BACKOFF_SECONDS)
            try:
                self._stream = stream = self._open(avoid)
                try:
                    avoid = stream.member
                    self._consume(stream)
                finally:
                    stream.close()
            except (WatchCompacted, StoreMismatch, ConfigError) as error:
                self._deliver(error)
                return
            except (StoreUnavailable, grpc.RpcError, ValueError) as error:
                text = describe(error) if isinstance(error, grpc.RpcError) else error
                logger.info("watch on %r: %s", self._prefix, text)
            except Exception as error:  # else who waits for the next batch would wait for ever
                logger.exception("the watch on %r failed", self._prefix)
                self._deliver(StoreError(f"the watch on {self._prefix!r} failed: {error!r}"))
                return

    def _open(self, avoid: Member | None) -> WatchStream:
        member = self._channel.verified_member(avoid)
        first, end = self._keys.span(self._prefix)
        # One revision early, since servers before 3.4.34 and 3.5.17 let a watch begin at the
        # compacted revision itself and then miss deletions made in it.
        create = pb.WatchCreateRequest(
            key=first,
            range_end=end,
            start_revision=max(1, self._next_revision - 1),
            fragment=True,
        )
        self._fragments = []
        return WatchStream(self._channel, member, create)

    def _consume(self, stream: WatchStream) -> None:
        """Deliver what `stream` brings until it breaks or falls silent."""
        asked = False
        while not self._closing.is_set():
            wait = self._patience if asked else _SILENCE_SECONDS
            response = stream.receive(wait)
            if self._closing.is_set():
                return
            if response is None:
                if asked:
                    self._channel.report_failure(stream.member)
                    self._patience = min(2 * self._patience, _MAX_PATIENCE_SECONDS)
                    raise StoreUnavailable(f"{stream.member.address} gives no sign of life")
                stream.ask_for_life()
                asked = True
            elif isinstance(response, BaseException):
                self._stream_ended(stream, response)
                return
            else:
                asked = False
                self._take(stream, response)

    def _stream_ended(self, stream: WatchStream, error: BaseException) -> None:
        self._channel.report_failure(stream.member)
        if isinstance(error, grpc.RpcError) and meaning_of(error) is Meaning.STALE_LOGIN:
            self._channel.renew_token(stream.token)
        raise error

    def _take(self, stream: WatchStream, response: _Response) -> None:
        self._channel.guard.check_cluster(response.header, stream.member.address)
        self._last_contact = time.monotonic()
        if response.canceled:
            self._canceled(stream, response)
        if response.created:
            return
        self._patience = _PATIENCE_SECONDS
        self._backoff = 0.0
        self._fragments += response.events
        if response.fragment:
            return
        events = tuple(
            self._event(event)
            for event in self._fragments
            if event.kv.mod_revision >= self._next_revision
        )
        self._fragments = []
        if events:
            last = events[-1]
            revision = last.item.mod_revision if isinstance(last, PutEvent) else last.mod_revision
            if self._deliver(WatchBatch(revision, events)):
                self._next_revision = revision + 1

    def _canceled(self, stream: WatchStream, response: _Response) -> None:
        if response.compact_revision:
            raise WatchCompacted(
                f"revision {self._next_revision} is compacted (up to {response.compact_revision})",
                response.compact_revision,
            )
        reason = response.cancel_reason
        if "permission denied" in reason:
            raise ConfigError(f"etcd does not let this user watch {self._prefix!r}: {reason}")
        if self._channel.token and ("token" in reason or "auth" in reason):
            self._channel.renew_token(stream.token)
        raise StoreUnavailable(f"{stream.member.address} canceled the watch: {reason or 'why?'}")

    def _event(self, event: Any) -> Event:
        if event.type == pb.DELETE:
            return DeleteEvent(self._keys.name(event.kv), event.kv.mod_revision)
        return PutEvent(self._keys.key_value(event.kv))

    def _deliver(self, batch: WatchBatch | AccelError) -> bool:
        while not self._closing.is_set():
            try:
                self._batches.put(batch, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False
