"""Embedded etcd members that freeze, end too often, or come back with an older history."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_support import events_until, eventually, fresh_settings, put, tmpfs_dir

from accel_dask.errors import StoreMismatch
from accel_dask.store.etcd import EtcdStore
from accel_dask.store.etcd_binary import EtcdBinary, find_etcd
from accel_dask.store.etcd_channel import Deadlines
from accel_dask.store.etcd_server import EmbeddedEtcd

pytestmark = pytest.mark.chaos

IMPATIENT = Deadlines(read_attempt=0.5, read=1.5, write_attempt=0.4, write=1.5, bar=0.2)


@pytest.fixture(scope="module")
def binary() -> EtcdBinary:
    return find_etcd(allow_faulty=True)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tmpfs_dir() as directory:
        yield directory


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_frozen_member_does_not_keep_the_others_from_ending(
    data_dir: Path, binary: EtcdBinary
) -> None:
    etcd = EmbeddedEtcd(data_dir, 3, binary=binary).start()
    pids = etcd.pids()
    leader = etcd.leader_index()
    etcd.pause(leader)
    os.kill(pids[(leader + 1) % 3], signal.SIGSTOP)  # unknown to the supervisor
    before = time.monotonic()
    etcd.stop()
    assert time.monotonic() - before < 7
    assert not any(map(is_alive, pids))
    etcd.stop()


def test_a_member_that_ends_too_often_is_given_up(data_dir: Path, binary: EtcdBinary) -> None:
    with EmbeddedEtcd(data_dir, binary=binary) as etcd:
        killed: set[int] = set()

        def kill_and_look() -> bool:
            (member,) = etcd.health()
            if member.running and member.pid not in killed:
                killed.add(member.pid)
                os.kill(member.pid, signal.SIGKILL)
            return member.gave_up

        eventually(kill_and_look, 30)
        assert len(killed) == 6
        assert etcd.health()[0].restarts == 5
        assert not etcd.health()[0].running


def test_a_history_that_went_back_is_noticed() -> None:
    """The same cluster, but from a copy of its data: what a restored backup looks like."""
    with tmpfs_dir() as data_dir:
        with EmbeddedEtcd(data_dir, allow_faulty=True) as etcd:
            settings = fresh_settings(*etcd.endpoints)
            with EtcdStore(settings) as store:
                put(store, "old")
        shutil.copytree(data_dir / "m0", data_dir / "backup")
        with EtcdStore(settings, IMPATIENT) as store:
            with EmbeddedEtcd(data_dir, allow_faulty=True):
                for _ in range(5):
                    newest = put(store, "new")
                watch = store.watch("", newest)
                events_until(watch, bool)
            shutil.rmtree(data_dir / "m0")
            (data_dir / "backup").rename(data_dir / "m0")
            with EmbeddedEtcd(data_dir, allow_faulty=True):
                with pytest.raises(StoreMismatch, match="history went back"):
                    store.read()
                with pytest.raises(StoreMismatch, match="history went back"):
                    put(store, "new")
                with pytest.raises(StoreMismatch):
                    events_until(watch, lambda _: False, 20)
                with EtcdStore(settings) as witness:
                    assert [item.key for item in witness.read().items] == ["old"]
