"""Last steps on a fetched, bounded answer, in pandas."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from accel_dask.errors import ResultTooLarge, UnsupportedOperation


def with_empty_bins(
    frame: Any, freq: str, fills: Sequence[Any], cap: int
) -> Any:  # fmt: skip
    """`frame`, by bins of time in its index or first column, with the bins that have no rows."""
    import pandas as pd

    is_flat = frame.index.name is None
    name = frame.columns[0] if is_flat else frame.index.name
    indexed = frame.set_index(name) if is_flat else frame
    if not len(indexed):
        return frame
    every = pd.date_range(
        indexed.index.min(), indexed.index.max(), freq=freq, name=name, unit=indexed.index.unit
    )
    if len(every) > cap:
        raise ResultTooLarge(
            f"binning by {freq} makes {len(every):,} bins, more than max_rows={cap:,}; use longer "
            "bins, or filter to less time"
        )
    if not indexed.index.isin(every).all():
        raise UnsupportedOperation(
            f"bins of {freq} that do not follow each other evenly, as where clocks are changed; "
            "use .dt.tz_convert('UTC') first"
        )
    full = indexed.reindex(every)
    for i, fill in enumerate(fills if len(every) > len(indexed) else ()):
        if fill is not None:
            filled = full.iloc[:, i].fillna(fill).astype(indexed.iloc[:, i].dtype)
            full.isetitem(i, filled)
    return full.reset_index() if is_flat else full


def row_as_series(labels: Sequence[Hashable], name: Hashable = None) -> Callable[[Any], Any]:
    """One row as a series."""

    def apply(frame: Any) -> Any:
        import pandas as pd

        values = [frame.iloc[0, i] for i in range(len(labels))]
        return pd.Series(values, index=list(labels), name=name)

    return apply


def row_as_table(
    columns: Sequence[Hashable], stats: Sequence[Sequence[Hashable]]
) -> Callable[[Any], Any]:
    """One row of the `stats` of each of `columns` as a frame, a row for each of them, in the order
    of the shortest as pandas has it."""

    def apply(frame: Any) -> Any:
        import pandas as pd

        made, at = [], 0
        for wanted in stats:
            values = [frame.iloc[0, at + i] for i in range(len(wanted))]
            made.append(pd.Series(values, index=list(wanted)))
            at += len(wanted)
        order = list(dict.fromkeys(stat for one in sorted(stats, key=len) for stat in one))
        table = pd.concat([one.reindex(order) for one in made], axis=1)
        table.columns = pd.Index(list(columns))
        return table

    return apply


def row_as_matrix(labels: Sequence[Hashable]) -> Callable[[Any], Any]:
    """The upper triangle of a symmetric matrix, in one row, as the matrix."""

    def apply(frame: Any) -> Any:
        import numpy as np
        import pandas as pd

        size = len(labels)
        matrix = np.full((size, size), np.nan)
        values = iter(frame.iloc[0, i] for i in range(size * (size + 1) // 2))
        for i in range(size):
            for j in range(i, size):
                matrix[i, j] = matrix[j, i] = next(values)
        return pd.DataFrame(matrix, index=list(labels), columns=list(labels))

    return apply


def pivoted(
    *, values: Any, index: list[Hashable], columns: list[Hashable], fill_value: Any, dropna: bool
) -> Callable[[Any], Any]:
    """Rows of groups as pandas' `pivot_table` lays them out."""

    def apply(frame: Any) -> Any:
        import pandas as pd

        return pd.pivot_table(
            frame, values=values, index=index, columns=columns, aggfunc="first",
            fill_value=fill_value, dropna=dropna,
        )  # fmt: skip

    return apply


def crossed(row_name: Hashable, column_name: Hashable, normalize: Any) -> Callable[[Any], Any]:
    """Counts of pairs as pandas' `crosstab` lays them out."""

    def apply(frame: Any) -> Any:
        import pandas as pd

        found = pd.crosstab(
            frame["row"], frame["column"], values=frame["count"], aggfunc="sum",
            rownames=[row_name], colnames=[column_name],
        ).fillna(0).astype("int64")  # fmt: skip
        if not normalize:
            return found
        if normalize == "index":
            return found.div(found.sum(axis=1), axis=0)
        if normalize == "columns":
            return found / found.sum(axis=0)
        return found / found.to_numpy().sum()

    return apply
