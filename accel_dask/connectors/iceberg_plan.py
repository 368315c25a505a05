"""From an Iceberg table's metadata to a `SourceSnapshot`; used by the Iceberg connector.

Nothing here goes by a column's name: names change meaning along a table's history, field ids
do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile as ManifestFile
from pyiceberg.manifest import FileFormat
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, Table
from pyiceberg.table.name_mapping import NameMapping
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.transforms import (
    BucketTransform,
    DayTransform,
    IdentityTransform,
    VoidTransform,
)
from pyiceberg.types import DateType, DoubleType, FloatType, NestedField

from accel_dask.connectors.iceberg_values import (
    bound_text,
    engine_type,
    ordered_text,
    value_text,
)
from accel_dask.connectors.projection import held_columns
from accel_dask.errors import NotAcceleratable, SchemaUnsupported, SnapshotGone
from accel_dask.model.dataset import Dataset
from accel_dask.model.snapshot import (
    Column,
    ColumnStats,
    DataFile,
    DeleteFile,
    Matching,
    SnapshotId,
    SourceSnapshot,
)

EMPTY_SNAPSHOT = "none"
"""The snapshot id of a table that has none yet."""

_SEQUENCED = 2**41
"""Above every time in milliseconds until 2039; see `history_order`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a snapshot is planned with: the schema is the snapshot's own, or, for the newest
    one, the table's, which may have changed since without a new snapshot."""

    dataset: Dataset
    table: Table
    snapshot: Snapshot | None
    schema: Schema
    is_newest: bool

    @property
    def where(self) -> str:
        """For messages: the dataset and its table."""
        return f"{self.dataset.dataset_id} ({'.'.join(self.table.name())})"


def choose_snapshot(dataset: Dataset, table: Table, wanted: str | None) -> Planned:
    """The snapshot to plan and the schema to read it with.

    Raises:
        SnapshotGone: the table has no such snapshot (any more).
    """
    newest = table.current_snapshot()
    newest_id = str(newest.snapshot_id) if newest else EMPTY_SNAPSHOT
    if wanted is None or wanted == newest_id:
        return Planned(
            dataset=dataset, table=table, snapshot=newest, schema=table.schema(), is_newest=True
        )
    found = table.metadata.snapshot_by_id(int(wanted)) if wanted.isdecimal() else None
    if found is None:
        raise SnapshotGone(
            f"{dataset.dataset_id} ({'.'.join(table.name())}): there is no snapshot {wanted} "
            f"(any more); the newest is {newest_id}"
        )
    schema = table.schema() if found.schema_id is None else table.schemas().get(found.schema_id)
    if schema is None:
        raise SnapshotGone(
            f"{dataset.dataset_id}: schema {found.schema_id} of snapshot {wanted} was removed from "
            "the table's metadata; publish the newest snapshot"
        )
    return Planned(dataset=dataset, table=table, snapshot=found, schema=schema, is_newest=False)


def plan_snapshot(planned: Planned) -> SourceSnapshot:
    """Files, columns and statistics.

    Raises:
        NotAcceleratable, SchemaUnsupported: as `SnapshotSource.plan`.
    """
    fields = _held_fields(planned)
    columns = tuple(_column(planned, field) for field in fields)
    return SourceSnapshot(
        snapshot_id=SnapshotId(
            table_uuid=str(planned.table.metadata.table_uuid),
            snapshot=str(planned.snapshot.snapshot_id) if planned.snapshot else EMPTY_SNAPSHOT,
            schema_id=str(planned.schema.schema_id),
        ),
        sequence=history_order(planned),
        columns=columns,
        files=_data_files(planned, fields),
        sort_by=_sort_columns(planned, {field.field_id: field.name for field in fields}),
    )


def history_order(planned: Planned) -> int:
    """A number that grows along the table's history.

    2**41 + sequence number * 2**20 + schema id: a change of the schema alone, which makes no
    snapshot, is newer than the snapshot before it. Tables of format v1 have no sequence numbers;
    there it is the time in milliseconds, which is less, so that an upgrade goes forward.
    """
    snapshot = planned.snapshot
    if snapshot is None:
        return 0
    if snapshot.sequence_number:
        return _SEQUENCED + snapshot.sequence_number * 2**20 + planned.schema.schema_id
    if planned.is_newest:
        return int(planned.table.metadata.last_updated_ms)
    return int(snapshot.timestamp_ms)


def _held_fields(planned: Planned) -> tuple[NestedField, ...]:
    by_name = {field.name: field for field in planned.schema.fields}
    return tuple(
        by_name[name] for name in held_columns(planned.dataset, tuple(by_name), planned.where)
    )


def _column(planned: Planned, field: NestedField) -> Column:
    kind = engine_type(field.field_type)
    if kind is None:
        others = [f.name for f in planned.schema.fields if f is not field]
        raise SchemaUnsupported(
            f"{planned.where}: column {field.name!r} of type {field.field_type} cannot be held; "
            f"list the dataset's columns without it, for example {', '.join(others[:5])}"
        )
    if field.initial_default is not None:
        raise NotAcceleratable(
            f"{planned.where}: column {field.name!r} has an initial default (format v3), which is "
            "not read; leave it out of the dataset's columns"
        )
    return Column(name=field.name, type=kind, nullable=not field.required, field_id=field.field_id)


def _sort_columns(planned: Planned, held: dict[int, str]) -> tuple[str, ...]:
    """The table's sort order as far as it goes by held columns, else its partition columns."""
    names: list[str] = []
    for ordered in planned.table.sort_order().fields:
        if not isinstance(ordered.transform, IdentityTransform) or ordered.source_id not in held:
            break
        names.append(held[ordered.source_id])
    if not names:
        names = [
            held[part.source_id]
            for part in planned.table.spec().fields
            if part.source_id in held
            and not isinstance(part.transform, BucketTransform | VoidTransform)
        ]
    return tuple(dict.fromkeys(names))


def _data_files(planned: Planned, fields: Sequence[NestedField]) -> tuple[DataFile, ...]:
    if planned.snapshot is None:
        return ()
    _refuse_equality_deletes(planned)
    mapping = planned.table.name_mapping()
    tasks = planned.table.scan(snapshot_id=planned.snapshot.snapshot_id).plan_files()
    files = [_data_file(planned, fields, mapping, task) for task in tasks]
    return tuple(sorted(files, key=lambda file: file.path))


def _refuse_equality_deletes(planned: Planned) -> None:
    """The planner of pyiceberg raises at them; the summary tells it in better words."""
    assert planned.snapshot is not None
    summary = planned.snapshot.summary
    count = summary.additional_properties.get("total-equality-deletes") if summary else None
    if count not in {None, "0"}:
        raise NotAcceleratable(equality_deletes_message(planned.where))


def equality_deletes_message(where: str) -> str:
    return (
        f"{where}: the snapshot has equality deletes, which are not read; "
        "compact the table (rewrite its data files) and publish again"
    )


def _data_file(
    planned: Planned,
    fields: Sequence[NestedField],
    mapping: NameMapping | None,
    task: FileScanTask,
) -> DataFile:
    file = task.file
    if file.file_format != FileFormat.PARQUET:
        raise NotAcceleratable(
            f"{planned.where}: {file.file_path} is {file.file_format.name}; only Parquet is read"
        )
    if file.key_metadata:
        raise NotAcceleratable(f"{planned.where}: {file.file_path} is encrypted")
    names = _names_in_file(planned, fields, mapping, file.file_path) if mapping else None
    spec = planned.table.specs()[file.spec_id]
    return DataFile(
        path=file.file_path,
        size_bytes=file.file_size_in_bytes,
        record_count=file.record_count,
        partition=_partition_text(spec, file),
        matching=Matching.FIELD_ID if names is None else Matching.NAME,
        names=names,
        constants=_constants(spec, fields, file),
        stats=tuple(_column_stats(field, file) for field in fields),
        deletes=_delete_files(planned, task.delete_files),
    )


def _delete_files(planned: Planned, files: Iterable[ManifestFile]) -> tuple[DeleteFile, ...]:
    for file in files:
        if file.file_format != FileFormat.PARQUET:
            raise NotAcceleratable(
                f"{planned.where}: {file.file_path} holds deletes as {file.file_format.name} "
                "(deletion vectors of format v3), which are not read; compact the table and "
                "publish again"
            )
    return tuple(
        DeleteFile(
            path=file.file_path,
            size_bytes=file.file_size_in_bytes,
            record_count=file.record_count,
        )
        for file in sorted(files, key=lambda file: file.file_path)
    )


def _partition_text(spec: PartitionSpec, file: ManifestFile) -> str:
    parts = []
    for index, field in enumerate(spec.fields):
        if isinstance(field.transform, VoidTransform):
            continue
        value = file.partition[index]
        if isinstance(field.transform, DayTransform) and isinstance(value, int):
            value = value_text(DateType(), value)
        parts.append(f"{field.name}{ordered_text(value)}")
    return "/".join(parts)


def _constants(
    spec: PartitionSpec, fields: Sequence[NestedField], file: ManifestFile
) -> tuple[tuple[str, str | None], ...]:
    """Values of identity partitions: tables migrated from Hive keep them out of their files."""
    by_id = {field.field_id: field for field in fields}
    return tuple(
        (by_id[part.source_id].name, value_text(by_id[part.source_id].field_type, value))
        for index, part in enumerate(spec.fields)
        if isinstance(part.transform, IdentityTransform)
        and part.source_id in by_id
        and (value := file.partition[index]) is not None
    )


def _column_stats(field: NestedField, file: ManifestFile) -> ColumnStats:
    key = field.field_id
    nulls = (file.null_value_counts or {}).get(key)
    if isinstance(field.field_type, FloatType | DoubleType):
        # NaN becomes NULL here, so the NULLs are known only where the NaNs are.
        nans = (file.nan_value_counts or {}).get(key)
        nulls = None if nulls is None or nans is None else nulls + nans
    return ColumnStats(
        name=field.name,
        null_count=nulls,
        lower=bound_text(field.field_type, (file.lower_bounds or {}).get(key)),
        upper=bound_text(field.field_type, (file.upper_bounds or {}).get(key)),
    )


def _names_in_file(
    planned: Planned, fields: Sequence[NestedField], mapping: NameMapping, location: str
) -> tuple[tuple[str, str], ...] | None:
    """How a file without field ids calls our columns; None: it has field ids."""
    with planned.table.io.new_input(location).open() as opened:
        schema = pq.read_schema(opened)
    if any(_has_field_id(column) for column in schema):
        return None
    by_name = {name: mapped.field_id for mapped in mapping for name in mapped.names}
    found: dict[int, str] = {}
    for column in schema.names:
        field_id = by_name.get(column)
        if field_id is None:
            continue
        if field_id in found:
            raise NotAcceleratable(
                f"{planned.where}: {location} has both {found[field_id]!r} and {column!r}, which "
                "the table's name mapping takes for one column; rewrite the file"
            )
        found[field_id] = column
    if not found:
        raise NotAcceleratable(
            f"{planned.where}: {location} has no field ids and none of its columns "
            f"({', '.join(schema.names)}) is in the table's name mapping"
        )
    return tuple((field.name, found[field.field_id]) for field in fields if field.field_id in found)


def _has_field_id(column: pa.Field) -> bool:
    if b"PARQUET:field_id" in (column.metadata or {}):
        return True
    return any(_has_field_id(column.type.field(i)) for i in range(column.type.num_fields))
