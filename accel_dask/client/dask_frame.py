"""`to_dask_dataframe()`: a Dask DataFrame with one partition per shard of one epoch.

The frame's filters and columns become each partition's SQL; `dask_reads` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from accel_dask.client.dask_reads import Reading, compiled_of, read_series, read_shard
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import Aggregation, Column, Expr, InRows, Key, Window, walk
from accel_dask.client.nodes import (
    Aggregate,
    Derived,
    Filter,
    Join,
    Limit,
    Node,
    Scan,
    Sort,
    Text,
    Union,
)
from accel_dask.client.unsupported import refuse
from accel_dask.client.view import View, refuse_finished
from accel_dask.errors import EpochRetired, UnsupportedOperation
from accel_dask.model.shard_ref import ShardRef

if TYPE_CHECKING:
    from accel_dask.client.lazy import Lazy

_ADVICE: Final = (
    "filter and choose columns here, go on in Dask; or compute the whole, bounded answer as one "
    "task: dask.delayed(frame)"
)


def to_dask_dataframe(frame: Lazy, *, dtype_backend: str = "numpy") -> Any:
    """See `Lazy.to_dask_dataframe`."""
    try:
        import dask
        import dask.dataframe as dd
    except ImportError as error:
        raise UnsupportedOperation("to_dask_dataframe needs Dask: pip install dask") from error
    view = frame._view
    refuse_finished(view, "to_dask_dataframe")
    _check_row_by_row(view)
    session = frame._session
    compiled = compiled_of(view)
    told = session._transport.action("accel.shards", {"sql": compiled.sql})
    _check_pin(session._pins_of(compiled) or {}, told)
    view, shards, divisions = _divided(view, told["shards"])
    reading = Reading(
        where=session._transport.where,
        view=view,
        is_series=frame._is_series,
        dtype_backend=dtype_backend,
        timeout_ms=session.options.timeout_ms,
        missing=_missing_in(_scan_of(view.rows), shards),
    )
    if not shards:
        return dd.from_pandas(reading.empty(), npartitions=1)
    refs = [ShardRef(told["tenant"], told["dataset"], told["epoch"], s["shard"]) for s in shards]
    # Dask would turn texts into another dtype than `compute` gives.
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_map(
            read_series if frame._is_series else read_shard,
            refs,
            args=[reading],
            meta=reading.empty(),
            divisions=divisions,
            label="accel-shard",
        )


# What can be read shard by shard


def _check_row_by_row(view: View) -> None:
    """
    Raises:
        UnsupportedOperation: a row of it is more than a row of the dataset, or their order counts.
    """
    node: Node = view.rows
    while not isinstance(node, Scan):
        match node:
            case Filter():
                _check_expr(node.predicate)
                node = node.input
            case Derived():
                for _, expr in node.columns:
                    _check_expr(expr)
                node = node.input
            case _:
                what = _WHAT.get(type(node), "such rows")
                raise refuse(f"to_dask_dataframe of {what}", _ADVICE)
    for item in view.items:
        _check_expr(item.expr)


def _check_expr(expr: Expr) -> None:
    for one in walk(expr):
        if isinstance(one, Window | Aggregation | InRows):
            what = "values of other rows" if isinstance(one, Window | Aggregation) else "isin(rows)"
            raise refuse(f"to_dask_dataframe with {what}", _ADVICE)


def _scan_of(node: Node) -> Scan:
    while not isinstance(node, Scan):
        assert isinstance(node, Filter | Derived | Sort)
        node = node.input
    return node


def _check_pin(pins: Mapping[str, int], told: Mapping[str, Any]) -> None:
    pinned = pins.get(told["dataset"])
    if pinned not in {None, told["epoch"]}:
        raise EpochRetired(
            f"{told['dataset']} serves epoch {told['epoch']} by now; the snapshot, or what was "
            f"asked to make the frame, has {pinned}"
        )


def _missing_in(scan: Scan, shards: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    def has_missing(name: str) -> bool:
        return any(shard["stats"].get(name, {}).get("nulls") != 0 for shard in shards)

    return frozenset(one.name for one in scan.fields if one.may_null and has_missing(one.name))


# Divisions


def _divided(
    view: View, shards: Sequence[Mapping[str, Any]]
) -> tuple[View, Sequence[Mapping[str, Any]], tuple[Any, ...] | None]:
    """The view, the shards in order and Dask's divisions: known if the index is a column by
    which no two shards overlap, as that of a dataset's sort order."""
    column = view.index[0].expr if len(view.index) == 1 else None
    if not isinstance(column, Column) or not isinstance(column.source, Scan) or not shards:
        return view, shards, None
    bounded = []
    for shard in shards:
        stats = shard["stats"].get(column.name, {})
        if stats.get("nulls") != 0 or stats.get("lower") is None or stats.get("upper") is None:
            return view, shards, None
        read = _BOUNDS.get(column.dtype.kind)
        if read is None:
            return view, shards, None
        bounded.append((read(stats["lower"]), read(stats["upper"]), shard))
    bounded.sort(key=lambda one: one[:2])
    for (_, upper, _), (lower, _, _) in pairwise(bounded):
        if not upper < lower:
            return view, shards, None
    divisions = (*(lower for lower, _, _ in bounded), bounded[-1][1])
    return view.sorted([Key(column)]), [shard for _, _, shard in bounded], divisions


def _timestamp(text: str) -> Any:
    import pandas as pd

    return pd.Timestamp(text)


_BOUNDS: Final[Mapping[Kind, Callable[[str], Any]]] = {
    Kind.INT: int,
    Kind.STRING: str,
    Kind.DATE: _timestamp,
    Kind.TIMESTAMP: _timestamp,
}
_WHAT: Final[Mapping[type, str]] = {
    Aggregate: "groups",
    Join: "joined rows",
    Limit: "the first rows",
    Sort: "sorted rows",
    Text: "a query's rows",
    Union: "united rows",
}
