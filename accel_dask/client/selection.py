"""Selections of frames: by masks, labels and kinds of columns."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from accel_dask.client import dtypes
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import Literal
from accel_dask.client.series import Series
from accel_dask.client.unsupported import refuse
from accel_dask.client.view import Item, View

if TYPE_CHECKING:
    from accel_dask.client.frame import DataFrame


class Loc:
    """Selection by a mask and labels."""

    def __init__(self, frame: DataFrame) -> None:
        self._frame = frame

    def __getitem__(self, key: Any) -> Any:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        found = self._frame
        rows = rows(found) if callable(rows) else rows
        if isinstance(rows, Series):
            found = found[rows]
        elif not (isinstance(rows, slice) and rows == slice(None)):
            raise refuse("loc by labels of rows", "filter by a comparison: df.loc[df.key == value]")
        if isinstance(columns, slice):
            labels = list(found._view.labels)
            return found if columns == slice(None) else found[between(labels, columns)]
        return found[columns]

    def __setitem__(self, key: Any, value: Any) -> None:
        rows, columns = key if isinstance(key, tuple) else (key, None)
        frame = self._frame
        if isinstance(rows, slice) and rows == slice(None) and isinstance(columns, str):
            frame[columns] = value
            return
        if not isinstance(rows, Series) or columns is None or isinstance(columns, list | slice):
            raise refuse("assigning to that selection", "use df.loc[mask, name] = value")
        if columns in frame:
            frame[columns] = frame[columns].mask(rows, value)
        else:
            missing = Series._of(
                frame._session, frame._view.rows, columns, Literal(dtypes.NULL, None)
            )
            frame[columns] = missing.mask(rows, value)


def row_count(n: Any, what: str) -> int:
    if n < 0:
        raise refuse(f"{what}({n}), which depends on how many rows there are", "give a count >= 0")
    return int(n)


def between(labels: list[Hashable], wanted: slice) -> list[Hashable]:
    first = 0 if wanted.start is None else labels.index(wanted.start)
    last = len(labels) - 1 if wanted.stop is None else labels.index(wanted.stop)
    return labels[first : last + 1]


def labelled_below(view: View, key: Any) -> list[Item]:
    """The columns whose labels are tuples that begin with `key`, with the rest as their label."""
    if isinstance(key, tuple) or view.find(key) is not None:
        return []
    found = [one for one in view.columns if isinstance(one.label, tuple) and one.label[0] == key]
    labels = [one.label[1:] for one in found if isinstance(one.label, tuple)]
    return [
        Item(label if len(label) > 1 else label[0], one.expr)
        for label, one in zip(labels, found, strict=True)
    ]


def labels_in(key: Any) -> Any:
    """An array or index of labels as a list; anything else as it is.

    Raises:
        UnsupportedOperation: it is local values to filter by.
    """
    if not hasattr(key, "__array__") or not getattr(key, "ndim", 0):
        return key
    found = list(key)
    if str(getattr(key, "dtype", "")) in {"bool", "boolean"}:
        raise refuse("a filter by local values", "filter by a comparison of columns")
    return found


def kinds_named(names: Any) -> frozenset[Kind]:
    found: set[Kind] = set()
    for name in [] if names is None else names if isinstance(names, list | tuple) else [names]:
        text = name if isinstance(name, str) else getattr(name, "__name__", str(name))
        found |= {
            "number": {Kind.INT, Kind.FLOAT, Kind.DECIMAL},
            "int": {Kind.INT},
            "int64": {Kind.INT},
            "float": {Kind.FLOAT, Kind.DECIMAL},
            "float64": {Kind.FLOAT, Kind.DECIMAL},
            "bool": {Kind.BOOL},
            "str": {Kind.STRING},
            "object": {Kind.STRING},
            "datetime": {Kind.DATE, Kind.TIMESTAMP},
            "datetime64": {Kind.DATE, Kind.TIMESTAMP},
        }.get(text, set())
    return frozenset(found)
