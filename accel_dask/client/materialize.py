"""Arrow answers to pandas, with the dtypes that pandas would have."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from accel_dask.client import dtypes
from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import Column, Expr
from accel_dask.client.nodes import Scan
from accel_dask.client.provenance import Provenance
from accel_dask.client.view import View
from accel_dask.errors import UnsupportedOperation

EXACT: Final = 2**53
"""Up to here a float holds every integer."""
_DTYPES: Final = {
    Kind.BOOL: "bool",
    Kind.FLOAT: "float64",
    Kind.DECIMAL: "float64",
    Kind.STRING: "str",
    Kind.DATE: "datetime64[us]",
    Kind.TIMESTAMP: "datetime64[us]",
    Kind.DURATION: "timedelta64[us]",
    Kind.CATEGORY: "category",
    Kind.NULL: "object",
    Kind.OTHER: "object",
}


def pandas_dtype(dtype: DType) -> Any:
    """The pandas dtype of a column of `dtype` without missing values."""
    import pandas as pd

    if dtype.kind is Kind.INT:
        plain = {"INTEGER": "int32", "SMALLINT": "int16", "TINYINT": "int8"}
        return pd.api.types.pandas_dtype(plain.get(dtype.sql, "int64"))
    if dtype.kind is Kind.TIMESTAMPTZ:
        return pd.DatetimeTZDtype("us", dtype.zone)
    return pd.api.types.pandas_dtype(_DTYPES[dtype.kind])


def expected_dtype(expr: Expr) -> Any:
    """The pandas dtype that the column `expr` gets, as far as is known before it is computed:
    missing values are told of by datasets' statistics only."""
    if isinstance(expr, Column) and isinstance(expr.source, Scan):
        field = next(one for one in expr.source.fields if one.name == expr.name)
        if field.has_missing and field.dtype.kind in {Kind.INT, Kind.BOOL}:
            return pandas_dtype(dtypes.FLOAT if field.dtype.kind is Kind.INT else dtypes.NULL)
    return pandas_dtype(expr.dtype)


def scalar(value: Any, dtype: DType) -> Any:
    """One value as pandas' reductions give it."""
    if value is None:
        return _missing(dtype)
    if isinstance(value, Decimal):
        return _as_numpy(int(value) if dtype.kind is Kind.INT else float(value))
    if dtype.kind is Kind.CATEGORY:
        return dtype.categories[value]
    if dtype.is_time or dtype.kind is Kind.DURATION:
        import pandas as pd

        if dtype.kind is Kind.DURATION:
            return pd.Timedelta(value, unit="us")
        found = pd.Timestamp(value)
        return found.tz_convert(dtype.zone) if dtype.kind is Kind.TIMESTAMPTZ else found
    return _as_numpy(value)


def _as_numpy(value: Any) -> Any:
    """A number as NumPy's, as pandas has it: it can be rounded by `.round(2)`."""
    import numpy as np

    if isinstance(value, float):
        return np.float64(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return np.int64(value) if is_whole and abs(value) < 2**63 else value


def _missing(dtype: DType) -> Any:
    if dtype.is_time or dtype.kind is Kind.DURATION:
        import pandas as pd

        return pd.NaT
    return math.nan


def to_pandas(
    table: pa.Table,
    view: View,
    *,
    dtype_backend: str,
    is_series: bool,
    provenance: Provenance | None,
) -> Any:
    """The answer as a pandas frame, or series, with its index, labels and provenance."""
    import pandas as pd

    if dtype_backend not in {"numpy", "numpy_nullable", "pyarrow"}:
        raise UnsupportedOperation(
            f"dtype_backend={dtype_backend!r}; use numpy, numpy_nullable or pyarrow"
        )
    columns = [
        _column(table.column(i), item.expr.dtype, dtype_backend)
        for i, item in enumerate(view.items)
    ]
    frame = pd.DataFrame(dict(enumerate(columns)), index=pd.RangeIndex(table.num_rows))
    found = _with_labels(frame, view)
    if view.finish is not None:
        found = view.finish.apply(found)
    if is_series and isinstance(found, pd.DataFrame):
        found = found.iloc[:, 0]
        found.name = view.columns[0].label
    if provenance is not None:
        found.attrs["accel"] = provenance.as_dict()
    return found


def _with_labels(frame: Any, view: View) -> Any:
    import pandas as pd

    count = len(view.index)
    labels = list(view.labels)
    if count:
        index_frame, frame = frame.iloc[:, :count], frame.iloc[:, count:]
        names = [item.label for item in view.index]
        if count == 1:
            frame.index = pd.Index(index_frame.iloc[:, 0], name=names[0])
        else:
            frame.index = pd.MultiIndex.from_frame(index_frame, names=names)
    frame.columns = labels_index(labels)
    return frame


def labels_index(labels: Sequence[Hashable]) -> Any:
    """The labels of a frame as pandas has them."""
    import pandas as pd

    if labels and all(isinstance(label, tuple) for label in labels):
        return pd.MultiIndex.from_tuples(list(labels))
    return pd.Index(list(labels)) if labels else pd.RangeIndex(0)


def _column(column: pa.ChunkedArray, dtype: DType, backend: str) -> Any:
    import pandas as pd

    column = _typed(column, dtype)
    if dtype.kind is Kind.CATEGORY:
        return _categorical(column, dtype)
    if backend == "pyarrow":
        return pd.Series(column.to_pandas(types_mapper=pd.ArrowDtype))
    if backend == "numpy_nullable":
        return pd.Series(column.to_pandas(types_mapper=_NULLABLE.get))
    if dtype.kind is Kind.STRING:
        return pd.Series(column.to_pandas(), dtype="str")
    if column.null_count and dtype.kind is Kind.INT:
        return _whole_with_missing(column)
    found = column.to_pandas()
    if dtype.kind is Kind.TIMESTAMPTZ:
        return found.dt.tz_convert(dtype.zone)
    return found


def _typed(column: pa.ChunkedArray, dtype: DType) -> pa.ChunkedArray:
    """In the Arrow type whose pandas form is the one that is wanted."""
    kind = column.type
    if dtype.kind is Kind.DATE:
        return column.cast(pa.timestamp("us"))
    if pa.types.is_decimal(kind):
        return column.cast(pa.int64() if dtype.kind is Kind.INT else pa.float64(), safe=False)
    if dtype.kind is Kind.DURATION:
        return column.cast(pa.duration("us"))
    if dtype.kind is Kind.TIMESTAMPTZ:
        return column.cast(pa.timestamp("us", tz="UTC"))
    if dtype.kind is Kind.INT and dtype.sql == "BIGINT":
        return column.cast(pa.int64())
    if dtype.kind is Kind.FLOAT and not pa.types.is_float32(kind):
        return column.cast(pa.float64())
    return column


def _whole_with_missing(column: pa.ChunkedArray) -> Any:
    """As floats, as pandas has them, unless a float would not hold them."""
    import pandas as pd

    bounds = pc.min_max(column).as_py()
    least, greatest = bounds["min"] or 0, bounds["max"] or 0
    if max(abs(least), abs(greatest)) <= EXACT:
        return column.cast(pa.float64()).to_pandas()
    warnings.warn(
        "integers beyond 2**53 with missing values: kept exact as Int64", stacklevel=2
    )  # fmt: skip
    return pd.Series(column.to_pandas(types_mapper=_NULLABLE.get))


def _categorical(column: pa.ChunkedArray, dtype: DType) -> Any:
    import pandas as pd

    codes = column.fill_null(-1).to_pandas()
    categories = pd.Index(list(dtype.categories))
    return pd.Series(pd.Categorical.from_codes(codes, categories=categories, ordered=True))


class _Nullable(dict[pa.DataType, Any]):
    """pandas' own nullable types, made when they are first asked for."""

    def get(self, kind: pa.DataType, default: Any = None) -> Any:
        import pandas as pd

        names: Sequence[tuple[str, Any]] = (
            ("int8", pd.Int8Dtype()), ("int16", pd.Int16Dtype()), ("int32", pd.Int32Dtype()),
            ("int64", pd.Int64Dtype()), ("bool", pd.BooleanDtype()), ("double", pd.Float64Dtype()),
            ("float", pd.Float32Dtype()), ("string", pd.StringDtype()),
        )  # fmt: skip
        return dict(names).get(str(kind), default)


_NULLABLE: Final = _Nullable()
