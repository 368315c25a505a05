"""A database server that lives as long as this process: for tests and demos."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from accel_dask.errors import ConfigError, EngineUnavailable
from accel_dask.launch import dying_with_parent

READY_SECONDS: Final = 30.0


class NotInstalled(ConfigError):
    """This machine does not have the server's program."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def program(name: str, *directories: str, how: str) -> str:
    """The path of a server's program.

    Raises:
        NotInstalled: there is none; `how` says how to get it.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", *directories])
    found = shutil.which(name, path=path)
    if found is None:
        raise NotInstalled(f"there is no {name} on this machine; {how}")
    return found


class ServerProcess:
    """One server in a directory of its own, on a free port of the loopback.

    A thread starts it and waits for it: the kernel ends it when that thread or this process ends.
    """

    def __init__(self, name: str, *, owner: int | None = None) -> None:
        """`owner`: the user id that it runs as, and that owns its directory."""
        self.name = name
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix=f"accel-{name}-"))
        self._owner = owner
        if owner is not None:
            os.chown(self.directory, owner, -1)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def initialise(self, argv: Sequence[str], seconds: float = 60.0) -> None:
        """Run a program that makes its directory ready."""
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=seconds, check=False, user=self._owner,
            cwd=self.directory,
        )  # fmt: skip
        if done.returncode != 0:
            said = (done.stderr or done.stdout)[-500:]
            raise EngineUnavailable(f"{argv[0]} ended with {done.returncode}: {said}")

    def start(self, argv: Sequence[str], is_ready: Callable[[], bool]) -> None:
        """Start it and wait until `is_ready`, which may raise what it likes.

        Raises:
            EngineUnavailable: it ended, or is not ready within `READY_SECONDS`.
        """
        if self._owner is None:
            argv = dying_with_parent(argv)
        else:  # it may not run our Python
            who = ("--reuid", str(self._owner), "--clear-groups", "--pdeathsig", "KILL")
            argv = ("setpriv", *who, *argv)
        failed: list[OSError] = []
        started = threading.Event()

        def live() -> None:
            try:
                with (self.directory / "server.log").open("ab") as log:
                    self._process = subprocess.Popen(
                        argv,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        cwd=self.directory,
                        start_new_session=True,
                    )
            except OSError as error:
                failed.append(error)
                self._ended.set()
                started.set()
                return
            started.set()
            self._process.wait()
            self._ended.set()

        threading.Thread(target=live, name=f"{self.name}-server", daemon=True).start()
        started.wait(READY_SECONDS)
        if failed:
            raise EngineUnavailable(f"{self.name} cannot be started: {failed[0]}")
        self._wait_ready(is_ready)

    def _wait_ready(self, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        problem = "it is not ready"
        while time.monotonic() < deadline:
            if self._ended.is_set():
                raise EngineUnavailable(f"{self.name} ended at once: {self.last_words()}")
            try:
                if is_ready():
                    return
            except Exception as error:  # noqa: BLE001 - a client's error while nobody listens yet
                problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            time.sleep(0.05)
        self.stop()
        raise EngineUnavailable(
            f"{self.name} was not ready in {READY_SECONDS} s: {problem[:200]}; {self.last_words()}"
        )

    def last_words(self) -> str:
        try:
            return (self.directory / "server.log").read_text(errors="replace")[-500:].strip()
        except OSError:
            return ""

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and not self._ended.is_set():
            self._process.send_signal(number)

    def stop(self) -> None:
        """End it and remove its directory."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        if not self._ended.wait(5):
            self.send(signal.SIGKILL)
            self._ended.wait(5)
        shutil.rmtree(self.directory, ignore_errors=True)
