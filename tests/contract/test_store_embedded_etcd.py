"""Embedded etcd as a laptop uses it: starts, survives, refuses what is not its own, ends."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from store_support import eventually, fresh_settings, put, tmpfs_dir

from accel_dask.errors import ConfigError, StoreMismatch, StoreUnavailable
from accel_dask.store import etcd_server
from accel_dask.store.etcd import EtcdStore
from accel_dask.store.etcd_binary import EtcdBinary, find_etcd
from accel_dask.store.etcd_cluster_file import load_cluster, new_cluster, save_cluster
from accel_dask.store.etcd_server import EmbeddedEtcd


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


def test_three_members_start_survive_kills_and_stop(data_dir: Path, binary: EtcdBinary) -> None:
    with EmbeddedEtcd(data_dir, 3, binary=binary) as etcd:
        assert len(set(etcd.endpoints)) == 3
        health = etcd.health()
        assert all(member.running and member.answers for member in health)
        assert [member.is_leader for member in health].count(True) == 1
        leader = etcd.leader_index()
        assert health[leader].is_leader
        with EtcdStore(fresh_settings(*etcd.endpoints)) as store:
            revision = put(store, "k")
            before = etcd.pids()
            etcd.kill(leader)
            eventually(lambda: etcd.health()[leader].answers, 20)
            assert etcd.pids()[leader] != before[leader]
            assert etcd.health()[leader].restarts == 1
            found = store.get("k")
            assert found is not None
            assert found.mod_revision == revision
            pids = etcd.pids()
        started = time.monotonic()
    assert time.monotonic() - started < 6
    assert not any(map(is_alive, pids))
    assert {f.name for f in data_dir.iterdir()} >= {"cluster.json", "m0", "m0.log", "m1", "m2"}


def test_data_and_ports_stay_over_a_restart(data_dir: Path, binary: EtcdBinary) -> None:
    with EmbeddedEtcd(data_dir, binary=binary) as etcd:
        settings = fresh_settings(*etcd.endpoints)
        with EtcdStore(settings) as store:
            revision = put(store, "k", b"kept")
    with EmbeddedEtcd(data_dir, binary=binary) as etcd, EtcdStore(settings) as store:
        assert etcd.endpoints == settings.endpoints
        found = store.get("k")
        assert found is not None
        assert found.mod_revision == revision


def test_a_directory_in_use_is_refused(data_dir: Path, binary: EtcdBinary) -> None:
    with (
        EmbeddedEtcd(data_dir, binary=binary),
        pytest.raises(ConfigError, match=f"in use by an etcd of process {os.getpid()}"),
    ):
        EmbeddedEtcd(data_dir, binary=binary).start()


def test_environment_variables_of_etcd_are_not_taken(
    data_dir: Path, binary: EtcdBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_NAME", "somebody")
    monkeypatch.setenv("ETCD_DATA_DIR", "/nowhere")
    with EmbeddedEtcd(data_dir, binary=binary) as etcd:
        assert etcd.health()[0].answers


def test_a_fresh_cluster_moves_away_from_a_port_in_use(
    data_dir: Path, binary: EtcdBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = [new_cluster(1, binary), new_cluster(1, binary)]
        clash = replace(made[0].members[0], client_port=port)
        clusters = iter((replace(made[0], members=(clash,)), made[1]))
        monkeypatch.setattr(etcd_server, "new_cluster", lambda *_: next(clusters))
        with EmbeddedEtcd(data_dir, binary=binary) as etcd:
            assert etcd.endpoints == (made[1].members[0].client_address,)


def test_a_known_cluster_does_not_move_from_its_ports(data_dir: Path, binary: EtcdBinary) -> None:
    with EmbeddedEtcd(data_dir, binary=binary) as etcd:
        port = int(etcd.endpoints[0].rpartition(":")[2])
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(ConfigError, match="another program uses a port"),
    ):
        EmbeddedEtcd(data_dir, binary=binary).start()
    with EmbeddedEtcd(data_dir, binary=binary) as etcd:
        assert etcd.health()[0].answers


def test_data_of_another_cluster_is_refused(data_dir: Path, binary: EtcdBinary) -> None:
    ours, other, bare = data_dir / "ours", data_dir / "other", data_dir / "bare"
    for directory in (ours, other):
        with EmbeddedEtcd(directory, binary=binary):
            pass
    shutil.copytree(other / "m0", bare / "m0")
    with pytest.raises(StoreMismatch, match="data of an etcd that is not ours"):
        EmbeddedEtcd(bare, binary=binary).start()
    shutil.rmtree(ours / "m0")
    with pytest.raises(StoreMismatch, match="data of etcd member m0 is gone"):
        EmbeddedEtcd(ours, binary=binary).start()
    shutil.copytree(other / "m0", ours / "m0")
    with pytest.raises(StoreMismatch, match="were they moved or restored"):
        EmbeddedEtcd(ours, binary=binary).start()
    with pytest.raises(StoreMismatch, match="an etcd cluster of 1, not of 3"):
        EmbeddedEtcd(other, 3, binary=binary).start()
    cluster = load_cluster(other, 1, binary)
    assert cluster is not None
    save_cluster(other, replace(cluster, etcd_version="9.9.0"))
    with pytest.raises(StoreMismatch, match=r"written by etcd 9\.9\.0"):
        EmbeddedEtcd(other, binary=binary).start()
    (other / "cluster.json").write_text("{")
    with pytest.raises(StoreMismatch, match="damaged"):
        EmbeddedEtcd(other, binary=binary).start()


def test_a_server_that_does_not_start_tells_why(data_dir: Path) -> None:
    fake = data_dir / "etcd"
    fake.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 3\n")
    fake.chmod(0o755)
    etcd = EmbeddedEtcd(data_dir / "data", binary=EtcdBinary(fake, (3, 4, 23)))
    with pytest.raises(StoreUnavailable, match=r"ended with code 3(.|\n)*the disk is on fire"):
        etcd.start()
    silent = data_dir / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    etcd = EmbeddedEtcd(
        data_dir / "data2", binary=EtcdBinary(silent, (3, 4, 23)), start_seconds=0.5
    )
    with pytest.raises(StoreUnavailable, match=r"did not come up in 0\.5 s"):
        etcd.start()
    assert not any(map(is_alive, etcd.pids()))


def test_members_end_with_the_process_that_started_them(data_dir: Path) -> None:
    program = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from accel_dask.store.etcd_server import EmbeddedEtcd\n"
        "etcd = EmbeddedEtcd(Path(sys.argv[1]), 3, allow_faulty=True).start()\n"
        "print(*etcd.pids(), flush=True)\n"
        "threading.Event().wait(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(data_dir)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(is_alive, pids))
        process.kill()
        process.wait(5)
    eventually(lambda: not any(map(is_alive, pids)), 10)


def test_only_one_or_three_members(data_dir: Path, binary: EtcdBinary) -> None:
    with pytest.raises(ConfigError, match="1 or 3 members, not 2"):
        EmbeddedEtcd(data_dir, 2, binary=binary)
