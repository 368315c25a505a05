"""Joins and unions of frames, and frames in another shape."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from accel_dask.client import dtypes, finishing, operations
from accel_dask.client.aggregates import count_rows, function_name, result_type
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import Expr, Key, Literal, call, literal
from accel_dask.client.groupby import DataFrameGroupBy, keys_of
from accel_dask.client.lazy import Lazy
from accel_dask.client.nodes import (
    Aggregate,
    Branch,
    Join,
    JoinColumn,
    JoinKind,
    Side,
    Union,
    aggregate_columns,
    column,
)
from accel_dask.client.unsupported import refuse
from accel_dask.client.view import Finish, Item, View, key_expr
from accel_dask.errors import AlignmentError, UnsupportedOperation

if TYPE_CHECKING:
    from accel_dask.client.frame import DataFrame

_HOWS: Final = {"inner", "left", "right", "outer"}


def merge(
    left: DataFrame,
    right: DataFrame,
    how: str,
    on: Any,
    *,
    left_on: Any,
    right_on: Any,
    left_index: bool,
    right_index: bool,
    suffixes: tuple[str | None, str | None],
) -> DataFrame:
    """The pairs of rows with equal keys, as pandas' merge gives them, in no order.

    Raises:
        UnsupportedOperation: a kind of join that has no bound, or keys that do not compare.
        UnknownColumn: a key is not there.
    """
    if how not in _HOWS:
        raise refuse(f"merge(how={how!r})", "use inner, left, right or outer with keys")
    if not isinstance(right, Lazy):
        raise refuse(
            f"merge with a local {type(right).__name__}",
            "put its rows into a dataset, or use isin(list) or map(dict)",
        )
    one, other = left._ready("merge"), right._ready("merge")
    if left._session is not right._session:
        raise AlignmentError("merge: the two frames are of different sessions")
    left_keys = _merge_keys(one, on, left_on, is_index=left_index, what="left_on")
    right_keys = _merge_keys(other, on, right_on, is_index=right_index, what="right_on")
    is_of_labels = left_index and right_index
    if on is None and left_on is None and right_on is None and not (left_index or right_index):
        common = [label for label in one.labels if label in other.labels]
        if not common:
            raise UnsupportedOperation("merge: the frames have no column in common; name keys")
        left_keys, right_keys = [one.get(k) for k in common], [other.get(k) for k in common]
    if len(left_keys) != len(right_keys) or not left_keys:
        raise UnsupportedOperation("merge: left and right have different numbers of keys")
    for a, b in zip(left_keys, right_keys, strict=True):
        _check_keys(a, b)
    index = _common_labels(left_keys, right_keys) if is_of_labels else None
    sides = (one, left_keys), (other, right_keys)
    return _joined(left, sides[0], sides[1], JoinKind(how), suffixes, index)


def _common_labels(left: list[Item], right: list[Item]) -> list[Hashable]:
    """Of an index that both sides have; None for those whose names differ."""
    return [a.label if a.label == b.label else None for a, b in zip(left, right, strict=True)]


def _merge_keys(view: View, on: Any, own: Any, *, is_index: bool, what: str) -> list[Item]:
    if is_index:
        if not view.index:
            raise refuse("merge on the index of rows that have none", f"use {what}")
        return list(view.index)
    keys = on if on is not None else own
    listed = list(keys) if isinstance(keys, list | tuple) else [] if keys is None else [keys]
    named = {item.label: item for item in view.index}
    return [view.find(one) or named.get(one) or view.get(one) for one in listed]


def _check_keys(left: Item, right: Item) -> None:
    kinds = {left.expr.dtype.kind, right.expr.dtype.kind}
    if len(kinds) > 1 and not (kinds <= dtypes.NUMBERS - {Kind.BOOL}) and kinds != {
        Kind.DATE, Kind.TIMESTAMP,
    }:  # fmt: skip
        raise UnsupportedOperation(
            f"merge: the keys {left.label!r} and {right.label!r} are {left.expr.dtype.kind} and "
            f"{right.expr.dtype.kind}; convert one with .astype"
        )
    operations.check_alike(left.expr, right.expr, f"merge on {left.label!r} and {right.label!r}:")
    key_expr(left.expr, "merge")
    key_expr(right.expr, "merge")


def _joined(
    frame: DataFrame,
    left: tuple[View, list[Item]],
    right: tuple[View, list[Item]],
    kind: JoinKind,
    suffixes: tuple[str | None, str | None],
    index: list[Hashable] | None = None,
) -> DataFrame:
    (one, left_keys), (other, right_keys) = left, right
    shared = {a.label for a, b in zip(left_keys, right_keys, strict=True) if a.label == b.label}
    by_label = {b.label: b for b in right_keys}
    overlap = {label for label in one.labels if label in other.labels} - shared
    columns: list[tuple[Hashable, JoinColumn, Expr]] = []

    def add(label: Hashable, side: Side, mine: Expr | None, others: Expr | None) -> None:
        name = f"{label}" if all(c.name != f"{label}" for _, c, _ in columns) else ""
        found = JoinColumn(name or f"{label}_{len(columns)}", side, mine, others)
        sample = mine if mine is not None else others
        assert sample is not None
        columns.append((label, found, sample))

    for item in one.columns:
        if item.label in shared:
            add(item.label, Side.BOTH, item.expr, by_label[item.label].expr)
        else:
            add(_suffixed(item.label, overlap, suffixes[0]), Side.LEFT, item.expr, None)
    for item in other.columns:
        if item.label not in shared or item.label not in one.labels:
            add(_suffixed(item.label, overlap, suffixes[1]), Side.RIGHT, None, item.expr)
    for position, label in enumerate(index or ()):
        pair = left_keys[position].expr, right_keys[position].expr
        found = JoinColumn(f"index_{position}_{len(columns)}", Side.BOTH, *pair)
        columns.append((label, found, pair[0]))
    labels = [label for label, _, _ in columns[: len(columns) - len(index or ())]]
    if len(set(labels)) < len(labels):
        raise UnsupportedOperation(f"merge makes a column twice: {labels}; change suffixes")
    node = Join(
        one.rows, other.rows, kind, tuple(k.expr for k in left_keys),
        tuple(k.expr for k in right_keys), tuple(c for _, c, _ in columns),
    )  # fmt: skip
    items = []
    for label, found, sample in columns:
        filled = _is_filled(found.side, kind)
        expr = column(
            node, found.name, sample.dtype, may_nan=sample.may_nan,
            may_null=filled or sample.may_null,
        )  # fmt: skip
        items.append(Item(label, expr))
    count = len(items) - len(index or ())
    return type(frame)(frame._session, View(node, tuple(items[:count]), tuple(items[count:])))


def _is_filled(side: Side, kind: JoinKind) -> bool:
    if kind is JoinKind.OUTER:
        return side is not Side.BOTH
    return (side is Side.RIGHT and kind is JoinKind.LEFT) or (
        side is Side.LEFT and kind is JoinKind.RIGHT
    )


def _suffixed(label: Hashable, overlap: set[Hashable], suffix: str | None) -> Hashable:
    return f"{label}{suffix or ''}" if label in overlap else label


def concat(frames: Sequence[DataFrame]) -> DataFrame:
    """All rows of `frames`; columns that one lacks are missing in its rows.

    Raises:
        UnsupportedOperation: columns of one name have types that do not go together.
    """
    if not frames:
        raise UnsupportedOperation("concat of no frames")
    if not all(isinstance(one, Lazy) for one in frames):
        raise refuse("concat with local values", "put them into a dataset")
    if len({one._is_series for one in frames}) > 1:
        raise refuse("concat of frames and columns", "use to_frame(name)")
    if frames[0]._is_series:
        frames = _of_one_name(frames)
    views = [frame._ready("concat") for frame in frames]
    labels = list(dict.fromkeys(label for view in views for label in view.labels))
    items: list[Item] = []
    columns: list[list[Expr]] = []
    for label in labels:
        found = [view.find(label) for view in views]
        exprs = [item.expr if item else Literal(dtypes.NULL, None) for item in found]
        dtype = operations.common(*exprs)
        columns.append([operations.converted(expr, dtype) for expr in exprs])
    names = tuple(f"{i}:{label}" for i, label in enumerate(labels))
    branches = tuple(
        Branch(view.rows, tuple(column[i] for column in columns)) for i, view in enumerate(views)
    )
    node = Union(names, branches)
    for name, label, exprs in zip(names, labels, columns, strict=True):
        dtype = operations.common(*exprs)
        nan = any(one.may_nan for one in exprs)
        null = any(one.may_null for one in exprs)
        items.append(Item(label, column(node, name, dtype, may_nan=nan, may_null=null)))
    return type(frames[0])(frames[0]._session, View(node, tuple(items)))


def _of_one_name(columns: Sequence[Any]) -> Sequence[Any]:
    """Columns as pandas puts them behind each other: of their name if it is of all."""
    if len({one.name for one in columns}) == 1:
        return columns
    return [one.rename(None) for one in columns]


def melt(
    frame: DataFrame, id_vars: Any, value_vars: Any, var_name: Hashable, value_name: Hashable
) -> DataFrame:
    """One row for each of `value_vars` of each row."""
    view = frame._ready("melt")
    ids = _listed(id_vars)
    values = _listed(value_vars) or [label for label in view.labels if label not in ids]
    parts = []
    for label in values:
        items = [*(view.get(one) for one in ids), Item(var_name, literal(str(label))),
                 Item(value_name, view.get(label).expr)]  # fmt: skip
        parts.append(type(frame)(frame._session, view.with_columns(items)))
    return concat(parts)


def pivot_table(
    frame: DataFrame, values: Any, index: Any, columns: Any, aggfunc: Any, *,
    fill_value: Any, dropna: bool,
) -> DataFrame:  # fmt: skip
    """Groups laid out in rows and columns: one query of the groups, laid out here."""
    view = frame._ready("pivot_table")
    rows, across = _listed(index), _listed(columns)
    if isinstance(aggfunc, list | tuple | Mapping):
        raise refuse("pivot_table with several aggfuncs", "pivot once for each")
    if any(isinstance(one, Lazy) for one in (*rows, *across)):
        raise refuse("pivot_table by a column that is no label", "assign it first, and name it")
    if not rows and not across:
        raise UnsupportedOperation("pivot_table needs index or columns")
    func = function_name(aggfunc)
    wanted = _listed(values) or [
        item.label
        for item in view.columns
        if item.label not in {*rows, *across} and result_type(func, item.expr.dtype) is not None
    ]
    groups = DataFrameGroupBy(frame._session, view, keys_of(frame, [*rows, *across]))
    found = groups[wanted]._reduced(func).reset_index()
    shown = values if values is not None else wanted
    finish = Finish(
        "pivot_table",
        finishing.pivoted(
            values=shown, index=rows, columns=across, fill_value=fill_value, dropna=dropna
        ),
    )
    inner = found._view
    return type(frame)(frame._session, View(inner.rows, inner.columns, (), finish))


def crosstab(index: Any, columns: Any, normalize: Any) -> DataFrame:
    """How often each pair of values comes."""
    from accel_dask.client.frame import DataFrame
    from accel_dask.client.series import Series

    if not (isinstance(index, Series) and isinstance(columns, Series)):
        raise refuse("crosstab of several or local columns", "use groupby([...]).size()")
    other, rows = index._operand(columns, "crosstab")
    base = View(rows, ())
    for one in (index._expr, other):
        base = base.filtered(call("notna", dtypes.BOOL, key_expr(one, "crosstab")))
    source = Aggregate(
        base.rows, (("row", index._expr), ("column", other)), (("count", count_rows()),)
    )
    found = aggregate_columns(source)
    items = tuple(Item(name, found[name]) for name in ("row", "column", "count"))
    finish = Finish("crosstab", finishing.crossed(index.name, columns.name, normalize))
    view = View(source, items, (), finish).sorted([Key(found["row"]), Key(found["column"])])
    return DataFrame(index._session, view)


def _listed(labels: Any) -> list[Hashable]:
    if labels is None:
        return []
    return list(labels) if isinstance(labels, list | tuple) else [labels]
