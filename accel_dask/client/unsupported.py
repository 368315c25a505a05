"""What pandas has and frames here do not, each with what to write instead."""

from __future__ import annotations

from typing import Any, Final

from accel_dask.errors import UnsupportedAttribute, UnsupportedOperation

_PULL: Final = "or bring a bounded part to pandas: .head(n).compute()"

_REWRITES: Final[dict[str, str]] = {
    "apply": f"write where/mask/case_when, str. and dt. or groupby.agg, {_PULL}.apply(...)",
    "applymap": f"write expressions over the columns, {_PULL}.map(...)",
    "transform": f'use groupby(...).transform("mean") and the like, {_PULL}.transform(...)',
    "iterrows": f"write expressions over columns, {_PULL}.iterrows()",
    "itertuples": f"write expressions over columns, {_PULL}.itertuples()",
    "items": "loop over df.columns",
    "iloc": "use .head(n), .tail(n) or .nlargest(n, ...) on an ordered frame",
    "iat": "filter by a key and compute",
    "at": "filter by a key and compute",
    "T": "compute() first, then transpose",
    "transpose": "compute() first, then transpose",
    "values": "use .to_arrow() or .compute().values",
    "to_numpy": "use .compute().to_numpy()",
    "explode": "flatten the source",
    "stack": "use melt",
    "interpolate": "fillna with an aggregate, or compute() first",
    "ffill": "fillna with a value, or compute() first",
    "bfill": "fillna with a value, or compute() first",
    "ewm": "use rolling or expanding, or compute() first",
    "asof": "use a merge on truncated times",
    "to_sql": "pandas' to_sql writes; the SQL of a frame is .sql",
    "to_csv": "use .compute().to_csv(...)",
    "to_parquet": "use pyarrow.parquet.write_table(df.to_arrow(), ...)",
    "duplicated": "use drop_duplicates, or groupby(...).size()",
    "reindex": "merge with a frame of the keys",
    "align": "merge on a key",
    "join": "use merge(on=...)",
    "update": "merge, then fillna",
    "eval": "write the expression in Python, or use assign",
    "idxmax": "sort_values(...).head(1), or nlargest(1, ...)",
    "idxmin": "sort_values(...).head(1), or nsmallest(1, ...)",
    "swapaxes": "compute() first",
    "corrwith": "use corr",
    "hist": "use pd.cut and groupby(...).size()",
    "memory_usage": "it has none here; .explain() shows what is read",
    "info": "use .dtypes",
    "tolist": "use .compute().tolist()",
    "to_list": "use .compute().to_list()",
    "to_dict": "use .compute().to_dict()",
    "to_json": "use .compute().to_json()",
    "to_excel": "use .compute().to_excel()",
    "resample": "use df.resample(freq, on=column)",
    "searchsorted": "use comparisons",
    "factorize": "use rank(method='dense')",
    "get_dummies": "use where on each value, or pivot_table",
    "wide_to_long": "use melt",
    "unstack": "use pivot_table",
    "pivot": "use pivot_table",
    "truncate": "filter by the key",
    "squeeze": "compute() first",
    "xs": "filter by the key",
    "loc": "use df.loc[mask] or df.loc[mask, columns]",
    "array": "use .to_arrow()",
    "index": "rows have none; groups have their keys: reset_index() makes columns of them",
    "groups": "use size(), or filter one key and compute",
    "indices": "use size(), or filter one key and compute",
    "ohlc": 'use agg(["first", "max", "min", "last"])',
    "nth": "use head(n), or filter by cumcount()",
    "describe": "use agg with the figures that are wanted",
    "ngroup": "rank the key: df[key].rank(method='dense')",
    "unique": "use drop_duplicates() of the key and the column",
    "dtypes": "use the frame's",
    "first_valid_index": "use dropna().head(1)",
    "last_valid_index": "use dropna().tail(1)",
    "is_monotonic_increasing": "compare with shift(1)",
    "is_monotonic_decreasing": "compare with shift(1)",
    "hasnans": "use isna().any()",
    "combine": "use where, or fillna",
    "equals": "compute() both first",
    "compare": "compute() both first",
    "style": "use .compute().style",
}  # fmt: skip

_OWNERS: Final = {
    "DataFrame": lambda pd: pd.DataFrame,
    "Series": lambda pd: pd.Series,
    "DataFrameGroupBy": lambda pd: pd.api.typing.DataFrameGroupBy,
    "SeriesGroupBy": lambda pd: pd.api.typing.SeriesGroupBy,
    "Rolling": lambda pd: pd.api.typing.Rolling,
    "Resampler": lambda pd: pd.api.typing.Resampler,
    "str": lambda pd: pd.Series.str,
    "dt": lambda pd: pd.Series.dt,
    "module": lambda pd: pd,
}


def of_pandas(owner: str) -> Any:
    """pandas' own class, accessor or module."""
    import pandas as pd

    return _OWNERS[owner](pd)


def rewrite(name: str, *owners: str) -> UnsupportedAttribute | None:
    """The error for the `name` of pandas' `owners`; None: they have no such thing."""
    advice = _REWRITES.get(name)
    if advice is None:
        if not any(hasattr(of_pandas(owner), name) for owner in owners):
            return None
        advice = _PULL.removeprefix("or ")
    return UnsupportedAttribute(f"{name} is not served, as it has no bounded SQL; {advice}")


def no_inplace(inplace: bool) -> None:
    """Raise for `inplace=True`."""
    if inplace:
        raise UnsupportedOperation(
            "inplace=True: frames are immutable; assign the result: df = df.method(...)"
        )


def refuse(what: str, advice: str) -> UnsupportedOperation:
    return UnsupportedOperation(f"{what} is not served; {advice}")
