"""Clients of a gateway in a process of their own: `python load_drivers.py <JSON of a Drive>`.

An open loop sends at times drawn beforehand and counts from them, so a slow answer delays nothing
and hides nothing. A closed loop sends the next query when the last is answered. A flood opens a
connection for every query. Prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import flight

from flightsql_gateway.flight_sql import messages


@dataclass(frozen=True, kw_only=True)
class Drive:
    """One load on a gateway."""

    url: str
    user: str
    token: str
    statements: tuple[str, ...]
    """With `{day}`, `{store}` or `{n}`: filled in anew each time."""
    seconds: float
    shape: str = "closed"
    """`open`, `closed` or `flood`."""
    rate: float = 0.0
    """Queries per second of an open loop."""
    clients: int = 8
    seed: int = 1
    is_favoured: bool = False
    """Stands for another machine: does not compete for this one's CPU, where that may be had."""


@dataclass
class Told:
    """What a drive has seen."""

    seconds: float = 0.0
    answered: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies_ms)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds if self.seconds else 0.0


class Driving:
    """A drive in a process of its own."""

    def __init__(self, drive: Drive) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(asdict(drive))],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait(self) -> Told:
        out, _ = self._process.communicate()
        return Told(**json.loads(out.splitlines()[-1]))

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


class _Client:
    def __init__(self, drive: Drive) -> None:
        self._connection = flight.connect(drive.url)
        header = self._connection.authenticate_basic_token(drive.user, drive.token)
        self._options = flight.FlightCallOptions(headers=[header], timeout=120)

    def ask(self, sql: str) -> None:
        command = messages.wrap(messages.new("CommandStatementQuery", query=sql))
        reader = self._connection.do_get(flight.Ticket(command), self._options)
        for _ in reader:
            pass

    def close(self) -> None:
        self._connection.close()


class _Run:
    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._random = random.Random(drive.seed)
        self._lock = threading.Lock()
        self._told = Told()
        self._failures: Counter[str] = Counter()

    def run(self) -> Told:
        started = time.monotonic()
        {"open": self._open, "closed": self._closed, "flood": self._flood}[self._drive.shape]()
        self._told.seconds = time.monotonic() - started
        self._told.failures = dict(self._failures)
        return self._told

    def _statement(self) -> str:
        with self._lock:
            sql = self._random.choice(self._drive.statements)
            return sql.format(
                day=self._random.randrange(0, 330),
                store=self._random.randrange(0, 300),
                n=self._random.randrange(1, 1_000_000),
            )

    def _ask(self, client: _Client, sql: str, scheduled: float) -> None:
        try:
            client.ask(sql)
        except (flight.FlightError, OSError, ValueError, KeyError) as error:
            with self._lock:
                self._failures[str(error).split("\n", 1)[0][:120]] += 1
            return
        with self._lock:
            self._told.answered += 1
            self._told.latencies_ms.append((time.monotonic() - scheduled) * 1000)

    def _open(self) -> None:
        arrivals: queue.SimpleQueue[tuple[float, str] | None] = queue.SimpleQueue()

        def serve(client: _Client) -> None:
            while (one := arrivals.get()) is not None:
                self._ask(client, one[1], one[0])

        clients = [_Client(self._drive) for _ in range(self._drive.clients)]
        for client in clients:
            client.ask(self._statement())
        threads = [threading.Thread(target=serve, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        at = time.monotonic() + 0.1
        end = at + self._drive.seconds
        while at < end:
            statement = self._statement()
            time.sleep(max(0.0, at - time.monotonic()))
            arrivals.put((at, statement))
            at += self._random.expovariate(self._drive.rate)
        for _ in threads:
            arrivals.put(None)
        for thread in threads:
            thread.join()

    def _closed(self) -> None:
        until = time.monotonic() + self._drive.seconds

        def serve() -> None:
            client = _Client(self._drive)
            while time.monotonic() < until:
                self._ask(client, self._statement(), time.monotonic())

        self._in_threads(serve)

    def _flood(self) -> None:
        until = time.monotonic() + self._drive.seconds

        def serve() -> None:
            while time.monotonic() < until:
                try:
                    client = _Client(self._drive)
                except (flight.FlightError, OSError) as error:
                    with self._lock:
                        self._failures[str(error).split("\n", 1)[0][:120]] += 1
                    continue
                self._ask(client, self._statement(), time.monotonic())
                client.close()

        self._in_threads(serve)

    def _in_threads(self, serve: Callable[[], None]) -> None:
        threads = [threading.Thread(target=serve) for _ in range(self._drive.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _favour() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-10")
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def main() -> None:
    fields: dict[str, Any] = json.loads(sys.argv[1])
    drive = Drive(**(fields | {"statements": tuple(fields["statements"])}))
    if drive.is_favoured:
        _favour()
    print(json.dumps(asdict(_Run(drive).run())), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
