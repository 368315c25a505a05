"""The zygote: imports DuckDB and Flight once, stays single-threaded, forks executors.

Started by `worker_plugin.executors` as `python -m ... <socket> <life line>`. Requests arrive on
a SEQPACKET socket, `{"fork": <incarnation>}` with the executor's control socket attached;
answers are `{"forked": ...}` and later `{"exited": ...}`.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

from accel_dask.transport import use_calling_threads
from accel_dask.worker_plugin.executor import main as executor_main
from accel_dask.worker_plugin.executor.control import LineBuffer, Message, to_line
from accel_dask.worker_plugin.executor.life_line import die_with
from accel_dask.worker_plugin.executor.log_format import log_as

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 4096


class Zygote:
    """Serves one host until the host is gone."""

    def __init__(self, requests: socket.socket, life_line: int, own_life_line: int) -> None:
        self._requests = requests
        self._life_line = life_line
        self._own_life_line = own_life_line
        self._children: set[int] = set()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> NoReturn:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._say({"hello": {"pid": os.getpid(), "threads": thread_count()}})
        requests = self._requests.fileno()
        while True:
            readable, _, _ = select.select([requests, self._wake_read], [], [])
            if self._wake_read in readable:
                os.read(self._wake_read, 4096)
                self._reap()
            if requests in readable:
                self._serve_one()

    def _serve_one(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._requests, MAX_REQUEST_BYTES, 1)
        except ConnectionError:
            data, fds = b"", []
        if not data:
            self._end()
        for request in LineBuffer().feed(data):
            self._fork(str(request["fork"]), fds[0])

    def _fork(self, incarnation: str, control: int) -> None:
        asked_at = time.monotonic()
        threads = thread_count()
        if threads != 1:
            log.error("the zygote has %d threads; a fork may hang", threads)
        pid = os.fork()
        if pid == 0:
            self._become_executor(control, asked_at)
        self._children.add(pid)
        os.close(control)
        self._say({"forked": {"incarnation": incarnation, "pid": pid}})

    def _become_executor(self, control: int, asked_at: float) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()  # a scheduling group of its own where the kernel has autogroups
            die_with(self._life_line)
            for fd in (self._wake_read, self._wake_write, self._life_line, self._own_life_line):
                os.close(fd)
            self._requests.close()
            executor_main.ExecutorProcess(socket.socket(fileno=control), asked_at).run()
        except BaseException:
            log.exception("an executor ended unexpectedly")
            raise
        finally:
            os._exit(executor_main.EXIT_FAILED)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._children.discard(pid)
            self._say({"exited": {"pid": pid, "status": os.waitstatus_to_exitcode(status)}})

    def _say(self, message: Message) -> None:
        try:
            self._requests.sendall(to_line(message))
        except OSError:
            self._end()

    def _end(self) -> NoReturn:
        """The host is gone, and so are its executors."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def main() -> NoReturn:
    requests_fd, life_line = int(sys.argv[1]), int(sys.argv[2])
    own_life_line = die_with(life_line)
    log_as("zygote")
    faulthandler.enable()
    use_calling_threads()
    sys.tracebacklimit = 0  # Flight would send the frames to the client
    gc.collect()
    gc.freeze()  # a collection in a child would copy all of our pages
    Zygote(socket.socket(fileno=requests_fd), life_line, own_life_line).run()


if __name__ == "__main__":
    main()
