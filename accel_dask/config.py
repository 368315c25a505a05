"""Settings: frozen records built once per process from a TOML file and the environment.

`ACCEL_CONFIG` names the file; `ACCEL_<SECTION>_<FIELD>` overrides one value, for example
`ACCEL_STORE_ENDPOINTS=10.0.0.1:2379,10.0.0.2:2379`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from accel_dask.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """How to reach the state store."""

    endpoints: tuple[str, ...] = ("127.0.0.1:2379",)
    """`host:port` of every etcd member."""
    prefix: str = "/accel/default/v1"
    """All keys of this cluster lie under it."""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    user: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSettings:
    """The control loop."""

    lease_seconds: float = 5.0
    """Leadership ends this long after the loop last made progress."""
    tick_seconds: float = 1.0
    """The loop runs at every change, and at least this often."""
    load_attempts: int = 3
    """How often a shard's load is tried on a host before the epoch fails."""
    validate_seconds: float = 60.0
    """An epoch whose executors are not up by then fails."""
    retire_grace_seconds: float = 0.0
    """A replaced epoch is kept at least this long after all gateways moved on."""
    keep_failed: int = 5
    """FAILED epochs kept per dataset, for their reasons."""
    pin_snapshots: bool = True
    """Tag a snapshot at its source while an epoch of it is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """A worker host."""

    shard_dir: str = ""
    """Empty: a directory of this host under /dev/shm, or a plain one with a warning."""
    spill_dir: str = ""
    """Where loaders may spill a sort; empty: under the temporary directory."""
    memory_bytes: int = 0
    """For shard files and executors together; 0: half of the machine's memory."""
    host: str = "127.0.0.1"
    """Address that executors listen on and gateways reach."""
    lease_seconds: float = 10.0
    executor_grace_seconds: float = 300.0
    """How long an executor serves on without a renewed lease."""
    loader_memory_bytes: int = 1024 * 1024 * 1024
    drain_seconds: float = 30.0
    """A replaced executor ends when its last query has, or after this."""
    enforcement: str = "auto"
    """What holds processes to their budgets: `cgroup`, `nice`, `none`; `auto`: control groups if
    they can be made here, else nice values and a watch over memory."""
    cpu_policy: str = "adaptive"
    """How tenants share the CPU: `fixed` weights, `adaptive` (a tenant beyond its entitlement has
    a low weight for a while), `none`."""
    cgroup: str = ""
    """Directory of an empty version 2 control group delegated to the host; empty: its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """A gateway."""

    host: str = "127.0.0.1"
    port: int = 31337
    metrics_port: int = 0
    """Prometheus and receipts over HTTP; 0: none."""
    lease_seconds: float = 10.0
    concurrency: int = 64
    """Queries of all tenants that run at once; beyond, tenants take turns by their weights."""
    token_seconds: float = 3600.0
    """Life of a bearer token."""
    frozen_serving_seconds: float = 3600.0
    """How long to serve from the last routing table while the store is unreachable."""
    tls_cert_file: str = ""
    tls_key_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything, by section."""

    store: StoreSettings = field(default_factory=StoreSettings)
    master: MasterSettings = field(default_factory=MasterSettings)
    host: HostSettings = field(default_factory=HostSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)


def load_settings(
    file: str | Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Settings from `file` (default: what `ACCEL_CONFIG` names, else none) and `environ`.

    Raises:
        ConfigError: the file cannot be read, or a value is unknown or of another type.
    """
    environ = os.environ if environ is None else environ
    file = file or environ.get("ACCEL_CONFIG")
    values: dict[str, dict[str, Any]] = {}
    if file:
        try:
            values = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read settings from {file}: {error}") from error
    for section in (f.name for f in _fields(Settings)):
        for name in _field_names(section):
            value = environ.get(f"ACCEL_{section}_{name}".upper())
            if value is not None:
                parsed: Any = value.split(",") if name == "endpoints" else value
                values.setdefault(section, {})[name] = parsed
    _refuse_unknown(values, file)
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"bad setting in {file or 'the environment'}: {error}") from error


def settings_to_toml(settings: Settings) -> str:
    """`settings` as a file that `load_settings` reads back. It may hold a password."""
    lines = []
    for section, values in msgspec.to_builtins(settings).items():
        lines.append(f"[{section}]")
        for name, value in values.items():
            # JSON strings, numbers, booleans and lists are TOML as well.
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
        lines.append("")
    return "\n".join(lines)


def _fields(cls: type) -> tuple[msgspec.inspect.Field, ...]:
    info = msgspec.inspect.type_info(cls)
    assert isinstance(info, msgspec.inspect.DataclassType)
    return info.fields


def _field_names(section: str) -> tuple[str, ...]:
    by_name = {f.name: f.type for f in _fields(Settings)}
    info = by_name[section]
    assert isinstance(info, msgspec.inspect.DataclassType)
    return tuple(f.name for f in info.fields)


def _refuse_unknown(values: Mapping[str, Mapping[str, Any]], file: object) -> None:
    sections = {f.name for f in _fields(Settings)}
    for section, fields in values.items():
        if section not in sections:
            raise ConfigError(
                f"{file}: unknown section [{section}]; there are {', '.join(sorted(sections))}"
            )
        for name in fields:
            if name not in _field_names(section):
                raise ConfigError(
                    f"{file}: unknown setting {name} in [{section}]; "
                    f"there are {', '.join(_field_names(section))}"
                )
