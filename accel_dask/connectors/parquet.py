"""A directory or pattern of Parquet files as a source.

Options: `path`, a directory (searched through) or a glob; `hive`: `true` to take `key=value`
directory names for columns, `false` by default (they then only say which files belong together).
A snapshot is the list of files there are: path, size and modification time.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import duckdb

from accel_dask.connectors.projection import check_options, held_columns
from accel_dask.errors import (
    ConfigError,
    NotAcceleratable,
    SchemaUnsupported,
    SnapshotGone,
    SourceUnavailable,
)
from accel_dask.model.bounds import FLOATS, merge_stats
from accel_dask.model.dataset import Dataset
from accel_dask.model.snapshot import (
    Column,
    ColumnStats,
    DataFile,
    Matching,
    SnapshotId,
    SourceSnapshot,
)

_OPTIONS = frozenset({"path", "hive"})
_FEW_FILES: Final = 32
"""Opening an engine costs 12 ms of CPU, as much as reading so many footers more than once."""
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_PLAIN_TYPE = re.compile(
    r"BOOLEAN|U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)|DATE|TIME|"
    r"TIMESTAMP|TIMESTAMP_NS|TIMESTAMP WITH TIME ZONE|VARCHAR|UUID|BLOB"
)
# Statistics of these types are not texts that cast back to the same value.
_NO_BOUNDS = frozenset({"BLOB", "UUID"})


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was listed."""

    path: str
    size_bytes: int
    modified_ns: int


class ParquetSource:
    """Parquet files under one path; see `SnapshotSource`."""

    def __init__(self, dataset: Dataset) -> None:
        """Check the options.

        Raises:
            ConfigError: they do not fit, or there is no such directory.
        """
        check_options(dataset, _OPTIONS)
        path, hive = dataset.source.option("path"), dataset.source.option("hive") or "false"
        if not path:
            raise ConfigError(f"{dataset.dataset_id}: the parquet connector needs 'path'")
        if hive not in {"true", "false"}:
            raise ConfigError(f"{dataset.dataset_id}: hive is 'true' or 'false', not {hive!r}")
        self._dataset = dataset
        self._path = path.removeprefix("file://")
        self._hive = hive == "true"
        root = Path(self._path)
        if "://" in self._path or not (glob.has_magic(self._path) or root.exists()):
            raise ConfigError(f"{dataset.dataset_id}: there is no directory {path}")

    def current_version(self) -> str:
        return self._snapshot_of(self._list())

    def plan(self, snapshot: str | None) -> SourceSnapshot:
        listed = self._list()
        found = self._snapshot_of(listed)
        if snapshot is not None and snapshot != found:
            raise SnapshotGone(
                f"{self._where}: the files are {found} by now, not {snapshot}; earlier ones are "
                "not kept by a directory"
            )
        if not listed:
            raise SchemaUnsupported(
                f"{self._where}: there are no Parquet files, so no columns; write at least one"
            )
        with _engine_for(len(listed)) as engine, self._reading():
            return self._plan(engine, listed, found)

    def pin(self, planned: SourceSnapshot, label: str) -> None:
        """Nothing: a directory cannot keep what others delete."""

    def unpin(self, label: str) -> None:
        """Nothing, as `pin`."""

    def pinned_labels(self, prefix: str) -> tuple[str, ...]:  # noqa: ARG002
        """None, as `pin`."""
        return ()

    def close(self) -> None:
        """Nothing is open between calls."""

    @property
    def _where(self) -> str:
        return f"{self._dataset.dataset_id} ({self._path})"

    @property
    def _root(self) -> Path:
        """The directory that everything lies under."""
        if not glob.has_magic(self._path):
            root = Path(self._path)
            return root.parent if root.is_file() else root
        fixed = re.split(r"[*?\[]", self._path, maxsplit=1)[0]
        return Path(fixed.rpartition("/")[0] or "/")

    def _list(self) -> tuple[_File, ...]:
        root = self._root
        if glob.has_magic(self._path):
            paths = [Path(path) for path in glob.iglob(self._path, recursive=True)]  # noqa: PTH207 - of an absolute pattern
        elif Path(self._path).is_file():
            paths = [Path(self._path)]
        else:
            paths = list(root.rglob("*.parquet"))
        try:
            listed = [
                _File(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
                for path in paths
                # Writers keep what is not finished under such names.
                if not any(part[0] in "_." for part in path.relative_to(root).parts)
                and path.is_file()
            ]
        except OSError as error:
            raise SourceUnavailable(f"{self._where} cannot be listed: {error}") from error
        return tuple(sorted(listed, key=lambda file: file.path))

    def _changed_ns(self, listed: Sequence[_File]) -> int:
        """When a file was last written, added or removed: directories remember the latter."""
        times = [file.modified_ns for file in listed]
        for directory, _, _ in os.walk(self._root):
            with suppress(FileNotFoundError):
                times.append(Path(directory).stat().st_mtime_ns)
        return max(times)

    def _snapshot_of(self, listed: Sequence[_File]) -> str:
        lines = "".join(f"{f.path}\0{f.size_bytes}\0{f.modified_ns}\n" for f in listed)
        return hashlib.sha256(lines.encode()).hexdigest()[:32]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except duckdb.IOException as error:
            raise SnapshotGone(f"{self._where}: a file cannot be read: {error}") from error
        except duckdb.Error as error:
            raise NotAcceleratable(f"{self._where}: a file is not Parquet: {error}") from error

    def _plan(
        self, engine: duckdb.DuckDBPyConnection, listed: Sequence[_File], snapshot: str
    ) -> SourceSnapshot:
        types = self._common_schema(engine, [file.path for file in listed])
        hive = {file.path: self._hive_values(file.path) for file in listed}
        keys = self._hive_columns(types, list(hive.values())) if self._hive else ()
        held = held_columns(self._dataset, (*types, *keys), self._path)
        columns = tuple(self._column(name, types.get(name)) for name in held)
        rows = _row_counts(engine, [file.path for file in listed])
        stats = _statistics(engine, [file.path for file in listed], columns)
        return SourceSnapshot(
            snapshot_id=SnapshotId(
                table_uuid=hashlib.sha256(self._path.encode()).hexdigest()[:32],
                snapshot=snapshot,
                schema_id=hashlib.sha256(repr(list(types.items())).encode()).hexdigest()[:8],
            ),
            sequence=self._changed_ns(listed) // 1_000,
            columns=columns,
            files=tuple(
                DataFile(
                    path=file.path,
                    size_bytes=file.size_bytes,
                    record_count=rows[file.path],
                    version=str(file.modified_ns),
                    partition="/".join(f"{key}={value}" for key, value in hive[file.path]),
                    matching=Matching.NAME,
                    constants=tuple(
                        (key, None if value == _HIVE_NULL else unquote(value))
                        for key, value in hive[file.path]
                        if key in keys and key in held
                    ),
                    stats=stats[file.path],
                )
                for file in listed
            ),
            sort_by=tuple(key for key in keys if key in held),
        )

    def _hive_values(self, path: str) -> tuple[tuple[str, str], ...]:
        """The `key=value` directories below our path; they also say which files go together."""
        parts = Path(path).parent.relative_to(self._root.absolute()).parts
        pairs = (part.partition("=") for part in parts if "=" in part)
        return tuple((key, value) for key, _, value in pairs)

    def _hive_columns(
        self, types: dict[str, str], found: Sequence[tuple[tuple[str, str], ...]]
    ) -> tuple[str, ...]:
        keys = tuple(key for key, _ in found[0])
        for pairs in found:
            if tuple(key for key, _ in pairs) != keys:
                raise SchemaUnsupported(
                    f"{self._where}: some files lie under {'/'.join(keys) or 'no key'}, others "
                    f"under {'/'.join(key for key, _ in pairs) or 'no key'}; give all the same"
                )
        return tuple(key for key in keys if key not in types)

    def _common_schema(
        self, engine: duckdb.DuckDBPyConnection, paths: Sequence[str]
    ) -> dict[str, str]:
        """Top-level columns and their types, which all files must agree on."""
        by_tree: dict[str, str] = {}
        for path, tree in engine.execute(
            "SELECT file_name, list((name, duckdb_type, num_children) ORDER BY column_id "
            ")::VARCHAR FROM parquet_schema($1) WHERE column_id > 0 GROUP BY ALL ORDER BY ALL",
            [[_escaped(path) for path in paths]],
        ).fetchall():
            by_tree.setdefault(tree, path)
        first, *others = by_tree.values()
        expected = _describe(engine, first)
        for path in others:
            found = _describe(engine, path)
            for name in (*expected, *found):
                if expected.get(name) != found.get(name):
                    raise SchemaUnsupported(
                        f"{self._where}: column {name!r} is {expected.get(name, 'not there')} in "
                        f"{first} and {found.get(name, 'not there')} in {path}; all files must "
                        "agree"
                    )
        return expected

    def _column(self, name: str, kind: str | None) -> Column:
        if kind is None:
            return Column(name=name, type="VARCHAR")
        if not _PLAIN_TYPE.fullmatch(kind):
            raise SchemaUnsupported(
                f"{self._where}: column {name!r} of type {kind} cannot be held; list the "
                "dataset's columns without it"
            )
        return Column(name=name, type=kind)


@contextmanager
def _engine_for(files: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """To read the footers of so many files with."""
    if files <= _FEW_FILES:
        with _STANDING.cursor() as cursor:
            yield cursor
        return
    with _new_engine() as engine:
        engine.execute("SET parquet_metadata_cache = true")  # and it goes with the engine
        yield engine


def _new_engine() -> duckdb.DuckDBPyConnection:
    engine = duckdb.connect(config={"threads": 2, "python_enable_replacements": False})
    engine.execute("SET GLOBAL TimeZone = 'UTC'")
    return engine


class _StandingEngine:
    """One for all sources of the process, opened when first used. It keeps nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: duckdb.DuckDBPyConnection | None = None

    def cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            if self._engine is None:
                self._engine = _new_engine()
                self._engine.execute("SET GLOBAL enable_external_file_cache = false")
            return self._engine.cursor()


_STANDING: Final = _StandingEngine()


def _describe(engine: duckdb.DuckDBPyConnection, path: str) -> dict[str, str]:
    rows = engine.execute(
        "DESCRIBE SELECT * FROM read_parquet($1, hive_partitioning=false)", [_escaped(path)]
    ).fetchall()
    return {name: kind for name, kind, *_ in rows}


def _escaped(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)


def _row_counts(engine: duckdb.DuckDBPyConnection, paths: Sequence[str]) -> dict[str, int]:
    return dict(
        engine.execute(
            "SELECT file_name, num_rows FROM parquet_file_metadata($1)",
            [[_escaped(path) for path in paths]],
        ).fetchall()
    )


def _statistics(
    engine: duckdb.DuckDBPyConnection, paths: Sequence[str], columns: Sequence[Column]
) -> dict[str, tuple[ColumnStats, ...]]:
    """Of each file, from its row groups."""
    groups: dict[tuple[str, str], list[tuple[ColumnStats | None, int]]] = {}
    types = {column.name: column.type for column in columns}
    for path, name, rows, nulls, nans, lower, upper in engine.execute(
        "SELECT file_name, path_in_schema, num_values, stats_null_count, stats_nan_count, "
        "stats_min_value, stats_max_value FROM parquet_metadata($1)",
        [[_escaped(path) for path in paths]],
    ).fetchall():
        if name not in types:
            continue
        if types[name] in FLOATS:  # NaN becomes NULL, and min and max say nothing of it
            known_nulls = None if nulls is None or nans is None else nulls + nans
        else:
            known_nulls = nulls
        # Backslashes may be the engine's escapes of bytes that are no text.
        known = types[name] not in _NO_BOUNDS and "\\" not in f"{lower}{upper}"
        stats = ColumnStats(
            name=name,
            null_count=known_nulls,
            lower=lower if known else None,
            upper=upper if known else None,
        )
        groups.setdefault((path, name), []).append((stats, rows))
    return {
        path: tuple(
            merge_stats(column.name, column.type, groups[path, column.name])
            for column in columns
            if (path, column.name) in groups
        )
        for path in paths
    }
