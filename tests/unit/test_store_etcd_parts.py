"""The parts of the etcd client that need no etcd."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf import descriptor_pool

from accel_dask.config import StoreSettings
from accel_dask.errors import (
    ConfigError,
    LeaseLost,
    StoreError,
    StoreMismatch,
    StoreUnavailable,
    WatchCompacted,
)
from accel_dask.store import etcd_messages as pb
from accel_dask.store.etcd import EtcdStore
from accel_dask.store.etcd_binary import clean_environment, examine, find_etcd
from accel_dask.store.etcd_failures import Meaning, meaning_of, refusal
from accel_dask.store.etcd_headers import HeaderGuard


class Failure(grpc.RpcError, grpc.Call):
    """A failed call."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    initial_metadata = trailing_metadata = is_active = time_remaining = cancel = add_callback = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("code", "details", "meaning"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: x", Meaning.NOT_DONE),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", Meaning.NOT_DONE),
        ("UNKNOWN", "raft proposal dropped", Meaning.NOT_DONE),
        ("UNAVAILABLE", "Socket closed", Meaning.UNKNOWN),
        ("UNAVAILABLE", "etcdserver: request timed out", Meaning.UNKNOWN),
        ("UNAVAILABLE", "etcdserver: server stopped", Meaning.UNKNOWN),
        ("UNAVAILABLE", "etcdserver: leader changed", Meaning.UNKNOWN),
        ("UNKNOWN", "lessor: not a primary lessor", Meaning.UNKNOWN),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Meaning.UNKNOWN),
        ("CANCELLED", "Channel closed!", Meaning.UNKNOWN),
        ("RESOURCE_EXHAUSTED", "Bandwidth exhausted", Meaning.UNKNOWN),
        ("PERMISSION_DENIED", "Received http2 header with status: 403", Meaning.UNKNOWN),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", Meaning.STALE_LOGIN),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", Meaning.STALE_LOGIN),
        ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old", Meaning.STALE_LOGIN),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", Meaning.REFUSED),
        ("NOT_FOUND", "etcdserver: requested lease not found", Meaning.REFUSED),
    ],
)
def test_a_failed_call_is_only_harmless_if_it_is_known_to_be(
    code: str, details: str, meaning: Meaning
) -> None:
    assert meaning_of(Failure(grpc.StatusCode[code], details)) is meaning


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        ("NOT_FOUND", "etcdserver: requested lease not found", LeaseLost),
        (
            "OUT_OF_RANGE",
            "etcdserver: mvcc: required revision has been compacted",
            WatchCompacted,
        ),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", StoreUnavailable),
        ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request", StoreError),
        ("PERMISSION_DENIED", "etcdserver: permission denied", ConfigError),
        ("INVALID_ARGUMENT", "etcdserver: authentication failed, invalid user", ConfigError),
    ],
)
def test_a_refusal_says_what_to_do(code: str, details: str, error: type[Exception]) -> None:
    raised = refusal(Failure(grpc.StatusCode[code], details), "Txn")
    assert type(raised) is error
    assert "Txn" in str(raised)


def header(revision: int = 0, cluster_id: int = 7, raft_term: int = 1) -> SimpleNamespace:
    return SimpleNamespace(revision=revision, cluster_id=cluster_id, raft_term=raft_term)


def test_answers_may_overtake_each_other_but_not_the_past() -> None:
    guard = HeaderGuard()
    slow = guard.floor()
    guard.check(header(10), guard.floor(), "a")
    guard.check(header(5), slow, "b")
    assert guard.floor().revision == 10
    with pytest.raises(StoreMismatch, match="b answers at revision 9 although 10 was seen"):
        guard.check(header(9), guard.floor(), "b")
    guard.check(header(10, raft_term=3), guard.floor(), "a")
    with pytest.raises(StoreMismatch, match="from raft term 2, 3 was seen"):
        guard.check(header(11, raft_term=2), guard.floor(), "b")
    with pytest.raises(StoreMismatch, match="b is a member of etcd cluster 8"):
        guard.check_cluster(header(11, cluster_id=8), "b")
    assert guard.floor().revision == 10


def test_the_messages_are_in_a_pool_of_their_own() -> None:
    put = pb.PutRequest(key=b"k", value=b"v", lease=5)
    assert put.SerializeToString() == b"\x0a\x01k\x12\x01v\x18\x05"
    assert pb.PutRequest.FromString(put.SerializeToString()) == put
    assert put.DESCRIPTOR.file.pool is not descriptor_pool.Default()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName(put.DESCRIPTOR.full_name)


def fake_etcd(directory: Path, answer: str) -> Path:
    path = directory / "fake-etcd"
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("version", "warning"),
    [
        ("3.4.23", "past its end of life"),
        ("3.5.12", "run 3.5.28 or later"),
        ("3.5.28", ""),
        ("3.6.8", "run 3.6.9 or later"),
        ("3.6.9", ""),
        ("3.7.1", ""),
    ],
)
def test_what_is_wrong_with_a_version_is_said(tmp_path: Path, version: str, warning: str) -> None:
    path = fake_etcd(tmp_path, f"etcd Version: {version}")
    found = find_etcd(environ={"ACCEL_ETCD_BIN": str(path)})
    assert found.version_text == version
    assert warning in found.warning
    assert bool(found.warning) == bool(warning)


def test_versions_that_may_lose_data_are_refused_unless_allowed(tmp_path: Path) -> None:
    environ = {"ACCEL_ETCD_BIN": str(fake_etcd(tmp_path, "etcd Version: 3.5.1"))}
    with pytest.raises(ConfigError, match=r"3\.5\.1 has a known data inconsistency"):
        find_etcd(environ=environ)
    assert "end of life" in find_etcd(allow_faulty=True, environ=environ).warning
    assert find_etcd(environ=environ | {"ACCEL_ETCD_ALLOW_FAULTY": "1"}).version == (3, 5, 1)


def test_what_is_no_usable_etcd_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not say that it is an etcd"):
        examine(fake_etcd(tmp_path, "hello"))
    with pytest.raises(ConfigError, match=r"3\.4 or later"):
        examine(fake_etcd(tmp_path, "etcd Version: 3.3.9"))
    with pytest.raises(ConfigError, match="cannot be run"):
        examine(tmp_path / "absent")


def test_the_server_does_not_see_settings_of_another_etcd() -> None:
    env = clean_environment({"ETCD_NAME": "x", "PATH": "/bin", "ETCDCTL_API": "3"})
    assert "ETCD_NAME" not in env
    assert env["PATH"] == "/bin"


def test_a_store_without_endpoints_is_refused() -> None:
    with pytest.raises(ConfigError, match="endpoints"):
        EtcdStore(StoreSettings(endpoints=()))
