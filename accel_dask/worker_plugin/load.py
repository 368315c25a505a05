"""Run a loader process and wait for what it says; used by load tasks in the Dask worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

from accel_dask.codec import decode, encode
from accel_dask.errors import InvariantViolated, LoaderCrashed, error_class
from accel_dask.model.load_plan import LoadOrder, ShardManifest
from accel_dask.worker_plugin.loader_result import LoaderResult
from accel_dask.worker_plugin.shard_dir import ShardDir, is_live_loader

logger = logging.getLogger(__name__)

_LOADER_MODULE: Final = "accel_dask.worker_plugin.loader"
_STDERR_TAIL = 2_000
_SPILL = re.compile(r"[0-9a-f]{32}\.(\d+)\.spill")


async def run_loader(order: LoadOrder, cancelled: asyncio.Event | None = None) -> ShardManifest:
    """Build the ordered shard file in a process of its own; its manifest.

    The process is killed when `cancelled` is set or the calling task is cancelled, and nothing
    of it stays behind.

    Raises:
        LoadError, QuotaExceeded: what the loader reported.
        LoaderCrashed: it ended without a result, or was cancelled.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _LOADER_MODULE,
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    talk = asyncio.ensure_future(process.communicate(encode(order)))
    stop = asyncio.ensure_future(cancelled.wait()) if cancelled else None
    try:
        waiting = {talk, stop} if stop else {talk}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not talk.done():
            raise LoaderCrashed(f"{_name(order)}: the load was cancelled")
        stdout, stderr = talk.result()
        return _result(order, process.returncode, stdout, stderr)
    finally:
        if stop:
            stop.cancel()
        if not talk.done():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await asyncio.wait({talk})  # reaps it; what its pipes still say does not matter
            talk.exception()
        _clean_after(order, process.pid)


def _name(order: LoadOrder) -> str:
    return f"{order.tenant}.{order.dataset}@{order.epoch}, shard {order.task.shard_id}"


def _result(
    order: LoadOrder, returncode: int | None, stdout: bytes, stderr: bytes
) -> ShardManifest:
    lines = stdout.splitlines()
    try:
        result = decode(lines[-1] if lines else b"", LoaderResult)
    except InvariantViolated as error:
        told = stderr.decode(errors="replace")[-_STDERR_TAIL:].strip()
        raise LoaderCrashed(
            f"{_name(order)}: the loader {_ending(returncode)} without a result"
            + (f": {told}" if told else "")
        ) from error
    if result.ok is not None:
        return result.ok
    if result.error is None:
        raise LoaderCrashed(f"{_name(order)}: the loader reported neither a shard nor an error")
    raise error_class(result.error.code)(result.error.message)


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        try:
            return f"was killed by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was killed by signal {-returncode}"
    return f"ended with exit code {returncode}"


def _clean_after(order: LoadOrder, pid: int) -> None:
    """Remove the temporary files of a loader that has ended."""
    file = ShardDir(Path(order.shard_dir)).temporary_file(order.task.shard_id, pid)
    for left in (file, file.with_name(file.name + ".wal"), file.with_suffix(".json")):
        left.unlink(missing_ok=True)
    spill = Path(order.spill_dir) / f"{order.task.shard_id}.{pid}.spill"
    shutil.rmtree(spill, ignore_errors=True)


def clean_spill(spill_dir: Path) -> None:
    """Remove what crashed loaders spilled; for a host's start."""
    if not spill_dir.is_dir():
        return
    for left in spill_dir.iterdir():
        found = _SPILL.fullmatch(left.name)
        if found and not is_live_loader(int(found[1])):
            logger.info("removing what a crashed loader spilled: %s", left)
            shutil.rmtree(left, ignore_errors=True)
