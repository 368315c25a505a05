"""A cluster without processes: hosts, gateways and a master that act on one `ClusterView`.

Hosts obey their orders as the host agent does; tests say when, and what goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from accel_dask.config import MasterSettings
from accel_dask.errors import AdmissionError, CommitConflict, LoadError
from accel_dask.model.cluster import ClusterView, Record
from accel_dask.model.commit import Commit, Delete, Put, apply_commit, fencing_token
from accel_dask.model.dataset import Dataset, PublishRequest, SourceSpec, Spread
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Executor, ExecutorKind, ExecutorPlan, ExecutorState
from accel_dask.model.ids import GatewayId, Path, Revision, ShardId, TenantId, WorkerId
from accel_dask.model.load_plan import LoadTask
from accel_dask.model.member import (
    LEADER_PATH,
    ClusterMeta,
    FencingToken,
    Gateway,
    Leader,
    Worker,
    worker_path,
)
from accel_dask.model.placement import Placement
from accel_dask.model.replica import Replica, ReplicaState, replica_path
from accel_dask.model.snapshot import Column, SnapshotId, SourceSnapshot
from accel_dask.model.tenant import MIB, Quota, Tenant
from accel_dask.scheduler_plugin.publish import (
    PlannedPublish,
    can_take_up,
    load_plan,
    next_number,
    open_epoch,
    refuse,
)
from accel_dask.scheduler_plugin.reconcile import reconcile
from accel_dask.scheduler_plugin.round import Round, missing_pairs

SECOND = 1_000_000_000
COLUMNS = (Column(name="day", type="DATE"), Column(name="delay", type="BIGINT"))


def shard_task(shard: str, size_bytes: int = MIB, rows: int = 10) -> LoadTask:
    return LoadTask(
        shard_id=ShardId(shard), columns=COLUMNS, files=(), rows=rows, source_bytes=size_bytes
    )


def make_dataset(tenant: str = "acme", name: str = "flights", **fields: object) -> Dataset:
    source = SourceSpec(connector="parquet")
    return Dataset(tenant=TenantId(tenant), name=name, source=source, **fields)  # type: ignore[arg-type]


@dataclass
class World:
    """One cluster. `view` is what everybody sees; there is no delay between them."""

    view: ClusterView = field(default_factory=lambda: ClusterView(0, {}))
    now_ns: int = 1_000 * SECOND
    settings: MasterSettings = field(default_factory=MasterSettings)
    token: FencingToken | None = None
    reasons: list[str] = field(default_factory=list)
    files: dict[WorkerId, set[ShardId]] = field(default_factory=dict)
    """Shard files on each host's disk; they outlive the host's processes."""
    check_each: bool = True

    def write(self, *records: Record, delete: Iterable[Path] = ()) -> None:
        changes = (*(Put(record) for record in records), *(Delete(path) for path in delete))
        self.apply(Commit(requirements=(), changes=changes, because="the world"))

    def apply(self, commit: Commit) -> None:
        self.view = apply_commit(self.view, commit)
        if self.check_each:
            self.view.check_invariants()

    # -- what operators do

    def begin(self, hosts: int = 1, memory_bytes: int = 1024 * MIB, **quota: int) -> World:
        self.write(
            ClusterMeta(cluster_id="c", format_version=1, incarnation=1, ticket_key="00"),
            Tenant(tenant=TenantId("acme"), quota=Quota(**quota)),
        )
        self.elect("master-1")
        for number in range(1, hosts + 1):
            self.host_up(f"host-{number}", memory_bytes)
        return self

    def declare(self, *datasets: Dataset) -> None:
        self.write(*datasets)

    def request(
        self, dataset: Dataset, nonce: str = "n", snapshot: str | None = None
    ) -> PublishRequest:
        request = PublishRequest(
            tenant=dataset.tenant,
            name=dataset.name,
            nonce=nonce,
            requested_by="test",
            requested_at_ns=self.now_ns,
            snapshot=snapshot,
        )
        self.write(request)
        return request

    # -- the master

    def elect(self, master: str) -> FencingToken:
        self.write(delete=[LEADER_PATH])
        self.write(Leader(master=master, address="tcp://m", elected_at_ns=self.now_ns))
        token = fencing_token(self.view)
        assert token is not None
        self.token = token
        return token

    def round(self) -> Round:
        assert self.token is not None
        return Round(self.view, self.now_ns, self.settings, self.token)

    def planned(self, dataset: Dataset, tasks: Sequence[LoadTask], sequence: int) -> PlannedPublish:
        request = self.view.publish_request(dataset.dataset_id)
        declared = self.view.get(dataset.path)
        assert request is not None
        assert declared is not None
        snapshot = SourceSnapshot(
            snapshot_id=SnapshotId(table_uuid="t", snapshot=str(sequence), schema_id="0"),
            sequence=sequence,
            columns=COLUMNS,
            files=(),
        )
        number = next_number(self.view, dataset.dataset_id)
        plan, _ = load_plan(dataset, number, snapshot, tuple(tasks))
        return PlannedPublish(
            request=request,
            dataset=dataset,
            dataset_revision=declared.mod_revision,
            snapshot=snapshot,
            plan=plan,
            plan_digest=f"digest-{number}",
        )

    def planned_shards(
        self, dataset: Dataset, tasks: Sequence[LoadTask]
    ) -> tuple[ShardSummary, ...]:
        return tuple(
            ShardSummary(shard_id=task.shard_id, rows=task.rows, source_bytes=task.source_bytes)
            for task in tasks
        )

    def answer(self, dataset: Dataset, tasks: Sequence[LoadTask], sequence: int) -> None:
        """Take up the dataset's publish request, as the controller does."""
        request = self.view.publish_request(dataset.dataset_id)
        if request is None or not can_take_up(self.view, request):
            return
        planned = self.planned(dataset, tasks, sequence)
        try:
            commit = open_epoch(self.round(), planned)
        except (AdmissionError, LoadError) as error:
            commit = refuse(self.round(), request, error, planned)
        self.reasons.append(commit.because)
        self.apply(commit)

    def reconcile(self) -> int:
        """One round of the master; how many commits went through."""
        assert self.token is not None
        done = 0
        for commit in reconcile(self.view, self.now_ns, self.settings, self.token):
            try:
                self.apply(commit)
            except CommitConflict:
                continue
            self.reasons.append(commit.because)
            done += 1
        return done

    def settle(self, rounds: int = 30, *, gateways: bool = True) -> int:
        """Let everybody act until nothing changes; the number of rounds it took."""
        for number in range(rounds):
            before = self.view.revision
            self.reconcile()
            for worker in tuple(self.view.workers):
                self.host_acts(worker)
            if gateways:
                for gateway in tuple(self.view.records(Gateway)):
                    if gateway.applied_revision < self.latest_record_revision():
                        self.gateway_applies(gateway.gateway)
            if self.view.revision == before:
                return number
        raise AssertionError(f"not settled in {rounds} rounds: {self.reasons[-10:]}")

    def latest_record_revision(self) -> int:
        return max(e.mod_revision for p, e in self.view.entries.items() if p[0] != "gateway")

    # -- hosts

    def host_up(self, name: str, memory_bytes: int = 1024 * MIB) -> None:
        self.write(
            Worker(
                worker=WorkerId(name),
                host="127.0.0.1",
                memory_bytes=memory_bytes,
                cores=2,
                shard_dir=f"/dev/shm/{name}",
                in_memory=True,
                enforcement="",
                version="1",
            )
        )

    def host_down(self, name: str, *, with_files: bool = False) -> None:
        """The host's processes end; its leases expire."""
        worker = WorkerId(name)
        executors = [e.path for e in self.view.records(Executor) if e.worker == worker]
        self.write(delete=[worker_path(worker), *executors])
        if with_files:
            self.files.pop(worker, None)

    def load(self, worker: WorkerId, shard_id: ShardId, file_bytes: int = MIB) -> None:
        self.files.setdefault(worker, set()).add(shard_id)
        self._put_replica(worker, shard_id, ReplicaState.READY, file_bytes=file_bytes)

    def fail_load(
        self, worker: str, shard_id: str, *, retryable: bool, attempt: int = 1, code: str = "X"
    ) -> None:
        self._put_replica(
            WorkerId(worker),
            ShardId(shard_id),
            ReplicaState.FAILED,
            retryable=retryable,
            attempt=attempt,
            error_code=code,
            reason="the test says so",
        )

    def _put_replica(
        self, worker: WorkerId, shard_id: ShardId, state: ReplicaState, **fields: object
    ) -> None:
        incarnation = self.view.workers[worker].create_revision
        self.write(
            Replica(
                worker=worker,
                shard_id=shard_id,
                worker_incarnation=incarnation,
                state=state,
                **fields,  # type: ignore[arg-type]
            )
        )

    def load_missing(self, worker: str | None = None, limit: int = 1_000) -> int:
        """Build what placements want and is not there yet."""
        pairs = [
            pair
            for placement in self.view.records(Placement)
            for pair in missing_pairs(self.view, placement)
            if worker in (None, pair[0])
        ]
        for host, shard_id in dict.fromkeys(pairs[:limit]):
            self.load(host, shard_id)
        return len(pairs)

    def host_acts(self, worker: WorkerId) -> None:
        """One step of a healthy host agent: loads, executors up and down, files away."""
        self.load_missing(worker)
        self.start_executors(worker)
        self.end_executors(worker)
        self.remove_files(worker)

    def start_executors(self, worker: WorkerId, limit: int = 1_000) -> None:
        incarnation = self.view.workers[worker].create_revision
        for plan in self.plans(worker)[:limit]:
            path = ("executor", *plan.path[1:])
            running = self.view.find(Executor, path)
            if running is not None and running.worker_incarnation == incarnation:
                continue
            has_files = {a.shard_id for a in plan.attachments} <= self.files.get(worker, set())
            if has_files or plan.kind is ExecutorKind.COLD:
                self.put_executor(plan, ExecutorState.READY)

    def put_executor(self, plan: ExecutorPlan, state: ExecutorState, reason: str = "") -> None:
        self.write(
            Executor(
                worker=plan.worker,
                tenant=plan.tenant,
                generation=plan.generation,
                incarnation=f"i{self.view.revision}",
                state=state,
                address="grpc://127.0.0.1:1",
                worker_incarnation=self.view.workers[plan.worker].create_revision,
                reason=reason,
            )
        )

    def crash_executors(self, worker: WorkerId) -> None:
        self.write(delete=[e.path for e in self.view.records(Executor) if e.worker == worker])

    def end_executors(self, worker: WorkerId) -> None:
        planned = {plan.path[1:] for plan in self.plans(worker)}
        gone = [
            e.path
            for e in self.view.records(Executor)
            if e.worker == worker and e.path[1:] not in planned
        ]
        if gone:
            self.write(delete=gone)

    def remove_files(self, worker: WorkerId) -> None:
        wanted = set(self.view.wanted_shards.get(worker, ()))
        hot = [plan for plan in self.plans(worker) if plan.kind is ExecutorKind.HOT]
        wanted |= {a.shard_id for plan in hot for a in plan.attachments}
        gone = [
            r.path
            for r in self.view.records(Replica)
            if r.worker == worker and r.shard_id not in wanted
        ]
        if gone:
            self.write(delete=gone)
        self.files.setdefault(worker, set()).intersection_update(wanted)

    def verify_files(self, worker: WorkerId) -> None:
        """A restarted host vouches again for the files that it still has."""
        for shard_id in sorted(self.files.get(worker, ())):
            if self.view.find(Replica, replica_path(worker, shard_id)):
                self.load(worker, shard_id)

    def plans(self, worker: str) -> list[ExecutorPlan]:
        return [plan for plan in self.view.records(ExecutorPlan) if plan.worker == worker]

    # -- gateways

    def gateway_applies(self, name: str, revision: int | None = None) -> None:
        applied = self.view.revision + 1 if revision is None else revision
        self.write(
            Gateway(gateway=GatewayId(name), address="grpc://g", applied_revision=Revision(applied))
        )

    # -- short ways for tests

    def publish(
        self, dataset: Dataset, shards: Sequence[str | LoadTask], sequence: int = 1
    ) -> None:
        """Request, plan and open; loads and the rest are up to `settle`."""
        tasks = [shard_task(s) if isinstance(s, str) else s for s in shards]
        self.request(dataset, nonce=f"n{sequence}")
        self.answer(dataset, tasks, sequence)

    def serving_number(self, dataset: Dataset) -> int | None:
        serving = self.view.serving(dataset.dataset_id)
        return serving.epoch if serving else None

    def states(self, dataset: Dataset) -> list[tuple[int, str]]:
        return [(e.number, e.state.value) for e in self.view.epochs_of(dataset.dataset_id)]


def spread_dataset(name: str = "wide", replicas: int = 1) -> Dataset:
    return make_dataset(name=name, spread=Spread.SPREAD, replicas=replicas)


def change_quota(world: World, **quota: int) -> None:
    tenant = world.view.tenant(TenantId("acme"))
    assert tenant is not None
    world.write(replace(tenant, quota=replace(tenant.quota, **quota)))
