"""What cold executors a tenant should have: on few hosts, with all shards of what may be read
cold, so that they can stand in for any that is not in memory. Pure."""

from __future__ import annotations

from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.executor import Attachment, ExecutorPlan
from accel_dask.model.ids import DatasetId, TenantId, WorkerId
from accel_dask.scheduler_plugin.budget import Ledger, cold_tenants
from accel_dask.scheduler_plugin.round import attachments_of, cold_plans_of, is_up, target_epochs


def cold_hosts(view: ClusterView) -> dict[TenantId, tuple[WorkerId, ...]]:
    """The hosts of each tenant's cold executors."""
    return {tenant: Ledger(view, tenant).cold_hosts for tenant in sorted(cold_tenants(view))}


def cold_attachments(view: ClusterView, tenant: TenantId) -> set[Attachment]:
    """What a cold executor of the tenant should read: of each dataset with the policy one epoch,
    the one in validation, else the one served."""
    return {
        attachment
        for epoch in target_epochs(view, tenant)
        if epoch.cold is ColdPolicy.ALLOW
        for attachment in attachments_of(epoch, (shard.shard_id for shard in epoch.shards))
    }


def is_spare_cold(
    view: ClusterView, plan: ExecutorPlan, attachment: Attachment, *, is_replaced: bool
) -> bool:
    """Whether queries can do without this attachment of a cold executor. `is_replaced`: other
    hosts take its place."""
    epoch = view.epoch(DatasetId(plan.tenant, attachment.dataset), attachment.epoch)
    if epoch is None or epoch.cold is ColdPolicy.REFUSE:
        return True
    return is_replaced and any(
        attachment in other.attachments and is_up(view, other)
        for other in cold_plans_of(view, plan.tenant)
        if other.worker != plan.worker
    )
