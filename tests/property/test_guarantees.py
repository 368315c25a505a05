"""No host ever promises more than it has: not by placing, not by quotas, not by both at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_support import etcd_members, fresh_settings

from accel_dask import admin
from accel_dask.errors import CommitConflict, ConfigError, QuotaExceeded
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit, Delete, Put, Requirement, apply_commit, unchanged
from accel_dask.model.executor import ExecutorPlan
from accel_dask.model.guarantees import (
    broken_promises,
    promises,
    quota_commit,
    quotas_unchanged,
)
from accel_dask.model.ids import EpochNumber, Revision, ShardId, TenantId, WorkerId
from accel_dask.model.member import Worker, worker_path
from accel_dask.model.placement import Placement
from accel_dask.model.tenant import MIB, Quota, Tenant
from accel_dask.scheduler_plugin.budget import Ledger
from accel_dask.store.base import StateStore
from accel_dask.store.connect import open_store
from accel_dask.store.etcd_server import EmbeddedEtcd
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import commit_records, put_record, read_view

TENANTS = tuple(TenantId(f"t{n}") for n in range(4))
HOSTS = tuple(WorkerId(f"h{n}") for n in range(2))
SHARD_BYTES = 50 * MIB


def a_host(worker: WorkerId) -> Worker:
    return Worker(
        worker=worker,
        host="127.0.0.1",
        memory_bytes=1000 * MIB,
        cores=2,
        shard_dir=f"/dev/shm/{worker}",
        in_memory=True,
        enforcement="",
        version="0",
    )


def a_quota(executor_mib: int, cpu_percent: int) -> Quota:
    return Quota(
        memory_bytes_per_host=executor_mib * MIB + 10 * SHARD_BYTES,
        executor_memory_bytes=executor_mib * MIB,
        cpu_guarantee_percent=cpu_percent,
    )


def start() -> ClusterView:
    """Two hosts; four tenants that are nowhere yet."""
    records = (
        *(a_host(host) for host in HOSTS),
        *(Tenant(tenant=tenant, quota=a_quota(100, 20)) for tenant in TENANTS),
    )
    commit = Commit(requirements=(), changes=tuple(map(Put, records)), because="the start")
    return apply_commit(ClusterView(Revision(0), {}), commit)


def place(view: ClusterView, tenant: TenantId, host: WorkerId) -> Commit | None:
    """As the master does: a shard of the tenant on the host if the ledger has room for it."""
    shard = ShardId(f"s-{tenant}-{host}")
    if Ledger(view, tenant).shortage(host, [shard]):
        return None
    placement = Placement(
        tenant=tenant, dataset=f"d{host}", epoch=EpochNumber(1), hosts=((shard, (host,)),)
    )
    requirements: tuple[Requirement, ...] = (
        unchanged(view, placement.path),
        quotas_unchanged(view),
    )
    return Commit(requirements=requirements, changes=(Put(placement),), because="placed")


QUOTAS = st.tuples(
    st.sampled_from(TENANTS), st.sampled_from((50, 300, 450, 900)), st.sampled_from((0, 60, 150))
).map(lambda t: ("quota", t[0], a_quota(t[1], t[2])))
PLACES = st.tuples(st.just("place"), st.sampled_from(TENANTS), st.sampled_from(HOSTS))


@settings(max_examples=300)
@given(steps=st.lists(st.tuples(QUOTAS | PLACES, st.integers(0, 3)), max_size=25))
def test_decisions_on_stale_views_never_promise_more_than_a_host_has(
    steps: list[tuple[tuple[str, TenantId, object], int]],
) -> None:
    history = [start()]
    for (kind, tenant, what), age in steps:
        seen, now = history[max(0, len(history) - 1 - age)], history[-1]
        commit: Commit | None
        if kind == "quota":
            assert isinstance(what, Quota)
            try:
                commit = quota_commit(seen, Tenant(tenant=tenant, quota=what))
            except QuotaExceeded:
                continue
        else:
            commit = place(seen, tenant, WorkerId(str(what)))
        if commit is None:
            continue
        # The master alone places, and its fencing token makes its view of placements its own.
        if kind == "place" and [*seen.records(Placement)] != [*now.records(Placement)]:
            continue
        try:
            after = apply_commit(now, commit)
        except CommitConflict:
            continue
        history.append(after)
        assert broken_promises(after) == ()


def test_what_a_draining_generation_was_promised_counts_until_it_is_gone() -> None:
    view = start()
    plan = ExecutorPlan(
        worker=HOSTS[0],
        tenant=TENANTS[0],
        generation=1,
        attachments=(),
        quota=a_quota(700, 20),
    )
    view = apply_commit(view, Commit(requirements=(), changes=(Put(plan),), because=""))
    assert promises(view)[HOSTS[0]].memory_bytes == 700 * MIB
    with pytest.raises(QuotaExceeded, match=r"tenant t0: host h0 .* offers 1000.0 MiB"):
        quota_commit(view, Tenant(tenant=TENANTS[0], quota=a_quota(1001, 20)))
    quota_commit(view, Tenant(tenant=TENANTS[1], quota=a_quota(1001, 20)))  # is not there
    with pytest.raises(QuotaExceeded, match="cpu_guarantee_percent"):
        quota_commit(view, Tenant(tenant=TENANTS[0], quota=a_quota(100, 201)))


def test_a_promise_of_a_host_that_is_away_grows_only_once_it_is_back() -> None:
    view = start()
    placed = place(view, TENANTS[0], HOSTS[0])
    assert placed is not None
    view = apply_commit(view, placed)
    away = Commit(requirements=(), changes=(Delete(worker_path(HOSTS[0])),), because="it is lost")
    view = apply_commit(view, away)
    with pytest.raises(QuotaExceeded, match=r"t0: host h0 .* is away, .* when the host is back"):
        quota_commit(view, Tenant(tenant=TENANTS[0], quota=a_quota(101, 20)))
    with pytest.raises(QuotaExceeded, match=r"t0: the cpu_guarantee_percent .* host is away"):
        quota_commit(view, Tenant(tenant=TENANTS[0], quota=a_quota(100, 21)))
    quota_commit(view, Tenant(tenant=TENANTS[0], quota=a_quota(90, 10)))
    quota_commit(view, Tenant(tenant=TENANTS[1], quota=a_quota(900, 150)))  # is not there
    back = Commit(requirements=(), changes=(Put(a_host(HOSTS[0])),), because="it is back")
    quota_commit(apply_commit(view, back), Tenant(tenant=TENANTS[0], quota=a_quota(900, 150)))


def test_a_host_that_has_promised_too_much_already_takes_lower_quotas_only() -> None:
    plans = (
        ExecutorPlan(
            worker=HOSTS[0],
            tenant=tenant,
            generation=1,
            attachments=(),
            quota=a_quota(100, 20),
        )
        for tenant in TENANTS
    )
    smaller = replace(a_host(HOSTS[0]), memory_bytes=300 * MIB)
    commit = Commit(
        requirements=(),
        changes=(*map(Put, plans), Put(smaller)),
        because="it came back smaller",
    )
    view = apply_commit(start(), commit)
    assert broken_promises(view) == ("host h0 has promised 400.0 MiB and offers 300.0 MiB",)
    quota_commit(view, Tenant(tenant=TENANTS[0], quota=a_quota(50, 20)))
    with pytest.raises(QuotaExceeded):
        quota_commit(view, Tenant(tenant=TENANTS[0], quota=a_quota(101, 20)))


@pytest.fixture(scope="module")
def etcd() -> Iterator[EmbeddedEtcd]:
    with etcd_members() as running:
        yield running


@pytest.fixture(params=["memory", "etcd"])
def store(request: pytest.FixtureRequest) -> Iterator[StateStore]:
    if request.param == "memory":
        with MemoryStore() as opened:
            yield opened
    else:
        endpoints = request.getfixturevalue("etcd").endpoints
        with open_store(fresh_settings(*endpoints)) as opened:
            yield opened


def _wanted(step: int, seed: int) -> dict[str, int]:
    """Now more, now less; together far more than a host has."""
    return {
        "executor_memory_bytes": (150 + 90 * ((step * 7 + seed * 3) % 9)) * MIB,
        "cpu_guarantee_percent": 10 + 20 * ((step + seed) % 7),
        "memory_bytes_per_host": 2000 * MIB,
    }


def test_operators_and_a_master_that_race_leave_every_promise_kept(store: StateStore) -> None:
    for host in HOSTS:
        put_record(store, a_host(host))
    for tenant in TENANTS:
        admin.create_tenant(store, tenant, a_quota(100, 20))
    changed: list[bool] = []
    placed: list[bool] = []
    gate = threading.Barrier(len(TENANTS) + 1)

    failures: list[BaseException] = []

    def operator(tenant: TenantId, seed: int) -> None:
        gate.wait()
        for step in range(8):
            with suppress(QuotaExceeded):
                admin.change_quota(store, tenant, **_wanted(step, seed))
                changed.append(True)
            assert broken_promises(read_view(store)) == ()

    def master() -> None:
        gate.wait()
        for step in range(40):
            commit = place(read_view(store), TENANTS[step % 4], HOSTS[step // 4 % 2])
            with suppress(CommitConflict):
                if commit is not None:
                    commit_records(store, commit)
                    placed.append(True)

    def guarded(work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - a thread's, for the test to see
            failures.append(error)

    threads = [
        threading.Thread(target=guarded, args=(operator, tenant, seed))
        for seed, tenant in enumerate(TENANTS)
    ]
    threads.append(threading.Thread(target=guarded, args=(master,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert placed
    assert 0 < len(changed) < 8 * len(TENANTS)
    assert broken_promises(read_view(store)) == ()


def test_two_operators_who_change_different_fields_both_have_their_way(store: StateStore) -> None:
    admin.create_tenant(store, "acme")
    fields = ("cpu_weight", "concurrency", "queue_length", "deadline_ms", "cpu_limit_percent")
    threads = [
        threading.Thread(target=admin.change_quota, args=(store, "acme"), kwargs={field: 77})
        for field in fields
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = read_view(store).tenant(TenantId("acme"))
    assert found is not None
    assert [getattr(found.quota, field) for field in fields] == [77] * len(fields)


def test_what_makes_no_sense_is_refused(store: StateStore) -> None:
    admin.create_tenant(store, "acme")
    with pytest.raises(ConfigError, match="a quota has no cpu_wait"):
        admin.change_quota(store, "acme", cpu_wait=1)
    with pytest.raises(ConfigError, match="cpu_weight must be at most 10000"):
        admin.change_quota(store, "acme", cpu_weight=10_001)
    with pytest.raises(ConfigError, match="there is no tenant nobody"):
        admin.change_quota(store, "nobody", cpu_weight=1)
