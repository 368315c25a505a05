"""Typed records and commits on top of a state store's bytes and keys."""

from __future__ import annotations

import logging
import secrets
import uuid
from typing import Final

from accel_dask.codec import decode, encode
from accel_dask.errors import (
    CommitConflict,
    InvariantViolated,
    OutcomeUnknown,
    StoreError,
    StoreMismatch,
)
from accel_dask.model.cluster import RECORD_TYPES, ClusterView, Record, Versioned
from accel_dask.model.commit import (
    Commit,
    Delete,
    Incarnation,
    Put,
    Requirement,
    Unchanged,
    UnchangedUnder,
)
from accel_dask.model.ids import Path, Revision
from accel_dask.model.member import META_PATH, ClusterMeta
from accel_dask.store.base import (
    MAX_TRANSACTION_OPS,
    Compare,
    CreateRevisionIs,
    DeleteOp,
    KeyValue,
    ModRevisionIs,
    NoneNewerUnder,
    NotNewer,
    Op,
    PutOp,
    StateStore,
    Transaction,
)
from accel_dask.store.keys import RECORDS, key_of, keys_under, path_of

logger = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1
"""Of the records and of how their keys are spelled."""

_TICKET_KEY_BYTES: Final = 32


def read_view(store: StateStore) -> ClusterView:
    """All records at one revision, read now."""
    listing = store.read(RECORDS)
    entries: dict[Path, Versioned[Record]] = {}
    for item in listing.items:
        path = path_of(item.key)
        versioned = versioned_of(item)
        if path is not None and versioned is not None:
            entries[path] = versioned
    return ClusterView(listing.revision, entries)


def versioned_of(item: KeyValue) -> Versioned[Record] | None:
    """The record in `item`. None if its kind is not known here, or (logged) if it does not
    decode: one bad record must not stop everything that reads the others."""
    path = path_of(item.key)
    record_type = RECORD_TYPES.get(path[0]) if path else None
    if record_type is None:
        return None
    try:
        record = decode(item.value, record_type)
        if record.path != path:
            raise InvariantViolated(f"the record says it belongs at {record.path}")
    except (InvariantViolated, ValueError) as error:
        logger.error("record %s is left out of the view: %s", item.key, error)
        return None
    return Versioned(record, Revision(item.create_revision), Revision(item.mod_revision))


def commit_records(store: StateStore, commit: Commit, *, idempotent: bool = False) -> Revision:
    """Apply `commit`; the revision at which it was applied.

    Raises:
        CommitConflict: a requirement did not hold; nothing was changed.
        OutcomeUnknown: the answer was lost; read to find out.
        StoreError: the commit is larger than a transaction can be; nothing was changed.
    """
    compares = tuple(c for r in commit.requirements for c in _compares_of(r))
    transaction = Transaction(
        compares=compares,
        ops=tuple(_op_of(change) for change in commit.changes),
        idempotent=idempotent,
    )
    if max(len(compares), len(transaction.ops)) > MAX_TRANSACTION_OPS:
        raise StoreError(
            f"the commit '{commit.because}' has {len(compares)} requirements and "
            f"{len(transaction.ops)} changes; one transaction takes {MAX_TRANSACTION_OPS} of each"
        )
    try:
        return Revision(store.commit(transaction))
    except CommitConflict as error:
        raise CommitConflict(f"'{commit.because}' was refused: {error}") from error
    except OutcomeUnknown as error:
        raise OutcomeUnknown(f"'{commit.because}' may or may not be in place: {error}") from error


def put_record(store: StateStore, record: Record, lease_id: int = 0) -> Revision:
    """Write `record` whatever is there now. A lost answer is retried: writing the same record
    again does no harm."""
    op = PutOp(key_of(record.path), encode(record), lease_id)
    return Revision(store.commit(Transaction(ops=(op,), idempotent=True)))


def delete_record(store: StateStore, path: Path) -> Revision:
    """Delete the record at `path` if there is one."""
    return Revision(
        store.commit(Transaction(ops=(DeleteOp(key_of(path)),), idempotent=True)),
    )


def create_record(store: StateStore, record: Record, lease_id: int = 0) -> Revision:
    """Write `record` where there is none.

    Raises:
        CommitConflict: there is one already.
    """
    key = key_of(record.path)
    transaction = Transaction(
        compares=(CreateRevisionIs(key, 0),),
        ops=(PutOp(key, encode(record), lease_id),),
    )
    try:
        return Revision(store.commit(transaction))
    except CommitConflict as error:
        raise CommitConflict(f"there is already a record {'/'.join(record.path)}") from error


def get_record(store: StateStore, path: Path) -> Versioned[Record] | None:
    """The record at `path`, read now."""
    item = store.get(key_of(path))
    return versioned_of(item) if item else None


def ensure_meta(store: StateStore, cluster_id: str = "") -> ClusterMeta:
    """The cluster's meta record; written now, with a new ticket key, if there is none.

    Raises:
        StoreMismatch: this is another cluster than `cluster_id`, or its records are of a
            format that this version does not know.
    """
    while True:
        item = store.get(key_of(META_PATH))
        if item is not None:
            return _checked_meta(decode(item.value, ClusterMeta), cluster_id)
        meta = ClusterMeta(
            cluster_id=cluster_id or uuid.uuid4().hex,
            format_version=FORMAT_VERSION,
            incarnation=1,
            ticket_key=secrets.token_hex(_TICKET_KEY_BYTES),
        )
        try:
            create_record(store, meta)
        except (CommitConflict, OutcomeUnknown) as error:
            logger.info("reading the cluster's meta record again: %s", error)


def _checked_meta(meta: ClusterMeta, cluster_id: str) -> ClusterMeta:
    if meta.format_version != FORMAT_VERSION:
        raise StoreMismatch(
            f"cluster {meta.cluster_id} keeps its records in format {meta.format_version}; "
            f"this version of accel-dask knows format {FORMAT_VERSION}"
        )
    if cluster_id and meta.cluster_id != cluster_id:
        raise StoreMismatch(
            f"the store belongs to cluster {meta.cluster_id}, not to {cluster_id}; "
            "check the endpoints and the prefix"
        )
    return meta


def _compares_of(requirement: Requirement) -> tuple[Compare, ...]:
    match requirement:
        case Unchanged(path, mod_revision):
            return (ModRevisionIs(key_of(path), mod_revision),)
        case Incarnation(path, create_revision):
            return (CreateRevisionIs(key_of(path), create_revision),)
        case UnchangedUnder((), revision):
            return (NoneNewerUnder(RECORDS, revision),)
        case UnchangedUnder(prefix, revision):
            return (
                NotNewer(key_of(prefix), revision),
                NoneNewerUnder(keys_under(prefix), revision),
            )


def _op_of(change: Put | Delete) -> Op:
    if isinstance(change, Delete):
        return DeleteOp(key_of(change.path))
    return PutOp(key_of(change.record.path), encode(change.record), change.lease_id)
