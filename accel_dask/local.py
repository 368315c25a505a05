"""A whole cluster on one machine, of real processes: for the demo, notebooks and tests."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from accel_dask import admin
from accel_dask.config import (
    GatewaySettings,
    HostSettings,
    MasterSettings,
    Settings,
    StoreSettings,
    settings_to_toml,
)
from accel_dask.errors import AccelError, ConfigError
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.member import Gateway, Worker
from accel_dask.model.tenant import Quota
from accel_dask.processes import ProcessSpec, Supervisor
from accel_dask.store.base import StateStore
from accel_dask.store.connect import open_store
from accel_dask.store.etcd_server import EmbeddedEtcd
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import ensure_meta
from accel_dask.worker_plugin.process_record import start_ticks

_LOG = logging.getLogger(__name__)
_SHM = Path("/dev/shm")  # noqa: S108 - a memory file system is what is wanted
_SHARD_ROOT_PREFIX = "accel-dask-"
_TEMPORARY_PREFIX = "accel-dask-"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOptions:
    """What to start."""

    workers: int = 1
    """Worker hosts. Each has its own shard directory and executors."""
    masters: int = 1
    """etcd members: 1, or 3 for a quorum."""
    gateways: int = 1
    gateway_port: int = 0
    """Of the first gateway; 0: any free port."""
    dashboard_port: int = 0
    host_memory_bytes: int = 0
    """Per worker host; 0: half of the machine's memory, divided by the hosts."""
    directory: Path | None = None
    """Where everything is kept, so that the next start finds it; None: a temporary one."""


class LocalAccelCluster:
    """etcd, a Dask scheduler with the master, worker hosts and gateways, all supervised.

    Use it as a context manager, or call `start` and `close`:

        with LocalAccelCluster(LocalOptions(workers=2)) as cluster:
            token = cluster.create_tenant("acme")
            ...

    Raises on start:
        ConfigError: a program is missing (etcd) or an option cannot be used.
        AccelError: a part did not come up in time; the message has the end of its log.
    """

    def __init__(
        self, options: LocalOptions | None = None, *, master: MasterSettings | None = None
    ) -> None:
        self.options = options or LocalOptions()
        if self.options.masters not in (1, 3):
            raise ConfigError(f"masters must be 1 or 3, not {self.options.masters}")
        if self.options.workers < 1 or self.options.gateways < 1:
            raise ConfigError("a cluster needs at least one worker host and one gateway")
        self._master_settings = master or MasterSettings()
        self._is_temporary = self.options.directory is None
        self.directory = (self.options.directory or _temporary_directory()).absolute()
        self._etcd: EmbeddedEtcd | None = None
        self._supervisor: Supervisor | None = None
        self._store: StateStore | None = None
        self._mirror: Mirror | None = None
        self._shard_root: Path | None = None
        self.settings = Settings()
        self.gateway_urls: tuple[str, ...] = ()
        self.dashboard_url = ""
        self.scheduler_address = ""

    # Life

    def start(self, progress: Progress = lambda _: None) -> None:
        """Bring everything up and wait until it answers."""
        try:
            self._start(progress)
        except BaseException:
            self.close()
            raise

    def _start(self, progress: Progress) -> None:
        for port in (self.options.gateway_port, self.options.dashboard_port):
            _check_free(port)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        progress(f"starting etcd ({self.options.masters} member(s))")
        self._etcd = EmbeddedEtcd(self.directory / "etcd", members=self.options.masters)
        self._etcd.start()
        cluster_name = self._cluster_name()
        self.settings = Settings(
            store=StoreSettings(
                endpoints=tuple(self._etcd.endpoints), prefix=f"/accel/{cluster_name}/v1"
            ),
            master=self._master_settings,
            host=HostSettings(memory_bytes=self._host_memory()),
            gateway=GatewaySettings(),
        )
        self._store = open_store(self.settings.store)
        ensure_meta(self._store)
        self._mirror = Mirror(self._store)
        self._mirror.start()
        config_file = self.directory / "accel.toml"
        config_file.write_text(settings_to_toml(self.settings), encoding="utf-8")
        config_file.chmod(0o600)
        self._shard_root = _shard_root(
            cluster_name, self.directory, is_temporary=self._is_temporary
        )
        self._supervisor = Supervisor(self.directory / "logs")
        progress("starting the Dask scheduler with the master")
        self._start_scheduler()
        progress(f"starting {self.options.workers} worker host(s)")
        for index in range(self.options.workers):
            self.start_worker(index)
        progress(f"starting {self.options.gateways} gateway(s)")
        self._start_gateways()
        self._wait("a leading master", lambda view: view.leader is not None, "scheduler")
        self._wait(
            "every worker host",
            lambda view: len(list(view.records(Worker))) >= self.options.workers,
            "worker-0",
        )
        self._wait(
            "every gateway",
            lambda view: len(list(view.records(Gateway))) >= self.options.gateways,
            "gateway-0",
        )
        progress("cluster is up")

    def close(self) -> None:
        """End every process; a temporary cluster leaves nothing behind. What does not end in
        good order does not keep the rest from it."""
        with ExitStack() as ending:  # the last one first
            if self._is_temporary:
                ending.callback(shutil.rmtree, self.directory, ignore_errors=True)
                if self._shard_root is not None:
                    ending.callback(shutil.rmtree, self._shard_root, ignore_errors=True)
            if self._etcd is not None:
                ending.callback(self._etcd.stop)
            if self._store is not None:
                ending.callback(self._store.close)
            if self._supervisor is not None:
                ending.callback(self._supervisor.close)
            if self._mirror is not None:
                ending.callback(self._mirror.close)
            self._etcd = self._store = self._supervisor = self._mirror = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What operators do

    @property
    def store(self) -> StateStore:
        assert self._store is not None, "the cluster is not started"
        return self._store

    @property
    def mirror(self) -> Mirror:
        assert self._mirror is not None, "the cluster is not started"
        return self._mirror

    @property
    def view(self) -> ClusterView:
        return self.mirror.view

    def create_tenant(self, tenant: str, quota: Quota | None = None) -> str:
        """A tenant with one user of the same name; the user's token."""
        admin.create_tenant(self.store, tenant, quota)
        return admin.create_user(self.store, tenant, tenant)

    def create_dataset(self, dataset: Dataset) -> None:
        admin.create_dataset(self.store, dataset)

    def publish(
        self,
        tenant: str,
        dataset: str,
        snapshot: str | None = None,
        timeout_seconds: float = 120.0,
    ) -> admin.Published:
        """Publish a snapshot and wait until its epoch is READY.

        Raises:
            LoadError: the epoch FAILED.
        """
        dataset_id = DatasetId(TenantId(tenant), dataset)
        requested = admin.publish(self.store, dataset_id, snapshot, by="local")
        return admin.wait_published(self.mirror, requested, timeout_seconds)

    def wait_routed(self, timeout_seconds: float = 30.0) -> None:
        """Wait until every gateway routes by what is in the store now."""
        revision = self.store.read("gateway/").revision
        self.mirror.wait_for(
            lambda view: all(g.applied_revision >= revision for g in view.records(Gateway)),
            timeout_seconds,
        )

    # Single processes, for drills and tests

    def pids(self) -> dict[str, int]:
        """Process ids by name: `scheduler`, `worker-<i>` (its nanny), `gateway-<i>`."""
        return self._running().pids()

    @property
    def etcd(self) -> EmbeddedEtcd:
        assert self._etcd is not None, "the cluster is not started"
        return self._etcd

    def log_tail(self, name: str) -> str:
        return self._running().log_tail(name)

    def stop_process(self, name: str, *, kill: bool = False) -> None:
        """End a process (`kill`: with SIGKILL at once) and do not start it again."""
        self._running().stop(name, kill=kill)

    def start_worker(self, index: int) -> None:
        """Start worker host `index` (again)."""
        assert self._shard_root is not None, "the cluster is not started"
        name = f"worker-{index}"
        self._running().start(
            ProcessSpec(
                name=name,
                argv=(
                    sys.executable,
                    "-m",
                    "dask",
                    "worker",
                    self.scheduler_address,
                    "--name",
                    name,
                    "--nworkers",
                    "1",
                    "--nthreads",
                    "2",
                    "--memory-limit",
                    "1GiB",
                    "--no-dashboard",
                    "--local-directory",
                    str(self.directory / "dask" / name),
                    "--preload-nanny",
                    "accel_dask.worker_plugin.preload_nanny",
                    "--preload",
                    "accel_dask.worker_plugin.preload_worker",
                ),
                environ={
                    **self._environ(),
                    "ACCEL_HOST_SHARD_DIR": str(self._shard_root / name),
                    "ACCEL_HOST_SPILL_DIR": str(self.directory / "spill" / name),
                },
            )
        )

    def _start_scheduler(self) -> None:
        port = _free_port()
        dashboard = self.options.dashboard_port or _free_port(8787)
        self.scheduler_address = f"tcp://127.0.0.1:{port}"
        self.dashboard_url = f"http://127.0.0.1:{dashboard}/accel"
        self._running().start(
            ProcessSpec(
                name="scheduler",
                argv=(
                    sys.executable,
                    "-m",
                    "dask",
                    "scheduler",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                    "--dashboard-address",
                    f"127.0.0.1:{dashboard}",
                    "--preload",
                    "accel_dask.scheduler_plugin.preload",
                ),
                environ=self._environ(),
            )
        )

    def _start_gateways(self) -> None:
        urls = []
        for index in range(self.options.gateways):
            preferred = self.options.gateway_port if index == 0 else 0
            port = preferred or _free_port(31337 if index == 0 else 0)
            urls.append(f"grpc://127.0.0.1:{port}")
            self._running().start(
                ProcessSpec(
                    name=f"gateway-{index}",
                    argv=(sys.executable, "-m", "flightsql_gateway", "--port", str(port)),
                    environ=self._environ(),
                )
            )
        self.gateway_urls = tuple(urls)

    def _environ(self) -> dict[str, str]:
        return {
            "ACCEL_CONFIG": str(self.directory / "accel.toml"),
            "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "10s",
            "PYTHONUNBUFFERED": "1",
        }

    def _running(self) -> Supervisor:
        assert self._supervisor is not None, "the cluster is not started"
        return self._supervisor

    def _wait(self, what: str, ready: Callable[[ClusterView], bool], log: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.mirror.wait_for(ready, 1.0)
            except AccelError:
                restarts = self._running().restarts(log)
                if restarts < 3 and time.monotonic() < deadline:
                    continue
                raise AccelError(
                    f"{what} did not come up ({log} was restarted {restarts} times); "
                    f"the end of its log:\n{self.log_tail(log)}"
                ) from None
            return

    def _host_memory(self) -> int:
        if self.options.host_memory_bytes:
            return self.options.host_memory_bytes
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return int(total // 2 // self.options.workers)

    def _cluster_name(self) -> str:
        """Kept in the directory, so that a later start is the same cluster."""
        file = self.directory / "cluster-name"
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:8], encoding="ascii")
        return file.read_text(encoding="ascii").strip()


def _temporary_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX))


def _shard_root(cluster_name: str, directory: Path, *, is_temporary: bool) -> Path:
    """The clusters' shard directory in memory. Those that a killed temporary cluster left
    behind are removed on the way."""
    parent = _SHM if _SHM.is_dir() and os.access(_SHM, os.W_OK) else Path(tempfile.gettempdir())
    for stale in parent.glob(f"{_SHARD_ROOT_PREFIX}*/owner.json"):
        _remove_if_orphaned(stale)
    root = parent / f"{_SHARD_ROOT_PREFIX}{cluster_name}"
    root.mkdir(mode=0o700, exist_ok=True)
    owner = {
        "directory": str(directory),
        "is_temporary": is_temporary,
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
    }
    (root / "owner.json").write_text(json.dumps(owner), encoding="utf-8")
    return root


def _remove_if_orphaned(owner_file: Path) -> None:
    try:
        owner = json.loads(owner_file.read_text(encoding="utf-8"))
        directory = Path(owner["directory"])
        was_killed = owner.get("is_temporary") and start_ticks(owner["pid"]) != owner["start_ticks"]
        if was_killed and directory.name.startswith(_TEMPORARY_PREFIX):
            shutil.rmtree(directory, ignore_errors=True)
        if was_killed or not directory.is_dir():
            shutil.rmtree(owner_file.parent, ignore_errors=True)
    except (OSError, ValueError, KeyError) as error:
        _LOG.debug("left %s alone: %s", owner_file, error)


def _check_free(port: int) -> None:
    """Raise `ConfigError` if the port that was asked for (0: none was) is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on 127.0.0.1 is in use; give another one with --gateway-port and "
                "--dashboard-port (0: any)"
            ) from error


def _free_port(preferred: int = 0) -> int:
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError("no free port on 127.0.0.1")
