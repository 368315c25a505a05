"""Delete files for Iceberg tables, which pyiceberg reads but does not write."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestWriterV2,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import AddSnapshotUpdate, SetSnapshotRefUpdate
from pyiceberg.typedef import Record


class _DeleteManifestWriter(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


def add_position_deletes(table: Table, is_gone: Callable[[int], bool]) -> None:
    """One delete file per partition: the rows whose position `is_gone`."""
    table.refresh()
    groups: dict[tuple[int, str], list[Any]] = {}
    for task in table.scan().plan_files():
        groups.setdefault((task.file.spec_id, repr(task.file.partition)), []).append(task.file)
    for files in groups.values():
        gone = [
            (file.file_path, n)
            for file in sorted(files, key=lambda file: file.file_path)
            for n in range(file.record_count)
            if is_gone(n)
        ]
        if not gone:
            continue
        schema = pa.schema(
            [
                pa.field("file_path", pa.string(), metadata={"PARQUET:field_id": "2147483546"}),
                pa.field("pos", pa.int64(), metadata={"PARQUET:field_id": "2147483545"}),
            ]
        )
        path = Path(table.location().removeprefix("file://")) / "data" / f"{uuid.uuid4()}.parquet"
        columns = [list(column) for column in zip(*gone, strict=True)]
        pq.write_table(pa.table(columns, schema=schema), path)
        add_file(
            table,
            DataFileContent.POSITION_DELETES,
            path,
            rows=len(gone),
            partition=files[0].partition,
            spec_id=files[0].spec_id,
        )


def add_file(
    table: Table,
    content: DataFileContent,
    path: Path,
    *,
    rows: int,
    partition: Record,
    spec_id: int | None = None,
    file_format: FileFormat = FileFormat.PARQUET,
) -> None:
    """Commit a snapshot with one more file."""
    table.refresh()
    parent = table.current_snapshot()
    assert parent is not None
    snapshot_id = table.metadata.new_snapshot_id()
    sequence = table.metadata.next_sequence_number()
    file = DataFile.from_args(
        content=content,
        file_path=f"file://{path}",
        file_format=file_format,
        partition=partition,
        record_count=rows,
        file_size_in_bytes=path.stat().st_size,
        equality_ids=[1] if content is DataFileContent.EQUALITY_DELETES else None,
        value_counts={},
        null_value_counts={},
        nan_value_counts={},
        lower_bounds={},
        upper_bounds={},
    )
    file.spec_id = table.spec().spec_id if spec_id is None else spec_id
    spec = table.specs()[file.spec_id]
    writer_class = ManifestWriterV2 if content is DataFileContent.DATA else _DeleteManifestWriter
    metadata_dir = f"{table.location()}/metadata"
    output = table.io.new_output(f"{metadata_dir}/{uuid.uuid4()}-m0.avro")
    with writer_class(spec, table.schema(), output, snapshot_id, "deflate") as writer:
        writer.add_entry(
            ManifestEntry.from_args(
                status=ManifestEntryStatus.ADDED, snapshot_id=snapshot_id, data_file=file
            )
        )
    list_path = f"{metadata_dir}/snap-{snapshot_id}.avro"
    with write_manifest_list(
        2, table.io.new_output(list_path), snapshot_id, parent.snapshot_id, sequence, "deflate"
    ) as manifests:
        manifests.add_manifests([*parent.manifests(table.io), writer.to_manifest_file()])
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        parent_snapshot_id=parent.snapshot_id,
        sequence_number=sequence,
        timestamp_ms=table.metadata.last_updated_ms + 1,
        manifest_list=list_path,
        summary=Summary(Operation.OVERWRITE),
        schema_id=table.schema().schema_id,
    )
    reference = SetSnapshotRefUpdate(
        ref_name="main", type=SnapshotRefType.BRANCH, snapshot_id=snapshot_id
    )
    table.catalog.commit_table(table, (), (AddSnapshotUpdate(snapshot=snapshot), reference))
    table.refresh()
