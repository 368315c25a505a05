"""Commits: what must still hold, and what then changes, in one transaction of the store."""

from __future__ import annotations

from dataclasses import dataclass

from accel_dask.errors import CommitConflict
from accel_dask.model.cluster import ClusterView, Record, Versioned
from accel_dask.model.ids import Path, Revision
from accel_dask.model.member import LEADER_PATH, META_PATH, ClusterMeta, FencingToken


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The record at `path` was last written at `mod_revision`; 0: there is none."""

    path: Path
    mod_revision: Revision


@dataclass(frozen=True, slots=True)
class Incarnation:
    """The record at `path` was created at `create_revision`, whatever it says now."""

    path: Path
    create_revision: Revision


@dataclass(frozen=True, slots=True)
class UnchangedUnder:
    """No record under `prefix` was added or rewritten after `revision`.

    Blind to deletions, as the store's own range comparison is.
    """

    prefix: Path
    revision: Revision


Requirement = Unchanged | Incarnation | UnchangedUnder


@dataclass(frozen=True, slots=True)
class Put:
    """Write `record` at its path; on a lease it vanishes when the lease ends."""

    record: Record
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    path: Path


Change = Put | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """All of `changes`, or, if a requirement fails, nothing."""

    requirements: tuple[Requirement, ...]
    changes: tuple[Change, ...]
    because: str
    """One sentence: why. Operators read it."""


def path_of(change: Change) -> Path:
    return change.record.path if isinstance(change, Put) else change.path


def unchanged(view: ClusterView, path: Path) -> Unchanged:
    """The requirement that `path` is still as `view` has it (present or absent)."""
    found = view.get(path)
    return Unchanged(path, found.mod_revision if found else Revision(0))


def fence_by(view: ClusterView, token: FencingToken) -> tuple[Requirement, ...]:
    """The requirements that `token` is still the leader's, in this history of the store."""
    return (Incarnation(LEADER_PATH, token.create_revision), unchanged(view, META_PATH))


def holds(view: ClusterView, requirement: Requirement) -> bool:
    match requirement:
        case Unchanged(path, mod_revision):
            found = view.get(path)
            return (found.mod_revision if found else 0) == mod_revision
        case Incarnation(path, create_revision):
            found = view.get(path)
            return (found.create_revision if found else 0) == create_revision
        case UnchangedUnder(prefix, revision):
            return all(
                entry.mod_revision <= revision
                for path, entry in view.entries.items()
                if path[: len(prefix)] == prefix
            )


def apply_commit(view: ClusterView, commit: Commit) -> ClusterView:
    """`view` after `commit`, one revision later.

    Raises:
        CommitConflict: a requirement does not hold in `view`.
    """
    for requirement in commit.requirements:
        if not holds(view, requirement):
            raise CommitConflict(f"{requirement} does not hold ({commit.because})")
    revision = Revision(view.revision + 1)
    entries = dict(view.entries)
    for change in commit.changes:
        path = path_of(change)
        if isinstance(change, Delete):
            entries.pop(path, None)
        else:
            before = entries.get(path)
            created = before.create_revision if before else revision
            entries[path] = Versioned(change.record, created, revision)
    return ClusterView(revision, entries)


def fencing_token(view: ClusterView) -> FencingToken | None:
    """The token of the leader in `view`."""
    leader = view.get(LEADER_PATH)
    meta = view.find(ClusterMeta, META_PATH)
    if leader is None or meta is None:
        return None
    return FencingToken(meta.incarnation, leader.create_revision)
