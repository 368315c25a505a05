"""The zygote as the host sees it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Final

from accel_dask.worker_plugin.executor.control import LineBuffer, Message, to_line

_MODULE: Final = "accel_dask.worker_plugin.executor.zygote"
# No secret of the host is in an executor's environment, and no thread may start at an import:
# the zygote forks.
_PASSED_ON: Final = (
    "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONHOME",
    "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX",
)  # fmt: skip
_SET: Final = {
    "HOME": "/",
    "TZ": "UTC",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # Address space is bounded, so allocators must give it back: DuckDB's keeps it for good and
    # Arrow's takes it in large pieces, unless they are told; glibc takes 64 MiB per arena.
    "DUCKDB_JE_MALLOC_CONF": "retain:false",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "1048576",
}


class ZygoteProcess:
    """A running zygote; `is_warm` once it has said hello."""

    def __init__(self, life_line: int) -> None:
        """`life_line`: the read end of the pipe that it and its children die with."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {k: os.environ[k] for k in _PASSED_ON if k in os.environ} | _SET
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(life_line)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), life_line),
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is for the host
            )
        finally:
            theirs.close()
        self.pid = self._process.pid
        self.is_warm = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, incarnation: str, control: socket.socket) -> None:
        """Ask for an executor at the other end of `control`.

        Raises:
            OSError: it has ended.
        """
        socket.send_fds(self.socket, [to_line({"fork": incarnation})], [control.fileno()])

    def receive(self) -> list[Message] | None:
        """Its next messages; None when it has ended."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        return LineBuffer().feed(data) if data else None

    def end(self, wait_seconds: float) -> None:
        """Kill and reap it."""
        self._process.kill()
        self._process.wait(wait_seconds)
        self.socket.close()
