"""Holds the processes of a host to their tenants' budgets, with what the kernel offers here.

One thread looks several times a second who uses how much CPU and sets weights accordingly
(`shares.py`). Without control groups it also ends processes that are over their memory.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from accel_dask import niceness
from accel_dask.errors import ConfigError
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota
from accel_dask.worker_plugin.enforcement.behind import BehindQueries
from accel_dask.worker_plugin.enforcement.cgroups import Tree
from accel_dask.worker_plugin.enforcement.confinement import Confinement, Role
from accel_dask.worker_plugin.enforcement.find import find_tree
from accel_dask.worker_plugin.enforcement.group_cpu import GroupCpu, GroupShare
from accel_dask.worker_plugin.enforcement.kernel_files import idle_seconds, waited_us
from accel_dask.worker_plugin.enforcement.lifetime import Lifetime
from accel_dask.worker_plugin.enforcement.shares import (
    FULL_WEIGHT,
    CpuAccount,
    CpuShare,
    kernel_weights,
    settle,
)

log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 0.1
_WATCH_SECONDS: Final = 0.02
"""Between two looks at the memory of processes that only we bound."""
_CONTENDED: Final = 0.1
"""The share of a time in which somebody waited for a core that counts as contention."""
_BACKGROUND: Final = "dask-worker"
_LOADERS: Final = "loaders-of-all"
"""Loaders compete with the queries of all tenants by a low weight, not by their tenants'."""


class CpuPolicy(StrEnum):
    """How the CPU is shared between tenants."""

    ADAPTIVE = "adaptive"
    """By weight; who is beyond its entitlement while others wait has a low weight for a while."""
    FIXED = "fixed"
    """By weight."""
    NONE = "none"
    """As the kernel shares it between processes."""


class Enforcement(StrEnum):
    """What to use of the kernel."""

    AUTO = "auto"
    """Control groups, or without them nice values and a watch over memory."""
    CGROUP = "cgroup"
    """Control groups, or no host at all."""
    NICE = "nice"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """What a tenant's quota says of the CPU."""

    share: CpuShare
    limit_percent: int

    @classmethod
    def of(cls, quota: Quota) -> TenantLimits:
        guarantee = quota.cpu_guarantee_percent / 100
        return cls(
            share=CpuShare(weight=quota.cpu_weight, guarantee_cores=guarantee),
            limit_percent=quota.cpu_limit_percent,
        )


_UNKNOWN: Final = TenantLimits.of(Quota())


def make_enforcer(
    name: str,
    cores: float,
    *,
    enforcement: str = "auto",
    policy: str = "adaptive",
    parent: str = "",
) -> Enforcer:
    """The enforcer of this host, with what can be had here. `name`: see `find_tree`.

    Raises:
        ConfigError: the settings ask for what cannot be had, or for something unknown.
    """
    try:
        wanted, how = Enforcement(enforcement), CpuPolicy(policy)
    except ValueError as error:
        raise ConfigError(f"[host] {error}") from error
    tree, why = None, "not asked for"
    if wanted in {Enforcement.AUTO, Enforcement.CGROUP}:
        tree, why = find_tree(name, parent)
        if tree is None and wanted is Enforcement.CGROUP:
            raise ConfigError(f"[host] enforcement = 'cgroup', but: {why}")
    return Enforcer(tree, cores, policy=how, uses_nice=wanted is not Enforcement.NONE, why=why)


class Enforcer:
    """Safe to use from several threads."""

    def __init__(
        self,
        tree: Tree | None,
        cores: float,
        *,
        policy: CpuPolicy = CpuPolicy.ADAPTIVE,
        uses_nice: bool = True,
        why: str = "",
    ) -> None:
        """`why`: the reason that there is no `tree`."""
        self._tree = tree
        self._cores = cores
        self._policy = policy
        self._why = why
        self._watches_memory = tree is None and uses_nice
        self._autogroups = niceness.has_autogroups()
        self._nices_threads = niceness.may_lower()
        self._uses_nice = tree is None and uses_nice
        self._lock = threading.Lock()
        self._confinements: list[Confinement] = []
        self._leaving: list[Confinement] = []
        self._strays: set[str] = set()
        """Groups of an earlier life whose processes had not ended when this one began."""
        self._groups: set[str] = set()
        self._lifetime = Lifetime(tree) if tree is not None else None
        self._limits: dict[TenantId, TenantLimits] = {}
        self._group_cpu = GroupCpu(tree) if tree is not None else None
        self._behind: BehindQueries | None = None
        if tree is not None and self._group_cpu is not None:
            gives_way = policy is CpuPolicy.ADAPTIVE
            self._behind = BehindQueries(tree, self._group_cpu, gives_way=gives_way)
        self._weights: dict[TenantId, int] = {}
        self._nices: dict[int, int] = {}
        self._accounts: dict[TenantId, CpuAccount] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="enforcer", daemon=True)

    # For the host agent

    def start(self) -> None:
        """Remove what an earlier life left; begin to watch."""
        if self._lifetime is not None:
            self._strays = self._lifetime.begin()
        self._thread.start()

    def close(self) -> None:
        """All processes have ended: remove the groups."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        if self._lifetime is not None and not self._lifetime.end():
            atexit.register(self._lifetime.end)  # the Dask worker ends after its host agent

    def describe(self) -> str:
        """One line, for people: what is really enforced here."""
        always = "DuckDB memory_limit and threads; address-space limit per executor"
        if self._tree is not None:
            pids = ", thread limit" if self._tree.powers.pids else ""
            cpu = f"CPU weight ({self._policy})" if self._policy is not CpuPolicy.NONE else "no CPU"
            return f"cgroup v{self._tree.version}: {cpu}, memory limit{pids} per process; {always}"
        if self._uses_nice and self._policy is not CpuPolicy.NONE:
            how = "per session" if self._autogroups else "per thread"
            if not (self._autogroups or self._nices_threads):
                return f"no cgroups ({self._why}), memory watched by the host; {always}"
            return (
                f"nice {how} ({self._policy}), memory watched by the host, "
                f"no cgroups ({self._why}); {always}"
            )
        return f"no cgroups ({self._why}); {always}"

    def confine(self, tenant: TenantId, role: Role, name: str, limit_bytes: int) -> Confinement:
        """Bounds for a process that is about to start.

        Raises:
            OSError: the kernel refuses.
        """
        with self._lock:  # so that nobody removes the group before its process is in it
            among = self._group_for(tenant, role)
            confinement = Confinement(self._tree, tenant, role, name, limit_bytes, among=among)
            self._confinements.append(confinement)
            self._groups.add(confinement.among)
            self._strays -= {confinement.among, confinement.path}
            if self._behind is not None and among:
                self._behind.begin(among, is_looked_at=True)
            elif self._group_cpu is not None:
                self._group_cpu.forget(tenant)
        self._apply_weights()
        self._wake.set()
        return confinement

    def _group_for(self, tenant: TenantId, role: Role) -> str:
        """Of a process of the tenant; empty: the tenant's own. A hard limit is for its loaders
        too, so those are there as well."""
        is_limited = self._limits_of(tenant).limit_percent > 0
        if self._tree is None or self._policy is CpuPolicy.NONE or is_limited:
            return ""
        return _LOADERS if role is Role.LOAD else ""

    def release(self, confinement: Confinement) -> None:
        """Its process has ended."""
        confinement.close()
        with self._lock:
            if confinement in self._confinements:
                self._confinements.remove(confinement)
                self._leaving.append(confinement)
            self._nices.pop(confinement.pid, None)
        self._wake.set()

    def set_quotas(self, quotas: Mapping[TenantId, Quota]) -> None:
        """The quotas of all tenants as they are now; takes effect at once."""
        limits = {tenant: TenantLimits.of(quota) for tenant, quota in quotas.items()}
        with self._lock:
            if limits == self._limits:
                return
            self._limits = limits
        self._apply_weights()

    def background_files(self) -> tuple[str, ...]:
        """What a process that must not disturb executors, such as the Dask worker, is to write
        `0` to."""
        if self._tree is None:
            return ()
        assert self._behind is not None
        with self._lock:
            self._strays.discard(_BACKGROUND)
            self._tree.make(_BACKGROUND)
            self._behind.begin(_BACKGROUND, is_looked_at=False)
        return self._tree.join_files(_BACKGROUND)

    def report(self) -> dict[str, Any]:
        """For people: CPU of each tenant, and the limits of each process."""
        with self._lock:
            return {
                "what": self.describe(),
                "tenants": {
                    tenant: {
                        "used_cores": round(account.used_cores, 3),
                        "debt_seconds": round(account.debt, 3),
                        "is_demoted": account.is_demoted,
                        "gives_way": account.gives_way,
                        "weight": self._weights.get(tenant, 0),
                    }
                    for tenant, account in self._accounts.items()
                },
                "processes": {c.path: c.limit_bytes for c in self._confinements},
            }

    # The enforcer's thread

    def _run(self) -> None:
        at = time.monotonic()
        waited, idle = waited_us(), idle_seconds()
        while not self._stopping:
            if not (self._confinements or self._leaving or self._strays or self._groups):
                if self._behind is not None:
                    with self._lock:
                        self._behind.compete()
                self._wake.wait()
                self._wake.clear()
                at, waited, idle = time.monotonic(), waited_us(), idle_seconds()
                continue
            self._pause()
            now, waited_now, idle_now = time.monotonic(), waited_us(), idle_seconds()
            seconds = max(now - at, 1e-3)
            is_contended = (
                (waited_now - waited) / 1e6 > _CONTENDED * seconds
                if waited is not None and waited_now is not None
                else idle_now - idle < _CONTENDED * seconds * self._cores
            )
            idle_cores = max(0.0, idle_now - idle) / seconds
            at, waited, idle = now, waited_now, idle_now
            try:
                self._look(seconds, idle_cores, is_contended=is_contended)
            except Exception:  # the thread must go on
                log.exception("the enforcer stumbled, going on")

    def _pause(self) -> None:
        until = time.monotonic() + _TICK_SECONDS
        while (left := until - time.monotonic()) > 0 and not self._stopping:
            if not self._watches_memory:
                time.sleep(left)
                continue
            time.sleep(min(left, _WATCH_SECONDS))
            for confinement in tuple(self._confinements):
                confinement.check_memory()

    def _look(self, seconds: float, idle_cores: float, *, is_contended: bool) -> None:
        self._remove_left()
        used: dict[TenantId, float] = {}
        loading: dict[TenantId, float] = {}
        for confinement in tuple(self._confinements):
            tenant = confinement.tenant
            kept = used if confinement.among == tenant else loading
            kept[tenant] = kept.get(tenant, 0.0) + confinement.used_cpu_seconds()
        in_all = sum(used.values()) + sum(loading.values())
        self._accounts = settle(
            self._accounts,
            {tenant: self._limits_of(tenant).share for tenant in used.keys() | loading.keys()},
            used,
            loading,
            seconds=seconds,
            cores=min(self._cores, in_all / seconds + idle_cores),
            is_contended=is_contended,
        )
        self._apply_weights()
        if self._behind is not None:
            with self._lock:
                self._behind.look(seconds)

    def _remove_left(self) -> None:
        for confinement in tuple(self._leaving):
            if self._tree is None or self._tree.remove(confinement.path):
                self._leaving.remove(confinement)
        with self._lock:
            present = {c.among for c in (*self._confinements, *self._leaving)}
            for group in self._groups - present:
                if self._tree is None or self._tree.remove(group):
                    self._groups.discard(group)
                    if self._behind is not None:
                        self._behind.end(group)
            if self._tree is not None:
                self._strays -= {path for path in self._strays if self._tree.remove(path)}

    def _limits_of(self, tenant: TenantId) -> TenantLimits:
        return self._limits.get(tenant, _UNKNOWN)

    def _apply_weights(self) -> None:
        if self._policy is CpuPolicy.NONE:
            return
        with self._lock:
            tenants = {c.tenant for c in self._confinements if c.among == c.tenant}
            shares = {tenant: self._limits_of(tenant).share for tenant in tenants}
            accounts = self._accounts if self._policy is CpuPolicy.ADAPTIVE else {}
            demoted = {t for t in tenants & accounts.keys() if accounts[t].is_demoted}
            self._weights = kernel_weights(shares, demoted, self._cores)
            if self._group_cpu is not None:
                for tenant, weight in self._weights.items():
                    share = GroupShare(
                        weight=weight,
                        limit_percent=self._limits_of(tenant).limit_percent,
                        gives_way=tenant in demoted and accounts[tenant].gives_way,
                    )
                    self._group_cpu.apply(tenant, share)
            if self._uses_nice:
                self._apply_nice(self._weights)

    def _apply_nice(self, weights: Mapping[TenantId, int]) -> None:
        for confinement in self._confinements:
            full = FULL_WEIGHT * Role.HOT.weight
            weight = weights[confinement.tenant] * confinement.role.weight
            nice = niceness.nice_of(weight, full)
            if not confinement.pid or self._nices.get(confinement.pid) == nice:
                continue
            if niceness.set_nice(
                confinement.pid, nice, autogroup=self._autogroups, threads=self._nices_threads
            ):
                self._nices[confinement.pid] = nice
