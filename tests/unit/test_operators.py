"""What operators declare, and how their commands find the local cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from simulated_world import make_dataset
from typer.testing import CliRunner

from accel_dask import admin, local
from accel_dask.cli import connection, local_cluster, publishing, terminal
from accel_dask.cli.main import app
from accel_dask.cli.terminal import INTERRUPTED
from accel_dask.current import Current, find_current, write_current
from accel_dask.errors import ConfigError, StoreUnavailable, WaitTimedOut
from accel_dask.flight_client import FlightSession
from accel_dask.model.dataset import ColdPolicy, Dataset
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota, User, hash_token, user_path
from accel_dask.store.memory import MemoryStore
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import delete_record, read_view
from accel_dask.store.transactions import Transaction
from accel_dask.worker_plugin.process_record import start_ticks


@pytest.fixture
def store() -> Any:
    with MemoryStore() as opened:
        admin.create_tenant(opened, "acme")
        yield opened


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCEL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ACCEL_CONFIG", raising=False)
    return tmp_path / "home"


def current(pid: int, ticks: int) -> Current:
    return Current(
        pid=pid,
        start_ticks=ticks,
        directory="/nowhere",
        config_file="/nowhere/accel.toml",
        gateways=("grpc://127.0.0.1:1",),
        dashboard="",
        scheduler="",
        tokens={},
    )


# What is declared


def test_names_that_sql_does_not_tell_apart_are_refused(store: MemoryStore) -> None:
    """A query for one would be answered from the other."""
    admin.create_dataset(store, make_dataset(name="flights"))
    with pytest.raises(ConfigError, match=r"there is acme\.flights already"):
        admin.create_dataset(store, make_dataset(name="Flights"))
    admin.create_dataset(store, make_dataset(name="flights", row_filter="true"))
    admin.create_tenant(store, "globex")
    admin.create_dataset(store, make_dataset(tenant="globex", name="FLIGHTS"))


def test_a_row_filter_that_gives_other_rows_each_time_is_refused(store: MemoryStore) -> None:
    with pytest.raises(ConfigError, match=r"acme\.flights: its row_filter has random\(\)"):
        admin.create_dataset(store, make_dataset(name="flights", row_filter="random() < 0.5"))


# What is taken away


def test_a_deleted_tenant_has_no_users_and_no_datasets(store: MemoryStore) -> None:
    admin.create_user(store, "ann", "acme")
    admin.create_dataset(store, make_dataset(name="flights"))
    admin.create_tenant(store, "globex")
    admin.create_user(store, "bob", "globex")
    gone = admin.delete_tenant(store, "acme")
    assert (gone.users, [str(one) for one in gone.datasets]) == (("ann",), ["acme.flights"])
    view = read_view(store)
    assert view.tenant(TenantId("acme")) is None
    assert not list(view.records(Dataset))
    assert [user.name for user in view.records(User)] == ["bob"]
    with pytest.raises(ConfigError, match="there is no tenant acme"):
        admin.delete_tenant(store, "acme")


def test_a_dataset_is_deleted_once(store: MemoryStore) -> None:
    dataset = make_dataset(name="flights")
    admin.create_dataset(store, dataset)
    admin.delete_dataset(store, dataset.dataset_id)
    assert read_view(store).dataset(dataset.dataset_id) is None
    with pytest.raises(ConfigError, match=r"there is no dataset acme\.flights"):
        admin.delete_dataset(store, dataset.dataset_id)


def test_a_rotated_token_replaces_the_old_one(store: MemoryStore) -> None:
    old = admin.create_user(store, "ann", "acme")
    new = admin.rotate_token(store, "ann")
    (user,) = read_view(store).records(User)
    assert new != old
    assert (user.tenant, user.token_sha256) == ("acme", hash_token(new))
    with pytest.raises(ConfigError, match="there is no user nobody"):
        admin.rotate_token(store, "nobody")


class Meddled(MemoryStore):
    """Somebody else does something right before the next commit."""

    meddle: Callable[[], object] | None = None

    def commit(self, transaction: Transaction) -> int:
        meddle, self.meddle = self.meddle, None
        if meddle is not None:
            meddle()
        return super().commit(transaction)


@pytest.fixture
def meddled() -> Iterator[Meddled]:
    with Meddled() as opened:
        admin.create_tenant(opened, "acme")
        admin.create_user(opened, "ann", "acme")
        admin.create_dataset(opened, make_dataset(name="flights"))
        yield opened


def test_a_user_who_is_deleted_meanwhile_gets_no_new_token(meddled: Meddled) -> None:
    meddled.meddle = lambda: delete_record(meddled, user_path("ann"))
    with pytest.raises(ConfigError, match="there is no user ann"):
        admin.rotate_token(meddled, "ann")
    assert not list(read_view(meddled).records(User))


def test_a_tenant_that_is_deleted_meanwhile_gets_no_users_and_no_datasets(
    meddled: Meddled,
) -> None:
    meddled.meddle = lambda: admin.delete_tenant(meddled, "acme")
    with pytest.raises(ConfigError, match="there is no tenant acme"):
        admin.create_user(meddled, "bob", "acme")
    admin.create_tenant(meddled, "acme")
    meddled.meddle = lambda: admin.create_user(meddled, "cid", "acme")
    admin.delete_tenant(meddled, "acme")
    view = read_view(meddled)
    assert not [*view.records(User), *view.records(Dataset)]


def test_a_row_filter_that_is_set_meanwhile_is_not_undone(meddled: Meddled) -> None:
    stricter = make_dataset(name="flights", row_filter="carrier = 'AA'")
    meddled.meddle = lambda: admin.create_dataset(meddled, stricter)
    admin.change_fallback(meddled, stricter.dataset_id, None)
    found = read_view(meddled).dataset(stricter.dataset_id)
    assert found is not None
    assert found.row_filter == "carrier = 'AA'"


def test_names_that_sql_does_not_tell_apart_are_refused_also_at_once(meddled: Meddled) -> None:
    meddled.meddle = lambda: admin.create_dataset(meddled, make_dataset(name="Hops"))
    with pytest.raises(ConfigError, match=r"there is acme\.Hops already"):
        admin.create_dataset(meddled, make_dataset(name="hops"))


@pytest.mark.parametrize(
    ("command", "question"),
    [
        (["dataset", "delete", "acme.flights"], "delete acme.flights (no epoch serves)?"),
        (
            ["tenant", "delete", "acme"],
            "delete tenant acme with 1 user(s) (ann) and 1 dataset(s) (acme.flights)?",
        ),
        (["user", "rotate-token", "ann"], "give user ann another token?"),
    ],
)
def test_what_cannot_be_undone_asks_first(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, command: list[str], question: str
) -> None:
    admin.create_user(store, "ann", "acme")
    admin.create_dataset(store, make_dataset(name="flights"))
    monkeypatch.setattr(connection, "cluster_store", lambda config: nullcontext(store))
    monkeypatch.setattr(connection, "is_local", lambda config: False)
    before = read_view(store).revision
    refused = CliRunner().invoke(app, command, input="n\n")
    assert refused.exit_code == 1
    assert question in " ".join(refused.output.split())
    assert read_view(store).revision == before
    done = CliRunner().invoke(app, [*command, "--yes"])
    assert done.exit_code == 0, done.output
    assert read_view(store).revision > before


@pytest.mark.parametrize("field", ["threads", "concurrency", "deadline_ms", "max_result_rows"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_quota_that_nothing_could_run_within_is_refused(
    store: MemoryStore, field: str, value: int
) -> None:
    with pytest.raises(ConfigError, match=f"tenant acme: {field} must be at least 1, not {value}"):
        admin.create_tenant(store, "acme", replace(Quota(), **{field: value}))


@pytest.mark.parametrize(
    ("field", "value"), [("replicas", 0), ("shard_target_bytes", 0), ("poll_seconds", -1.0)]
)
def test_a_dataset_field_that_cannot_be_used_is_refused(
    store: MemoryStore, field: str, value: float
) -> None:
    with pytest.raises(ConfigError, match=rf"dataset acme\.flights: {field} must be"):
        admin.create_dataset(store, make_dataset(**{field: value}))


def test_shards_are_left_cold_only_where_that_is_allowed(store: MemoryStore) -> None:
    with pytest.raises(
        ConfigError, match='hot_shards leaves the others cold, and cold is "refuse"'
    ):
        admin.create_dataset(store, make_dataset(hot_shards=3))
    with pytest.raises(ConfigError, match="hot_shards must be 0 or more"):
        admin.create_dataset(store, make_dataset(cold=ColdPolicy.ALLOW, hot_shards=-1))
    admin.create_dataset(store, make_dataset(cold=ColdPolicy.ALLOW, hot_shards=0))


# Commands


def test_a_directory_of_parquet_files_is_declared_by_its_absolute_path(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master, which reads it, has another working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "cluster_store", lambda _: nullcontext(store))
    result = CliRunner().invoke(
        app, ["dataset", "create", "acme.flights", "--parquet", "data/*.parquet"]
    )
    assert result.exit_code == 0, result.output
    (declared,) = read_view(store).records(Dataset)
    assert declared.source.option("path") == f"{tmp_path}/data/*.parquet"


def test_the_token_of_a_tenant_on_another_cluster_is_shown_and_not_kept(
    store: MemoryStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCEL_CONFIG", "elsewhere.toml")
    monkeypatch.setattr(connection, "cluster_store", lambda _: nullcontext(store))
    result = CliRunner().invoke(app, ["tenant", "create", "globex"])
    assert result.exit_code == 0, result.output
    assert "tenant globex created; user globex, token " in result.output.replace("\n", " ")
    assert not home.exists()


@pytest.mark.parametrize("step", ["run", "wait"])
def test_a_demo_that_is_interrupted_succeeds_only_if_every_step_held(
    step: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    class Shown:
        tokens: dict[str, str] = {}  # noqa: RUF012 - of this test alone

        def __init__(self, *_: object) -> None: ...

        def run(self) -> None:
            if step == "run":
                raise KeyboardInterrupt

        def close(self) -> None: ...

    class Cluster(local.LocalAccelCluster):
        def close(self) -> None:
            super().close()
            closed.append(True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("accel_dask.demo.Demo", Shown)
    monkeypatch.setattr(local_cluster, "LocalAccelCluster", Cluster)
    monkeypatch.setattr(local_cluster, "_remember_demo", interrupt)
    monkeypatch.setattr(terminal.signal, "signal", lambda *_: None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == (INTERRUPTED if step == "run" else 0)
    assert closed


def test_a_text_that_is_no_address_is_an_error_that_says_how_to_write_one() -> None:
    with pytest.raises(ConfigError, match="write grpc://host:port"):
        FlightSession("foo", "user", "token")


# The local cluster


def test_another_process_with_the_id_of_a_killed_cluster_is_not_taken_for_it(home: Path) -> None:
    """`accel-dask down` would end it."""
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    write_current(current(os.getpid(), ticks - 1))
    assert find_current() is None
    write_current(current(os.getpid(), ticks))
    assert find_current() is not None


def test_what_a_killed_temporary_cluster_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_SHM", tmp_path)
    kept, left = tmp_path / "accel-dask-kept", tmp_path / "accel-dask-left"
    for directory in (kept, left):
        directory.mkdir()
    program = (
        "import sys; from pathlib import Path; from accel_dask import local;"
        "local._SHM = Path(sys.argv[1]);"
        "local._shard_root('one', Path(sys.argv[2]), is_temporary=True);"
        "local._shard_root('two', Path(sys.argv[3]), is_temporary=False)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path), str(left), str(kept)]
    subprocess.run(arguments, check=True, timeout=60)
    ours = local._shard_root("ours", tmp_path, is_temporary=True)
    local._shard_root("again", tmp_path, is_temporary=True)
    assert not left.exists()
    assert not (tmp_path / "accel-dask-one").exists()
    assert kept.exists()
    assert (tmp_path / "accel-dask-two").exists(), "its shard files are used at its next start"
    assert ours.exists(), "of a process that lives"


def test_a_wait_for_a_publish_ends_when_the_cluster_was_stopped(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_SILENT_SECONDS", 0.5)
    admin.create_dataset(store, make_dataset())
    requested = admin.publish(store, make_dataset().dataset_id)
    spinner = SimpleNamespace(update=lambda _: None)
    with Mirror(store) as mirror:
        monkeypatch.setattr(Mirror, "last_contact", time.monotonic())
        with pytest.raises(StoreUnavailable, match=r"went silent while acme\.flights"):
            publishing._wait_showing(mirror, requested, 60.0, spinner)


def test_a_publish_that_takes_too_long_says_what_it_waits_for(store: MemoryStore) -> None:
    admin.create_dataset(store, make_dataset())
    requested = admin.publish(store, make_dataset().dataset_id)
    spinner = SimpleNamespace(update=lambda _: None)
    with Mirror(store) as mirror, pytest.raises(WaitTimedOut, match="no host is alive"):
        publishing._wait_showing(mirror, requested, 0.2, spinner)


def test_a_port_that_is_taken_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = local.LocalOptions(directory=tmp_path / "new", gateway_port=port)
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use; give another"):
            local.LocalAccelCluster(options).start()
    assert not (tmp_path / "new").exists()
