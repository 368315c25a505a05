"""What a connector offers; one module per outside system implements it."""

from __future__ import annotations

from typing import Protocol

from accel_dask.model.snapshot import SourceSnapshot


class SnapshotSource(Protocol):
    """A source of snapshots. Opened for one dataset, used by one thread, then closed.

    Every method may raise `SourceUnavailable`; all errors are of the `LoadError` family or
    `ConfigError`, and name the dataset, the table and the way out.
    """

    def current_version(self) -> str:
        """A cheap text that changes whenever there may be a new snapshot; for the poller."""

    def plan(self, snapshot: str | None) -> SourceSnapshot:
        """The files, columns and statistics of `snapshot`, or of the newest one.

        Raises:
            SnapshotGone: there is no such snapshot.
            NotAcceleratable: it uses a feature that would not be read right.
            SchemaUnsupported: a column that the engine cannot hold, or that is not there.
        """

    def pin(self, planned: SourceSnapshot, label: str) -> None:
        """Keep the snapshot's files alive under `label` until `unpin`. Best effort: a source
        that cannot is left alone, and its files may go."""

    def unpin(self, label: str) -> None: ...

    def pinned_labels(self, prefix: str) -> tuple[str, ...]:
        """Labels that begin with `prefix` and keep something alive, whoever pinned it."""

    def close(self) -> None: ...
