"""Starts and restarts the processes of a cluster on one machine; used by `local.py` alone."""

from __future__ import annotations

import logging
import os
import queue
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from accel_dask.errors import AccelError, ConfigError
from accel_dask.launch import dying_with_parent

_LOG = logging.getLogger(__name__)
_MAX_BACKOFF_SECONDS = 5.0
_QUIET_SECONDS = 30.0
"""A process that lived this long starts again at once when it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One process to keep alive."""

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    """Added to this process's environment."""
    stop_seconds: float = 10.0
    """From SIGTERM to SIGKILL."""


@dataclass(slots=True)
class _Child:
    spec: ProcessSpec
    process: subprocess.Popen[bytes]
    pidfd: int
    started_at: float


@dataclass(slots=True)
class _Command:
    action: Callable[[], None]
    done: threading.Event
    error: list[BaseException]


class Supervisor:
    """Keeps processes alive until closed. Their output goes to `<log_dir>/<name>.log`.

    One thread starts them all and lives as long as they do: the kernel kills them when it
    ends (PR_SET_PDEATHSIG follows the thread), so no process outlives this one.
    """

    def __init__(self, log_dir: Path) -> None:
        self._log_dir = log_dir
        log_dir.mkdir(parents=True, exist_ok=True)
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._children: dict[str, _Child] = {}
        self._waiting: dict[str, tuple[float, ProcessSpec]] = {}
        self._backoff: dict[str, float] = {}
        self._restarts: dict[str, int] = {}
        self._wake_read, self._wake_write = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="accel-supervisor", daemon=True)
        self._thread.start()

    def start(self, spec: ProcessSpec) -> None:
        """Start a process and keep it alive.

        Raises:
            ConfigError: its program cannot be started.
        """
        self._call(lambda: self._spawn(spec))

    def stop(self, name: str, *, kill: bool = False) -> None:
        """End a process for good: SIGTERM, then SIGKILL (or that at once)."""

        def forget() -> None:
            self._waiting.pop(name, None)
            child = self._children.pop(name, None)
            if child is not None:
                self._selector.unregister(child.pidfd)
                os.close(child.pidfd)
                stopped.append(child)

        stopped: list[_Child] = []
        self._call(forget)
        for child in stopped:
            _end(child, kill=kill)

    def pids(self) -> dict[str, int]:
        """The processes that run now."""
        return {name: child.process.pid for name, child in list(self._children.items())}

    def restarts(self, name: str) -> int:
        """How often a process was started again."""
        return self._restarts.get(name, 0)

    def log_file(self, name: str) -> Path:
        return self._log_dir / f"{name}.log"

    def log_tail(self, name: str, lines: int = 15) -> str:
        try:
            text = self.log_file(name).read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """End everything, youngest first."""
        if self._thread.is_alive():
            self._call(self._waiting.clear)
        for name in reversed(list(self._children)):
            self.stop(name)
        self._commands.put(None)
        os.write(self._wake_write, b"x")
        self._thread.join(10)

    def _call(self, action: Callable[[], None]) -> None:
        command = _Command(action, threading.Event(), [])
        self._commands.put(command)
        os.write(self._wake_write, b"x")
        if not command.done.wait(30):
            raise AccelError("the process supervisor does not answer")
        if command.error:
            raise command.error[0]

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(self._seconds_to_next()):
                if key.fd == self._wake_read:
                    os.read(self._wake_read, 4096)
                else:
                    self._ended(key.data)
            if not self._obey():
                return
            self._start_due()

    def _obey(self) -> bool:
        while not self._commands.empty():
            command = self._commands.get()
            if command is None:
                return False
            try:
                command.action()
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                command.error.append(error)
            command.done.set()
        return True

    def _seconds_to_next(self) -> float | None:
        if not self._waiting:
            return None
        return max(0.0, min(due for due, _ in self._waiting.values()) - time.monotonic())

    def _start_due(self) -> None:
        now = time.monotonic()
        for name, (due, spec) in list(self._waiting.items()):
            if due <= now:
                del self._waiting[name]
                self._restarts[name] = self._restarts.get(name, 0) + 1
                try:
                    self._spawn(spec)
                except (ConfigError, OSError):  # this thread's end would be every process's
                    _LOG.exception("process %s cannot be started again; trying on", name)
                    self._waiting[name] = (now + _MAX_BACKOFF_SECONDS, spec)

    def _ended(self, name: str) -> None:
        child = self._children.pop(name)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        code = child.process.wait()
        lived = time.monotonic() - child.started_at
        delay = 0.0 if lived > _QUIET_SECONDS else self._backoff.get(name, 0.0)
        self._backoff[name] = min(_MAX_BACKOFF_SECONDS, max(0.25, delay * 2))
        _LOG.warning("process %s ended with %s after %.1f s; starting it again", name, code, lived)
        self._waiting[name] = (time.monotonic() + delay, child.spec)

    def _spawn(self, spec: ProcessSpec) -> None:
        if shutil.which(spec.argv[0]) is None:
            raise ConfigError(f"cannot start {spec.name}: there is no program {spec.argv[0]}")
        with self.log_file(spec.name).open("ab") as log:
            try:
                process = subprocess.Popen(
                    dying_with_parent(spec.argv),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **spec.environ},
                    start_new_session=True,
                )
            except OSError as error:
                raise ConfigError(f"cannot start {spec.name} ({spec.argv[0]}): {error}") from error
        pidfd = os.pidfd_open(process.pid)
        self._children[spec.name] = _Child(spec, process, pidfd, time.monotonic())
        self._selector.register(pidfd, selectors.EVENT_READ, spec.name)


def _end(child: _Child, *, kill: bool) -> None:
    process = child.process
    if kill:
        process.kill()
        process.wait()
        return
    process.terminate()
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(child.spec.stop_seconds)
    except subprocess.TimeoutExpired:
        _LOG.warning("process %s did not end on SIGTERM; killing it", child.spec.name)
        process.kill()
        process.wait()
