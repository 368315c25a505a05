"""Records, blobs, the mirror and the campaign for leadership, on memory and a real etcd."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest
from store_support import etcd_members, eventually, fresh_settings, put, short_ttl

from accel_dask.codec import encode
from accel_dask.errors import (
    CommitConflict,
    StoreError,
    StoreMismatch,
    StoreUnavailable,
    WaitTimedOut,
)
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import (
    Commit,
    Delete,
    Incarnation,
    Put,
    Unchanged,
    UnchangedUnder,
    fence_by,
    fencing_token,
    unchanged,
)
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import EpochNumber, Revision, TenantId
from accel_dask.model.member import LEADER_PATH, META_PATH, FencingToken, Leader
from accel_dask.model.placement import Serving
from accel_dask.model.tenant import Tenant, tenant_path
from accel_dask.store.base import DeleteOp, StateStore, Transaction
from accel_dask.store.blobs import CHUNK_BYTES, delete_blob, get_blob, list_blobs, put_blob
from accel_dask.store.etcd import EtcdStore
from accel_dask.store.etcd_server import EmbeddedEtcd
from accel_dask.store.keys import blob_key, key_of
from accel_dask.store.leadership import Campaign
from accel_dask.store.memory import MemoryStore
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import (
    commit_records,
    create_record,
    delete_record,
    ensure_meta,
    get_record,
    put_record,
    read_view,
)


@pytest.fixture(scope="module")
def etcd() -> Iterator[EmbeddedEtcd]:
    with etcd_members() as running:
        yield running


@pytest.fixture(params=["memory", "etcd"])
def store(request: pytest.FixtureRequest) -> Iterator[StateStore]:
    if request.param == "memory":
        opened: StateStore = MemoryStore()
    else:
        server: EmbeddedEtcd = request.getfixturevalue("etcd")
        opened = EtcdStore(fresh_settings(*server.endpoints))
    with opened:
        yield opened


def tenant(name: str) -> Tenant:
    return Tenant(tenant=TenantId(name))


def serving(name: str, epoch: int) -> Serving:
    return Serving(tenant=TenantId("t"), dataset=name, epoch=EpochNumber(epoch), since_ns=0)


def same(one: ClusterView, other: ClusterView) -> bool:
    return dict(one.entries) == dict(other.entries)


# Records and commits


def test_records_come_back_under_their_paths_whatever_their_names(store: StateStore) -> None:
    names = ("plain", "a/b", "a", "..", "%2F", "é€", "", " ", "a b?c#d")
    revisions = {name: put_record(store, tenant(name)) for name in names}
    view = read_view(store)
    assert set(view.entries) == {tenant_path(TenantId(name)) for name in names}
    for name, revision in revisions.items():
        found = view.get(tenant_path(TenantId(name)))
        assert found is not None
        assert found.record == tenant(name)
        assert found.create_revision == found.mod_revision == revision
    delete_record(store, tenant("a").path)
    assert get_record(store, tenant("a").path) is None
    assert get_record(store, tenant("a/b").path) is not None


def test_a_commit_applies_all_its_changes_or_none(store: StateStore) -> None:
    put_record(store, tenant("old"))
    view = read_view(store)
    commit = Commit(
        requirements=(unchanged(view, tenant("old").path), unchanged(view, tenant("new").path)),
        changes=(Delete(tenant("old").path), Put(tenant("new"))),
        because="the tenant changes its name",
    )
    revision = commit_records(store, commit)
    after = read_view(store)
    assert set(after.entries) == {tenant("new").path}
    assert after.entries[tenant("new").path].mod_revision == revision
    with pytest.raises(CommitConflict, match="the tenant changes its name"):
        commit_records(store, commit)
    assert same(read_view(store), after)


def test_requirements_mean_the_same_as_in_the_model(store: StateStore) -> None:
    first = put_record(store, serving("d", 1))
    second = put_record(store, serving("d", 2))
    put_record(store, serving("other", 1))
    path = serving("d", 1).path
    cases = {
        Unchanged(path, second): True,
        Unchanged(path, first): False,
        Incarnation(path, first): True,
        Incarnation(path, second): False,
        Incarnation(("leader",), Revision(0)): True,
        UnchangedUnder(path, second): True,
        UnchangedUnder(path, first): False,
        UnchangedUnder(("serving", "t"), second): False,
        UnchangedUnder(("serving", "nobody"), Revision(1)): True,
        UnchangedUnder((), second): False,
    }
    for requirement, holds in cases.items():
        commit = Commit(requirements=(requirement,), changes=(), because="asking")
        if holds:
            commit_records(store, commit)
        else:
            with pytest.raises(CommitConflict):
                commit_records(store, commit)


def test_a_path_does_not_stand_for_its_namesakes(store: StateStore) -> None:
    put_record(store, serving("d", 1))
    before = read_view(store).revision
    put_record(store, serving("d2", 1))
    commit_records(
        store,
        Commit(
            requirements=(UnchangedUnder(serving("d", 1).path, before),),
            changes=(Put(serving("d", 2)),),
            because="d2 is another dataset",
        ),
    )


def test_a_commit_that_is_too_large_says_so(store: StateStore) -> None:
    changes = tuple(Put(tenant(f"t{i}")) for i in range(513))
    with pytest.raises(StoreError, match="'all at once' has 0 requirements and 513 changes"):
        commit_records(store, Commit(requirements=(), changes=changes, because="all at once"))
    assert read_view(store).entries == {}


def test_a_record_is_created_once(store: StateStore) -> None:
    create_record(store, tenant("t"))
    with pytest.raises(CommitConflict, match="tenant/t"):
        create_record(store, tenant("t"))


def test_what_does_not_decode_is_left_out_and_logged(
    store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    put_record(store, tenant("good"))
    put(store, key_of(tenant("bad").path), b"\xff not json")
    put(store, key_of(tenant("misplaced").path), encode(tenant("another")))
    put(store, key_of(("from the future", "x")), b"{}")
    put(store, "not a record", b"")
    view = read_view(store)
    assert set(view.entries) == {tenant("good").path}
    assert {r.levelname for r in caplog.records if "left out" in r.message} == {"ERROR"}
    with Mirror(store).start() as mirror:
        assert same(mirror.view, view)
        put(store, key_of(tenant("good").path), b"[]")
        mirror.wait_for(lambda v: not v.entries, 5, "the record that became unreadable to go")
        put_record(store, tenant("bad"))
        mirror.wait_for(lambda v: v.tenant(TenantId("bad")) is not None, 5)


def test_the_meta_record_is_written_once_even_in_a_race(store: StateStore) -> None:
    metas: list[object] = []
    racers = [threading.Thread(target=lambda: metas.append(ensure_meta(store))) for _ in range(5)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    meta = ensure_meta(store)
    assert metas == [meta] * 5
    assert len(bytes.fromhex(meta.ticket_key)) == 32
    assert ensure_meta(store, meta.cluster_id) == meta
    with pytest.raises(StoreMismatch, match="not to another-cluster"):
        ensure_meta(store, "another-cluster")


# Blobs


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 17])
def test_a_blob_comes_back_whole(store: StateStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    digest = put_blob(store, data)
    assert get_blob(store, digest) == data
    assert put_blob(store, data) == digest
    assert list_blobs(store) == (digest,)
    delete_blob(store, digest)
    assert list_blobs(store) == ()
    with pytest.raises(StoreError, match="no blob"):
        get_blob(store, digest)
    delete_blob(store, digest)


def test_a_blob_that_was_not_stored_to_the_end_is_not_there(store: StateStore) -> None:
    data = random.Random(1).randbytes(2 * CHUNK_BYTES)
    digest = put_blob(store, data)
    header = store.get(blob_key(digest, 0))
    assert header is not None
    last_chunk = store.get(blob_key(digest, 3))
    assert last_chunk is not None
    assert header.mod_revision > last_chunk.mod_revision
    delete_record_key(store, blob_key(digest, 0))
    with pytest.raises(StoreError, match="no blob"):
        get_blob(store, digest)
    assert list_blobs(store) == (digest,)
    put_blob(store, data)
    assert get_blob(store, digest) == data


def test_a_damaged_blob_is_noticed(store: StateStore) -> None:
    data = random.Random(2).randbytes(CHUNK_BYTES)
    digest = put_blob(store, data)
    other = put_blob(store, data[::-1])
    chunk = store.get(blob_key(digest, 1))
    foreign = store.get(blob_key(other, 1))
    assert chunk is not None
    assert foreign is not None
    flipped = bytes((chunk.value[100] ^ 1,))
    for value, message in (
        (chunk.value[:100] + flipped + chunk.value[101:], "damaged"),
        (chunk.value[:-50], "damaged"),
        (foreign.value, "damaged"),
        (b"", "damaged"),
    ):
        put(store, blob_key(digest, 1), value)
        with pytest.raises(StoreError, match=message):
            get_blob(store, digest)
    delete_record_key(store, blob_key(digest, 1))
    with pytest.raises(StoreError, match="chunk 1 is missing"):
        get_blob(store, digest)
    put(store, blob_key(digest, 0), b"{}")
    with pytest.raises(StoreError, match="damaged"):
        get_blob(store, digest)


def delete_record_key(store: StateStore, key: str) -> None:
    store.commit(Transaction(ops=(DeleteOp(key),)))


# The mirror


def test_a_mirror_follows_a_random_history(store: StateStore) -> None:
    chance = random.Random(7)
    shown: list[ClusterView] = []
    for n in range(50):
        put_record(store, tenant(f"t{n}"))
    with Mirror(store, shown.append).start() as mirror:
        assert same(mirror.view, read_view(store))
        for n in range(400):
            names = chance.sample(range(60), 3)
            changes = tuple(
                Delete(tenant(f"t{i}").path) if chance.random() < 0.4 else Put(tenant(f"t{i}"))
                for i in names
            )
            commit_records(store, Commit(requirements=(), changes=changes, because="chance"))
            if n % 100 == 50:
                put_blob(store, str(n).encode())
        last = put_record(store, tenant("the end"))
        view = mirror.wait_for(lambda v: v.revision >= last, 10, "the end")
        assert same(view, read_view(store))
    revisions = [v.revision for v in shown]
    assert revisions == sorted(set(revisions))
    assert shown[-1].revision == last
    assert 2 <= len(shown) <= 402


def test_a_mirror_never_shows_half_a_commit(store: StateStore) -> None:
    """Every commit writes the same epoch to all pointers; every view must agree with itself."""
    pointers = [f"d{i}" for i in range(20)]
    torn: list[ClusterView] = []

    def look(view: ClusterView) -> None:
        epochs = {record.epoch for record in view.records(Serving)}
        if len(epochs) > 1:
            torn.append(view)

    with Mirror(store, look).start() as mirror:
        for epoch in range(1, 150):
            changes = tuple(Put(serving(name, epoch)) for name in pointers)
            commit_records(store, Commit(requirements=(), changes=changes, because="flip"))
        mirror.wait_for(lambda v: all(s.epoch == 149 for s in v.records(Serving)), 10)
    assert torn == []


def test_waiting_in_vain_names_what_for(store: StateStore) -> None:
    with Mirror(store).start() as mirror:
        with pytest.raises(WaitTimedOut, match=r"0\.2 s in vain for: a tenant t; .*revision"):
            mirror.wait_for(lambda v: v.tenant(TenantId("t")) is not None, 0.2, "a tenant t;")
        assert time.monotonic() - mirror.last_contact < 5


def test_a_listener_that_fails_does_not_stop_the_mirror(store: StateStore) -> None:
    def listener(view: ClusterView) -> None:
        raise RuntimeError(f"cannot take revision {view.revision}")

    with Mirror(store, listener).start() as mirror:
        put_record(store, tenant("t"))
        mirror.wait_for(lambda v: v.tenant(TenantId("t")) is not None, 5)


def test_a_mirror_ends_at_once(store: StateStore) -> None:
    mirror = Mirror(store).start()
    before = time.monotonic()
    mirror.close()
    assert time.monotonic() - before < 1


def test_a_mirror_without_a_store_says_so() -> None:
    store = MemoryStore()
    store.close()
    mirror = Mirror(store)
    with pytest.raises(StoreUnavailable, match=r"no listing within 0\.3 s: this store is closed"):
        mirror.start(0.3)


# Leadership


class Master:
    """A campaign that notes what happens to it."""

    def __init__(self, store: StateStore, name: str) -> None:
        self.alive = True
        self.elected: list[FencingToken] = []
        self.losses = 0
        self.campaign = Campaign(
            store,
            lambda: Leader(master=name, address="tcp://x", elected_at_ns=time.time_ns()),
            short_ttl(store),
            may_renew=lambda: self.alive,
            on_elected=self.elected.append,
            on_lost=self.note_loss,
        ).start()

    def note_loss(self) -> None:
        self.losses += 1

    @property
    def leads(self) -> bool:
        return self.campaign.token() is not None


def test_one_master_leads_and_another_takes_over(store: StateStore) -> None:
    ensure_meta(store)
    masters = [Master(store, f"m{i}") for i in range(3)]
    eventually(lambda: sum(m.leads for m in masters) == 1)
    tokens: list[FencingToken] = []
    for turn in range(3):
        leader = next(m for m in masters if m.leads)
        token = leader.campaign.token()
        assert token is not None
        assert token == fencing_token(read_view(store))
        assert leader.elected == [token]
        tokens.append(token)
        leader.campaign.close()
        assert leader.losses == 1
        masters.remove(leader)
        if turn < 2:
            eventually(lambda: sum(m.leads for m in masters) == 1)
    assert tokens == sorted(set(tokens))
    assert get_record(store, LEADER_PATH) is None


def test_who_resigns_lets_another_lead(store: StateStore) -> None:
    ensure_meta(store)
    first = Master(store, "first")
    eventually(lambda: first.leads)
    second = Master(store, "second")
    first.campaign.resign()
    eventually(lambda: second.leads)
    assert not first.leads
    assert first.losses == 1
    second.campaign.close()
    eventually(lambda: first.leads)
    assert len(first.elected) == 2
    first.campaign.close()


def test_a_master_that_makes_no_progress_is_replaced_and_fenced(store: StateStore) -> None:
    meta = ensure_meta(store)
    stuck = Master(store, "stuck")
    eventually(lambda: stuck.leads)
    token = stuck.campaign.token()
    assert token is not None
    view = read_view(store)
    fence = fence_by(view, token)
    change = Put(serving("d", 1))
    commit_records(store, Commit(requirements=fence, changes=(change,), because="leading"))
    other = Master(store, "other")
    stuck.alive = False
    eventually(lambda: other.leads)
    assert stuck.campaign.token() is None
    eventually(lambda: stuck.losses == 1)
    with pytest.raises(CommitConflict):
        commit_records(store, Commit(requirements=fence, changes=(change,), because="too late"))
    renewed = other.campaign.token()
    assert renewed is not None
    assert renewed > token
    commit = Commit(
        requirements=fence_by(read_view(store), renewed), changes=(change,), because="leading"
    )
    commit_records(store, commit)
    assert meta.incarnation == renewed.incarnation
    for master in (stuck, other):
        master.campaign.close()


def test_a_token_ends_with_the_lease_by_our_own_clock(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody has told us that the lease is gone."""
    ensure_meta(store)
    probe = store.lease(5.0)
    master = Master(store, "m")
    eventually(lambda: master.leads)
    monkeypatch.setattr(type(probe), "valid_until", lambda _: time.monotonic() - 0.001)
    assert not master.leads
    assert master.losses == 0
    assert get_record(store, LEADER_PATH) is not None
    monkeypatch.undo()
    assert master.leads
    master.campaign.close()


def test_a_leader_record_deleted_by_hand_ends_the_term(store: StateStore) -> None:
    ensure_meta(store)
    master = Master(store, "m")
    eventually(lambda: master.leads)
    delete_record(store, LEADER_PATH)
    eventually(lambda: len(master.elected) == 2 and master.leads)
    assert master.losses == 1
    assert master.elected[0] < master.elected[1]
    master.campaign.close()


def test_nobody_leads_a_cluster_without_a_meta_record(store: StateStore) -> None:
    master = Master(store, "m")
    assert get_record(store, META_PATH) is None
    ensure_meta(store)
    eventually(lambda: master.leads)
    master.campaign.close()
    assert store.read(key_of(LEADER_PATH)).items == ()


def test_a_dataset_with_options_survives_the_store(store: StateStore) -> None:
    source = SourceSpec(connector="iceberg", options=(("table", "ns.t"), ("uri", "sqlite:///x")))
    dataset = Dataset(tenant=TenantId("t"), name="d", source=source)
    put_record(store, dataset)
    assert read_view(store).dataset(dataset.dataset_id) == dataset
