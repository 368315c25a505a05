"""`cut` and `qcut`: numbers to bins, whose edges and labels are made by pandas itself."""

from __future__ import annotations

from typing import Any

from accel_dask.client import dtypes
from accel_dask.client.arguments import explained_function
from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import Expr, Literal, call, literal
from accel_dask.client.series import Series
from accel_dask.client.unsupported import refuse


@explained_function("module", "cut")
def cut(
    x: Series, bins: Any, *, right: bool = True, labels: Any = None, include_lowest: bool = False,
    precision: int = 3,
) -> Series:  # fmt: skip
    """The bin of each value; for a number of bins the least and greatest value are asked first,
    and the frame is pinned to the epoch that told them.

    Raises:
        UnsupportedOperation: not a column of numbers.
    """
    import pandas as pd

    if x._expr.dtype.kind not in {Kind.INT, Kind.FLOAT, Kind.DECIMAL}:
        raise refuse(f"cut of a {x._expr.dtype.kind} column", "cut numbers")
    sample: list[float] = []
    pins: Pins = ()
    if isinstance(bins, int):
        bounds = x.agg(["min", "max"]).compute()
        if bounds.isna().any():
            raise refuse("cut of no values into a number of bins", "give the edges")
        sample = [bounds["min"], bounds["max"]]
        pins = _epochs_of(bounds)
    made, edges = pd.cut(
        pd.Series(sample, dtype="float64"), bins, right=right, labels=labels, retbins=True,
        include_lowest=include_lowest, precision=precision,
    )  # fmt: skip
    coded = _coded(x._expr, list(edges), _categories(made), right=right, lowest=include_lowest)
    return x._with(_pinned(coded, pins))


@explained_function("module", "qcut")
def qcut(x: Series, q: Any, *, labels: Any = None, precision: int = 3,
         duplicates: str = "raise") -> Series:  # fmt: skip
    """The quantile bin of each value; the quantiles are asked first, and the frame is pinned to the
    epoch that told them."""
    import numpy as np
    import pandas as pd

    at = np.linspace(0, 1, q + 1) if isinstance(q, int) else np.asarray(q)
    told = x.quantile([float(one) for one in at]).compute()
    edges = list(told)
    unique = list(dict.fromkeys(edges))
    if len(unique) < len(edges):
        if duplicates != "drop":
            raise ValueError(f"Bin edges must be unique: {edges}; pass duplicates='drop'")
        edges = unique
    made = pd.cut(
        pd.Series([], dtype="float64"), edges, labels=labels, include_lowest=True,
        precision=precision,
    )  # fmt: skip
    coded = _coded(x._expr, edges, _categories(made), right=True, lowest=True)
    return x._with(_pinned(coded, _epochs_of(told)))


Pins = tuple[tuple[str, int], ...]


def _epochs_of(answer: Any) -> Pins:
    """The epochs that `answer` is of; none if it did not come from memory."""
    told = answer.attrs["accel"]
    if told["route"] == "olap":
        return ()
    return tuple((used["dataset"], used["epoch"]) for used in told["datasets"])


def _pinned(coded: Expr, pins: Pins) -> Expr:
    return call("pinned", coded.dtype, coded, options=pins) if pins else coded


def _categories(made: Any) -> tuple[Any, ...] | None:
    """None: the codes themselves are wanted."""
    return tuple(made.cat.categories) if hasattr(made, "cat") else None


def _coded(
    expr: Expr, edges: list[Any], categories: tuple[Any, ...] | None, *, right: bool, lowest: bool
) -> Expr:
    dtype = dtypes.INT if categories is None else DType(Kind.CATEGORY, "INTEGER", "", categories)
    operands: list[Expr] = []
    for code in range(len(edges) - 1):
        low, high = literal(float(edges[code])), literal(float(edges[code + 1]))
        closes_low = not right or (lowest and code == 0)
        closes_high = right or (lowest and code == len(edges) - 2)
        operands.append(
            call(
                "and",
                dtypes.BOOL,
                call("ge" if closes_low else "gt", dtypes.BOOL, expr, low),
                call("le" if closes_high else "lt", dtypes.BOOL, expr, high),
            )
        )
        operands.append(Literal(dtype, code))
    return call("case", dtype, *operands, Literal(dtypes.NULL, None))
