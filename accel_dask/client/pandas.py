"""pandas' module-level functions, over lazy frames: `import accel_dask.client.pandas as pd`.

`read_sql` and `read_table` give frames of the default session, `connect()`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accel_dask.client import dtypes
from accel_dask.client.arguments import explained_function
from accel_dask.client.cutting import cut, qcut
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import call, literal
from accel_dask.client.frame import DataFrame
from accel_dask.client.groupby import Grouper, NamedAgg
from accel_dask.client.series import Series
from accel_dask.client.session import Session, connect
from accel_dask.client.unsupported import refuse, rewrite

if TYPE_CHECKING:
    from pandas import DateOffset, Timedelta, Timestamp, date_range

__all__ = [
    "DataFrame", "DateOffset", "Grouper", "NamedAgg", "Series", "Timedelta", "Timestamp",
    "concat", "crosstab", "cut", "date_range", "isna", "melt", "merge", "notna", "pivot_table",
    "qcut", "read_sql", "read_table", "to_datetime", "to_numeric", "use_session",
]  # fmt: skip

_OF_PANDAS = frozenset([
    "BooleanDtype", "CategoricalDtype", "DateOffset", "Float64Dtype", "Index", "IndexSlice",
    "Int64Dtype", "Interval", "MultiIndex", "NA", "NaT", "Period", "StringDtype", "Timedelta",
    "Timestamp", "api", "bdate_range", "date_range", "errors", "get_option", "offsets",
    "option_context", "options", "period_range", "plotting", "reset_option", "set_option",
    "testing", "timedelta_range", "to_timedelta", "tseries",
])  # fmt: skip
_DEFAULT: dict[str, Session] = {}


def __getattr__(name: str) -> Any:
    """Values of pandas that are needed beside frames."""
    if name in _OF_PANDAS:
        import pandas as pd

        return getattr(pd, name)
    if not name.startswith("_") and (error := rewrite(name, "module")) is not None:
        raise error
    raise AttributeError(f"accel_dask.client.pandas has no {name!r}")


def use_session(session: Session) -> None:
    """The session that `read_sql` and `read_table` use from now on."""
    _DEFAULT["session"] = session


def _session() -> Session:
    if "session" not in _DEFAULT:
        _DEFAULT["session"] = connect()
    return _DEFAULT["session"]


@explained_function("module", "read_table")
def read_table(name: str) -> DataFrame:
    """The dataset `name`."""
    return _session().table(name)


@explained_function("module", "read_sql")
def read_sql(sql: str) -> DataFrame:
    """The answer to a query, or the dataset of that name."""
    return _session().sql(sql) if " " in sql.strip() else _session().table(sql)


@explained_function("module", "concat")
def concat(objs: Sequence[DataFrame], *, ignore_index: bool = True, axis: int = 0) -> DataFrame:  # noqa: ARG001
    """All rows of several frames."""
    from accel_dask.client.merging import concat as concat_frames

    if isinstance(objs, Mapping):
        raise refuse("concat of a dict", "assign a column with the key to each")

    if axis != 0:
        raise refuse("concat(axis=1)", "merge on a key, or assign columns of the same rows")
    return concat_frames(list(objs))


def merge(left: DataFrame, right: DataFrame, how: str = "inner", on: Any = None,
          **options: Any) -> DataFrame:  # fmt: skip
    """Two frames joined on keys."""
    return left.merge(right, how, on, **options)


def melt(frame: DataFrame, *arguments: Any, **options: Any) -> DataFrame:
    """From columns to rows."""
    return frame.melt(*arguments, **options)


def pivot_table(data: DataFrame, *arguments: Any, **options: Any) -> DataFrame:
    """Aggregates laid out in rows and columns."""
    return data.pivot_table(*arguments, **options)


@explained_function("module", "crosstab")
def crosstab(index: Series, columns: Series, *, normalize: Any = False) -> DataFrame:
    """How often each pair of values comes."""
    from accel_dask.client.merging import crosstab as crosstab_of

    return crosstab_of(index, columns, normalize)


def isna(obj: Any) -> Any:
    """Whether values are missing."""
    return obj.isna() if isinstance(obj, Series | DataFrame) else dtypes.plain(obj) is None


def notna(obj: Any) -> Any:
    """Whether values are there."""
    return obj.notna() if isinstance(obj, Series | DataFrame) else dtypes.plain(obj) is not None


isnull, notnull = isna, notna


def unique(values: Any) -> Any:
    """Each value of a column once, in no order: runs a query."""
    return values.unique()


@explained_function("module", "to_datetime")
def to_datetime(arg: Any, *, format: str | None = None) -> Any:  # noqa: A002 - pandas' name
    """Texts or dates as timestamps."""
    if not isinstance(arg, Series):
        import pandas as pd

        return pd.to_datetime(arg, format=format)
    kind = arg._expr.dtype.kind
    if kind in {Kind.TIMESTAMP, Kind.TIMESTAMPTZ}:
        return arg
    if kind is Kind.STRING and format is not None:
        made = call("function", dtypes.TIMESTAMP, arg._expr, literal(format), options=("strptime",))
        return arg._with(made)
    if kind in {Kind.STRING, Kind.DATE}:
        return arg._with(call("cast", dtypes.TIMESTAMP, arg._expr))
    raise refuse(f"to_datetime of a {kind} column", "give texts or dates")


@explained_function("module", "to_numeric")
def to_numeric(arg: Series) -> Series:
    """Texts as floats; numbers as they are."""
    return arg if arg._expr.dtype.is_number else arg.astype(float)
