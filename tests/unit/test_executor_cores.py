"""Threads that drive queries have cores of their own, and an engine's workers are kept from that of
its only query."""

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


@contextmanager
def beside(cores: Cores, count: int) -> Iterator[list[set[int]]]:
    """So many other threads drive a query each; where each of them may run."""
    seen: list[set[int]] = []
    end = threading.Event()
    there = threading.Semaphore(0)

    def drive() -> None:
        with apart(cores):
            seen.append(os.sched_getaffinity(0))
            there.release()
            end.wait(60)

    threads = []
    try:
        for _ in range(count):
            threads.append(threading.Thread(target=drive))
            threads[-1].start()
            assert there.acquire(timeout=60)
        yield seen
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_of_several_queries_each_has_a_core_while_there_are_cores(worker: int) -> None:
    cores = Cores(frozenset([worker]))
    with apart(cores):
        mine = os.sched_getaffinity(0)
    assert len(mine) == 1
    with beside(cores, len(ALL)) as seen:
        assert set().union(*seen) == ALL
        assert all(len(one) == 1 for one in seen)
        assert os.sched_getaffinity(worker) == ALL
        with apart(cores):
            assert os.sched_getaffinity(0) == ALL
    with apart(cores):
        assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(worker) == ALL - os.sched_getaffinity(0)


def test_a_core_is_free_again_when_its_query_ends(worker: int) -> None:
    cores = Cores(frozenset([worker]))
    with beside(cores, len(ALL) - 1) as seen:
        taken = set().union(*seen)
        for _ in range(2):
            with apart(cores):
                assert os.sched_getaffinity(0) == ALL - taken
            assert os.sched_getaffinity(0) == ALL


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
