"""The loader: a short-lived process that builds one shard file and ends.

`load.py` starts it as `python -m accel_dask.worker_plugin.loader <parent pid>`, with a LoadOrder
on standard input; it answers with one JSON line. It imports little, because it starts often.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from accel_dask.codec import decode, encode
from accel_dask.errors import AccelError, LoaderCrashed, ShardDamaged
from accel_dask.model.load_plan import SHARD_FORMAT, LoadOrder, ShardManifest
from accel_dask.worker_plugin.enforcement.background import step_back
from accel_dask.worker_plugin.loader_result import LoaderError, LoaderResult
from accel_dask.worker_plugin.shard_build import build, check_size, unlink_database
from accel_dask.worker_plugin.shard_dir import ShardDir, file_sha256

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.2


def load_shard(order: LoadOrder) -> ShardManifest:
    """Build, validate and publish the ordered shard file; nothing is left behind on failure.

    A shard file that is already there and sound is returned as it is, its source unread.

    Raises:
        SnapshotGone, ValidationFailed, SchemaUnsupported, NotAcceleratable: the source.
        QuotaExceeded: the shard file, or the memory to build it, is over its budget.
    """
    started = time.monotonic()
    shards = ShardDir(Path(order.shard_dir))
    shards.create()
    shard_id = order.task.shard_id
    if shards.manifest_file(shard_id).exists():
        try:
            return shards.verify(shard_id)
        except ShardDamaged:
            shards.remove(shard_id)
    temporary = shards.temporary_file(shard_id, os.getpid())
    spill = Path(order.spill_dir) / f"{shard_id}.{os.getpid()}.spill"
    try:
        spill.mkdir(parents=True, exist_ok=True)
        loaded = build(order, temporary, spill)
        file_bytes = temporary.stat().st_size
        check_size(order, file_bytes)
        manifest = ShardManifest(
            format_version=SHARD_FORMAT,
            shard_id=shard_id,
            rows=loaded.rows,
            file_bytes=file_bytes,
            file_sha256=file_sha256(temporary),
            row_checksum=loaded.row_checksum,
            columns=order.task.columns,
            stats=loaded.stats,
            rollup_rows=loaded.rollup_rows,
            load_ms=round((time.monotonic() - started) * 1000),
            peak_memory_bytes=_peak_memory_bytes(),
        )
        return shards.publish(temporary, manifest)
    finally:
        unlink_database(temporary)
        shutil.rmtree(spill, ignore_errors=True)


def _peak_memory_bytes() -> int:
    """Of this process; `getrusage` would begin with the peak of the parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _die_with(parent: int) -> None:
    """End when the process `parent` does, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        # The signal follows the parent's thread that started us; the id follows the process.
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _join(order: LoadOrder) -> None:
    """Move into the control group that bounds this loader; without one, step back."""
    if not order.join_files:
        step_back(())
    for file in order.join_files:
        try:
            Path(file).write_text("0", encoding="ascii")
        except OSError as error:
            raise LoaderCrashed(f"the loader cannot join the control group of {file}") from error


def main() -> int:
    if len(sys.argv) > 1:
        _die_with(int(sys.argv[1]))
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is not the answer
    order = decode(sys.stdin.buffer.read(), LoadOrder)
    try:
        _join(order)
        result = LoaderResult(ok=load_shard(order))
    except AccelError as error:
        result = LoaderResult(error=LoaderError(code=error.code, message=str(error)))
    with os.fdopen(answer, "wb") as stdout:
        stdout.write(encode(result) + b"\n")
    return 0


if __name__ == "__main__":
    # The interpreter's own clean-up takes longer than a small load; all files are closed.
    os._exit(main())
