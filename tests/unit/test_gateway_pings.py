"""Whether an executor is there is asked once for all queries that wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flightsql_gateway.attempts import Attempt, Race

PATIENCE = 0.05


class Clients:
    """Executors that answer every ping, and count them."""

    def __init__(self) -> None:
        self.pings: list[str] = []
        self._heard_at: dict[str, float] = {}

    def is_answering(self, address: str) -> bool:
        self.pings.append(address)
        self._heard_at[address] = time.monotonic()
        return True

    def heard_at(self, address: str) -> float:
        return self._heard_at.get(address, 0.0)

    def was_silent(self, address: str) -> bool:
        return False


class Threads:
    def submit(self, work: Callable[[], None]) -> None:
        work()


def waiting_for(clients: Clients, address: str, heard_at: float) -> Race:
    watch: Any = SimpleNamespace(threads=Threads())
    race = Race("q", clients, watch)  # type: ignore[arg-type]
    route: Any = SimpleNamespace(address=address)
    plan: Any = SimpleNamespace()
    attempt = Attempt(plan, route)
    attempt.heard_at = heard_at
    race.open.append(attempt)
    return race


def test_eight_queries_that_wait_for_one_executor_ask_it_once() -> None:
    clients = Clients()
    long_ago = time.monotonic() - 1.0
    races = [waiting_for(clients, "grpc://a", long_ago) for _ in range(8)]
    races.append(waiting_for(clients, "grpc://b", long_ago))
    for race in races:
        race.ask_for_life(PATIENCE)
    assert clients.pings == ["grpc://a", "grpc://b"]
    assert all(race.open[0].heard_at > long_ago for race in races)


def test_an_executor_is_asked_again_once_it_has_been_silent_for_as_long() -> None:
    clients = Clients()
    race = waiting_for(clients, "grpc://a", time.monotonic() - 1.0)
    race.ask_for_life(PATIENCE)
    race.ask_for_life(PATIENCE)
    assert len(clients.pings) == 1
    race.ask_for_life(-1.0)  # nobody has that much patience
    assert len(clients.pings) == 2


def test_what_was_heard_before_a_query_was_sent_does_not_count_against_it() -> None:
    clients = Clients()
    clients.is_answering("grpc://a")
    sent_at = time.monotonic() + 1.0
    race = waiting_for(clients, "grpc://a", sent_at)
    race.ask_for_life(PATIENCE)
    assert race.open[0].heard_at == sent_at
