"""Parquet files as a shard's source: check them, and say in SQL how to read them right.

Pitfalls that this module is made of (each one is silent in the engine):
a file without field ids, read by field id, gives NULLs; a name that was dropped and added again
finds the dropped column's values; directory names turn into columns; a lossy cast rounds.
"""

# ruff: noqa: S608 - SQL is built from quoted names and literals
from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from accel_dask.errors import NotAcceleratable, SchemaUnsupported, SnapshotGone, ValidationFailed
from accel_dask.model import date_trunc
from accel_dask.model.bounds import FLOATS
from accel_dask.model.load_plan import LoadTask
from accel_dask.model.snapshot import Column, DataFile, Matching

_LOCAL_SCHEME = re.compile(r"^file:(//(localhost)?)?(?=/)")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_UNSIGNED = ("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
_INSTANTS = ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE")
_DECIMAL = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")

GONE_ROWS = "temp.main.gone_rows"
"""Rows of data files that position deletes removed: (file, position), each once."""


@dataclass(frozen=True, slots=True)
class FileColumn:
    """A top-level column as a Parquet file's footer has it."""

    name: str
    field_id: int | None
    type: str
    nested: bool
    bytes16: bool
    """Of 16 bytes each, as UUIDs without their mark are."""


@dataclass(frozen=True, slots=True)
class Footer:
    """What we need of a Parquet file's footer."""

    rows: int = 0
    columns: tuple[FileColumn, ...] = ()


def local_path(location: str) -> str:
    """The path of a file on a mounted file system.

    Raises:
        NotAcceleratable: the location is of an object store.
    """
    path = _LOCAL_SCHEME.sub("", location)
    if _SCHEME.match(path):
        raise NotAcceleratable(
            f"cannot read {location}: only files on a local or mounted file system are supported"
        )
    return path


def quote(name: str) -> str:
    """`name` as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """`text` as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def file_list(paths: Iterable[str]) -> str:
    """Paths as a SQL list for `read_parquet`, which would take `*`, `?` and `[` for patterns."""
    return "[" + ", ".join(literal(as_pattern(path)) for path in paths) + "]"


def as_pattern(path: str) -> str:
    """The pattern that only `path` matches."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def read_footers(
    connection: duckdb.DuckDBPyConnection, files: Sequence[DataFile]
) -> Mapping[str, Footer]:
    """Footers by local path, after each file was found to be the one that was planned.

    Raises:
        SnapshotGone: a file is missing or is another one by now.
        ValidationFailed: a file is not Parquet, or has another number of rows than promised.
    """
    if not files:
        return {}
    check_files(files)
    paths = file_list(local_path(file.path) for file in files)
    try:
        rows: dict[str, int] = dict(
            connection.execute(
                f"SELECT file_name, num_rows FROM parquet_file_metadata({paths})"
            ).fetchall()
        )
        nodes = connection.execute(
            "SELECT file_name, name, field_id, duckdb_type, type_length, num_children "
            f"FROM parquet_schema({paths}) ORDER BY file_name, column_id"
        ).fetchall()
    except (duckdb.InvalidInputException, duckdb.IOException, duckdb.SerializationException) as e:
        raise ValidationFailed(f"a data file cannot be read as Parquet: {e}") from e
    columns = _top_level(nodes)
    footers = {path: Footer(rows[path], tuple(columns[path])) for path in rows}
    for file in files:
        footer = footers.get(local_path(file.path))
        if footer is None or footer.rows != file.record_count:
            raise ValidationFailed(
                f"{file.path} has {footer.rows if footer else 'unknown'} rows, "
                f"the snapshot says {file.record_count}"
            )
    return footers


def check_files(files: Iterable[DataFile]) -> None:
    """Check that each file, as far as its source tells them apart, is still the planned one.

    Raises:
        SnapshotGone: one is missing or is another one by now.
    """
    for file in files:
        _check_stat(file.path, file.size_bytes, file.version)
        for delete in file.deletes:
            _check_stat(delete.path, delete.size_bytes)


def _check_stat(location: str, size_bytes: int, version: str = "") -> None:
    try:
        found = Path(local_path(location)).stat()
    except OSError as error:
        raise SnapshotGone(
            f"{location} is not there any more ({error.strerror}); publish the newest snapshot"
        ) from error
    if found.st_size != size_bytes or (version and version != str(found.st_mtime_ns)):
        raise SnapshotGone(
            f"{location} was replaced since it was planned ({found.st_size} bytes now, "
            f"{size_bytes} then); publish the newest snapshot"
        )


def _top_level(nodes: Iterable[tuple[Any, ...]]) -> Mapping[str, list[FileColumn]]:
    """The root's children out of each file's schema tree, which comes depth first."""
    columns: dict[str, list[FileColumn]] = {}
    below = 0  # nodes still to come inside the current top-level column
    for file, name, field_id, kind, length, children in nodes:
        if file not in columns:
            columns[file] = []
            below = 0
        elif below:
            below += (children or 0) - 1
        else:
            columns[file].append(
                FileColumn(
                    name, field_id, kind or "", nested=bool(children), bytes16=length == "16"
                )
            )
            below = children or 0
    return columns


def select_rows(task: LoadTask, footers: Mapping[str, Footer], gone_rows: str = GONE_ROWS) -> str:
    """A SELECT of all rows of the shard, columns as ordered, deleted rows left out.

    With position deletes, `gone_rows` must have been made before.

    Raises:
        NotAcceleratable, SchemaUnsupported: a file that would not be read right.
    """
    groups: dict[tuple[Reading, ...], dict[bool, list[str]]] = {}
    for file in task.files:
        path = local_path(file.path)
        readings = _readings(task.columns, file, footers[path])
        groups.setdefault(readings, {}).setdefault(bool(file.deletes), []).append(path)
    selects = [
        _select_group(task.columns, readings, paths, gone_rows if has_deletes else "")
        for readings, by_deletes in groups.items()
        for has_deletes, paths in by_deletes.items()
    ]
    return " UNION ALL ".join(selects) or _select_nothing(task.columns)


@dataclass(frozen=True, slots=True)
class Reading:
    """Where one column comes from in one file: a field id, a name, or a constant."""

    field_id: int | None = None
    name: str | None = None
    constant: str | None = None


def _readings(columns: Sequence[Column], file: DataFile, footer: Footer) -> tuple[Reading, ...]:
    constants = dict(file.constants)
    found = _by_field_id(file, footer) if file.matching is Matching.FIELD_ID else None
    by_name = _by_name(file, footer) if found is None else {}
    readings = []
    for column in columns:
        if found is not None:
            there = found.get(column.field_id) if column.field_id is not None else None
            reading = Reading(field_id=column.field_id)
        else:
            name = _name_in_file(column, file)
            there = by_name.get(name) if name is not None else None
            if there is None and file.names is None and column.name not in constants:
                raise SchemaUnsupported(f"{file.path} has no column {name!r}")
            reading = Reading(name=name)
        if there is None:
            reading = Reading(constant=constants.get(column.name))
        else:
            _check_type(column, there, file.path)
        readings.append(reading)
    return tuple(readings)


def _by_field_id(file: DataFile, footer: Footer) -> Mapping[int, FileColumn]:
    found = {c.field_id: c for c in footer.columns if c.field_id is not None}
    if not found and footer.columns:
        raise NotAcceleratable(
            f"{file.path} has no field ids; set the table's schema.name-mapping.default "
            "property, or rewrite the file"
        )
    if len(found) < sum(c.field_id is not None for c in footer.columns):
        raise NotAcceleratable(f"{file.path} has two columns with one field id; rewrite the file")
    return found


def _by_name(file: DataFile, footer: Footer) -> Mapping[str, FileColumn]:
    found = {c.name: c for c in footer.columns}
    if len({name.lower() for name in found}) < len(footer.columns):
        raise NotAcceleratable(
            f"{file.path} has columns whose names differ only in case; rewrite the file"
        )
    return found


def _name_in_file(column: Column, file: DataFile) -> str | None:
    if file.names is not None:
        return dict(file.names).get(column.name)
    return column.source_name or column.name


def _check_type(column: Column, found: FileColumn, path: str) -> None:
    if found.nested or not casts_exactly(found.type, column.type, bytes16=found.bytes16):
        raise SchemaUnsupported(
            f"{path}: column {found.name!r} is {found.type or 'of an unknown type'}, which cannot "
            f"be held as {column.type} without loss; leave {column.name!r} out of the dataset's "
            "columns, or rewrite the file"
        )


def casts_exactly(found: str, held: str, *, bytes16: bool = False) -> bool:
    """Whether every value of the file's type `found` is the same value as a `held`."""
    if found == held:
        return True
    if held in _INTEGERS:
        signed = _INTEGERS[: _INTEGERS.index(held)]
        return found in signed or found in _UNSIGNED[: len(signed)]
    if held in _UNSIGNED:
        return found in _UNSIGNED[: _UNSIGNED.index(held)]
    if held in _INSTANTS:
        return found in _INSTANTS  # both are UTC here
    decimals = _DECIMAL.fullmatch(found), _DECIMAL.fullmatch(held)
    if decimals[0] and decimals[1]:
        (width, scale), (wide, scale_held) = (
            (int(match[1]), int(match[2])) for match in decimals if match
        )
        return scale == scale_held and width <= wide
    return (found, held) in {("FLOAT", "DOUBLE"), ("JSON", "VARCHAR")} or (
        (found, held) == ("BLOB", "UUID") and bytes16
    )


def _select_group(
    columns: Sequence[Column],
    readings: Sequence[Reading],
    paths: Sequence[str],
    gone_rows: str,
) -> str:
    """One scan over files that are read alike. Columns get neutral names inside it, so that
    no column's name can meet the engine's own `filename` and `file_row_number`."""
    fields = []
    expressions = []
    for index, (column, reading) in enumerate(zip(columns, readings, strict=True)):
        inner = f"c{index}"
        if reading.field_id is None and reading.name is None:
            value = "NULL" if _is_missing(column, reading) else literal(reading.constant or "")
            expressions.append(f"CAST({value} AS {column.type}) AS {quote(column.name)}")
            continue
        key = str(reading.field_id) if reading.name is None else literal(reading.name)
        fields.append(f"{key}: {{name: '{inner}', type: '{column.type}', default_value: NULL}}")
        if column.type in FLOATS:
            inner = f"CASE WHEN isnan({inner}) THEN NULL ELSE {inner} END"
        expressions.append(f"{inner} AS {quote(column.name)}")
    schema = f"schema=MAP {{{', '.join(fields)}}}" if fields else "hive_partitioning=false"
    select = f"SELECT {', '.join(expressions)} FROM read_parquet({file_list(paths)}, {schema}"
    if not gone_rows:
        return select + ")"
    return (
        f"{select}, filename='accel_file', file_row_number=true) AS d ANTI JOIN {gone_rows} AS g "
        "ON d.accel_file = g.file AND d.file_row_number = g.position"
    )


def _is_missing(column: Column, constant: Reading) -> bool:
    """NaN is, as it is in the files."""
    text = constant.constant
    return text is None or (column.type in FLOATS and math.isnan(float(text)))


def _select_nothing(columns: Sequence[Column]) -> str:
    nulls = ", ".join(f"CAST(NULL AS {c.type}) AS {quote(c.name)}" for c in columns)
    return f"SELECT {nulls} WHERE false"


def filtered(task: LoadTask, rows: str) -> str:
    """A SELECT of those of `rows` that the shard holds."""
    where = ""
    if task.row_filter is not None:
        where = f" WHERE ({date_trunc.rewritten(task.row_filter)})"
    return f"SELECT * FROM ({rows}){where}"


def collect_deletes(
    connection: duckdb.DuckDBPyConnection, files: Sequence[DataFile], gone_rows: str = GONE_ROWS
) -> int:
    """Make `gone_rows` from the files' position deletes; the number of rows in it. Under another
    name than `GONE_ROWS` it is a view over the files.

    A delete counts for a data file only where the snapshot attached it: a delete file may name
    files of other shards, and older ones never reach newer files.
    """
    pairs = [
        f"({literal(local_path(delete.path))}, {literal(local_path(file.path))}, "
        f"{file.record_count})"
        for file in files
        for delete in file.deletes
    ]
    if not pairs:
        return 0
    paths = sorted({local_path(delete.path) for file in files for delete in file.deletes})
    schema = (
        "schema=MAP {'file_path': {name: 'c0', type: 'VARCHAR', default_value: NULL}, "
        "'pos': {name: 'c1', type: 'BIGINT', default_value: NULL}}"
    )
    # Kept in a table, they would take memory for as long as the database lives.
    kind = "TEMP TABLE" if gone_rows == GONE_ROWS else "VIEW"
    try:
        connection.execute(
            f"CREATE OR REPLACE {kind} {gone_rows} AS "
            "SELECT DISTINCT p.file AS file, d.c1 AS position "
            f"FROM read_parquet({file_list(paths)}, {schema}, filename='accel_file') AS d "
            f"JOIN (VALUES {', '.join(pairs)}) AS p(delete_file, file, rows) "
            "ON d.accel_file = p.delete_file "
            "AND regexp_replace(d.c0, '^file:(//(localhost)?)?/', '/') = p.file "
            "AND d.c1 >= 0 AND d.c1 < p.rows"
        )
    except (duckdb.InvalidInputException, duckdb.IOException) as error:
        raise ValidationFailed(f"a position-delete file cannot be read: {error}") from error
    counted = connection.execute(f"SELECT count(*) FROM {gone_rows}").fetchone()
    assert counted is not None
    return int(counted[0])
