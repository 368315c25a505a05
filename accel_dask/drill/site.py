"""Two tenants of a drill on a running cluster, with the same data; taken away at its end."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from accel_dask import admin
from accel_dask.drill.workload import TABLE, write_facts
from accel_dask.errors import AccelError, ConfigError, WaitTimedOut
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.epoch import Epoch
from accel_dask.model.executor import Executor
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.member import Gateway
from accel_dask.model.tenant import MIB, Quota
from accel_dask.store.base import StateStore
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import read_view

log = logging.getLogger(__name__)

VICTIM: Final = "drill_victim"
NOISY: Final = "drill_noisy"
_BYTES_PER_ROW: Final = 256
"""Of a tenant's budget: for the shard file, and for joins of all rows with all rows."""
_LEAST_BYTES: Final = 768 * MIB
_ROUTED_SECONDS: Final = 60.0
_GONE_SECONDS: Final = 60.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The running cluster."""

    store: StateStore
    mirror: Mirror
    roots: tuple[int, ...] = ()
    """Processes on this machine below which the cluster's run, as far as they do."""

    @property
    def gateway(self) -> str:
        """
        Raises:
            ConfigError: no gateway runs.
        """
        gateways = sorted(g.address for g in self.mirror.view.records(Gateway))
        if not gateways:
            raise ConfigError("the cluster has no gateway; see `accel-dask status`")
        return gateways[0]

    @property
    def scheduler(self) -> str:
        """
        Raises:
            ConfigError: no Dask scheduler leads.
        """
        leader = self.mirror.view.leader
        if leader is None:
            raise ConfigError("the cluster has no leading master; see `accel-dask status`")
        return leader.address


class DrillSite:
    """Two tenants and their data; a context manager."""

    def __init__(
        self,
        target: Target,
        *,
        rows: int,
        directory: Path | None = None,
        shares_one_tenant: bool = False,
        say: Say = lambda _: None,
    ) -> None:
        """`directory`: where to write the data, on a path that the hosts have too; None: a
        temporary one. `shares_one_tenant`: victim and attacker are the same tenant, with one
        executor, for contrast.
        """
        self.target = target
        self.rows = rows
        self.say = say
        self.tokens: dict[str, str] = {}
        self.noisy: Final = VICTIM if shares_one_tenant else NOISY
        self._shares_one_tenant = shares_one_tenant
        self._parent = directory
        self._directory: Path | None = None
        self._generation = 0

    def __enter__(self) -> Self:
        try:
            self.set_up()
        except BaseException:
            self.take_down()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.take_down()

    @property
    def _tenants(self) -> tuple[str, ...]:
        return (VICTIM,) if self._shares_one_tenant else (VICTIM, NOISY)

    def set_up(self) -> None:
        """Make the data and the tenants, and wait until they are served.

        Raises:
            AccelError: the cluster has no room for them, or did not load them in time.
        """
        self._remove_tenants()  # of a drill that was killed
        if self._parent is not None:
            self._parent.mkdir(parents=True, exist_ok=True)
        self._directory = Path(tempfile.mkdtemp(prefix="accel-drill-", dir=self._parent))
        self._directory.chmod(0o755)
        self.say(f"writing {self.rows:,} rows, twice")
        for generation in (0, 1):
            write_facts(self._directory / "kept", self.rows, generation)
        for tenant in self._tenants:
            self.say(f"tenant {tenant}: created, loading")
            self._place(tenant, 0)
            self._create(tenant)
        revision = self.target.store.read("gateway/").revision
        self.target.mirror.wait_for(
            lambda view: all(g.applied_revision >= revision for g in view.records(Gateway)),
            _ROUTED_SECONDS,
            "all gateways' routing tables",
        )

    def _create(self, tenant: str) -> None:
        admin.create_tenant(self.target.store, tenant, self._quota(tenant))
        self.tokens[tenant] = admin.create_user(self.target.store, tenant, tenant)
        source = SourceSpec(connector="parquet", options=(("path", str(self._data(tenant))),))
        dataset = Dataset(tenant=TenantId(tenant), name=TABLE, source=source, sort_by=("day",))
        admin.create_dataset(self.target.store, dataset)
        self._publish(tenant, timeout_seconds=600.0)

    def _quota(self, tenant: str) -> Quota:
        memory = max(_LEAST_BYTES, self.rows * _BYTES_PER_ROW)
        concurrency = 4 if tenant == VICTIM else 8
        return Quota(
            memory_bytes_per_host=memory,
            executor_memory_bytes=memory * 3 // 5,
            concurrency=12 if self._shares_one_tenant else concurrency,
            queue_wait_ms=60_000,
            deadline_ms=60_000,
            max_cpu_ms=60_000,
        )

    def refresh(self) -> None:
        """Replace the noisy tenant's data, and wait until that is served."""
        self._generation += 1
        self._place(self.noisy, self._generation)
        self._publish(self.noisy, timeout_seconds=300.0)

    def _place(self, tenant: str, generation: int) -> None:
        """Show the next data under a name of its own, so that nothing of it is known yet. It was
        written beforehand: upstream's work is not the cluster's."""
        assert self._directory is not None
        kept = self._directory / "kept" / f"facts-{generation % 2}.parquet"
        data = self._data(tenant)
        data.mkdir(exist_ok=True)
        os.link(kept, data / f"facts-{generation}.parquet")
        for old in data.glob("*.parquet"):
            if old.name != f"facts-{generation}.parquet":
                old.unlink()

    def _data(self, tenant: str) -> Path:
        assert self._directory is not None
        return self._directory / tenant

    def _publish(self, tenant: str, timeout_seconds: float) -> None:
        dataset = DatasetId(TenantId(tenant), TABLE)
        requested = admin.publish(self.target.store, dataset, by="drill")
        admin.wait_published(self.target.mirror, requested, timeout_seconds)

    def executors(self) -> Mapping[int, str]:
        """Process ids of this machine's executors with their names: all, since it is the others
        who matter."""
        names = {VICTIM: "victim's executor", NOISY: "noisy executor"}
        return {
            executor.pid: names.get(executor.tenant, "other executors")
            for executor in self.target.mirror.view.records(Executor)
        }

    def take_down(self) -> None:
        """Take the tenants and the data away; what is left is logged."""
        self.say("taking the drill's tenants away")
        try:
            self._remove_tenants()
        except AccelError as error:
            log.warning(
                "the drill's tenants %s and %s are left (%s); remove them with `accel-dask tenant "
                "delete`", VICTIM, NOISY, error,
            )  # fmt: skip
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _remove_tenants(self) -> None:
        view = read_view(self.target.store)
        found = [tenant for tenant in (VICTIM, NOISY) if view.tenant(TenantId(tenant)) is not None]
        for tenant in found:
            admin.delete_tenant(self.target.store, tenant)
        if found:
            try:
                self.target.mirror.wait_for(_nothing_left, _GONE_SECONDS, "the hosts' memory")
            except WaitTimedOut as error:
                log.warning("what the drill's tenants had is still being returned: %s", error)


def _nothing_left(view: ClusterView) -> bool:
    tenants = {TenantId(VICTIM), TenantId(NOISY)}
    return not (
        any(executor.tenant in tenants for executor in view.records(Executor))
        or any(epoch.tenant in tenants for epoch in view.records(Epoch))
    )
