"""Clients of a gateway in a process of their own: `python -m accel_dask.drill.loads`, with a Load
as JSON on standard input. Prints what it has seen as one line of JSON.

An open loop sends at times drawn beforehand and counts from them, so a slow answer delays nothing
and hides nothing. A closed loop sends the next query when the last is answered. A flood opens a
connection for every query.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec
from pyarrow import flight

from accel_dask.drill.arrivals import arrivals, filled, percentile
from accel_dask.errors import AccelError
from accel_dask.flight_errors import FLIGHT_FAILURES
from accel_dask.launch import dying_with_parent
from flightsql_gateway.flight_sql import messages

_CALL_SECONDS = 120
_FAVOUR = -10
"""Nice value of clients that stand for another machine."""


class Shape(StrEnum):
    """How clients send."""

    OPEN = "open"
    CLOSED = "closed"
    FLOOD = "flood"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load on a gateway."""

    url: str
    user: str
    token: str
    statements: tuple[str, ...]
    """With `{day}`, `{store}` or `{n}`: filled in anew each time."""
    seconds: float
    shape: Shape = Shape.CLOSED
    rate: float = 30.0
    """Queries per second of an open loop."""
    clients: int = 8
    seed: int = 1
    is_favoured: bool = False
    """Stands for another machine: does not compete for this one's CPU, where that may be had."""


@dataclass(slots=True, kw_only=True)
class Seen:
    """What the clients of a load have seen."""

    started: float = 0.0
    """Monotonic seconds, which all processes of a machine share."""
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    """Of the answers, in the order in which they came."""
    sent_at: list[float] = field(default_factory=list)
    """When each of them was asked, in seconds from the start."""
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def answered(self) -> int:
        return len(self.latencies_ms)

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    @property
    def per_second(self) -> float:
        """Answers."""
        return self.answered / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        """Of the latencies, in milliseconds."""
        return percentile(self.latencies_ms, share)


class RunningLoad:
    """A load in a process of its own, which ends with this one. Start it from a thread that
    lives as long as the load."""

    def __init__(self, load: Load) -> None:
        argv = dying_with_parent((sys.executable, "-m", "accel_dask.drill.loads"))
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(load) + b"\n")
        self._process.stdin.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> Seen:
        """What it has seen, once it is over.

        Raises:
            AccelError: it could not be carried out.
        """
        out, errors = self._process.communicate()
        if self._process.returncode != 0:
            raise AccelError(f"the clients of a drill failed: {errors.decode()[-2000:]}")
        return msgspec.json.decode(out.splitlines()[-1], type=Seen)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class _Client:
    def __init__(self, load: Load) -> None:
        self._connection = flight.connect(load.url)
        header = self._connection.authenticate_basic_token(load.user, load.token)
        self._options = flight.FlightCallOptions(headers=[header], timeout=_CALL_SECONDS)

    def ask(self, sql: str) -> None:
        command = messages.wrap(messages.new("CommandStatementQuery", query=sql))
        for _ in self._connection.do_get(flight.Ticket(command), self._options):
            pass

    def close(self) -> None:
        self._connection.close()


class _Run:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._random = random.Random(load.seed)  # noqa: S311 - no secret
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._seen = Seen()
        self._failures: Counter[str] = Counter()
        self._started = 0.0

    def run(self) -> Seen:
        self._started = time.monotonic()
        {Shape.OPEN: self._open, Shape.CLOSED: self._closed, Shape.FLOOD: self._flood}[
            self._load.shape
        ]()
        self._seen.started = self._started
        self._seen.seconds = time.monotonic() - self._started
        self._seen.failures = dict(self._failures)
        return self._seen

    def _statement(self) -> str:
        with self._lock:
            return filled(self._load.statements, next(self._numbers), self._random)

    def _ask(self, client: _Client, sql: str, due: float) -> None:
        try:
            client.ask(sql)
        except FLIGHT_FAILURES as error:
            self._fail(error)
            return
        with self._lock:
            self._seen.latencies_ms.append((time.monotonic() - due) * 1000)
            self._seen.sent_at.append(due - self._started)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failures[str(error).split("\n", 1)[0][:120]] += 1

    def _open(self) -> None:
        due: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()

        def serve(client: _Client) -> None:
            while (one := due.get()) is not None:
                self._ask(client, one[1], one[0])

        clients = [_Client(self._load) for _ in range(self._load.clients)]
        for client in clients:  # connected, and the gateway's plans made
            client.ask(self._statement())
        threads = [threading.Thread(target=serve, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        self._started = time.monotonic() + 0.1
        for at in arrivals(self._load.rate, self._load.seconds, self._random):
            statement = self._statement()
            time.sleep(max(0.0, self._started + at - time.monotonic()))
            due.put((self._started + at, statement))
        for _ in threads:
            due.put(None)
        for thread in threads:
            thread.join()

    def _closed(self) -> None:
        until = self._started + self._load.seconds

        def serve() -> None:
            client = _Client(self._load)
            while time.monotonic() < until:
                self._ask(client, self._statement(), time.monotonic())

        self._in_threads(serve)

    def _flood(self) -> None:
        until = self._started + self._load.seconds

        def serve() -> None:
            while time.monotonic() < until:
                try:
                    client = _Client(self._load)
                except FLIGHT_FAILURES as error:
                    self._fail(error)
                    continue
                self._ask(client, self._statement(), time.monotonic())
                client.close()

        self._in_threads(serve)

    def _in_threads(self, serve: Callable[[], None]) -> None:
        threads = [threading.Thread(target=serve) for _ in range(self._load.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _favour() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_FAVOUR), encoding="ascii")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _FAVOUR)


def main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.readline(), type=Load)
    if load.is_favoured:
        _favour()
    seen = _Run(load).run()
    print(msgspec.json.encode(seen).decode(), flush=True)  # noqa: T201 - who started this reads it
    os._exit(0)  # threads that still wait for an answer keep nobody


if __name__ == "__main__":
    main()
