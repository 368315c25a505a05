"""Embedded etcd: one or three members as supervised children of this process."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import grpc

from accel_dask.config import StoreSettings
from accel_dask.errors import ConfigError, StoreError, StoreMismatch, StoreUnavailable
from accel_dask.store import etcd_messages as pb
from accel_dask.store.etcd_binary import EtcdBinary, find_etcd
from accel_dask.store.etcd_channel import EtcdChannel
from accel_dask.store.etcd_cluster_file import (
    ClusterFile,
    confirm_identity,
    load_cluster,
    new_cluster,
    save_cluster,
)
from accel_dask.store.etcd_process import EtcdProcess

logger = logging.getLogger(__name__)

_START_ATTEMPTS: Final = 5
_RESTARTS: Final = 5
_RESTART_WINDOW_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 5.0
_LEADER_STOP_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberHealth:
    """How one member does."""

    name: str
    address: str
    pid: int
    running: bool
    answers: bool
    """It answers a linearizable read: it is up and has a leader."""
    is_leader: bool = False
    db_bytes: int = 0
    alarms: tuple[str, ...] = ()
    restarts: int = 0
    gave_up: bool = False
    """It ended too often and is not restarted any more."""


@dataclass(slots=True)
class _Supervised:
    process: EtcdProcess
    restart_at: float | None = None
    restarts: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RESTARTS))
    paused: bool = False
    gave_up: bool = False


class EmbeddedEtcd:
    """A cluster of 1 or 3 members whose data lies in `data_dir`, on fixed local ports.

    The members end with this process, however it ends.
    """

    def __init__(
        self,
        data_dir: Path,
        members: int = 1,
        *,
        binary: EtcdBinary | None = None,
        allow_faulty: bool = False,
        start_seconds: float = 30.0,
    ) -> None:
        if members not in (1, 3):
            raise ConfigError(f"an embedded etcd has 1 or 3 members, not {members}")
        self._data_dir = data_dir
        self._count = members
        self._binary = binary or find_etcd(allow_faulty=allow_faulty)
        self._start_seconds = start_seconds
        self._cluster: ClusterFile | None = None
        self._lock_file: IO[bytes] | None = None
        self._channel: EtcdChannel | None = None
        self._members: list[_Supervised] = []
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._start_error: BaseException | None = None
        self._supervisor: threading.Thread | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """`host:port` of every member."""
        assert self._cluster is not None, "start() first"
        return tuple(member.client_address for member in self._cluster.members)

    @property
    def binary(self) -> EtcdBinary:
        return self._binary

    def start(self) -> Self:
        """Start all members and wait until each answers.

        Raises:
            ConfigError: the directory is in use, or a fixed port is.
            StoreMismatch: the directory holds another cluster's data.
            StoreUnavailable: a member did not come up; the message ends with its last words.
        """
        self._take_directory()
        # The members die with the thread that starts them: it must live as long as they may.
        self._supervisor = threading.Thread(
            target=self._supervise, name="etcd-supervisor", daemon=True
        )
        self._supervisor.start()
        self._started.wait()
        if self._start_error is not None:
            self._supervisor.join()
            self._release_directory()
            raise self._start_error
        return self

    def stop(self) -> None:
        """Followers first, then the leader, one by one; what does not end is killed."""
        self._stopping.set()
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.join()
            self._release_directory()

    def pids(self) -> tuple[int, ...]:
        with self._lock:
            return tuple(member.process.pid for member in self._members)

    def leader_index(self) -> int:
        """Raises `StoreUnavailable` if no member knows a leader."""
        with self._lock:
            indices = [i for i, m in enumerate(self._members) if not m.paused]
        for index in indices:
            status = self._status(index)
            if status is not None and status.leader == status.header.member_id:
                return index
        raise StoreUnavailable("etcd has no leader now")

    def kill(self, index: int, down_seconds: float = 0.0) -> None:
        """SIGKILL a member; it is restarted after `down_seconds`. For tests."""
        with self._lock:
            member = self._members[index]
            member.paused = False
            member.restart_at = time.monotonic() + down_seconds
            member.process.send(signal.SIGKILL)
            member.process.wait(5)

    def pause(self, index: int) -> None:
        """SIGSTOP a member. For tests."""
        with self._lock:
            self._members[index].paused = True
            self._members[index].process.send(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        with self._lock:
            self._members[index].paused = False
            self._members[index].process.send(signal.SIGCONT)

    def health(self) -> tuple[MemberHealth, ...]:
        return tuple(self._health(index) for index in range(self._count))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _take_directory(self) -> None:
        """A second etcd on the same data would hang on its lock without a word."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        lock_file = (self._data_dir / "lock").open("a+b")
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock_file.seek(0)
            pid = lock_file.read(20).decode(errors="replace") or "unknown"
            lock_file.close()
            raise ConfigError(
                f"{self._data_dir} is in use by an etcd of process {pid}; use another directory "
                "or stop that one"
            ) from error
        lock_file.truncate(0)
        lock_file.write(str(os.getpid()).encode())
        lock_file.flush()
        self._lock_file = lock_file
        self._stopping.clear()
        self._started.clear()
        self._start_error = None

    def _release_directory(self) -> None:
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def _supervise(self) -> None:
        """All of the members' life, on one thread."""
        try:
            self._start_members()
        except BaseException as error:  # noqa: BLE001  raised again by start()
            self._start_error = error
            self._end_members(grace=0.0)
            return
        finally:
            self._started.set()
        while not self._stopping.wait(_LOOK_SECONDS):
            with self._lock:
                for member in self._members:
                    self._look_after(member)
        self._end_members(grace=_STOP_SECONDS)

    def _start_members(self) -> None:
        cluster = load_cluster(self._data_dir, self._count, self._binary)
        fresh = cluster is None or not cluster.etcd_cluster_id
        for attempt in range(1, _START_ATTEMPTS + 1):
            if cluster is None:
                cluster = new_cluster(self._count, self._binary)
                save_cluster(self._data_dir, cluster)
            try:
                self._start_cluster(cluster)
            except _PortTaken as error:
                self._end_members(grace=0.0)
                if not fresh or attempt == _START_ATTEMPTS:
                    raise ConfigError(
                        f"another program uses a port of this etcd: {error}; stop it, or remove "
                        f"{self._data_dir} if what it holds is not needed"
                    ) from error
                logger.info("etcd starts again on other ports: %s", error)
                self._forget_fresh_data(cluster)
                cluster = None
            else:
                return

    def _start_cluster(self, cluster: ClusterFile) -> None:
        self._cluster = cluster
        self._members = [
            _Supervised(EtcdProcess(self._binary, self._data_dir, cluster, member))
            for member in cluster.members
        ]
        self._channel = EtcdChannel(StoreSettings(endpoints=self.endpoints))
        deadline = time.monotonic() + self._start_seconds
        for index, member in enumerate(self._members):
            while not self._answers(index):
                self._check_start(deadline)
            assert member.process.is_running()
        confirmed = confirm_identity(cluster, self._channel.guard.cluster_id, self._binary)
        save_cluster(self._data_dir, confirmed)
        self._cluster = confirmed
        logger.info("etcd %s runs at %s", self._binary.version_text, ", ".join(self.endpoints))

    def _check_start(self, deadline: float) -> None:
        for member in self._members:
            process = member.process
            if not process.is_running():
                words = process.last_words()
                if "address already in use" in words:
                    raise _PortTaken(words[-200:])
                raise StoreUnavailable(
                    f"etcd member {process.member.name} ended with code {process.exit_code} "
                    f"(log: {process.log_file}): {words}"
                )
        if self._stopping.wait(0.05) or time.monotonic() >= deadline:
            words = "; ".join(m.process.last_words(200) for m in self._members)
            raise StoreUnavailable(
                f"etcd in {self._data_dir} did not come up in {self._start_seconds:g} s: {words}"
            )

    def _forget_fresh_data(self, cluster: ClusterFile) -> None:
        """Only of a cluster that never came up: nothing was ever stored in it."""
        for member in cluster.members:
            shutil.rmtree(self._data_dir / member.name, ignore_errors=True)

    def _look_after(self, member: _Supervised) -> None:
        """Restart a member that ended, with back-off, unless it does so too often."""
        if member.gave_up or member.process.is_running():
            return
        now = time.monotonic()
        name = member.process.member.name
        if member.restart_at is None:
            logger.warning(
                "etcd member %s ended with code %s: %s",
                name,
                member.process.exit_code,
                member.process.last_words(300),
            )
            recent = [at for at in member.recent if now - at < _RESTART_WINDOW_SECONDS]
            if len(recent) >= _RESTARTS:
                logger.error(
                    "etcd member %s ended %d times in %.0f s and is not restarted; see %s",
                    name,
                    _RESTARTS + 1,
                    _RESTART_WINDOW_SECONDS,
                    member.process.log_file,
                )
                member.gave_up = True
                return
            member.recent.append(now)
            member.restart_at = now + 0.1 * 2 ** len(recent)
        if now >= member.restart_at:
            assert self._cluster is not None
            member.process = EtcdProcess(
                self._binary, self._data_dir, self._cluster, member.process.member
            )
            member.restart_at = None
            member.restarts += 1
            logger.info("etcd member %s restarted, pid %d", name, member.process.pid)

    def _end_members(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        leader = self._leader_or_none() if grace else None
        with self._lock:
            # A frozen member would keep the others from ending.
            for member in self._members:
                if member.paused or not grace:
                    member.process.send(signal.SIGKILL)
            followers = [m for i, m in enumerate(self._members) if i != leader]
            for member in followers:
                _end(member.process, deadline - time.monotonic())
            if leader is not None:
                # Alone it can commit nothing more, but would wait 7 s for a successor.
                alone = _LEADER_STOP_SECONDS if followers else _STOP_SECONDS
                _end(self._members[leader].process, alone)
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _leader_or_none(self) -> int | None:
        try:
            return self.leader_index()
        except StoreError:
            return None

    def _answers(self, index: int) -> bool:
        request = pb.RangeRequest(key=b"\0", count_only=True)
        answer = self._ask(index, "Range", request)
        return answer is not None

    def _status(self, index: int) -> Any:
        return self._ask(index, "Status", pb.StatusRequest())

    def _ask(self, index: int, method: str, request: Any) -> Any:
        """The member's own answer, or None. Raises `StoreMismatch` for a foreign cluster's."""
        channel = self._channel
        if channel is None:
            return None
        member = channel.members[index]
        try:
            answer = member.call(method, request, 1.0, ())
        except (grpc.RpcError, StoreUnavailable):
            return None
        channel.guard.check_cluster(answer.header, member.address)
        return answer

    def _health(self, index: int) -> MemberHealth:
        with self._lock:
            member = self._members[index]
        process = member.process
        status = self._status(index)
        try:
            answers = status is not None and self._answers(index)
        except StoreMismatch:
            logger.exception("etcd member %s belongs to another cluster", process.member.name)
            answers = False
        return MemberHealth(
            name=process.member.name,
            address=process.member.client_address,
            pid=process.pid,
            running=process.is_running(),
            answers=answers,
            is_leader=status is not None and status.leader == status.header.member_id,
            db_bytes=status.dbSize if status is not None else 0,
            alarms=tuple(status.errors) if status is not None else (),
            restarts=member.restarts,
            gave_up=member.gave_up,
        )


def _end(process: EtcdProcess, grace: float) -> None:
    process.send(signal.SIGTERM)
    if not process.wait(grace):
        logger.info("etcd member %s is killed: it does not end", process.member.name)
        process.send(signal.SIGKILL)
        process.wait(5)


class _PortTaken(Exception):
    """A member found one of its ports in use."""
