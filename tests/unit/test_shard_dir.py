"""The shard directory: what counts as a shard, and what is cleaned away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accel_dask.errors import ConfigError, ShardDamaged
from accel_dask.model.ids import ShardId
from accel_dask.model.load_plan import ShardManifest
from accel_dask.worker_plugin import shard_dir as module
from accel_dask.worker_plugin.shard_dir import (
    ShardDir,
    default_shard_dir,
    file_sha256,
    is_live_loader,
    is_memory_fs,
)

A, B = "a" * 32, "b" * 32


@pytest.fixture
def shards(tmp_path: Path) -> ShardDir:
    found = ShardDir(tmp_path / "shards")
    found.create()
    return found


def publish(shards: ShardDir, shard_id: str, content: bytes = b"content") -> ShardManifest:
    temporary = shards.temporary_file(shard_id, os.getpid())
    temporary.write_bytes(content)
    manifest = ShardManifest(
        format_version=1,
        shard_id=ShardId(shard_id),
        rows=1,
        file_bytes=len(content),
        file_sha256=file_sha256(temporary),
        row_checksum="0",
        columns=(),
        stats=(),
        load_ms=1,
        peak_memory_bytes=1,
    )
    return shards.publish(temporary, manifest)


def test_a_published_shard_is_listed_and_verified(shards: ShardDir) -> None:
    manifest = publish(shards, B)
    publish(shards, A)
    assert shards.list_ids() == (A, B)
    assert shards.verify(B) == manifest
    assert shards.used_bytes() > 14
    assert shards.path.stat().st_mode & 0o777 == 0o700


def test_a_second_loader_of_one_shard_leaves_the_first_ones_file(shards: ShardDir) -> None:
    first = publish(shards, A, b"first")
    assert publish(shards, A, b"the second, another layout") == first
    assert shards.shard_file(A).read_bytes() == b"first"
    assert shards.verify(A) == first
    assert len(list(shards.path.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"conten", b"Content", b""])
def test_a_damaged_file_is_noticed_and_replaced_by_a_new_load(
    shards: ShardDir, damage: bytes
) -> None:
    publish(shards, A)
    shards.shard_file(A).write_bytes(damage)
    with pytest.raises(ShardDamaged, match=A):
        shards.verify(A)
    shards.remove(A)
    assert shards.list_ids() == ()
    publish(shards, A)
    shards.verify(A)


def test_a_missing_broken_or_foreign_manifest_is_damage(shards: ShardDir) -> None:
    with pytest.raises(ShardDamaged, match="no usable manifest"):
        shards.verify(A)
    other = publish(shards, B)
    publish(shards, A)
    shards.manifest_file(A).write_text("{")
    with pytest.raises(ShardDamaged, match="no usable manifest"):
        shards.manifest(A)
    shards.manifest_file(A).write_bytes(shards.manifest_file(B).read_bytes())
    with pytest.raises(ShardDamaged, match=other.shard_id):
        shards.manifest(A)
    shards.shard_file(B).unlink()
    with pytest.raises(ShardDamaged, match="cannot be read"):
        shards.verify(B)
    assert shards.list_ids() == (A,)


def test_leftovers_of_crashed_loads_are_removed_and_nothing_else(shards: ShardDir) -> None:
    publish(shards, A)
    dead = (
        subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"], check=True, capture_output=True
        )
        .stdout.decode()
        .strip()
    )
    leftovers = [
        f"{B}.{dead}.tmp.duckdb",
        f"{B}.{dead}.tmp.duckdb.wal",
        f"{B}.{dead}.tmp.json",
        f"{B}.duckdb",  # crashed between the two renames
        f"{'c' * 32}.json",
        f"{'d' * 32}.duckdb.wal",
        "something.tmp",
    ]
    for name in leftovers:
        (shards.path / name).write_bytes(b"x")
    (shards.path / "README").write_text("an operator's note")
    assert shards.clean_temporary() == tuple(sorted(leftovers))
    assert sorted(file.name for file in shards.path.iterdir()) == [
        "README",
        f"{A}.duckdb",
        f"{A}.json",
    ]
    shards.verify(A)


def test_the_files_of_a_running_loader_are_left_alone(shards: ShardDir) -> None:
    loader = subprocess.Popen(
        [sys.executable, "-m", "accel_dask.worker_plugin.loader"], stdin=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 10
        while not is_live_loader(loader.pid):  # its command line shows a moment after exec
            assert time.monotonic() < deadline
        temporary = shards.temporary_file(A, loader.pid)
        temporary.write_bytes(b"x")
        assert shards.clean_temporary() == ()
        assert temporary.exists()
    finally:
        loader.kill()
        loader.communicate()
    assert shards.clean_temporary() == (temporary.name,)


def test_removing_what_is_not_there_is_no_error(shards: ShardDir) -> None:
    shards.remove(A)
    publish(shards, A)
    shards.remove(A)
    shards.remove(A)
    assert list(shards.path.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="shard_dir"):
        ShardDir(tmp_path / "file" / "shards").create()


def test_memory_file_systems_are_recognised() -> None:
    assert is_memory_fs(Path("/dev/shm/not/there/yet"))
    assert not is_memory_fs(Path("/proc"))


def test_every_worker_has_a_default_directory_of_its_own() -> None:
    names = ["host-1", "tcp://10.0.0.1:8786", "tcp:__10.0.0.1:8786", "../../etc"]
    found = [default_shard_dir(name) for name in names]
    assert len(set(found)) == len(names)
    assert {path.parent for path in found} == {found[0].parent}
    assert found[0].is_relative_to("/dev/shm")


def test_without_a_memory_file_system_the_default_is_plain_and_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "is_memory_fs", lambda path: False)
    assert not default_shard_dir("host-1").is_relative_to("/dev/shm")
    assert "host-1" in caplog.text
