"""etcd behind a network that cuts, swallows and goes silent; and members of the wrong cluster."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from store_support import (
    FaultyProxy,
    etcd_members,
    events_until,
    eventually,
    fresh_settings,
    put,
    revision_of,
    tmpfs_dir,
)

from accel_dask.config import StoreSettings
from accel_dask.errors import (
    CommitConflict,
    ConfigError,
    OutcomeUnknown,
    StoreMismatch,
    StoreUnavailable,
    WatchCompacted,
)
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Tenant
from accel_dask.store.base import (
    CreateRevisionIs,
    Event,
    ModRevisionIs,
    PutEvent,
    PutOp,
    Transaction,
)
from accel_dask.store.etcd import EtcdStore
from accel_dask.store.etcd_channel import Deadlines
from accel_dask.store.etcd_cluster_file import new_cluster
from accel_dask.store.etcd_server import EmbeddedEtcd
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import delete_record, put_record, read_view

IMPATIENT = Deadlines(read_attempt=0.5, read=1.5, write_attempt=1.0, write=3.0, bar=0.2)


@pytest.fixture(scope="module")
def etcd() -> Iterator[EmbeddedEtcd]:
    with etcd_members() as running:
        yield running


@pytest.fixture
def proxy(etcd: EmbeddedEtcd) -> Iterator[FaultyProxy]:
    with FaultyProxy(etcd.endpoints[0]) as running:
        yield running


def direct(etcd: EmbeddedEtcd, settings: StoreSettings) -> EtcdStore:
    """A client of the same keys that does not go through the proxy."""
    return EtcdStore(replace(settings, endpoints=etcd.endpoints))


# Watches


def test_connections_cut_during_a_replay_lose_and_repeat_nothing(
    etcd: EmbeddedEtcd, proxy: FaultyProxy
) -> None:
    settings = fresh_settings(proxy.address)
    with direct(etcd, settings) as writer:
        start = writer.read().revision + 1
        expected = [put(writer, f"k/{i % 11}", b"x" * 100) for i in range(3000)]
    with EtcdStore(settings) as store:
        for cut_after in (1_000, 70_000, 410_000):
            proxy.cut_after_bytes, proxy.cuts_left = cut_after, 3
            watch = store.watch("k/", start)
            events = events_until(watch, lambda e: len(e) >= 3000, 30)
            assert list(map(revision_of, events)) == expected
            assert watch.next(0.1) is None
            watch.close()
            assert proxy.cuts_left < 3
    assert proxy.connections > 5


def test_a_watch_cut_again_and_again_loses_nothing(etcd: EmbeddedEtcd, proxy: FaultyProxy) -> None:
    settings = fresh_settings(proxy.address)
    with direct(etcd, settings) as writer, EtcdStore(settings) as store:
        watch = store.watch("", writer.read().revision + 1)
        expected: list[int] = []
        done = threading.Event()

        def write() -> None:
            while not done.is_set():
                expected.append(put(writer, f"k/{len(expected) % 5}", b"x" * 50))
                done.wait(0.002)

        thread = threading.Thread(target=write)
        thread.start()
        events: list[Event] = []
        for _ in range(25):
            events += events_until(watch, lambda e: len(e) >= 10)
            proxy.cut()
        done.set()
        thread.join()
        events += events_until(watch, lambda e: len(events) + len(e) >= len(expected))
        assert list(map(revision_of, events)) == expected
        assert proxy.connections >= 20
        watch.close()


def test_a_compaction_while_cut_off_ends_the_watch_and_renews_the_mirror(
    etcd: EmbeddedEtcd, proxy: FaultyProxy
) -> None:
    settings = fresh_settings(proxy.address)
    with direct(etcd, settings) as writer, EtcdStore(settings, IMPATIENT) as store:
        mirror = Mirror(store).start()
        watch = store.watch("", writer.read().revision + 1)
        for i in range(10):
            put_record(writer, Tenant(tenant=TenantId(f"t{i}")))
        events_until(watch, lambda e: len(e) == 10)
        mirror.wait_for(lambda v: len(v.entries) == 10, 5)
        proxy.refuse = True
        proxy.cut()
        for i in range(5, 15):
            writer.commit(Transaction(ops=(PutOp(f"noise/{i}", b""),)))
            put_record(writer, Tenant(tenant=TenantId(f"late{i}")))
        last = delete_record(writer, Tenant(tenant=TenantId("t0")).path)
        writer.compact(last)
        assert mirror.view.tenant(TenantId("t0")) is not None
        proxy.refuse = False
        with pytest.raises(WatchCompacted):
            events_until(watch, lambda _: False)
        view = mirror.wait_for(lambda v: v.revision >= last, 10, "the mirror to list again")
        assert dict(view.entries) == dict(read_view(writer).entries)
        put_record(writer, Tenant(tenant=TenantId("after")))
        mirror.wait_for(lambda v: v.tenant(TenantId("after")) is not None, 5)
        mirror.close()


def test_a_silent_connection_is_left_within_seconds(etcd: EmbeddedEtcd, proxy: FaultyProxy) -> None:
    settings = fresh_settings(proxy.address, etcd.endpoints[0])
    with direct(etcd, settings) as writer, EtcdStore(settings) as store:
        watch = store.watch("", writer.read().revision + 1)
        put(writer, "k", b"before")
        events_until(watch, bool)
        assert proxy.connections == 1
        silent_since = time.monotonic()
        proxy.black_hole = True
        revisions = [put(writer, "k", str(i).encode()) for i in range(50)]
        events = events_until(watch, lambda e: len(e) >= 50)
        gap = time.monotonic() - silent_since
        assert list(map(revision_of, events)) == revisions
        assert gap < 5, "usually 2.6 s"
        watch.close()


def test_a_lone_member_that_went_silent_is_found_again(
    etcd: EmbeddedEtcd, proxy: FaultyProxy
) -> None:
    """Only the connection is dead; a new one works."""
    settings = fresh_settings(proxy.address)
    with direct(etcd, settings) as writer, EtcdStore(settings) as store:
        watch = store.watch("", writer.read().revision + 1)
        put(writer, "k")
        events_until(watch, bool)
        proxy.black_hole = True
        revision = put(writer, "k")
        eventually(lambda: time.monotonic() - watch.last_contact() > 2)
        proxy.cut()
        proxy.black_hole = False
        (event,) = events_until(watch, bool, 20)
        assert revision_of(event) == revision
        watch.close()


# Writes


def test_a_write_whose_answer_is_lost_is_unknown_and_not_repeated(
    etcd: EmbeddedEtcd, proxy: FaultyProxy
) -> None:
    settings = fresh_settings(proxy.address)
    with direct(etcd, settings) as witness:
        for turn in range(5):
            with EtcdStore(settings, IMPATIENT) as store:
                key = f"cas/{turn}"
                revision = put(store, key, b"before")
                proxy.swallow_answers = True
                swap = Transaction(
                    compares=(ModRevisionIs(key, revision),), ops=(PutOp(key, b"after"),)
                )
                with pytest.raises(OutcomeUnknown):
                    store.commit(swap)
                proxy.cut()
                proxy.swallow_answers = False
                found = store.get(key)
            assert found is not None
            assert found.value == b"after"
            assert found.mod_revision == revision + 1
        assert witness.read("cas/").revision == revision + 1


def test_an_idempotent_write_whose_answer_is_lost_is_repeated_elsewhere(
    etcd: EmbeddedEtcd, proxy: FaultyProxy
) -> None:
    settings = fresh_settings(proxy.address, etcd.endpoints[0])
    with EtcdStore(settings, IMPATIENT) as store:
        put(store, "other")
        proxy.swallow_answers = True
        revision = store.commit(Transaction(ops=(PutOp("k", b"v"),), idempotent=True))
        found = store.get("k")
        assert found is not None
        assert found.mod_revision == revision > found.create_revision


def test_an_idempotent_swap_that_met_itself_is_unknown_not_a_conflict(
    etcd: EmbeddedEtcd, proxy: FaultyProxy
) -> None:
    settings = fresh_settings(proxy.address, etcd.endpoints[0])
    with EtcdStore(settings, IMPATIENT) as store:
        put(store, "other")
        proxy.swallow_answers = True
        create = Transaction(
            compares=(CreateRevisionIs("k", 0),), ops=(PutOp("k", b"ours"),), idempotent=True
        )
        with pytest.raises(OutcomeUnknown):
            store.commit(create)
        found = store.get("k")
        assert found is not None
        assert found.value == b"ours"
        with pytest.raises(CommitConflict):
            store.commit(create)


def test_a_write_that_was_never_sent_is_unavailable(proxy: FaultyProxy) -> None:
    settings = fresh_settings(proxy.address)
    with EtcdStore(settings, IMPATIENT) as store:
        put(store, "k")
        proxy.refuse = True
        proxy.cut()
        before = time.monotonic()
        eventually(lambda: _outcome(store) is StoreUnavailable)
        assert time.monotonic() - before < 10
        with pytest.raises(StoreUnavailable, match=proxy.address):
            store.get("k")
        proxy.refuse = False
        eventually(lambda: _found(store, "k"))


def _found(store: EtcdStore, key: str) -> bool:
    with suppress(StoreUnavailable, StoreMismatch):
        return store.get(key) is not None
    return False


def _outcome(store: EtcdStore) -> type[Exception] | None:
    """Of one more write; the first may still meet the dying connection and be unknown."""
    try:
        put(store, "theirs")
    except (OutcomeUnknown, StoreUnavailable, StoreMismatch) as error:
        return type(error)
    return None


def test_reads_turn_to_another_member_when_one_is_silent(
    etcd: EmbeddedEtcd, proxy: FaultyProxy
) -> None:
    settings = fresh_settings(proxy.address, etcd.endpoints[0])
    with EtcdStore(settings) as store:
        revision = put(store, "k")
        proxy.black_hole = True
        before = time.monotonic()
        assert store.read().revision >= revision
        assert time.monotonic() - before < 2.5
        before = time.monotonic()
        assert store.get("k") is not None
        assert time.monotonic() - before < 0.5, "the silent one is asked last now"


# Leases


def test_a_lease_survives_a_silent_member(etcd: EmbeddedEtcd, proxy: FaultyProxy) -> None:
    settings = fresh_settings(proxy.address, etcd.endpoints[0])
    with EtcdStore(settings) as store:
        lease = store.lease(5.0)
        put(store, "k", lease_id=lease.lease_id)
        proxy.black_hole = True
        until = time.monotonic() + 8
        eventually(lambda: lease.valid_until() > until, 25)
        assert not lease.is_lost()
        assert store.get("k") is not None


def test_a_lease_that_ended_while_we_were_cut_off_is_reported(
    etcd: EmbeddedEtcd, proxy: FaultyProxy
) -> None:
    settings = fresh_settings(proxy.address)
    with direct(etcd, settings) as witness, EtcdStore(settings, IMPATIENT) as store:
        lost = threading.Event()
        lease = store.lease(2.0, on_lost=lost.set)
        put(store, "k", lease_id=lease.lease_id)
        proxy.refuse = True
        proxy.cut()
        eventually(lambda: witness.get("k") is None)
        assert not lease.is_lost()
        assert lease.valid_until() < time.monotonic()
        proxy.refuse = False
        assert lost.wait(10)
        assert lease.is_lost()


def test_closing_is_quick_when_the_store_is_away(proxy: FaultyProxy) -> None:
    store = EtcdStore(fresh_settings(proxy.address))
    leases = [store.lease(20.0) for _ in range(5)]
    watch = store.watch("", 1)
    events_until(watch, lambda _: True)
    proxy.refuse = True
    proxy.cut()
    before = time.monotonic()
    store.close()
    assert time.monotonic() - before < 6
    assert all(lease.is_lost() for lease in leases)


# The wrong members


def test_a_member_of_another_cluster_is_never_used(proxy: FaultyProxy) -> None:
    with etcd_members() as foreign:
        settings = fresh_settings(proxy.address, *foreign.endpoints)
        with EtcdStore(settings, IMPATIENT) as store:
            revision = put(store, "ours")
            watch = store.watch("", revision)
            events_until(watch, bool)
            proxy.refuse = True
            proxy.cut()
            eventually(lambda: _outcome(store) is StoreMismatch)
            with pytest.raises(StoreMismatch):
                store.read()
            with pytest.raises(StoreMismatch):
                events_until(watch, lambda _: False)
            proxy.refuse = False
            eventually(lambda: _found(store, "ours"))
        with EtcdStore(replace(settings, endpoints=foreign.endpoints)) as witness:
            assert witness.read().items == ()


def test_a_store_that_is_not_there_is_unavailable_in_time(proxy: FaultyProxy) -> None:
    proxy.refuse = True
    with EtcdStore(fresh_settings(proxy.address), IMPATIENT) as store:
        before = time.monotonic()
        with pytest.raises(StoreUnavailable, match="nothing was changed"):
            put(store, "k")
        with pytest.raises(StoreUnavailable):
            store.lease(5.0)
        assert time.monotonic() - before < 10
        mirror = Mirror(store)
        with pytest.raises(StoreUnavailable, match=r"no listing within 0\.5 s"):
            mirror.start(0.5)


# Users and TLS


def test_a_user_logs_in_and_again_when_the_token_is_void() -> None:
    with etcd_members() as etcd:
        address = etcd.endpoints[0]
        for path, body in (
            ("auth/role/add", {"name": "root"}),
            ("auth/user/add", {"name": "root", "password": "secret"}),
            ("auth/user/grant", {"user": "root", "role": "root"}),
            ("auth/role/add", {"name": "app"}),
            ("auth/role/grant", {"name": "app", "perm": _all_under("/accel/ours/")}),
            ("auth/user/add", {"name": "app", "password": "secret"}),
            ("auth/user/grant", {"user": "app", "role": "app"}),
        ):
            _ask(address, path, body)
        settings = StoreSettings(
            endpoints=(address,), prefix="/accel/ours/v1", user="app", password="secret"
        )
        with EtcdStore(settings) as store:
            put(store, "before authentication is enabled")
            watch = store.watch("", store.read().revision + 1)
            lease = store.lease(3.0)
            _ask(address, "auth/enable", {})
            revision = put(store, "k", lease_id=lease.lease_id)
            assert [revision_of(e) for e in events_until(watch, bool)] == [revision]
            etcd.kill(0)  # tokens do not outlive the member
            eventually(lambda: _put_after_restart(store), 20)
            events_until(watch, lambda e: any(_key(event) == "k2" for event in e), 15)
            now = time.monotonic()
            eventually(lambda: lease.valid_until() > now + 3, 15)
        with (
            EtcdStore(replace(settings, password="wrong")) as store,
            pytest.raises(ConfigError, match="refuses the configured user"),
        ):
            store.get("k")
        with (
            EtcdStore(replace(settings, prefix="/accel/theirs/v1")) as store,
            pytest.raises(ConfigError, match="permission denied"),
        ):
            store.get("k")
        with (
            EtcdStore(replace(settings, user="", password="")) as store,
            pytest.raises(ConfigError, match="demands a user"),
        ):
            store.get("k")


def _put_after_restart(store: EtcdStore) -> bool:
    try:
        put(store, "k2")
    except (OutcomeUnknown, StoreUnavailable):
        return False
    return True


def _key(event: Event) -> str:
    return event.item.key if isinstance(event, PutEvent) else event.key


def _all_under(prefix: str) -> dict[str, str]:
    """Permission to read and write these keys and no others."""
    first = prefix.encode()
    end = first[:-1] + bytes((first[-1] + 1,))
    as_text = [base64.b64encode(key).decode() for key in (first, end)]
    return {"permType": "READWRITE", "key": as_text[0], "range_end": as_text[1]}


def _ask(address: str, path: str, body: Mapping[str, object]) -> None:
    request = urllib.request.Request(
        f"http://{address}/v3/{path}", data=json.dumps(body).encode(), method="POST"
    )
    urllib.request.urlopen(request, timeout=10).close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")
def test_tls_with_client_certificates(etcd: EmbeddedEtcd) -> None:
    with tmpfs_dir() as directory:
        _make_certificates(directory)
        member = new_cluster(1, etcd.binary).members[0]
        url = f"https://127.0.0.1:{member.client_port}"
        process = subprocess.Popen(
            [
                str(etcd.binary.path),
                f"--data-dir={directory / 'data'}",
                f"--listen-client-urls={url}",
                f"--advertise-client-urls={url}",
                f"--listen-peer-urls={member.peer_url}",
                f"--initial-advertise-peer-urls={member.peer_url}",
                f"--initial-cluster=default={member.peer_url}",
                "--client-cert-auth=true",
                f"--trusted-ca-file={directory / 'ca.pem'}",
                f"--cert-file={directory / 'server.pem'}",
                f"--key-file={directory / 'server.key'}",
                "--log-outputs=/dev/null",
                "--logger=zap",
            ]
        )
        try:
            settings = replace(
                fresh_settings(url),
                ca_file=str(directory / "ca.pem"),
                cert_file=str(directory / "client.pem"),
                key_file=str(directory / "client.key"),
            )
            with EtcdStore(settings, replace(IMPATIENT, read=10.0, write=10.0)) as store:
                revision = put(store, "k")
                watch = store.watch("", revision)
                assert [revision_of(e) for e in events_until(watch, bool)] == [revision]
                store.lease(5.0).close()
            for wrong in (
                replace(settings, cert_file="", key_file=""),
                replace(settings, ca_file=""),
                replace(settings, ca_file="", cert_file="", key_file="", endpoints=(url[8:],)),
            ):
                hasty = replace(IMPATIENT, read=0.5)
                with EtcdStore(wrong, hasty) as store, pytest.raises(StoreUnavailable):
                    store.get("k")
            with pytest.raises(ConfigError, match="cert_file and key_file"):
                EtcdStore(replace(settings, key_file=""))
            with pytest.raises(ConfigError, match="absent"):
                EtcdStore(replace(settings, ca_file="/absent"))
        finally:
            process.terminate()
            process.wait(10)


def _make_certificates(directory: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        ca = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", *ca, "-extfile", "names", "-out", f"{name}.pem"
        )
