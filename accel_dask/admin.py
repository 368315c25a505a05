"""What operators do: tenants, users, datasets, publishing. All of it is writing records.

Used by the command line and by `LocalAccelCluster`; the master acts on what is written.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields

from accel_dask.connectors.olap.settings import engine_settings
from accel_dask.errors import CommitConflict, ConfigError, LoadError
from accel_dask.model import row_filter
from accel_dask.model.cluster import ClusterView, Record
from accel_dask.model.commit import Commit, Put, Requirement, UnchangedUnder, unchanged
from accel_dask.model.dataset import ColdPolicy, Dataset, PublishRequest, Rollup, dataset_path
from accel_dask.model.epoch import OPEN_STATES, Epoch, EpochState
from accel_dask.model.fallback import FallbackSpec
from accel_dask.model.guarantees import quota_commit
from accel_dask.model.ids import DatasetId, Revision, TenantId
from accel_dask.model.rollup import check_rollups
from accel_dask.model.tenant import (
    MAX_CPU_WEIGHT,
    Quota,
    Tenant,
    User,
    hash_token,
    tenant_path,
    user_path,
)
from accel_dask.query_planner.portable.engine_choice import travels, writer_of
from accel_dask.store.base import StateStore
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import commit_records, delete_record, put_record, read_view

_COMMIT_SECONDS = 30.0
_MAY_BE_ZERO = frozenset({"cpu_guarantee_percent", "cpu_limit_percent"})
_Decided = tuple[Record, tuple[Requirement, ...]]
"""A record to write, and what it rests on."""
_NAME_HINT = "use letters, digits and underscores, beginning with a letter"


@dataclass(frozen=True, slots=True)
class Requested:
    """A publish request as it was written; what to wait for its end with."""

    dataset: DatasetId
    nonce: str
    revision: Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How a publish request ended."""

    epoch: Epoch
    """The epoch that it made, or that already served the snapshot."""
    is_new: bool


def create_tenant(store: StateStore, tenant: str, quota: Quota | None = None) -> None:
    """Create `tenant`, or replace its quota.

    Raises:
        ConfigError: the name cannot be used, or the quota contradicts itself.
        QuotaExceeded: a host that the tenant is on cannot promise as much.
    """
    _check_name("tenant", tenant)
    _commit_quota(store, TenantId(tenant), lambda _: quota or Quota())


def change_quota(store: StateStore, tenant: str, **changes: int) -> Quota:
    """Change single fields of a tenant's quota, which takes effect at once; the quota now.

    Raises:
        ConfigError: there is no such tenant or field, or the quota contradicts itself.
        QuotaExceeded: a host that the tenant is on cannot promise as much.
    """
    fields = [field.name for field in dataclass_fields(Quota)]
    unknown = sorted(changes.keys() - set(fields))
    if unknown:
        raise ConfigError(f"a quota has no {', '.join(unknown)}; it has {', '.join(fields)}")

    def changed(view: ClusterView) -> Quota:
        found = view.tenant(TenantId(tenant))
        if found is None:
            raise ConfigError(f"there is no tenant {tenant}; create it first")
        return replace(found.quota, **changes)

    return _commit_quota(store, TenantId(tenant), changed)


def _change(store: StateStore, because: str, decide: Callable[[ClusterView], _Decided]) -> Revision:
    """Write what `decide` makes of the records, if what it rests on still holds; else it decides
    again. What others do at the same time is never undone."""
    until = time.monotonic() + _COMMIT_SECONDS
    while True:
        record, requirements = decide(read_view(store))
        commit = Commit(requirements=requirements, changes=(Put(record),), because=because)
        try:
            return commit_records(store, commit, idempotent=True)
        except CommitConflict:
            if time.monotonic() > until:
                raise


def _commit_quota(
    store: StateStore, tenant: TenantId, quota_of: Callable[[ClusterView], Quota]
) -> Quota:
    """Write a quota if all promises still fit their hosts; looks again when something that was
    counted has changed meanwhile."""
    until = time.monotonic() + _COMMIT_SECONDS
    while True:
        view = read_view(store)
        quota = quota_of(view)
        _check_quota(tenant, quota)
        commit = quota_commit(view, Tenant(tenant=tenant, quota=quota))
        try:
            commit_records(store, commit, idempotent=True)
        except CommitConflict:
            if time.monotonic() > until:
                raise
        else:
            return quota


def _check_quota(tenant: TenantId, quota: Quota) -> None:
    for name, value in asdict(quota).items():
        least = 0 if name in _MAY_BE_ZERO else 1
        if value < least:
            raise ConfigError(f"tenant {tenant}: {name} must be at least {least}, not {value}")
    if quota.cpu_weight > MAX_CPU_WEIGHT:
        raise ConfigError(
            f"tenant {tenant}: cpu_weight must be at most {MAX_CPU_WEIGHT}, not {quota.cpu_weight}"
        )
    if quota.shard_bytes_per_host <= 0:
        raise ConfigError(
            f"tenant {tenant}: executor_memory_bytes ({quota.executor_memory_bytes:,}) leaves "
            f"nothing of memory_bytes_per_host ({quota.memory_bytes_per_host:,}) for data"
        )


def create_user(store: StateStore, name: str, tenant: str, token: str | None = None) -> str:
    """Give `name` access to `tenant`'s data; the token (made here if not given).

    Raises:
        ConfigError: there is no such tenant, or the name is another tenant's user.
    """
    token = token or secrets.token_urlsafe(24)
    made = User(name=name, tenant=TenantId(tenant), token_sha256=hash_token(token))

    def decide(view: ClusterView) -> _Decided:
        if view.tenant(made.tenant) is None:
            raise ConfigError(f"there is no tenant {tenant}; create it first")
        known = view.find(User, user_path(name))
        if known is not None and known.tenant != tenant:
            raise ConfigError(f"user {name} belongs to another tenant; choose another name")
        return made, (unchanged(view, tenant_path(made.tenant)), unchanged(view, made.path))

    _change(store, f"user {name} of tenant {tenant}", decide)
    return token


def create_dataset(store: StateStore, dataset: Dataset) -> None:
    """Declare `dataset`, or change its declaration; the next publish uses it.

    Raises:
        ConfigError: its tenant does not exist, or a field cannot be used.
    """
    _declare(store, dataset.dataset_id, lambda _: dataset)


def _declare(
    store: StateStore, name: DatasetId, decide: Callable[[Dataset | None], Dataset]
) -> Dataset:
    """Write what `decide` makes of the declaration of `name` as it is, once it was checked."""
    made: list[Dataset] = []

    def checked(view: ClusterView) -> _Decided:
        made[:] = [decide(view.dataset(name))]
        _check_dataset(view, made[0])
        others = UnchangedUnder((Dataset.KIND, name.tenant), view.revision)
        paths = (tenant_path(name.tenant), dataset_path(name))
        return made[0], (*(unchanged(view, path) for path in paths), others)

    _change(store, f"dataset {name} is declared", checked)
    return made[0]


def _check_dataset(view: ClusterView, dataset: Dataset) -> None:
    _check_name("dataset", dataset.name)
    if view.tenant(dataset.tenant) is None:
        raise ConfigError(f"there is no tenant {dataset.tenant}; create it first")
    for field, value in (
        ("replicas", dataset.replicas),
        ("shard_target_bytes", dataset.shard_target_bytes),
    ):
        if value < 1:
            raise ConfigError(f"dataset {dataset.dataset_id}: {field} must be at least 1")
    if dataset.hot_shards is not None and dataset.cold is ColdPolicy.REFUSE:
        raise ConfigError(
            f"dataset {dataset.dataset_id}: hot_shards leaves the others cold, and cold is "
            '"refuse"; allow it, or hold all shards'
        )
    if dataset.hot_shards is not None and dataset.hot_shards < 0:
        raise ConfigError(f"dataset {dataset.dataset_id}: hot_shards must be 0 or more")
    if dataset.poll_seconds < 0:
        raise ConfigError(f"dataset {dataset.dataset_id}: poll_seconds must be 0 (never) or more")
    _check_fallback(dataset)
    why_not = row_filter.refusal(str(dataset.dataset_id), dataset.row_filter)
    if why_not is not None:
        raise ConfigError(f"dataset {why_not}")
    check_rollups(dataset.dataset_id, dataset.rollups)
    for other in view.records(Dataset):
        is_alike = other.name != dataset.name and other.name.lower() == dataset.name.lower()
        if other.tenant == dataset.tenant and is_alike:
            raise ConfigError(
                f"dataset {dataset.dataset_id}: there is {other.dataset_id} already, and SQL does "
                "not tell them apart; choose another name"
            )


def _check_fallback(dataset: Dataset) -> None:
    """As far as that can be done without asking the engine."""
    spec = dataset.fallback
    if spec is None:
        return
    engine_settings(spec, f"dataset {dataset.dataset_id}")
    writer = writer_of(spec, dataset.dataset_id)
    travels(spec, dataset.dataset_id, dataset.source.connector, writer)


def change_fallback(store: StateStore, dataset: DatasetId, spec: FallbackSpec | None) -> Dataset:
    """Put an engine behind a dataset, another in its place, or none. It takes effect at once.

    Raises:
        ConfigError: there is no such dataset, or the fallback is declared wrongly.
    """

    def changed(declared: Dataset | None) -> Dataset:
        if declared is None:
            raise ConfigError(f"there is no dataset {dataset}")
        return replace(declared, fallback=spec)

    return _declare(store, dataset, changed)


def change_rollups(
    store: StateStore, dataset: DatasetId, add: Sequence[Rollup], drop: Sequence[str] = ()
) -> Dataset:
    """Add rollups to a dataset, in place of those of the same name, and drop others; the next
    publish builds them.

    Raises:
        ConfigError: there is no such dataset or rollup, or one cannot be used.
    """

    def changed(found: Dataset | None) -> Dataset:
        if found is None:
            raise ConfigError(f"there is no dataset {dataset}; create it first")
        known = {rollup.name.lower(): rollup for rollup in found.rollups}
        for name in drop:
            if known.pop(name.lower(), None) is None:
                raise ConfigError(
                    f"dataset {dataset} has no rollup {name!r} (it has: "
                    f"{', '.join(rollup.name for rollup in found.rollups) or 'none'})"
                )
        known |= {rollup.name.lower(): rollup for rollup in add}
        return replace(found, rollups=tuple(known.values()))

    return _declare(store, dataset, changed)


def delete_dataset(store: StateStore, dataset: DatasetId) -> None:
    """Take `dataset` away: it is answered no more, and its memory is returned. The source keeps
    its data.

    Raises:
        ConfigError: there is no such dataset.
    """
    if read_view(store).dataset(dataset) is None:
        raise ConfigError(f"there is no dataset {dataset}")
    delete_record(store, dataset_path(dataset))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a tenant has, and loses when it is deleted."""

    users: tuple[str, ...]
    datasets: tuple[DatasetId, ...]


def holdings(store: StateStore, tenant: str) -> Holdings:
    """
    Raises:
        ConfigError: there is no such tenant.
    """
    view = read_view(store)
    if view.tenant(TenantId(tenant)) is None:
        raise ConfigError(f"there is no tenant {tenant}")
    return _holdings(view, tenant)


def _holdings(view: ClusterView, tenant: str) -> Holdings:
    return Holdings(
        users=tuple(sorted(user.name for user in view.records(User) if user.tenant == tenant)),
        datasets=tuple(sorted(d.dataset_id for d in view.records(Dataset) if d.tenant == tenant)),
    )


def delete_tenant(store: StateStore, tenant: str) -> Holdings:
    """Take `tenant` away with its users and datasets, and return what it had. Done in steps, of
    which the first lets nobody in any more; what is left after a failure goes with the next try.

    Raises:
        ConfigError: there is no such tenant.
    """
    found = holdings(store, tenant)
    _delete_all(store, found)
    delete_record(store, tenant_path(TenantId(tenant)))
    # What was added meanwhile must not be a later tenant's of that name. From here on nothing is.
    _delete_all(store, _holdings(read_view(store), tenant))
    return found


def _delete_all(store: StateStore, held: Holdings) -> None:
    for user in held.users:
        delete_record(store, user_path(user))
    for dataset in held.datasets:
        delete_record(store, dataset_path(dataset))


def rotate_token(store: StateStore, name: str, token: str | None = None) -> str:
    """Give the user `name` another token (made here if not given). The old one, and what was
    signed for it, is refused as soon as the gateways know.

    Raises:
        ConfigError: there is no such user.
    """
    token = token or secrets.token_urlsafe(24)

    def decide(view: ClusterView) -> _Decided:
        user = view.find(User, user_path(name))
        if user is None:
            raise ConfigError(f"there is no user {name}")
        return replace(user, token_sha256=hash_token(token)), (unchanged(view, user.path),)

    _change(store, f"user {name} has another token", decide)
    return token


def publish(
    store: StateStore, dataset: DatasetId, snapshot: str | None = None, by: str = "operator"
) -> Requested:
    """Ask for the newest snapshot of `dataset` (or for `snapshot`).

    Raises:
        ConfigError: there is no such dataset.
    """
    if read_view(store).dataset(dataset) is None:
        raise ConfigError(f"there is no dataset {dataset}; create it first")
    nonce = uuid.uuid4().hex
    request = PublishRequest(
        tenant=dataset.tenant,
        name=dataset.name,
        nonce=nonce,
        requested_by=by,
        requested_at_ns=time.time_ns(),
        snapshot=snapshot,
    )
    return Requested(dataset, nonce, put_record(store, request))


def publish_result(view: ClusterView, requested: Requested) -> Published | None:
    """How a request ended, or None while it is under way (or `view` is older than it).

    Where a later request took this one's place, how that one ended.

    Raises:
        LoadError: the dataset was deleted, so the request will not be answered.
    """
    dataset = requested.dataset
    if view.revision < requested.revision:
        return None
    epochs = view.epochs_of(dataset)
    made = next((e for e in epochs if e.publish_nonce == requested.nonce), None)
    if made is not None:
        return Published(epoch=made, is_new=True) if made.state not in OPEN_STATES else None
    if view.publish_request(dataset) is not None or view.open_epoch(dataset) is not None:
        return None
    if view.dataset(dataset) is None or view.tenant(dataset.tenant) is None:
        raise LoadError(f"{dataset} was deleted while it was being published")
    serving = view.serving_epoch(dataset)
    for epoch in reversed(epochs):
        opened = view.entries[epoch.path].create_revision
        if opened > requested.revision and (epoch == serving or epoch.state is EpochState.FAILED):
            return Published(epoch=epoch, is_new=True)
    return Published(epoch=serving, is_new=False) if serving is not None else None


def wait_published(
    mirror: Mirror, requested: Requested, timeout_seconds: float = 120.0
) -> Published:
    """Wait for a request to end.

    Raises:
        LoadError: the epoch FAILED (the message is its reason), or the dataset was deleted.
        WaitTimedOut: it did not end in time.
    """
    view = mirror.wait_for(
        lambda seen: publish_result(seen, requested) is not None,
        timeout_seconds,
        f"the end of the publish request of {requested.dataset}",
    )
    result = publish_result(view, requested)
    assert result is not None
    if result.epoch.state is EpochState.FAILED:
        raise LoadError(f"epoch {result.epoch} FAILED: {result.epoch.reason}")
    return result


def _check_name(kind: str, name: str) -> None:
    if not (name.isidentifier() and name.isascii() and not name.startswith("_")):
        raise ConfigError(f"{name!r} cannot name a {kind}: {_NAME_HINT}")
