"""An executor's life: attach, lock, listen, rehearse, serve, drain, end. Forked by the zygote."""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
import threading
import time
from functools import partial
from typing import NoReturn

from accel_dask.codec import decode
from accel_dask.errors import AccelError, ExecutorUnavailable, InvariantViolated
from accel_dask.model.tenant import MIB
from accel_dask.ticket_stream import FrameKind
from accel_dask.worker_plugin.executor.cold_engine import ColdEngine
from accel_dask.worker_plugin.executor.control import LineBuffer, Message, to_line
from accel_dask.worker_plugin.executor.engine import Engine
from accel_dask.worker_plugin.executor.gathered import input_memory_bytes
from accel_dask.worker_plugin.executor.limits import (
    ENGINE_STACK_BYTES,
    FLIGHT_STACK_BYTES,
    apply_limits,
    join_groups,
    set_stack_size,
    trim_heap,
    virtual_bytes,
)
from accel_dask.worker_plugin.executor.log_format import log_as
from accel_dask.worker_plugin.executor.service import ExecutorService, answering
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.executor.ticket_desk import Standing, TicketDesk
from accel_dask.worker_plugin.executor.ticket_server import TicketServer

log = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED, EXIT_STUCK = 0, 1, 70
_DRAIN_POLL_SECONDS = 0.01
_LAST_BYTES_SECONDS = 2.0
_MIN_ADDRESS_SPACE_BYTES = 96 * MIB
_MAX_TIGHT_SECONDS = 3.0


class ExecutorProcess:
    """The main thread: reads orders of the host until it is told, or has, to end."""

    def __init__(self, control: socket.socket, forked_at: float) -> None:
        self._control = control
        self._forked_at = forked_at
        self._buffer = LineBuffer()
        self._inbox: list[Message] = []
        self._engine: Engine | None = None
        self._desk: TicketDesk | None = None
        self._service: ExecutorService | None = None
        self._standing = Standing(time.monotonic(), 0.0)
        self._drain_deadline: float | None = None
        self._say_lock = threading.Lock()
        self._address_space_bytes = 0
        self._tight_since: float | None = None

    def run(self) -> NoReturn:
        """Never returns: the process ends here."""
        try:
            self._start()
        except Exception as error:
            log.exception("an executor could not start")
            known = (
                error
                if isinstance(error, AccelError)
                else ExecutorUnavailable(f"the executor could not start: {type(error).__name__}")
            )
            self._say({"failed": {"code": known.code, "message": str(known)}})
            os._exit(EXIT_FAILED)
        while True:
            self._obey(self._next_order())

    def _start(self) -> None:
        message = self._next_order()
        spec = decode(message["spec"].encode(), ExecutorSpec)
        join_groups(spec.join_files)
        _name_process(spec)
        sys.setswitchinterval(0.0005)
        self._standing = Standing(time.monotonic(), spec.grace_seconds)
        set_stack_size(ENGINE_STACK_BYTES)
        engine_class = Engine if spec.cold is None else ColdEngine
        self._engine = engine_class(spec, self._give_up, die_frozen=True)
        rows = self._engine.rehearse()
        set_stack_size(FLIGHT_STACK_BYTES)
        desk = self._desk = TicketDesk(self._engine, self._standing)
        self._service = ExecutorService(desk, spec.host)
        tickets = TicketServer(
            spec.host,
            partial(answering, desk),
            {FrameKind.TICKET: self._engine.threads, FrameKind.PART: self._engine.part_threads},
        )
        limits = apply_limits(
            spec.quota.executor_memory_bytes + input_memory_bytes(spec.quota),
            spec.address_space_slack_bytes,
        )
        self._address_space_bytes = limits.address_space_bytes
        start_ms = (time.monotonic() - self._forked_at) * 1000
        self._say(
            {
                "ready": {
                    "port": self._service.port,
                    "ticket_port": tickets.port,
                    "pid": os.getpid(),
                    "start_ms": round(start_ms),
                    "rows": rows,
                    "limits": limits.describe(),
                }
            }
        )
        log.info(
            "executor of tenant %s, generation %d%s: %d shards, %d rows, READY on port %d after "
            "%.0f ms; %s",
            spec.tenant, spec.generation, "" if spec.cold is None else " (cold)",
            len(self._engine.shard_ids), rows, self._service.port, start_ms, limits.describe(),
        )  # fmt: skip

    def _next_order(self) -> Message:
        """The host's next message; meanwhile a drain may end the process."""
        while not self._inbox:
            if self._drain_deadline is not None:
                self._end_if_drained()
                if not select.select([self._control], [], [], _DRAIN_POLL_SECONDS)[0]:
                    continue
            try:
                data = self._control.recv(65536)
            except OSError:
                data = b""
            if not data:
                os._exit(EXIT_OK)  # the host is gone
            self._inbox.extend(self._buffer.feed(data))
        return self._inbox.pop(0)

    def _obey(self, order: Message) -> None:
        assert self._desk is not None
        match order:
            case {"ping": number}:
                self._say({"pong": number, **self._desk.stats()})
                self._check_address_space()
            case {"lease": float() | int() as deadline}:
                self._standing.extend(deadline)
            case {"drain": float() | int() as seconds}:
                self._standing.is_draining = True
                self._drain_deadline = time.monotonic() + seconds
            case {"stop": _}:
                os._exit(EXIT_OK)
            case _:
                raise InvariantViolated(f"an executor does not know the order {order}")

    def _check_address_space(self) -> None:
        """Without room for a thread, an executor looks well and answers nothing."""
        assert self._desk is not None
        left = self._address_space_bytes - virtual_bytes()
        now = time.monotonic()
        if self._desk.in_flight or left > _MIN_ADDRESS_SPACE_BYTES:
            self._tight_since = None
            return
        trim_heap()
        self._tight_since = self._tight_since or now
        if now - self._tight_since > _MAX_TIGHT_SECONDS:
            self._give_up(f"only {left // MIB} MiB of its address space are left while it is idle")

    def _end_if_drained(self) -> None:
        assert self._desk is not None
        assert self._service is not None
        assert self._drain_deadline is not None
        left = self._drain_deadline - time.monotonic()
        if self._desk.in_flight and left > 0:
            return
        # What was answered may still be on its way out: shutting down waits for it.
        ending = threading.Thread(target=self._service.shutdown, daemon=True)
        ending.start()
        ending.join(max(min(left, _LAST_BYTES_SECONDS), 0.0))
        os._exit(EXIT_OK)

    def _give_up(self, because: str) -> None:
        """End at once; the host brings up another. Called where nothing else helps."""
        log.error("executor ends: %s", because)
        self._say({"exiting": because})
        os._exit(EXIT_STUCK)

    def _say(self, message: Message) -> None:
        try:
            with self._say_lock:
                self._control.sendall(to_line(message))
        except OSError:
            os._exit(EXIT_OK)  # the host is gone


def _name_process(spec: ExecutorSpec) -> None:
    log_as(f"executor {spec.tenant}/{spec.generation}")
    with open("/proc/self/comm", "w", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        file.write(f"ad-{spec.tenant}"[:15])
