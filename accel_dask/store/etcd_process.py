"""One etcd server process: its flags, its start, its log."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Final

from accel_dask.launch import dying_with_parent
from accel_dask.store.etcd_binary import EtcdBinary, clean_environment
from accel_dask.store.etcd_cluster_file import HOST, ClusterFile, EtcdMember

_MAX_LOG_BYTES: Final = 16 * 1024 * 1024


class EtcdProcess:
    """A member of an embedded cluster, running."""

    def __init__(
        self, binary: EtcdBinary, data_dir: Path, cluster: ClusterFile, member: EtcdMember
    ) -> None:
        self.member = member
        self.log_file = data_dir / f"{member.name}.log"
        if self.log_file.exists() and self.log_file.stat().st_size > _MAX_LOG_BYTES:
            self.log_file.replace(self.log_file.with_suffix(".log.old"))
        flags = _flags(binary, data_dir, cluster, member)
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                dying_with_parent([str(binary.path), *flags]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=data_dir,
                env=clean_environment(os.environ),
                start_new_session=True,  # a terminal's ^C is for us; we stop members in order
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._popen.poll()

    def send(self, number: signal.Signals) -> None:
        """Nothing if it has ended."""
        self._popen.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within `seconds`."""
        try:
            self._popen.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def last_words(self, characters: int = 600) -> str:
        """The end of what it logged since it started."""
        with self.log_file.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")[-characters:].strip()


def _flags(
    binary: EtcdBinary, data_dir: Path, cluster: ClusterFile, member: EtcdMember
) -> list[str]:
    client_url = f"http://{HOST}:{member.client_port}"
    flags = {
        "name": member.name,
        "data-dir": str(data_dir / member.name),
        "listen-client-urls": client_url,
        "advertise-client-urls": client_url,
        "listen-peer-urls": member.peer_url,
        "initial-advertise-peer-urls": member.peer_url,
        "initial-cluster": ",".join(f"{m.name}={m.peer_url}" for m in cluster.members),
        "initial-cluster-token": cluster.token,
        "initial-cluster-state": "new",
        "strict-reconfig-check": "true",
        # A member that comes back must not depose a healthy leader.
        "pre-vote": "true",
        # etcd's defaults. Members on one host answer in well under 100 ms, so that a lost
        # leader is replaced in 1 to 2 s. More would only lengthen that, and the shortest lease
        # (one and a half election timeouts) with it.
        "heartbeat-interval": "100",
        "election-timeout": "1000",
        "logger": "zap",
        "log-level": "warn",
        "log-outputs": "stderr",
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "10m",
        "quota-backend-bytes": str(512 * 1024 * 1024),
        "snapshot-count": "10000",
        "max-txn-ops": "512",
    }
    if len(cluster.members) > 1:
        if binary.version < (3, 6, 0):
            flags["experimental-initial-corrupt-check"] = "true"
        else:
            flags["feature-gates"] = "InitialCorruptCheck=true"
    return [f"--{name}={value}" for name, value in flags.items()]
