"""Which processes a host started, kept in files: a later life of the host ends those left."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

from accel_dask.codec import decode, encode
from accel_dask.errors import InvariantViolated

log = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRecord:
    """A process, told from any other that has had or will have its pid."""

    pid: int
    start_ticks: int
    boot_id: str
    label: str


def record_of(pid: int, label: str) -> ProcessRecord | None:
    """The record of a running process; None if there is none."""
    ticks = start_ticks(pid)
    if ticks is None:
        return None
    return ProcessRecord(
        pid=pid, start_ticks=ticks, boot_id=_BOOT_ID.read_text().strip(), label=label
    )


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


class ProcessRecords:
    """One file per process in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, pid: int, label: str) -> None:
        record = record_of(pid, label)
        if record is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file(pid).write_bytes(encode(record))

    def remove(self, pid: int) -> None:
        self._file(pid).unlink(missing_ok=True)

    def kill_all(self, wait_seconds: float) -> int:
        """End every recorded process that still runs, and forget all; how many there were."""
        killed = 0
        for file in sorted(self._directory.glob("*.json")):
            try:
                record = decode(file.read_bytes(), ProcessRecord)
            except (OSError, InvariantViolated) as error:
                log.warning("unreadable process record %s: %s", file, error)
            else:
                killed += _kill(record, wait_seconds)
            file.unlink(missing_ok=True)
        return killed

    def _file(self, pid: int) -> Path:
        return self._directory / f"{pid}.json"


def _kill(record: ProcessRecord, wait_seconds: float) -> bool:
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(record.pid)
        try:
            if record_of(record.pid, record.label) != record:
                return False
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            log.warning("killed %s (pid %d), left from an earlier life", record.label, record.pid)
            if not select.select([handle], [], [], wait_seconds)[0]:
                log.error("%s (pid %d) does not end", record.label, record.pid)
            return True
        finally:
            os.close(handle)
    return False
