"""A running executor as the host sees it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_dask.worker_plugin.executor.control import LineBuffer, Message, to_line
from accel_dask.worker_plugin.executor.spec import ExecutorSpec

log = logging.getLogger(__name__)

_SPEC_SECONDS = 10.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorStats:
    """What an executor uses and does; memory is read now, counts are of its last ping."""

    rss_bytes: int
    private_bytes: int
    in_flight: int
    queries: int


class RunningExecutor:
    """Handed out by `ExecutorHost.launch` once READY. Safe to use from several threads."""

    def __init__(self, spec: ExecutorSpec, control: socket.socket, asked_at: float) -> None:
        self.spec = spec
        self.incarnation = spec.incarnation
        cold = "" if spec.cold is None else "cold "
        self.label = f"{cold}executor of tenant {spec.tenant}, generation {spec.generation}"
        self.pid = 0
        self.address = ""
        """`grpc://host:port`."""
        self.ticket_port = 0
        self.start_ms = 0
        """From the order to READY."""
        self.limits = ""
        """What the operating system enforces on it, for people."""
        self.is_ready = False
        self.exit_reason = ""
        self.failure: tuple[str, str] | None = None
        """Code and message of what it failed of before READY."""
        self.status: int | None = None
        """Its exit status; negative: the signal that ended it. None while not known."""
        self.control = control
        self.settled = threading.Event()
        """READY, or ended."""
        self.unanswered = 0
        self._asked_at = asked_at
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._pidfd = -1
        self._buffer = LineBuffer()
        self._in_flight = 0
        self._queries = 0
        self._pings = 0

    def __repr__(self) -> str:
        return f"<{self.label}, pid {self.pid}, {self.address or 'not READY'}>"

    # For the host agent.

    def extend_lease(self, deadline: float) -> None:
        """It may serve until `deadline` (monotonic seconds) plus its grace."""
        self._send({"lease": deadline})

    def drain(self, seconds: float = 30.0) -> None:
        """Take no more tickets; end when the last query has, or after `seconds`."""
        self._send({"drain": seconds})

    def kill(self, because: str = "it was killed by its host") -> None:
        """End it at once."""
        with self._lock:
            if self._ended.is_set():
                return
            self.exit_reason = self.exit_reason or because
            with contextlib.suppress(OSError):
                if self._pidfd >= 0:
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                self.control.shutdown(socket.SHUT_RDWR)

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Whether it has ended within `timeout` seconds."""
        return self._ended.wait(timeout)

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def resident_bytes(self) -> int:
        """Cheaply, as `stats` is not: that walks all of its pages. Zero once it has ended."""
        if self.has_ended:
            return 0
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        return 0

    def stats(self) -> ExecutorStats:
        """All zero once it has ended."""
        rss, private = _memory(self.pid) if not self.has_ended else (0, 0)
        return ExecutorStats(
            rss_bytes=rss,
            private_bytes=private,
            in_flight=self._in_flight,
            queries=self._queries,
        )

    # For `ExecutorHost`.

    def send_spec(self, line: bytes) -> None:
        """The first thing that it reads. It may be longer than the socket's buffer."""
        self.control.settimeout(_SPEC_SECONDS)
        with contextlib.suppress(OSError):  # its end shows on the reading side
            self.control.sendall(line)
        self.control.setblocking(False)

    def forked_as(self, pid: int) -> None:
        with self._lock:
            if self._pidfd >= 0 or self._ended.is_set():
                return
            self.pid = pid
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(pid)

    def receive(self) -> list[Message] | None:
        """Its next messages; None when its socket has ended."""
        try:
            data = self.control.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return self._buffer.feed(data) if data else None

    def take(self, message: Message) -> None:
        match message:
            case {"ready": ready}:
                self._become_ready(ready)
            case {"failed": {"code": code, "message": text}}:
                self.failure = (code, text)
                self.exit_reason = text
            case {"exiting": because}:
                self.exit_reason = because
            case {"pong": _, "in_flight": in_flight, "queries": queries}:
                self.unanswered = 0
                self._in_flight = in_flight
                self._queries = queries
            case _:
                log.error("%s said something unknown: %s", self.label, message)

    def _become_ready(self, ready: dict[str, Any]) -> None:
        self.forked_as(ready["pid"])
        host = self.spec.host
        self.address = f"grpc://{f'[{host}]' if ':' in host else host}:{ready['port']}"
        self.ticket_port = ready["ticket_port"]
        self.start_ms = round((time.monotonic() - self._asked_at) * 1000)
        self.limits = ready["limits"]
        self.is_ready = True
        self.settled.set()

    def ping(self) -> None:
        self._pings += 1
        self.unanswered += 1
        self._send({"ping": self._pings})

    def finish(self) -> None:
        """Its socket has ended, so the process has, or is about to: make sure."""
        with self._lock:
            if not self.exit_reason:
                self.exit_reason = _told_by(self.status)
            if self._pidfd >= 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                os.close(self._pidfd)
                self._pidfd = -1
            self.control.close()
            self.is_ready = False
            self._ended.set()
            self.settled.set()

    def _send(self, message: Message) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            with contextlib.suppress(OSError):  # gone or hung: the watching thread sees to it
                self.control.send(to_line(message))


OnExit = Callable[[RunningExecutor, str], None]


def _told_by(status: int | None) -> str:
    if status is None:
        return "its process ended"
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return f"its process ended with status {status}"


def _memory(pid: int) -> tuple[int, int]:
    """Resident and private bytes of a process; zeros if it has ended. Private is what would be
    free without it: clean pages of libraries are not, whoever maps them."""
    sizes = {"Rss:": 0, "Private_Dirty:": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name in sizes:
                sizes[name] = int(rest.split()[0]) * 1024
    return sizes["Rss:"], sizes["Private_Dirty:"]
