"""The aggregates that groups of frames and of columns have in common."""

from __future__ import annotations

from typing import Any

from accel_dask.client.arguments import explained
from accel_dask.client.unsupported import refuse


@explained("DataFrameGroupBy")
class GroupAggregates:
    """One value of each group; `numeric_only` chooses columns of frames."""

    def _reduced(self, func: str, *, numeric_only: bool = False, **options: Any) -> Any:
        raise NotImplementedError

    def sum(self, numeric_only: bool = False, min_count: int = 0) -> Any:
        """The sum."""
        return self._reduced("sum", numeric_only=numeric_only, min_count=min_count)

    def mean(self, numeric_only: bool = False) -> Any:
        """The mean."""
        return self._reduced("mean", numeric_only=numeric_only)

    def median(self, numeric_only: bool = False) -> Any:
        """The median."""
        return self._reduced("median", numeric_only=numeric_only)

    def quantile(self, q: float = 0.5, *, numeric_only: bool = False) -> Any:
        """The quantile `q`."""
        if not isinstance(q, float | int):
            raise refuse("several quantiles of groups", "use agg with one quantile each")
        return self._reduced("quantile", numeric_only=numeric_only, q=float(q))

    def std(self, ddof: int = 1, numeric_only: bool = False) -> Any:
        """The standard deviation."""
        return self._reduced("std", numeric_only=numeric_only, ddof=ddof)

    def var(self, ddof: int = 1, numeric_only: bool = False) -> Any:
        """The variance."""
        return self._reduced("var", numeric_only=numeric_only, ddof=ddof)

    def sem(self, *, numeric_only: bool = False) -> Any:
        """The standard error of the mean."""
        return self._reduced("sem", numeric_only=numeric_only)

    def skew(self, *, numeric_only: bool = False) -> Any:
        """The skewness."""
        return self._reduced("skew", numeric_only=numeric_only)

    def kurt(self, *, numeric_only: bool = False) -> Any:
        """The excess kurtosis."""
        return self._reduced("kurt", numeric_only=numeric_only)

    def prod(self, numeric_only: bool = False) -> Any:
        """The product."""
        return self._reduced("prod", numeric_only=numeric_only)

    def min(self, numeric_only: bool = False) -> Any:
        """The least value."""
        return self._reduced("min", numeric_only=numeric_only)

    def max(self, numeric_only: bool = False) -> Any:
        """The greatest value."""
        return self._reduced("max", numeric_only=numeric_only)

    def first(self, numeric_only: bool = False) -> Any:
        """The first value that is not missing."""
        return self._reduced("first", numeric_only=numeric_only)

    def last(self, numeric_only: bool = False) -> Any:
        """The last value that is not missing."""
        return self._reduced("last", numeric_only=numeric_only)

    def count(self) -> Any:
        """How many values are not missing."""
        return self._reduced("count")

    def nunique(self, dropna: bool = True) -> Any:
        """How many different values there are."""
        return self._reduced("nunique", **({} if dropna else {"with_missing": True}))

    def any(self) -> Any:
        """Whether any value is true."""
        return self._reduced("any")

    def all(self) -> Any:
        """Whether all values are true."""
        return self._reduced("all")
