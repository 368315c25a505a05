"""How executors are sent tickets and give their answers: frames on a TCP connection.

    gateway    TICKET                      the signed ticket
    executor   PART                        that of a part, for another executor's query
    answer     SCHEMA BATCH* (END|ERROR)   or ERROR alone

Frames are a head (kind and length, both u32, little-endian) and a payload. Schemas and batches
are Arrow's encapsulated messages (Arrow columnar format, "Serialization and Interprocess
Communication"), without dictionaries; END is what the executor measured and ERROR a code and a
message, both JSON. An answer without END or ERROR is none: the executor is lost. A connection
carries one ticket at a time, and whoever shuts it down ends the query.

It stands where Flight stood: between two processes a Flight call takes 0.16 ms and, after a pause,
0.32, these frames 0.03 and 0.08; and a thread that waits for a socket can be woken, which one
that waits for Flight's first batch cannot.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

import pyarrow as pa

from accel_dask.errors import AccelError, ExecutorUnavailable, InvariantViolated, error_class

MAX_TICKET_BYTES: Final = 64 * 1024 * 1024
MAX_FRAME_BYTES: Final = 2**31 - 1
_HEAD: Final = struct.Struct("<II")
_READ_BYTES: Final = 64 * 1024
_ALIGNMENT: Final = 8
_UNREADABLE: Final = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, TypeError)
"""What reading a payload raises that is none."""
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))

Payload: TypeAlias = "bytes | memoryview | pa.Buffer"


class FrameKind(IntEnum):
    TICKET = 1
    SCHEMA = 2
    BATCH = 3
    END = 4
    ERROR = 5
    PART = 6


@dataclass(frozen=True, slots=True)
class Frame:
    kind: FrameKind
    payload: memoryview


def frame(kind: FrameKind, payload: Payload) -> list[Payload]:
    """The buffers to send for one frame."""
    return [_HEAD.pack(kind, len(payload)), payload]


def batch_frame(batch: pa.RecordBatch) -> list[Payload]:
    return frame(FrameKind.BATCH, batch.serialize())


def end_frame(measured: bytes) -> list[Payload]:
    return frame(FrameKind.END, _aligned(measured))


def error_frame(error: AccelError) -> list[Payload]:
    text = json.dumps({"code": error.code, "message": str(error)})
    return frame(FrameKind.ERROR, _aligned(text.encode()))


def read_schema(payload: memoryview) -> pa.Schema:
    """
    Raises:
        ExecutorUnavailable: it is none.
    """
    with _readable():
        return pa.ipc.read_schema(pa.py_buffer(payload))


def read_batch(payload: memoryview, schema: pa.Schema) -> pa.RecordBatch:
    """The batch, whole and as the schema says; it keeps `payload`. Raises as `read_schema`."""
    with _readable():
        batch = pa.ipc.read_record_batch(pa.py_buffer(payload), schema)
        batch.validate()
        return batch


def read_error(payload: memoryview) -> AccelError:
    """The error that is told. Raises as `read_schema`."""
    with _readable():
        told: dict[str, Any] = json.loads(bytes(payload))
        return error_class(told["code"])(told["message"])


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except MemoryError:  # Arrow's is one of its exceptions as well
        raise
    except _UNREADABLE as error:
        raise ExecutorUnavailable(f"the executor's answer cannot be read: {error}") from error


def send(sock: socket.socket, buffers: Sequence[Payload]) -> None:
    """Send all of `buffers`, in order.

    Raises:
        OSError: the other side has gone, or takes nothing any more.
    """
    left = [memoryview(buffer) for buffer in buffers]
    while left:
        left = _after(left, sock.sendmsg(left))


def send_now(sock: socket.socket, buffers: Sequence[Payload]) -> Sequence[Payload]:
    """Send what the system takes of `buffers` at once, without waiting; what is left of them.
    Raises as `send`."""
    try:
        count = sock.sendmsg(buffers, (), socket.MSG_DONTWAIT)
    except BlockingIOError:
        return buffers
    if count == sum(map(len, buffers)):
        return ()
    return _after([memoryview(buffer) for buffer in buffers], count)


def _after(buffers: list[memoryview], count: int) -> list[memoryview]:
    """`buffers` without their first `count` bytes."""
    gone = 0
    while gone < len(buffers) and count >= len(buffers[gone]):
        count -= len(buffers[gone])
        gone += 1
    left = buffers[gone:]
    if count:
        left[0] = left[0][count:]
    return left


def prepare(sock: socket.socket) -> None:
    """Settings of both ends: no waiting for more to send, and a host that is gone is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def set_send_seconds(sock: socket.socket, seconds: float) -> None:
    """How long `send` waits for the other side to take something. Not the socket's own timeout,
    which would have other threads that look at it wait as well."""
    whole = int(seconds)
    value = struct.pack("ll", whole, int((seconds - whole) * 1e6) or not whole)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def has_ended(sock: socket.socket) -> bool:
    """Whether the other side has closed it. Does not wait."""
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def is_quiet(sock: socket.socket) -> bool:
    """Whether it is open, and nothing has come that was not read. Does not wait."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def end(sock: socket.socket) -> None:
    """Wake whoever waits for `sock`, here and on the other side."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class FrameReader:
    """Frames of one connection. Used by one thread at a time."""

    def __init__(
        self, sock: socket.socket, max_bytes: int = MAX_FRAME_BYTES, buffer_bytes: int = 0
    ) -> None:
        """`max_bytes`: of a frame. `buffer_bytes`: of a buffer that is read into again and again,
        so that a frame is valid until the next is asked for; 0: frames stay valid."""
        self.count = 0
        """Bytes read so far."""
        self.admit: Callable[[int], None] = lambda _: None
        """Called with the bytes of a large frame before there is room made for it; may raise."""
        self._sock = sock
        self._max_bytes = max_bytes
        self._buffer = memoryview(bytearray(buffer_bytes)) if buffer_bytes else None
        self._rest = memoryview(b"")
        """Read, not yet looked at."""
        self._large: tuple[FrameKind, memoryview] | None = None
        """A frame that is larger than a read."""
        self._filled = 0

    @property
    def is_between_frames(self) -> bool:
        return self._large is None and not self._rest

    def read(self) -> Frame:
        """The next frame; waits for it.

        Raises:
            ExecutorUnavailable: the connection ended.
            InvariantViolated: what came is no frame.
        """
        found = self._next(0)
        assert found is not None
        return found

    def poll(self) -> Frame | None:
        """The next frame, if all of it is here. Raises as `read`."""
        return self._next(socket.MSG_DONTWAIT)

    def _next(self, flags: int) -> Frame | None:
        while True:
            found = self._whole()
            if found is not None:
                return found
            try:
                self._fill(flags)
            except BlockingIOError:
                return None
            except OSError as error:
                raise ExecutorUnavailable(f"the connection failed: {error.strerror}") from error

    def _whole(self) -> Frame | None:
        if self._large is not None:
            kind, payload = self._large
            if self._filled < len(payload):
                return None
            self._large = None
            return Frame(kind, payload)
        if len(self._rest) < _HEAD.size:
            return None
        number, length = _HEAD.unpack_from(self._rest)
        if length > self._max_bytes or number not in _KINDS:
            raise InvariantViolated(f"a frame of kind {number} and {length} bytes is none of ours")
        payload = self._rest[_HEAD.size :]
        if length <= len(payload):
            self._rest = payload[length:]
            return Frame(_KINDS[number], payload[:length])
        if length > _READ_BYTES:
            self.admit(length)
            whole = memoryview(pa.allocate_buffer(length)).cast("B")
            whole[: len(payload)] = payload
            self._large, self._filled = (_KINDS[number], whole), len(payload)
            self._rest = memoryview(b"")
        return None

    def _fill(self, flags: int) -> None:
        if self._large is not None:
            count = self._sock.recv_into(self._large[1][self._filled :], 0, flags)
            self._filled += count
        elif self._buffer is not None and not self._rest:
            count = self._sock.recv_into(self._buffer, 0, flags)
            self._rest = self._buffer[:count]
        else:
            data = self._sock.recv(_READ_BYTES, flags)
            count = len(data)
            self._rest = memoryview(bytes(self._rest) + data if self._rest else data)
        if not count:
            raise ExecutorUnavailable("the connection ended")
        self.count += count


_KINDS: Final = {int(kind): kind for kind in FrameKind}


def _aligned(data: bytes) -> bytes:
    """JSON, made as long as keeps Arrow's messages behind it aligned."""
    return data.ljust(-(-len(data) // _ALIGNMENT) * _ALIGNMENT)
