"""What every state store must do, run against memory and a real etcd."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from store_support import etcd_members, events_until, eventually, fresh_settings, put, short_ttl

from accel_dask.errors import (
    CommitConflict,
    LeaseLost,
    StoreError,
    StoreUnavailable,
    WatchCompacted,
)
from accel_dask.store.base import (
    MAX_TRANSACTION_OPS,
    Compare,
    CreateRevisionIs,
    DeleteEvent,
    DeleteOp,
    KeyValue,
    ModRevisionIs,
    NoneNewerUnder,
    NotNewer,
    Op,
    PutEvent,
    PutOp,
    StateStore,
    Transaction,
    Watch,
)
from accel_dask.store.etcd import EtcdStore
from accel_dask.store.etcd_server import EmbeddedEtcd
from accel_dask.store.memory import MemoryStore


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


def delete(store: StateStore, key: str, prefix: bool = False) -> int:
    return store.commit(Transaction(ops=(DeleteOp(key, prefix),)))


def keys(store: StateStore, prefix: str = "") -> list[str]:
    return [item.key for item in store.read(prefix).items]


# Reading and writing


def test_what_is_written_is_read_with_its_revisions(store: StateStore) -> None:
    created = put(store, "a/x", b"1")
    written = put(store, "a/x", b"2")
    assert written > created
    assert store.get("a/x") == KeyValue("a/x", b"2", created, written)
    assert store.get("a/y") is None


def test_a_key_created_again_has_a_new_create_revision(store: StateStore) -> None:
    first = put(store, "a")
    delete(store, "a")
    second = put(store, "a")
    found = store.get("a")
    assert found is not None
    assert found.create_revision == second > first


def test_a_listing_holds_the_keys_under_the_prefix_in_order(store: StateStore) -> None:
    for key in ("b/2", "a/1", "b/10", "bc", "b/1"):
        last = put(store, key, key.encode())
    listing = store.read("b/")
    assert [item.key for item in listing.items] == ["b/1", "b/10", "b/2"]
    assert [item.value for item in listing.items] == [b"b/1", b"b/10", b"b/2"]
    assert listing.revision >= last
    assert keys(store) == ["a/1", "b/1", "b/10", "b/2", "bc"]
    assert store.read("nothing/").items == ()


def test_a_listing_without_values_has_all_else(store: StateStore) -> None:
    revision = put(store, "a", b"long")
    assert store.read(keys_only=True).items == (KeyValue("a", b"", revision, revision),)


def test_a_long_listing_is_of_one_revision(store: StateStore) -> None:
    """More keys than a page, all rewritten together while the listing is read."""
    names = [f"n/{i:04d}" for i in range(1300)]

    def rewrite(value: bytes) -> None:
        for at in range(0, len(names), 500):
            store.commit(Transaction(ops=tuple(PutOp(n, value) for n in names[at : at + 500])))

    rewrite(b"0")
    done = threading.Event()

    def write() -> None:
        for number in range(1, 15):
            rewrite(str(number).encode())
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set():
        listing = store.read("n/")
        assert [item.key for item in listing.items] == names
        assert max(item.mod_revision for item in listing.items) <= listing.revision
        # Later keys are rewritten after earlier ones: no value may be ahead of those before it.
        values = [int(item.value) for item in listing.items]
        assert values == sorted(values, reverse=True)
        seen += 1
    writer.join()
    assert seen > 1


def test_values_are_any_bytes_and_keys_any_text(store: StateStore) -> None:
    value = bytes(range(256)) * 100
    put(store, "k/ü/€", value)
    found = store.get("k/ü/€")
    assert found is not None
    assert found.value == value
    assert keys(store, "k/ü") == ["k/ü/€"]


# Transactions


def test_a_transaction_is_one_revision(store: StateStore) -> None:
    put(store, "gone")
    revision = store.commit(Transaction(ops=(PutOp("a", b"1"), PutOp("b", b"2"), DeleteOp("gone"))))
    assert {item.mod_revision for item in store.read().items} == {revision}
    assert keys(store) == ["a", "b"]


def test_a_prefix_is_deleted_at_once(store: StateStore) -> None:
    for key in ("p/1", "p/2", "q"):
        put(store, key)
    delete(store, "p/", prefix=True)
    assert keys(store) == ["q"]


def test_a_transaction_that_changes_nothing_takes_no_revision(store: StateStore) -> None:
    revision = put(store, "a")
    assert delete(store, "absent") == revision


@pytest.mark.parametrize(
    ("make", "holds"),
    [
        (lambda created, written: ModRevisionIs("a", written), True),
        (lambda created, written: ModRevisionIs("a", created), False),
        (lambda created, written: ModRevisionIs("a", 0), False),
        (lambda created, written: ModRevisionIs("absent", 0), True),
        (lambda created, written: ModRevisionIs("absent", created), False),
        (lambda created, written: CreateRevisionIs("a", created), True),
        (lambda created, written: CreateRevisionIs("a", written), False),
        (lambda created, written: CreateRevisionIs("a", 0), False),
        (lambda created, written: CreateRevisionIs("absent", 0), True),
        (lambda created, written: NotNewer("a", written), True),
        (lambda created, written: NotNewer("a", written - 1), False),
        (lambda created, written: NotNewer("absent", 1), True),
        (lambda created, written: NoneNewerUnder("a", written), True),
        (lambda created, written: NoneNewerUnder("", written), True),
        (lambda created, written: NoneNewerUnder("", written - 1), False),
        (lambda created, written: NoneNewerUnder("b/", created - 1), True),
        (lambda created, written: NoneNewerUnder("nothing/", 1), True),
    ],
)
def test_a_compare_decides(
    store: StateStore, make: Callable[[int, int], Compare], holds: bool
) -> None:
    put(store, "b/old")
    created = put(store, "a", b"1")
    written = put(store, "a", b"2")
    transaction = Transaction(compares=(make(created, written),), ops=(PutOp("done", b""),))
    if holds:
        assert store.commit(transaction) > written
    else:
        with pytest.raises(CommitConflict):
            store.commit(transaction)
    assert (store.get("done") is not None) == holds


def test_a_failed_compare_changes_nothing_at_all(store: StateStore) -> None:
    revision = put(store, "a", b"1")
    transaction = Transaction(
        compares=(ModRevisionIs("a", revision), ModRevisionIs("absent", 5)),
        ops=(PutOp("a", b"2"), PutOp("b", b""), DeleteOp("a2")),
    )
    with pytest.raises(CommitConflict):
        store.commit(transaction)
    assert store.read().items == (KeyValue("a", b"1", revision, revision),)


def test_a_full_transaction_is_taken_and_a_larger_one_refused(store: StateStore) -> None:
    ops = tuple(PutOp(f"k/{i}", b"x") for i in range(MAX_TRANSACTION_OPS))
    compares = tuple(ModRevisionIs(f"k/{i}", 0) for i in range(MAX_TRANSACTION_OPS))
    store.commit(Transaction(compares=compares, ops=ops))
    with pytest.raises(StoreError, match=r"513 operations; the limit is 512"):
        store.commit(Transaction(ops=(*ops, PutOp("one more", b""))))
    assert len(keys(store)) == MAX_TRANSACTION_OPS


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ((PutOp("a", b"1"), PutOp("a", b"2")), "write a key once"),
        ((PutOp("a", b"1"), DeleteOp("a")), "both write and delete"),
        ((DeleteOp("a", prefix=True), PutOp("ab", b"1")), "both write and delete"),
        ((PutOp("a", b"x" * 1_600_000),), "1600001 bytes; the limit is 1500000"),
    ],
)
def test_a_malformed_transaction_is_refused(
    store: StateStore, ops: tuple[Op, ...], message: str
) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        store.commit(Transaction(ops=ops))
    assert type(caught.value) is StoreError
    assert keys(store) == []


def test_the_largest_transaction_allowed_is_taken(store: StateStore) -> None:
    put(store, "a", b"x" * 1_499_999)
    found = store.get("a")
    assert found is not None
    assert len(found.value) == 1_499_999


def test_no_update_is_lost_between_writers(store: StateStore) -> None:
    put(store, "n", b"0")

    def add(times: int) -> None:
        for _ in range(times):
            while True:
                item = store.get("n")
                assert item is not None
                op = PutOp("n", str(int(item.value) + 1).encode())
                try:
                    compare = ModRevisionIs("n", item.mod_revision)
                    store.commit(Transaction(compares=(compare,), ops=(op,)))
                    break
                except CommitConflict:
                    continue

    writers = [threading.Thread(target=add, args=(40,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = store.get("n")
    assert found is not None
    assert found.value == b"160"


# Watches


def test_a_watch_replays_and_goes_on(store: StateStore) -> None:
    first = put(store, "w/a", b"1")
    put(store, "other")
    second = put(store, "w/a", b"2")
    watch = store.watch("w/", first)
    assert events_until(watch, lambda e: len(e) == 2) == [
        PutEvent(KeyValue("w/a", b"1", first, first)),
        PutEvent(KeyValue("w/a", b"2", first, second)),
    ]
    third = delete(store, "w/a")
    assert events_until(watch, lambda e: len(e) == 1) == [DeleteEvent("w/a", third)]
    watch.close()


def test_a_watch_begins_at_its_revision(store: StateStore) -> None:
    put(store, "a", b"1")
    second = put(store, "a", b"2")
    watch = store.watch("", second)
    (event,) = events_until(watch, bool)
    assert isinstance(event, PutEvent)
    assert event.item.value == b"2"
    watch.close()


def test_a_watch_from_a_future_revision_waits_for_it(store: StateStore) -> None:
    revision = put(store, "a", b"0")
    watch = store.watch("", revision + 3)
    values = [(put(store, "a", str(n).encode()), n) for n in range(1, 6)]
    expected = [r for r, _ in values if r >= revision + 3]
    events = events_until(watch, lambda e: len(e) == len(expected))
    assert [e.item.mod_revision for e in events if isinstance(e, PutEvent)] == expected
    watch.close()


def test_a_batch_holds_whole_revisions(store: StateStore) -> None:
    start = store.read().revision + 1
    watch = store.watch("", start)
    for turn in range(20):
        ops = tuple(PutOp(f"k/{i}", str(turn).encode()) for i in range(200))
        store.commit(Transaction(ops=ops))
    seen = 0
    deadline = time.monotonic() + 10
    while seen < 20 * 200:
        assert time.monotonic() < deadline
        batch = watch.next(1)
        if batch is None or not batch.events:
            continue
        revisions = [e.item.mod_revision for e in batch.events if isinstance(e, PutEvent)]
        assert revisions == sorted(revisions)
        assert batch.revision == revisions[-1]
        assert len(revisions) % 200 == 0
        seen += len(revisions)
    watch.close()


def test_a_silent_watch_returns_in_time_and_knows_the_store_lives(store: StateStore) -> None:
    watch = store.watch("", store.read().revision + 1)
    before = time.monotonic()
    assert watch.next(0) is None
    assert watch.next(0.2) is None
    assert time.monotonic() - before < 1
    eventually(lambda: watch.last_contact() > before)
    watch.close()


def test_a_closed_watch_lets_its_waiter_go(store: StateStore) -> None:
    watch = store.watch("", store.read().revision + 1)
    answers: list[object] = []
    waiter = threading.Thread(target=lambda: answers.append(watch.next(30)))
    waiter.start()
    watch.close()
    waiter.join(3)
    assert answers == [None]
    assert watch.next(1) is None


def test_a_long_history_is_replayed_whole(store: StateStore) -> None:
    start = store.read().revision + 1
    revisions = [put(store, f"h/{i % 7}", str(i).encode()) for i in range(2500)]
    watch = store.watch("h/", start)
    events = events_until(watch, lambda e: len(e) >= 2500, 20)
    assert [e.item.mod_revision for e in events if isinstance(e, PutEvent)] == revisions
    assert watch.next(0.2) is None
    watch.close()


def test_a_watch_from_before_a_compaction_says_so_for_ever(store: StateStore) -> None:
    first = put(store, "a", b"1")
    for n in range(5):
        last = put(store, "a", str(n).encode())
    store.compact(last)
    for start in (first, last):
        watch = store.watch("", start)
        for _ in range(2):
            with pytest.raises(WatchCompacted) as caught:
                events_until(watch, lambda _: False)
            assert caught.value.compact_revision == last
        watch.close()


def test_a_watch_from_after_a_compaction_misses_nothing(store: StateStore) -> None:
    put(store, "a")
    last = put(store, "a")
    store.compact(last)
    watch = store.watch("", last + 1)
    gone = delete(store, "a")
    assert events_until(watch, bool) == [DeleteEvent("a", gone)]
    watch.close()


def test_a_watch_that_has_kept_up_survives_a_compaction(store: StateStore) -> None:
    watch = store.watch("", store.read().revision + 1)
    first = put(store, "a")
    events_until(watch, bool)
    store.compact(first)
    second = put(store, "a")
    events = events_until(watch, bool)
    assert [e.item.mod_revision for e in events if isinstance(e, PutEvent)] == [second]
    watch.close()


def test_compacting_twice_is_fine_and_the_future_is_refused(store: StateStore) -> None:
    put(store, "a")
    revision = put(store, "a")
    store.compact(revision)
    store.compact(revision)
    store.compact(revision - 1)
    assert keys(store) == ["a"]
    with pytest.raises(StoreError, match="future"):
        store.compact(revision + 1000)


# Leases


def test_a_lease_is_renewed_until_it_is_closed(store: StateStore) -> None:
    lost = threading.Event()
    lease = store.lease(short_ttl(store), on_lost=lost.set)
    put(store, "leased", lease_id=lease.lease_id)
    found = store.get("leased")
    assert found is not None
    assert found.lease_id == lease.lease_id
    granted = lease.valid_until()
    assert granted <= time.monotonic() + short_ttl(store)
    eventually(lambda: lease.valid_until() > granted + 1.1 * short_ttl(store))
    assert keys(store) == ["leased"]
    assert not lease.is_lost()
    lease.close()
    assert keys(store) == []
    assert lease.is_lost()
    assert not lost.is_set()
    lease.close()


def test_a_lease_that_may_not_be_renewed_vanishes_with_its_keys(store: StateStore) -> None:
    alive = threading.Event()
    alive.set()
    lost = threading.Event()
    lease = store.lease(short_ttl(store), may_renew=alive.is_set, on_lost=lost.set)
    put(store, "leased/1", lease_id=lease.lease_id)
    put(store, "leased/2", lease_id=lease.lease_id)
    put(store, "plain")
    start = store.read().revision + 1
    granted = lease.valid_until()
    eventually(lambda: lease.valid_until() > granted)
    alive.clear()
    assert lost.wait(6)
    assert lease.is_lost()
    assert lease.valid_until() < time.monotonic()
    assert keys(store) == ["plain"]
    with store_watch(store, start) as watch:
        gone = events_until(watch, lambda e: len(e) == 2)
    assert {e.key for e in gone if isinstance(e, DeleteEvent)} == {"leased/1", "leased/2"}
    with pytest.raises(LeaseLost):
        put(store, "leased/1", lease_id=lease.lease_id)
    assert keys(store) == ["plain"]


def test_a_watchdog_that_fails_does_not_vouch(store: StateStore) -> None:
    lost = threading.Event()

    def broken() -> bool:
        raise RuntimeError("the watchdog is broken")

    def broken_listener() -> None:
        lost.set()
        raise RuntimeError("the listener is broken")

    lease = store.lease(short_ttl(store), may_renew=broken, on_lost=broken_listener)
    other = store.lease(short_ttl(store))
    assert lost.wait(6)
    assert lease.is_lost()
    assert not other.is_lost()
    granted = other.valid_until()
    eventually(lambda: other.valid_until() > granted)


def test_a_write_on_a_lease_that_never_was_is_refused(store: StateStore) -> None:
    with pytest.raises(LeaseLost):
        put(store, "a", lease_id=0x1234567)
    assert keys(store) == []


def test_a_key_written_again_without_the_lease_outlives_it(store: StateStore) -> None:
    lease = store.lease(5.0)
    put(store, "a", lease_id=lease.lease_id)
    put(store, "a")
    lease.close()
    assert keys(store) == ["a"]


def test_closing_the_store_ends_its_leases_watches_and_itself(store: StateStore) -> None:
    lease = store.lease(30.0)
    store.watch("", 1)
    store.close()
    assert lease.is_lost()
    with pytest.raises(StoreUnavailable):
        store.get("a")
    with pytest.raises(StoreUnavailable):
        store.lease(5.0)
    with pytest.raises(StoreUnavailable):
        put(store, "a")


class store_watch:  # noqa: N801  used as a function
    def __init__(self, store: StateStore, start: int) -> None:
        self._watch = store.watch("", start)

    def __enter__(self) -> Watch:
        return self._watch

    def __exit__(self, *_: object) -> None:
        self._watch.close()


# The twins against each other


@pytest.mark.parametrize("seed", range(4))
def test_memory_and_etcd_do_the_same(etcd: EmbeddedEtcd, seed: int) -> None:
    """A random history on both: same answers, same revisions, same events."""
    with MemoryStore() as memory, EtcdStore(fresh_settings(*etcd.endpoints)) as real:
        chance = random.Random(seed)
        base = {memory: memory.read().revision, real: real.read().revision}
        for _ in range(300):
            transaction = random_transaction(chance)
            assert outcome(memory, transaction, base[memory]) == outcome(
                real, transaction, base[real]
            ), transaction
        assert shifted_items(memory, base[memory]) == shifted_items(real, base[real])
        assert shifted_events(memory, base[memory]) == shifted_events(real, base[real])


def random_transaction(chance: random.Random) -> Transaction:
    names = ("a", "a/1", "a/2", "b", "b/1", "ab")

    def compare() -> Compare:
        revision = chance.choice((0, chance.randrange(300)))
        kinds = (ModRevisionIs, CreateRevisionIs, NotNewer, NoneNewerUnder)
        return chance.choice(kinds)(chance.choice(names), revision)

    def op() -> Op:
        if chance.random() < 0.35:
            return DeleteOp(chance.choice(names), chance.random() < 0.3)
        return PutOp(chance.choice(names), chance.randbytes(3))

    compares = tuple(compare() for _ in range(chance.choice((0, 0, 1, 2))))
    return Transaction(compares=compares, ops=tuple(op() for _ in range(chance.randint(0, 3))))


def outcome(store: StateStore, transaction: Transaction, base: int) -> object:
    """What the store answers, with revisions counted from `base`."""
    shifted = Transaction(
        compares=tuple(_shift(compare, base) for compare in transaction.compares),
        ops=transaction.ops,
    )
    try:
        return store.commit(shifted) - base
    except StoreError as error:
        return type(error)


def _shift(compare: Compare, base: int) -> Compare:
    match compare:
        case ModRevisionIs(key, revision):
            return ModRevisionIs(key, revision + base if revision else 0)
        case CreateRevisionIs(key, revision):
            return CreateRevisionIs(key, revision + base if revision else 0)
        case NotNewer(key, revision):
            return NotNewer(key, revision + base)
        case NoneNewerUnder(prefix, revision):
            return NoneNewerUnder(prefix, revision + base)


def shifted_items(store: StateStore, base: int) -> list[tuple[str, bytes, int, int]]:
    return [
        (i.key, i.value, i.create_revision - base, i.mod_revision - base)
        for i in store.read().items
    ]


def shifted_events(store: StateStore, base: int) -> list[object]:
    """All events since `base`, each revision's sorted: their order within one is free."""
    end = store.commit(Transaction(ops=(PutOp("the end", b""),)))
    watch = store.watch("", base + 1)
    events = events_until(
        watch, lambda e: bool(e) and isinstance(e[-1], PutEvent) and e[-1].item.key == "the end"
    )
    watch.close()
    assert isinstance(events[-1], PutEvent)
    assert events[-1].item.mod_revision == end
    found: list[tuple[int, str, bytes]] = []
    for event in events:
        if isinstance(event, PutEvent):
            found.append((event.item.mod_revision - base, event.item.key, event.item.value))
        else:
            found.append((event.mod_revision - base, event.key, b"deleted"))
    return sorted(found)
