"""The directory of a host's shard files; used by the host agent and by loaders.

A shard is `<id>.duckdb` and its manifest `<id>.json`. The manifest comes last and goes first,
so that whatever dies in between leaves a file without a manifest, which counts for nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from accel_dask.codec import decode, encode
from accel_dask.errors import ConfigError, InvariantViolated, ShardDamaged
from accel_dask.model.ids import ShardId
from accel_dask.model.load_plan import ShardManifest

logger = logging.getLogger(__name__)

_SHARD_ID = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = re.compile(r"[0-9a-f]{32}\.(\d+)\.tmp\.(duckdb|duckdb\.wal|json|spill)")
_LOADER_MODULE = b"accel_dask.worker_plugin.loader"
_MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})


class ShardDir:
    """One host's shard files. Several processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Make the directory, readable by its owner only.

        Raises:
            ConfigError: it cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the shard directory {self.path}: {error}; set [host] shard_dir"
            ) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write to the shard directory {self.path}")

    def shard_file(self, shard_id: str) -> Path:
        return self.path / f"{shard_id}.duckdb"

    def manifest_file(self, shard_id: str) -> Path:
        return self.path / f"{shard_id}.json"

    def temporary_file(self, shard_id: str, pid: int) -> Path:
        """Where the loader with this process id builds the shard file."""
        return self.path / f"{shard_id}.{pid}.tmp.duckdb"

    def manifest(self, shard_id: str) -> ShardManifest:
        """What the shard file should be.

        Raises:
            ShardDamaged: there is no such shard, or its manifest cannot be read.
        """
        try:
            manifest = decode(self.manifest_file(shard_id).read_bytes(), ShardManifest)
        except (OSError, InvariantViolated) as error:
            raise ShardDamaged(f"shard {shard_id} has no usable manifest: {error}") from error
        if manifest.shard_id != shard_id:
            raise ShardDamaged(f"the manifest of shard {shard_id} is {manifest.shard_id}'s")
        return manifest

    def verify(self, shard_id: str) -> ShardManifest:
        """The manifest, after the file's size and SHA-256 were found to be as it says.

        Raises:
            ShardDamaged: they are not, or one of the two files is missing.
        """
        manifest = self.manifest(shard_id)
        file = self.shard_file(shard_id)
        try:
            found_bytes = file.stat().st_size
            if found_bytes != manifest.file_bytes:
                raise ShardDamaged(
                    f"shard file {shard_id} has {found_bytes} bytes, "
                    f"its manifest says {manifest.file_bytes}"
                )
            found = file_sha256(file)
        except OSError as error:
            raise ShardDamaged(f"shard file {shard_id} cannot be read: {error}") from error
        if found != manifest.file_sha256:
            raise ShardDamaged(f"shard file {shard_id} is not the one its manifest describes")
        return manifest

    def list_ids(self) -> tuple[ShardId, ...]:
        """Shards with both their files, in order of their ids."""
        return tuple(
            ShardId(file.stem)
            for file in sorted(self.path.glob("*.json"))
            if _SHARD_ID.fullmatch(file.stem) and self.shard_file(file.stem).exists()
        )

    def publish(self, temporary: Path, manifest: ShardManifest) -> ShardManifest:
        """Make a built file the shard's. If another loader was first, its file stays and its
        manifest is returned."""
        with self._locked():
            with contextlib.suppress(ShardDamaged):
                there = self.manifest(manifest.shard_id)
                found = self.shard_file(manifest.shard_id)
                if found.exists() and found.stat().st_size == there.file_bytes:
                    temporary.unlink()
                    return there
            self._unlink(manifest.shard_id)
            written = temporary.with_suffix(".json")
            written.write_bytes(encode(manifest))
            temporary.rename(self.shard_file(manifest.shard_id))
            written.rename(self.manifest_file(manifest.shard_id))
        return manifest

    def remove(self, shard_id: str) -> None:
        """Unlink a shard; processes that have it attached keep it until they end."""
        with self._locked():
            self._unlink(shard_id)

    def clean_temporary(self) -> tuple[str, ...]:
        """Remove what crashed loads left behind; the names that were removed.

        A loader that is still running keeps its files.
        """
        removed = []
        with self._locked():
            whole = set(self.list_ids())
            for file in sorted(self.path.iterdir()):
                if _is_leftover(file, whole):
                    _delete(file)
                    removed.append(file.name)
        if removed:
            logger.info("removed %d leftover files from %s", len(removed), self.path)
        return tuple(removed)

    def used_bytes(self) -> int:
        """Bytes of all files here, those of loads under way included."""
        used = 0
        for file in self.path.iterdir():
            with contextlib.suppress(FileNotFoundError):
                used += file.stat().st_size
        return used

    def _unlink(self, shard_id: str) -> None:
        self.manifest_file(shard_id).unlink(missing_ok=True)
        self.shard_file(shard_id).unlink(missing_ok=True)
        self.shard_file(shard_id).with_suffix(".duckdb.wal").unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes; ends with the process that holds it."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_leftover(file: Path, whole: set[ShardId]) -> bool:
    temporary = _TEMPORARY.fullmatch(file.name)
    if temporary:
        return not is_live_loader(int(temporary[1]))
    if ".tmp" in file.name:
        return True
    shard_id = file.name.split(".", 1)[0]
    return bool(_SHARD_ID.fullmatch(shard_id)) and shard_id not in whole


def is_live_loader(pid: int) -> bool:
    """Whether the process with this id exists and is a loader."""
    try:
        return _LOADER_MODULE in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _delete(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file, ignore_errors=True)
    else:
        file.unlink(missing_ok=True)


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def is_memory_fs(path: Path) -> bool:
    """Whether `path`, or the nearest directory above it that exists, is on a memory file
    system."""
    there = path.resolve()
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    except OSError:
        return False
    for line in mounts.splitlines():
        _, mount_point, file_system, *_ = line.split(" ")
        mount_point = mount_point.replace("\\040", " ")
        if there.is_relative_to(mount_point) and len(mount_point) >= len(best):
            best, kind = mount_point, file_system
    return kind in _MEMORY_FILE_SYSTEMS


def default_shard_dir(worker_id: str) -> Path:
    """A directory of this worker's own: under /dev/shm, else, with a warning, under the
    temporary directory."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", worker_id)
    if name != worker_id:  # two workers must not meet in one directory
        name += "-" + hashlib.sha256(worker_id.encode()).hexdigest()[:8]
    memory = Path("/dev/shm")  # noqa: S108 - where Linux mounts memory for sharing
    if memory.is_dir() and os.access(memory, os.W_OK) and is_memory_fs(memory):
        return memory / f"accel-dask-{os.getuid()}" / name
    plain = Path(tempfile.gettempdir()) / f"accel-dask-{os.getuid()}" / name
    logger.warning(
        "worker %s: /dev/shm is no writable memory file system; shard files go to %s, where "
        "queries may wait for the disk (set [host] shard_dir)",
        worker_id,
        plain,
    )
    return plain
