"""What a source says of one of its snapshots: identity, columns, files, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotId:
    """The identity of a snapshot. Time is not part of it."""

    table_uuid: str
    snapshot: str
    schema_id: str

    def __str__(self) -> str:
        return f"{self.snapshot} (schema {self.schema_id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column as we hold it."""

    name: str
    type: str
    """A DuckDB type name, such as `BIGINT` or `DECIMAL(12,2)`."""
    nullable: bool = True
    source_name: str = ""
    """Its name in data files without field ids; empty: the same as `name`."""
    field_id: int | None = None
    """Its Iceberg field id; None: matched by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnStats:
    """What is known of one column's values. Every figure may be missing.

    `lower` and `upper` are bounds, not always values that occur, in the text that
    DuckDB casts to the column's type (ISO dates, plain decimals).
    """

    name: str
    null_count: int | None = None
    lower: str | None = None
    upper: str | None = None
    exact: bool = False
    """True: the bounds are values that occur."""


class Matching(StrEnum):
    """How a data file's columns are found."""

    FIELD_ID = "field_id"
    NAME = "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFile:
    """An Iceberg position-delete file: rows of data files that are gone."""

    path: str
    size_bytes: int
    record_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One Parquet file of a snapshot."""

    path: str
    size_bytes: int
    record_count: int
    version: str = ""
    """Tells this content from another under the same path, such as a modification time;
    empty: files at this source never change."""
    partition: str = ""
    """The partition it belongs to, in a text whose order is the partitions' order."""
    matching: Matching = Matching.NAME
    names: tuple[tuple[str, str], ...] | None = None
    """With `Matching.NAME`: which of our columns the file holds, each with its name there;
    None: all of them, under `source_name` or `name`."""
    constants: tuple[tuple[str, str | None], ...] = ()
    """Values, from its path or partition, of columns that the file itself may lack."""
    stats: tuple[ColumnStats, ...] = ()
    deletes: tuple[DeleteFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSnapshot:
    """A snapshot as its connector planned it: all that is needed to cut and load it."""

    snapshot_id: SnapshotId
    sequence: int
    """Grows along a table's history; an older snapshot has a smaller one."""
    columns: tuple[Column, ...]
    files: tuple[DataFile, ...]
    sort_by: tuple[str, ...] = ()
    """The source's own sort order, or its partition columns; names of `columns`."""
