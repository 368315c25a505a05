"""Worker threads of an engine are kept from the core of the thread that drives its only query."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from accel_dask.worker_plugin.executor import cores as module
from accel_dask.worker_plugin.executor.cores import Cores, new_threads

ALL = os.sched_getaffinity(0)

pytestmark = pytest.mark.skipif(
    not 1 < len(ALL) <= 4, reason="threads are left alone on one core, and on more than four"
)


@contextmanager
def other_thread() -> Iterator[threading.Thread]:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(60,))
    thread.start()
    try:
        yield thread
    finally:
        end.set()
        thread.join()


@contextmanager
def apart(cores: Cores) -> Iterator[None]:
    """The calling thread drives a query."""
    cores.begin()
    try:
        yield
    finally:
        cores.end()


@pytest.fixture
def worker() -> Iterator[int]:
    with other_thread() as thread:
        assert thread.native_id is not None
        yield thread.native_id


def test_the_only_query_stays_on_its_core_and_workers_are_kept_from_it(worker: int) -> None:
    cores = Cores(frozenset([worker]))
    with apart(cores):
        mine = os.sched_getaffinity(0)
        assert len(mine) == 1
        assert os.sched_getaffinity(worker) == ALL - mine
    assert os.sched_getaffinity(0) == ALL


def test_of_several_queries_none_is_bound_to_a_core(worker: int) -> None:
    cores = Cores(frozenset([worker]))
    seen: list[set[int]] = []
    begin = threading.Event()

    def second() -> None:
        begin.wait(60)
        with apart(cores):
            seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=second)
    thread.start()
    with apart(cores):
        begin.set()
        thread.join()
        assert seen == [ALL]
        assert os.sched_getaffinity(0) == ALL
        assert os.sched_getaffinity(worker) == ALL
    with apart(cores):
        assert len(os.sched_getaffinity(0)) == 1


def test_a_long_query_is_left_to_the_kernel(worker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores(frozenset([worker]))
    with apart(cores):
        cores.balance()
        assert len(os.sched_getaffinity(0)) == 1
        monkeypatch.setattr(module, "LONGEST_SECONDS", -1.0)
        cores.balance()
        assert os.sched_getaffinity(0) == ALL
        assert os.sched_getaffinity(worker) == ALL
    assert os.sched_getaffinity(0) == ALL


def test_an_error_frees_the_thread_too(worker: int) -> None:
    cores = Cores(frozenset([worker]))
    with pytest.raises(ValueError, match="broken"), apart(cores):
        raise ValueError("broken")
    assert os.sched_getaffinity(0) == ALL


def test_workers_that_have_ended_do_no_harm() -> None:
    with other_thread() as thread:
        assert thread.native_id is not None
        cores = Cores(frozenset([thread.native_id]))
    with apart(cores):
        assert len(os.sched_getaffinity(0)) == 1


def test_without_workers_nothing_is_done() -> None:
    with apart(Cores(frozenset())):
        assert os.sched_getaffinity(0) == ALL


def test_new_threads_are_those_that_were_started_within(worker: int) -> None:
    with new_threads() as found, other_thread() as thread:
        assert found == set()
    assert worker not in found
    with new_threads() as found:
        running = other_thread()
        thread = running.__enter__()
    assert found == {thread.native_id}
    running.__exit__(None, None, None)
