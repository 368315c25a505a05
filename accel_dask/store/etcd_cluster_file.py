"""What an embedded etcd cluster is, kept beside its data: identity, members and ports.

etcd starts happily on another cluster's data directory; this file is how we notice.
"""

from __future__ import annotations

import os
import random
import socket
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from accel_dask.codec import decode, encode
from accel_dask.errors import ConfigError, InvariantViolated, StoreMismatch
from accel_dask.store.etcd_binary import EtcdBinary

HOST: Final = "127.0.0.1"
FILE_NAME: Final = "cluster.json"

_PORTS: Final = range(12_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections: one of those could take the
fixed port of a member while it is down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdMember:
    name: str
    client_port: int
    peer_port: int

    @property
    def client_address(self) -> str:
        return f"{HOST}:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://{HOST}:{self.peer_port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    token: str
    """Ours, random; goes into etcd's own cluster id."""
    etcd_cluster_id: str = ""
    """Hex; empty until the first start succeeded."""
    etcd_version: str
    members: tuple[EtcdMember, ...]


def new_cluster(members: int, binary: EtcdBinary) -> ClusterFile:
    """A cluster that is not yet on disk, on ports that are free now."""
    ports = _free_ports(2 * members)
    return ClusterFile(
        token=uuid.uuid4().hex,
        etcd_version=binary.version_text,
        members=tuple(
            EtcdMember(name=f"m{i}", client_port=ports[2 * i], peer_port=ports[2 * i + 1])
            for i in range(members)
        ),
    )


def load_cluster(data_dir: Path, members: int, binary: EtcdBinary) -> ClusterFile | None:
    """The cluster of `data_dir`; None if the directory is fresh.

    Raises:
        StoreMismatch: the directory holds something else than a cluster of `members` that
            `binary` can go on with.
    """
    file = data_dir / FILE_NAME
    if not file.exists():
        foreign = [d.name for d in data_dir.iterdir() if (d / "member").exists()]
        if (data_dir / "member").exists() or foreign:
            raise StoreMismatch(f"{data_dir} holds data of an etcd that is not ours: no {file}")
        return None
    try:
        cluster = decode(file.read_bytes(), ClusterFile)
    except InvariantViolated as error:
        raise StoreMismatch(f"{file} is damaged: {error}") from error
    if len(cluster.members) != members:
        raise StoreMismatch(
            f"{data_dir} holds an etcd cluster of {len(cluster.members)}, not of {members}; start "
            "it with as many, or use another directory"
        )
    written_by = tuple(map(int, cluster.etcd_version.split(".")))
    if written_by[:2] > binary.version[:2]:
        raise StoreMismatch(
            f"{data_dir} was written by etcd {cluster.etcd_version}; {binary.path} is "
            f"{binary.version_text}, and etcd cannot go back"
        )
    if cluster.etcd_cluster_id:
        lost = [m.name for m in cluster.members if not (data_dir / m.name / "member").exists()]
        if lost:
            raise StoreMismatch(
                f"the data of etcd member {', '.join(lost)} is gone from {data_dir}; restore it, "
                "or begin with an empty directory and publish again"
            )
    return cluster


def save_cluster(data_dir: Path, cluster: ClusterFile) -> None:
    """Write it so that a crash leaves the old file or the new one."""
    temporary = data_dir / (FILE_NAME + ".new")
    with temporary.open("wb") as file:
        file.write(encode(cluster))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(data_dir / FILE_NAME)


def confirm_identity(cluster: ClusterFile, etcd_cluster_id: int, binary: EtcdBinary) -> ClusterFile:
    """`cluster` as it is after a successful start.

    Raises:
        StoreMismatch: etcd says that it is another cluster.
    """
    found = f"{etcd_cluster_id:x}"
    if cluster.etcd_cluster_id not in ("", found):
        raise StoreMismatch(
            f"the data directories hold etcd cluster {found}, but {FILE_NAME} is of cluster "
            f"{cluster.etcd_cluster_id}; were they moved or restored from a backup?"
        )
    return replace(cluster, etcd_cluster_id=found, etcd_version=binary.version_text)


def _free_ports(count: int) -> list[int]:
    free: list[int] = []
    for port in random.sample(_PORTS, k=min(len(_PORTS), 50 * count)):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise ConfigError(f"no {count} free ports in {_PORTS.start}-{_PORTS.stop} on {HOST}")
