"""The master's decisions under any sequence of publishes, loads, crashes and lost hosts."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from simulated_world import SECOND, World, make_dataset, shard_task

from accel_dask.config import MasterSettings
from accel_dask.errors import CommitConflict, QuotaExceeded
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit, Put, apply_commit
from accel_dask.model.dataset import ColdPolicy, Spread
from accel_dask.model.epoch import OPEN_STATES, Epoch, EpochState
from accel_dask.model.executor import ExecutorKind, ExecutorPlan, ExecutorState
from accel_dask.model.guarantees import broken_promises, quota_commit
from accel_dask.model.ids import TenantId, WorkerId
from accel_dask.model.member import FencingToken, Gateway
from accel_dask.model.placement import Placement, Serving
from accel_dask.model.replica import Replica
from accel_dask.model.routing import build_routing
from accel_dask.model.tenant import MIB
from accel_dask.scheduler_plugin.budget import Ledger
from accel_dask.scheduler_plugin.reconcile import reconcile
from accel_dask.scheduler_plugin.round import is_ready_on, live_pairs, missing_pairs

HOSTS = [f"host-{n}" for n in range(1, 4)]
DATASETS = (
    make_dataset(name="one"),
    make_dataset(name="two", replicas=2),
    make_dataset(name="wide", spread=Spread.SPREAD, replicas=2),
    make_dataset(name="cool", cold=ColdPolicy.ALLOW),
    make_dataset(name="cold", spread=Spread.SPREAD, cold=ColdPolicy.ALLOW, hot_shards=1),
)
SHARDS = [f"s{n}" for n in range(6)]


def check_flip(before: ClusterView, commit: Commit) -> None:
    """At the moment an epoch goes into service everything of it is in place."""
    for change in commit.changes:
        if not (isinstance(change, Put) and isinstance(change.record, Serving)):
            continue
        serving = change.record
        placement = before.placement(serving.dataset_id, serving.epoch)
        epoch = before.epoch(serving.dataset_id, serving.epoch)
        assert placement is not None
        assert epoch is not None
        assert epoch.state is EpochState.VALIDATING
        assert missing_pairs(before, placement) == ()
        hot = {shard.shard_id for shard in epoch.shards} - placement.cold_shards
        for shard in epoch.shards:
            if shard.shard_id in placement.cold_shards:
                continue
            assert before.ready_replicas(shard.shard_id), f"{shard.shard_id} is nowhere"
        old = before.serving(serving.dataset_id)
        assert old is None or old.epoch < serving.epoch
        routing = build_routing(apply_commit(before, commit))
        route = routing.datasets[serving.dataset_id]
        answered: dict[ExecutorKind, set[str]] = {kind: set() for kind in ExecutorKind}
        for executor in route.executors:
            answered[executor.kind] |= {
                a.shard_id
                for a in executor.attachments
                if a.dataset == serving.dataset and a.epoch == serving.epoch
            }
        assert answered[ExecutorKind.HOT] == hot
        assert answered[ExecutorKind.COLD] >= placement.cold_shards


def answered(view: ClusterView) -> set[tuple[str, int, str, ExecutorKind]]:
    """(dataset, epoch, shard, kind) that queries can read now, from an undamaged file or cold."""
    return {
        (dataset.name, route.epoch, attachment.shard_id, executor.kind)
        for dataset, route in build_routing(view).datasets.items()
        for executor in route.executors
        for attachment in executor.attachments
        if (attachment.dataset, attachment.epoch) == (dataset.name, route.epoch)
        and (executor.is_cold or is_ready_on(view, executor.worker, attachment.shard_id))
    }


def check_still_answered(before: ClusterView, after: ClusterView) -> None:
    """What a dataset's epoch could be asked, it can still be asked, while it is served."""
    served = {(s.dataset, s.epoch) for s in after.records(Serving)}
    lost = {one for one in answered(before) if one[:2] in served} - answered(after)
    assert not lost, f"not answered any more: {lost}"


class Cluster(RuleBasedStateMachine):
    """Rules are what may happen at any time; invariants what must hold after each."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.old: tuple[ClusterView, FencingToken] | None = None
        self.sequence = 0
        self.numbers: dict[str, int] = {}

    @initialize(budget_mib=st.sampled_from([3, 6, 300]), host_mib=st.sampled_from([164, 1024]))
    def begin(self, budget_mib: int, host_mib: int) -> None:
        """Every shard has 1 MiB."""
        self.has_room = budget_mib > 100 and host_mib > 1000
        self.host_mib = host_mib
        self.budget_mib = budget_mib
        self.most_shard_bytes = budget_mib * MIB
        self.world.settings = MasterSettings(validate_seconds=60.0, keep_failed=2)
        self.world.begin(
            hosts=0,
            memory_bytes_per_host=(100 + budget_mib) * MIB,
            executor_memory_bytes=100 * MIB,
        )
        self.world.host_up("host-1", host_mib * MIB)
        self.world.declare(*DATASETS)
        self.world.gateway_applies("gw-1")

    # -- what operators and the master do

    @rule(
        dataset=st.sampled_from(DATASETS),
        shards=st.lists(st.sampled_from(SHARDS), min_size=1, max_size=4, unique=True),
    )
    def publish(self, dataset: object, shards: list[str]) -> None:
        self.sequence += 1
        if self.world.view.dataset(dataset.dataset_id):
            self.world.publish(dataset, sorted(shards), self.sequence)

    @rule(dataset=st.sampled_from(DATASETS))
    def answer_later(self, dataset: object) -> None:
        self.sequence += 1
        self.world.answer(dataset, [shard_task("s0")], self.sequence)

    @rule(rounds=st.integers(1, 3))
    def decide(self, rounds: int) -> None:
        world = self.world
        for _ in range(rounds):
            assert world.token is not None
            for commit in reconcile(world.view, world.now_ns, world.settings, world.token):
                try:
                    after = apply_commit(world.view, commit)
                except CommitConflict:
                    continue
                note(f"{after.revision}: {commit.because}")
                check_flip(world.view, commit)
                check_still_answered(world.view, after)
                world.apply(commit)

    @rule()
    def a_quiet_while(self) -> None:
        """With whatever hosts there are, everybody comes to rest; nothing is done over and
        over again."""
        self.world.settle(60)

    @rule()
    def another_master_is_elected(self) -> None:
        assert self.world.token is not None
        self.old = (self.world.view, self.world.token)
        self.world.elect("master-2")

    @precondition(lambda self: self.old is not None)
    @rule()
    def the_old_master_still_decides(self) -> None:
        assert self.old is not None
        view, token = self.old
        for decided_on in (view, self.world.view):
            for commit in reconcile(decided_on, self.world.now_ns, self.world.settings, token):
                with pytest.raises(CommitConflict):
                    apply_commit(self.world.view, commit)

    @rule(commits=st.integers(0, 4))
    def the_master_is_killed_in_the_middle(self, commits: int) -> None:
        """Of a round it has made some commits, and will never make the others."""
        world = self.world
        assert world.token is not None
        decided = reconcile(world.view, world.now_ns, world.settings, world.token)
        for commit in decided[:commits]:
            with suppress(CommitConflict):
                check_flip(world.view, commit)
                check_still_answered(world.view, apply_commit(world.view, commit))
                world.apply(commit)
        self.old = (world.view, world.token)
        world.elect("master-3")

    @rule(
        executor_mib=st.sampled_from([60, 100, 160]),
        room=st.sampled_from([0, 2, 6]),
        concurrency=st.sampled_from([2, 4]),
        cpu_percent=st.sampled_from([0, 10, 190]),
    )
    def an_operator_changes_the_quota(
        self, executor_mib: int, room: int, concurrency: int, cpu_percent: int
    ) -> None:
        """Seen from a view that may be older than what the master has placed meanwhile."""
        tenant = self.world.view.tenant(TenantId("acme"))
        assert tenant is not None
        quota = replace(
            tenant.quota,
            memory_bytes_per_host=(executor_mib + self.budget_mib + room) * MIB,
            executor_memory_bytes=executor_mib * MIB,
            concurrency=concurrency,
            cpu_guarantee_percent=cpu_percent,
        )
        with suppress(QuotaExceeded):
            self.world.apply(quota_commit(self.world.view, replace(tenant, quota=quota)))
            self.most_shard_bytes = max(self.most_shard_bytes, quota.shard_bytes_per_host)

    @rule(seconds=st.sampled_from([1, 20, 70]))
    def time_passes(self, seconds: int) -> None:
        self.world.now_ns += seconds * SECOND

    @rule(dataset=st.sampled_from(DATASETS))
    def delete_or_declare(self, dataset: object) -> None:
        if self.world.view.dataset(dataset.dataset_id):
            self.world.write(delete=[dataset.path])
        else:
            self.world.declare(dataset)

    # -- what hosts do

    @rule(name=st.sampled_from(HOSTS), keeps_files=st.booleans())
    def host_ends_or_begins(self, name: str, keeps_files: bool) -> None:
        if WorkerId(name) in self.world.view.workers:
            self.world.host_down(name, with_files=not keeps_files)
        else:
            self.world.host_up(name, self.host_mib * MIB)
            self.world.verify_files(WorkerId(name))

    @rule(limit=st.integers(1, 4))
    def load_some(self, limit: int) -> None:
        self.world.load_missing(limit=limit)

    @rule(retryable=st.booleans(), attempt=st.integers(1, 4))
    def a_load_fails(self, retryable: bool, attempt: int) -> None:
        for placement in self.world.view.records(Placement):
            for worker, shard_id in missing_pairs(self.world.view, placement)[:1]:
                self.world.fail_load(worker, shard_id, retryable=retryable, attempt=attempt)
                return

    @rule(name=st.sampled_from(HOSTS))
    def a_file_is_found_damaged(self, name: str) -> None:
        for replica in tuple(self.world.view.records(Replica)):
            is_ready = is_ready_on(self.world.view, replica.worker, replica.shard_id)
            if replica.worker == name and is_ready:
                self.world.files[replica.worker].discard(replica.shard_id)
                self.world.fail_load(name, replica.shard_id, retryable=True, attempt=0)
                return

    @rule(name=st.sampled_from(HOSTS), limit=st.integers(1, 3))
    def start_executors(self, name: str, limit: int) -> None:
        if WorkerId(name) in self.world.view.workers:
            self.world.start_executors(WorkerId(name), limit)

    @rule(name=st.sampled_from(HOSTS))
    def an_executor_fails(self, name: str) -> None:
        if WorkerId(name) in self.world.view.workers:
            for plan in self.world.plans(name)[-1:]:
                self.world.put_executor(plan, ExecutorState.FAILED, "out of memory")

    @rule(name=st.sampled_from(HOSTS))
    def executors_crash(self, name: str) -> None:
        self.world.crash_executors(WorkerId(name))

    @rule(name=st.sampled_from(HOSTS))
    def clean_up(self, name: str) -> None:
        if WorkerId(name) in self.world.view.workers:
            self.world.end_executors(WorkerId(name))
            self.world.remove_files(WorkerId(name))

    @rule()
    def gateway_moves_on(self) -> None:
        self.world.gateway_applies("gw-1")

    # -- what must always hold

    @invariant()
    def records_do_not_contradict_each_other(self) -> None:
        self.world.view.check_invariants()

    @invariant()
    def no_host_holds_more_than_the_budget(self) -> None:
        ledger = Ledger(self.world.view, TenantId("acme"))
        for host in ledger.hosts:
            assert ledger.tenant_bytes(host) <= self.most_shard_bytes  # a lower one moves nothing
            assert ledger.host_free_bytes(host) >= 0
        assert broken_promises(self.world.view) == ()

    @invariant()
    def epoch_numbers_are_never_used_twice(self) -> None:
        for dataset in DATASETS:
            epochs = self.world.view.epochs_of(dataset.dataset_id)
            opened = [e.number for e in epochs if e.state in OPEN_STATES]
            for number in opened:
                assert number >= self.numbers.get(dataset.name, 0)  # deleted and back, too
                self.numbers[dataset.name] = number

    def teardown(self) -> None:
        """Whatever happened: with everything healthy again all comes to rest in good order."""
        world = self.world
        if not world.view.meta:
            return
        for name in HOSTS:
            if WorkerId(name) not in world.view.workers:
                world.host_up(name, self.host_mib * MIB)
                world.verify_files(WorkerId(name))
            world.crash_executors(WorkerId(name))
        world.settle(60)
        world.view.check_invariants()
        for epoch in world.view.records(Epoch):
            assert epoch.state in (EpochState.READY, EpochState.FAILED), f"{epoch} is stuck"
        for dataset in DATASETS:
            self._is_answered(dataset)
        self._nothing_is_left_over()
        for dataset in DATASETS:
            if world.view.dataset(dataset.dataset_id) is None:
                continue
            if world.view.publish_request(dataset.dataset_id):
                world.answer(dataset, [shard_task("s5")], 10_000)
            else:
                world.publish(dataset, ["s5"], 10_000)
            world.settle(60)
            serving = world.view.serving_epoch(dataset.dataset_id)
            if self.has_room:
                assert serving is not None
                assert serving.sequence == 10_000
            self._is_answered(dataset)

    def _is_answered(self, dataset: object) -> None:
        view = self.world.view
        serving = view.serving_epoch(dataset.dataset_id)
        if serving is None:
            return
        route = build_routing(view).datasets[dataset.dataset_id]
        attached = {
            (a.epoch, a.shard_id)
            for executor in route.executors
            for a in executor.attachments
            if a.dataset == dataset.name
        }
        assert attached >= {(serving.number, shard.shard_id) for shard in serving.shards}

    def _nothing_is_left_over(self) -> None:
        view = self.world.view
        held = {(p.dataset, p.epoch) for p in view.records(Placement)}
        assert held == {(s.dataset, s.epoch) for s in view.records(Serving)}
        per_host: Counter[tuple[str, ExecutorKind]] = Counter()
        for plan in view.records(ExecutorPlan):
            per_host[plan.worker, plan.kind] += 1
            assert {(a.dataset, a.epoch) for a in plan.attachments} <= held
        assert all(count == 1 for count in per_host.values()), f"spare generations: {per_host}"
        for gateway in view.records(Gateway):
            assert gateway.applied_revision
        for placement in view.records(Placement):
            for worker, shard_id in live_pairs(view, placement):
                assert is_ready_on(view, worker, shard_id)


WALK = (
    (4, "publish", lambda r: {"dataset": r.choice(DATASETS), "shards": some_shards(r)}),
    (1, "answer_later", lambda r: {"dataset": r.choice(DATASETS)}),
    (6, "decide", lambda r: {"rounds": r.randint(1, 3)}),
    (0.3, "another_master_is_elected", lambda r: {}),
    (0.5, "the_master_is_killed_in_the_middle", lambda r: {"commits": r.randint(0, 4)}),
    (
        0.7,
        "an_operator_changes_the_quota",
        lambda r: {
            "executor_mib": r.choice([60, 100, 160]),
            "room": r.choice([0, 2, 6]),
            "concurrency": r.choice([2, 4]),
            "cpu_percent": r.choice([0, 10, 190]),
        },
    ),
    (1, "time_passes", lambda r: {"seconds": r.choice([1, 20, 70])}),
    (0.3, "delete_or_declare", lambda r: {"dataset": r.choice(DATASETS)}),
    (
        1,
        "host_ends_or_begins",
        lambda r: {"name": r.choice(HOSTS), "keeps_files": r.random() < 0.7},
    ),
    (4, "load_some", lambda r: {"limit": r.randint(1, 6)}),
    (0.5, "a_load_fails", lambda r: {"retryable": r.random() < 0.7, "attempt": r.randint(1, 4)}),
    (0.4, "a_file_is_found_damaged", lambda r: {"name": r.choice(HOSTS)}),
    (4, "start_executors", lambda r: {"name": r.choice(HOSTS), "limit": r.randint(1, 3)}),
    (0.3, "an_executor_fails", lambda r: {"name": r.choice(HOSTS)}),
    (0.4, "executors_crash", lambda r: {"name": r.choice(HOSTS)}),
    (2, "clean_up", lambda r: {"name": r.choice(HOSTS)}),
    (2, "gateway_moves_on", lambda r: {}),
    (0.5, "a_quiet_while", lambda r: {}),
)
"""Weight, rule and its arguments: what a long and busy day is made of."""


def some_shards(random: Random) -> list[str]:
    return random.sample(SHARDS, random.randint(1, 4))


@pytest.mark.parametrize("block", range(5))
def test_long_random_histories(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules at their natural frequencies: deeper than hypothesis goes by itself."""
    monkeypatch.setattr("test_reconcile_machine.note", lambda _: None)
    weights = [weight for weight, _, _ in WALK]
    for seed in range(60 * block, 60 * (block + 1)):
        random = Random(seed)
        cluster = Cluster()
        cluster.begin(random.choice([3, 6, 300]), random.choice([164, 1024]))
        for _ in range(random.randint(5, 120)):
            _, name, arguments = random.choices(WALK, weights)[0]
            getattr(cluster, name)(**arguments(random))
            cluster.records_do_not_contradict_each_other()
            cluster.no_host_holds_more_than_the_budget()
            cluster.epoch_numbers_are_never_used_twice()
        cluster.teardown()


TestCluster = Cluster.TestCase
TestCluster.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
