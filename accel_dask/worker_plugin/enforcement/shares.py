"""Who gets how much CPU of a host: entitlements, debts, weights. Pure.

A tenant is entitled to its guarantee and, by its weight, to a share of what the guarantees leave.
Weights let everybody use what is idle. Whoever takes more than its entitlement while others could
use the CPU runs into debt, and has a small weight until the debt is paid by using less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from accel_dask.model.ids import TenantId

ACTIVE_CORES: Final = 0.02
"""Using less than this, on average, counts as idle."""
AVERAGE_SECONDS: Final = 2.0
"""Over about so long."""
TOLERANCE: Final = 1.2
"""Up to so many times its entitlement a tenant makes no debt."""
BURST_SECONDS: Final = 0.1
"""Debt that is not held against anybody yet, in seconds of the tenant's entitlement."""
MAX_DEBT_SECONDS: Final = 2.0
"""No debt is larger, in seconds of the entitlement: idle for so long pays any."""
FULL_WEIGHT: Final = 200
"""Of the tenant with the largest entitlement; any other process or group of the host has 100."""
DEMOTION: Final = 16
"""A tenant in debt has so many times less weight."""
STARVED: Final = 0.1
"""A tenant in debt that got less than this of its entitlement just now has at least that weight, so
that it never stands still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuShare:
    """What a tenant's quota says of the CPU of one host."""

    weight: int
    guarantee_cores: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuAccount:
    """One tenant's use of one host."""

    used_cores: float = 0.0
    """On average over the last seconds."""
    debt: float = 0.0
    """Seconds of CPU taken beyond the entitlement while others could have used them."""
    is_demoted: bool = False
    gives_way: bool = False
    """Demoted, and at work all the same: it runs only where nobody else wants to."""


def entitlements(shares: Mapping[TenantId, CpuShare], cores: float) -> dict[TenantId, float]:
    """Cores of each tenant while all of `shares` want the CPU; together they are all cores."""
    guaranteed = sum(share.guarantee_cores for share in shares.values())
    scale = min(1.0, cores / guaranteed) if guaranteed > 0 else 1.0
    rest = max(0.0, cores - guaranteed * scale)
    weights = sum(share.weight for share in shares.values())
    return {
        tenant: share.guarantee_cores * scale + rest * share.weight / weights
        for tenant, share in shares.items()
    }


def settle(
    accounts: Mapping[TenantId, CpuAccount],
    shares: Mapping[TenantId, CpuShare],
    used: Mapping[TenantId, float],
    loading: Mapping[TenantId, float] = MappingProxyType({}),
    *,
    seconds: float,
    cores: float,
    is_contended: bool,
) -> dict[TenantId, CpuAccount]:
    """The accounts of all tenants of `shares` after `seconds` in which they `used` so many
    seconds of CPU.

    `loading`: what loaders used that have a low weight of their own: they make their tenant one
    that others share with, and no debt. `cores`: those that were theirs to share, used or idle;
    what else runs on the host has had the others. `is_contended`: somebody on the host waited for
    a core.
    """
    both = {tenant: used.get(tenant, 0.0) + loading.get(tenant, 0.0) for tenant in shares}
    averages = {
        tenant: _average(accounts.get(tenant), taken, seconds) for tenant, taken in both.items()
    }
    active = {tenant for tenant, cores_used in averages.items() if cores_used >= ACTIVE_CORES}
    settled = {}
    for tenant, share in shares.items():
        sharing = {other: shares[other] for other in active} | {tenant: share}
        entitled = entitlements(sharing, cores)[tenant]
        before = accounts.get(tenant, CpuAccount())
        taken = used.get(tenant, 0.0)
        debt = before.debt - max(0.0, entitled * seconds - taken)
        if is_contended and len(sharing) > 1:
            debt += max(0.0, taken - entitled * TOLERANCE * seconds)
        debt = min(max(debt, 0.0), entitled * MAX_DEBT_SECONDS)
        burst = 0.0 if before.is_demoted else entitled * BURST_SECONDS
        is_demoted = debt > burst
        settled[tenant] = CpuAccount(
            used_cores=averages[tenant],
            debt=debt,
            is_demoted=is_demoted,
            gives_way=is_demoted and taken >= STARVED * entitled * seconds,
        )
    return settled


def kernel_weights(
    shares: Mapping[TenantId, CpuShare], demoted: Iterable[TenantId], cores: float
) -> dict[TenantId, int]:
    """The scheduler's weight of each tenant, at least 1 and at most `FULL_WEIGHT`."""
    entitled = entitlements(shares, cores)
    largest = max(entitled.values(), default=1.0) or 1.0
    low = frozenset(demoted)
    return {
        tenant: max(1, round(FULL_WEIGHT * share / largest / (DEMOTION if tenant in low else 1)))
        for tenant, share in entitled.items()
    }


def _average(before: CpuAccount | None, used: float, seconds: float) -> float:
    """Of the cores used; someone who wakes up is active at once."""
    now = used / seconds
    if before is None or now > before.used_cores:
        return now
    kept = max(0.0, 1.0 - seconds / AVERAGE_SECONDS)
    return before.used_cores * kept + now * (1.0 - kept)
