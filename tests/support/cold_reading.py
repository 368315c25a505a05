"""Shards of load tasks as a cold executor reads them, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from executor_builders import make_spec, make_ticket

from accel_dask.model.load_plan import LoadTask
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import shard_relation
from accel_dask.worker_plugin.executor.cold_engine import ColdEngine
from accel_dask.worker_plugin.executor.engine import Engine
from accel_dask.worker_plugin.executor.spec import ColdShard

COLD_QUOTA = Quota(cold_memory_bytes=192 * MIB, queue_length=2).for_cold()


@contextmanager
def cold_engine(
    tasks: Sequence[LoadTask],
    *,
    needed: bool = False,
    on_stuck: Callable[[str], None] = lambda _: None,
    **spec: Any,
) -> Iterator[ColdEngine]:
    """An engine that has `tasks` as epoch 3 of `sales`."""
    shards = tuple(ColdShard(task=task, is_needed=needed) for task in tasks)
    fields: dict[str, Any] = {"quota": COLD_QUOTA, "cold": shards} | spec
    made = make_spec(Path("/nowhere"), *(task.shard_id for task in tasks), **fields)
    engine = ColdEngine(made, on_stuck)
    try:
        yield engine
    finally:
        engine.close()


def ask_engine(engine: Engine, sql: str, *tasks: LoadTask, **ticket: Any) -> pa.Table:
    """The whole answer to `sql`, which reads `tasks`."""
    query = engine.run(make_ticket(sql, *(task.shard_id for task in tasks), **ticket))
    try:
        return pa.Table.from_batches(list(query), query.schema)
    finally:
        query.close()


def table_of(task: LoadTask) -> str:
    return shard_relation(task.shard_id)


def assert_cold_reads_like_hot(tasks: Sequence[LoadTask], shard_dir: Path) -> None:
    """The loaders' shard files in `shard_dir` and the files of their sources give the same."""
    union = " UNION ALL ".join(f"SELECT * FROM {table_of(task)}" for task in tasks)
    hot_engine = Engine(
        make_spec(shard_dir, *(task.shard_id for task in tasks), quota=COLD_QUOTA), lambda _: None
    )
    try:
        hot = ask_engine(hot_engine, union, *tasks)
    finally:
        hot_engine.close()
    with cold_engine(tasks, needed=True) as engine:
        engine.rehearse()
        cold = ask_engine(engine, union, *tasks)
    assert cold.schema.equals(hot.schema, check_metadata=True)
    assert _sorted_rows(cold) == _sorted_rows(hot)


def _sorted_rows(table: pa.Table) -> list[str]:
    return sorted(map(repr, table.to_pylist()))
