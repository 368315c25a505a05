"""Which local cluster runs, so that `accel-dask status` and friends find it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from accel_dask.errors import ConfigError
from accel_dask.worker_plugin.process_record import start_ticks

if TYPE_CHECKING:
    from accel_dask.local import LocalAccelCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """A running local cluster."""

    pid: int
    """Of the process that supervises it."""
    start_ticks: int
    """When that process started: another one may get its id."""
    directory: str
    config_file: str
    gateways: tuple[str, ...]
    dashboard: str
    scheduler: str
    tokens: dict[str, str]
    """By user; of tenants created on this machine for this cluster."""


def home() -> Path:
    """`ACCEL_HOME`, else `~/.accel-dask`."""
    return Path(os.environ.get("ACCEL_HOME") or Path.home() / ".accel-dask")


def remember(cluster: LocalAccelCluster, tokens: dict[str, str]) -> None:
    """Have `connect()` and the command line find `cluster`, which this process supervises."""
    write_current(
        Current(
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()) or 0,
            directory=str(cluster.directory),
            config_file=str(cluster.directory / "accel.toml"),
            gateways=cluster.gateway_urls,
            dashboard=cluster.dashboard_url,
            scheduler=cluster.scheduler_address,
            tokens=tokens,
        )
    )


def write_current(current: Current) -> None:
    home().mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = _file().with_suffix(".tmp")
    temporary.touch(mode=0o600)
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(current)))
    temporary.replace(_file())


def forget_current(pid: int) -> None:
    """Forget the current cluster if process `pid` supervises it."""
    current = find_current()
    if current is not None and current.pid == pid:
        _file().unlink(missing_ok=True)


def find_current() -> Current | None:
    """The running local cluster, or None."""
    try:
        current = msgspec.json.decode(_file().read_bytes(), type=Current)
    except (OSError, msgspec.MsgspecError):
        return None
    return current if start_ticks(current.pid) == current.start_ticks else None


def require_current() -> Current:
    """The running local cluster.

    Raises:
        ConfigError: there is none.
    """
    current = find_current()
    if current is None:
        raise ConfigError(
            "no local cluster runs (start one with `accel-dask up`), and no --config or "
            "ACCEL_CONFIG names another"
        )
    return current


def _file() -> Path:
    return home() / "current.json"
