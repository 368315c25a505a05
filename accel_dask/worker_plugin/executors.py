"""A host's executors: started through the zygote, watched, ended. Runs in the Dask nanny.

One thread waits for all of them. An executor's end shows as the end of its control socket,
within milliseconds. When this process dies, of whatever, they all die (`executor/life_line.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from accel_dask.codec import encode
from accel_dask.errors import AccelError, ExecutorUnavailable, error_class
from accel_dask.worker_plugin.executor.control import Message, to_line
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.process_record import ProcessRecords
from accel_dask.worker_plugin.running_executor import OnExit, RunningExecutor
from accel_dask.worker_plugin.zygote_process import ZygoteProcess

log = logging.getLogger(__name__)

_STATUS_SECONDS = 0.05
"""How long to wait for the exit status of an executor whose socket has ended."""
_ZYGOTE_SECONDS = 10.0
_RESPAWN_PAUSE_SECONDS = 1.0
_KILL_SECONDS = 5.0
_FORK_ATTEMPTS = 3


def new_incarnation() -> str:
    """A random name for one start of an executor."""
    return secrets.token_hex(8)


class ExecutorHost:
    """All executors of a host. Safe to use from several threads."""

    def __init__(
        self,
        run_dir: Path,
        *,
        on_exit: OnExit | None = None,
        ping_seconds: float = 1.0,
        hung_seconds: float = 5.0,
    ) -> None:
        """`run_dir` is this host's alone. `on_exit` is called on a thread of its own with every
        executor that was READY and ended, and why."""
        self._records = ProcessRecords(run_dir / "processes")
        self._on_exit = on_exit
        self._ping_seconds = ping_seconds
        self._max_unanswered = max(round(hung_seconds / ping_seconds), 1)
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._calls: deque[Callable[[], None]] = deque()
        self._executors: dict[str, RunningExecutor] = {}
        self._ending: dict[str, float] = {}
        self._life_read, self._life_write = os.pipe2(os.O_CLOEXEC)
        self._zygote: ZygoteProcess | None = None
        self._zygote_changed = threading.Condition(self._lock)
        self._zygote_generation = 0
        self._respawn_at = float("inf")
        self._next_ping = 0.0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="executors", daemon=True)

    # Used by the host agent.

    def start(self) -> None:
        """End what an earlier life left, start the zygote; returns when it is warm.

        Raises:
            ExecutorUnavailable: the zygote does not start.
        """
        self._records.kill_all(_KILL_SECONDS)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wake)
        self._thread.start()
        self._call(self._start_zygote)
        self._warm_zygote(time.monotonic() + _ZYGOTE_SECONDS)

    def launch(self, spec: ExecutorSpec, timeout_seconds: float = 30.0) -> RunningExecutor:
        """Start an executor; returns when it is READY.

        Raises:
            AccelError: what the executor said it failed of (such as `ShardDamaged`).
            ExecutorUnavailable: it ended or was not READY in time.
        """
        asked_at = time.monotonic()
        deadline = asked_at + timeout_seconds
        for left in reversed(range(_FORK_ATTEMPTS)):
            zygote = self._warm_zygote(deadline)
            executor = self._fork(zygote, spec, asked_at)
            if not executor.settled.wait(max(deadline - time.monotonic(), 0.0)):
                executor.kill(f"it was not READY within {timeout_seconds:g} s")
                executor.wait_ended(_KILL_SECONDS)
            if executor.is_ready:
                return executor
            if executor.pid or not left or time.monotonic() >= deadline:
                raise _launch_error(executor)
            log.warning("the zygote ended before it forked for %s; once more", executor.label)
        raise AssertionError("unreachable")

    @property
    def starting_thread(self) -> int | None:
        """The kernel's number of the thread that starts processes: they have its nice value."""
        return self._thread.native_id

    def running(self) -> tuple[RunningExecutor, ...]:
        """Those that are READY and have not ended."""
        with self._lock:
            return tuple(e for e in self._executors.values() if e.is_ready)

    def close(self) -> None:
        """End the zygote and every executor, at once."""
        with self._lock:
            self._is_closing = True
            executors = tuple(self._executors.values())
            zygote = self._zygote
            self._zygote_changed.notify_all()
        os.close(self._life_write)  # the kernel kills them all
        for executor in executors:
            executor.kill("the host is closing")
        for executor in executors:
            executor.wait_ended(_KILL_SECONDS)
        if zygote is not None:
            zygote.end(_KILL_SECONDS)
            self._records.remove(zygote.pid)
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(_KILL_SECONDS)
        self._selector.close()
        for fd in (self._life_read, self._wake_read, self._wake_write):
            os.close(fd)

    # On the caller's thread.

    def _warm_zygote(self, deadline: float) -> ZygoteProcess:
        with self._lock:
            while not self._is_closing:
                if self._zygote is not None and self._zygote.is_warm:
                    return self._zygote
                if not self._zygote_changed.wait(deadline - time.monotonic()):
                    raise ExecutorUnavailable("the zygote, which starts executors, does not start")
            raise ExecutorUnavailable("this host is closing")

    def _fork(self, zygote: ZygoteProcess, spec: ExecutorSpec, asked_at: float) -> RunningExecutor:
        ours, theirs = socket.socketpair()
        executor = RunningExecutor(spec, ours, asked_at)
        with self._lock:
            if self._is_closing:
                raise ExecutorUnavailable("this host is closing")
            self._executors[spec.incarnation] = executor
        try:
            zygote.fork(spec.incarnation, theirs)
        except OSError as error:
            log.warning("the zygote does not take orders: %s", error)
        finally:
            theirs.close()
        executor.send_spec(to_line({"spec": encode(spec).decode()}))
        self._call(lambda: self._watch(executor))
        return executor

    # On the watching thread.

    def _call(self, work: Callable[[], None]) -> None:
        self._calls.append(work)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # then it is awake
            os.write(self._wake_write, b"x")

    def _drain_wake(self) -> None:
        os.read(self._wake_read, 4096)

    def _run(self) -> None:
        while True:
            try:
                self._turn()
            except Exception:  # the thread must go on for the other executors
                log.exception("watching executors failed in one turn")
            with self._lock:
                if self._is_closing and not self._executors:
                    return

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._pause()):
            key.data()
        while self._calls:
            self._calls.popleft()()
        now = time.monotonic()
        for incarnation, until in tuple(self._ending.items()):
            if now >= until:
                self._finish(self._executors[incarnation])
        if now >= self._next_ping:
            self._next_ping = now + self._ping_seconds
            self._ping()
        if now >= self._respawn_at:
            self._start_zygote()

    def _pause(self) -> float:
        now = time.monotonic()
        times = [self._respawn_at, *self._ending.values()]
        times.append(self._next_ping if self._executors else now + self._ping_seconds)
        return max(min(times) - now, 0.0)

    def _watch(self, executor: RunningExecutor) -> None:
        self._selector.register(
            executor.control, selectors.EVENT_READ, lambda: self._read(executor)
        )

    def _read(self, executor: RunningExecutor) -> None:
        messages = executor.receive()
        if messages is None:
            self._selector.unregister(executor.control)
            if executor.status is not None or not executor.pid:
                self._finish(executor)
            else:
                self._ending[executor.incarnation] = time.monotonic() + _STATUS_SECONDS
            return
        for message in messages:
            executor.take(message)
            if "ready" in message:
                self._record(executor)

    def _finish(self, executor: RunningExecutor) -> None:
        """It has ended: nothing of it is left when `on_exit` hears of it."""
        self._ending.pop(executor.incarnation, None)
        with self._lock:
            self._executors.pop(executor.incarnation, None)
        if executor.pid:
            self._records.remove(executor.pid)
        was_ready = executor.is_ready
        executor.finish()
        log.info("%s ended: %s", executor.label, executor.exit_reason)
        if was_ready and self._on_exit is not None and not self._is_closing:
            threading.Thread(
                target=self._on_exit, args=(executor, executor.exit_reason), daemon=True
            ).start()

    def _ping(self) -> None:
        for executor in tuple(self._executors.values()):
            if not executor.is_ready:
                continue
            if executor.unanswered >= self._max_unanswered:
                executor.kill(f"it left {executor.unanswered} pings unanswered")
            else:
                executor.ping()

    # The zygote, on the watching thread.

    def _start_zygote(self) -> None:
        self._respawn_at = float("inf")
        if self._is_closing:
            return
        zygote = ZygoteProcess(self._life_read)
        self._records.write(zygote.pid, "the zygote")
        with self._lock:
            self._zygote = zygote
        self._selector.register(
            zygote.socket, selectors.EVENT_READ, lambda: self._read_zygote(zygote)
        )

    def _read_zygote(self, zygote: ZygoteProcess) -> None:
        messages = zygote.receive()
        if messages is None:
            self._zygote_ended(zygote)
            return
        for message in messages:
            self._take_from_zygote(zygote, message)

    def _take_from_zygote(self, zygote: ZygoteProcess, message: Message) -> None:
        match message:
            case {"hello": {"threads": threads}}:
                log.info("zygote %d is warm, with %d thread(s)", zygote.pid, threads)
                with self._lock:
                    zygote.is_warm = True
                    self._zygote_changed.notify_all()
            case {"forked": {"incarnation": incarnation, "pid": pid}}:
                executor = self._executors.get(incarnation)
                if executor is not None:
                    executor.forked_as(pid)
                    self._record(executor)
            case {"exited": {"pid": pid, "status": status}}:
                for executor in tuple(self._executors.values()):
                    if executor.pid == pid:
                        executor.status = status
                        if executor.incarnation in self._ending:
                            self._finish(executor)
            case _:
                log.error("the zygote said something unknown: %s", message)

    def _record(self, executor: RunningExecutor) -> None:
        self._records.write(executor.pid, executor.label)

    def _zygote_ended(self, zygote: ZygoteProcess) -> None:
        self._selector.unregister(zygote.socket)
        zygote.end(_KILL_SECONDS)
        self._records.remove(zygote.pid)
        with self._lock:
            self._zygote = None
        if not self._is_closing:
            log.warning("zygote %d ended; executors go on, another zygote starts", zygote.pid)
            pause = 0.0 if zygote.is_warm else _RESPAWN_PAUSE_SECONDS
            self._respawn_at = time.monotonic() + pause


def _launch_error(executor: RunningExecutor) -> AccelError:
    if executor.failure is not None:
        code, message = executor.failure
        return error_class(code)(message)
    return ExecutorUnavailable(
        f"{executor.label} ended before it was READY: {executor.exit_reason}"
    )
