"""What Python knows of a thread of Flight lasts from call to call, and ends with the thread."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from pyarrow import flight

from flightsql_gateway import lasting_threads
from flightsql_gateway.lasting_threads import keep_known

pytestmark = pytest.mark.skipif(
    lasting_threads._at_exit is None, reason="this C library tells of no thread's end"
)


class Server(flight.FlightServerBase):  # type: ignore[misc]
    """Tells how often the thread that answers has been seen, as far as Python knows."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._seen = threading.local()
        super().__init__("grpc://127.0.0.1:0")

    def do_action(
        self, context: flight.ServerCallContext, action: flight.Action
    ) -> Iterator[flight.Result]:
        self._before()
        count = getattr(self._seen, "count", 0) + 1
        self._seen.count = count
        return iter([flight.Result(b"%d" % count)])


@contextmanager
def a_server(before: Callable[[], None]) -> Iterator[Server]:
    server = Server(before)
    try:
        yield server
    finally:
        server.shutdown()


def ask(client: flight.FlightClient) -> int:
    (result,) = client.do_action("count")
    return int(result.body.to_pybytes())


def known_threads() -> int:
    api = ctypes.pythonapi
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    api.PyInterpreterState_ThreadHead.restype = ctypes.c_void_p
    api.PyThreadState_Next.restype = ctypes.c_void_p
    state = api.PyInterpreterState_ThreadHead(ctypes.c_void_p(api.PyInterpreterState_Get()))
    count = 0
    while state:
        count += 1
        state = api.PyThreadState_Next(ctypes.c_void_p(state))
    return count


def wait_until_known(expected: int) -> None:
    deadline = time.monotonic() + 20
    while known_threads() > expected:
        assert time.monotonic() < deadline, f"{known_threads()} threads, not {expected}"
        time.sleep(0.01)


def test_without_it_python_forgets_a_thread_after_each_call() -> None:
    with a_server(lambda: None) as server, flight.connect(f"grpc://127.0.0.1:{server.port}") as one:
        assert {ask(one) for _ in range(20)} == {1}


def test_a_thread_is_known_from_call_to_call() -> None:
    with a_server(keep_known) as server, flight.connect(f"grpc://127.0.0.1:{server.port}") as one:
        assert max(ask(one) for _ in range(20)) > 1


def test_nothing_is_left_of_threads_that_have_ended() -> None:
    before = known_threads()
    for _ in range(5):
        with a_server(keep_known) as server:
            place = f"grpc://127.0.0.1:{server.port}"

            def hammer(_: int, place: str = place) -> int:
                with flight.connect(place) as client:
                    return sum(ask(client) > 0 for _ in range(25))

            with ThreadPoolExecutor(8) as callers:
                assert sum(callers.map(hammer, range(8))) == 200
    wait_until_known(before)


def test_a_thread_of_python_is_left_alone() -> None:
    before = known_threads()
    for _ in range(3):
        thread = threading.Thread(target=keep_known)
        thread.start()
        thread.join()
    wait_until_known(before)
    keep_known()
    assert known_threads() <= before
