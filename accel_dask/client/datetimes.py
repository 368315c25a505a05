"""The `dt` accessor, of times, dates and durations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from accel_dask.client import dtypes, operations
from accel_dask.client.arguments import explained
from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import Expr, call, literal
from accel_dask.client.frequencies import fixed_microseconds, floored
from accel_dask.client.unsupported import refuse

if TYPE_CHECKING:
    from accel_dask.client.series import Series

_PARTS: Final = {
    "year": "year", "month": "month", "day": "day", "hour": "hour", "minute": "minute",
    "quarter": "quarter", "dayofyear": "doy", "day_of_year": "doy",
}  # fmt: skip
_DAY: Final = 86_400_000_000
_FORMATS: Final = frozenset("YmdHMSfyjabABpIF%T")


@explained("dt")
class DateTimes:
    """Fields and roundings of a column of times."""

    def __init__(self, series: Series) -> None:
        dtype = series._expr.dtype
        if not dtype.is_time and dtype.kind is not Kind.DURATION:
            raise refuse(
                f".dt on a {dtype.kind} column", "use accel_dask.client.pandas.to_datetime"
            )
        self._series = series
        self._expr = series._expr

    def __getattr__(self, name: str) -> Any:
        if name in _PARTS and self._expr.dtype.is_time:
            return self._part(_PARTS[name])
        if name.startswith("_"):
            raise AttributeError(name)
        raise refuse(f".dt.{name} of a {self._expr.dtype.kind} column", ".compute() first")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *_PARTS]

    def _with(self, expr: Expr) -> Series:
        return self._series._with(expr)

    def _local(self) -> Expr:
        """The clock of the column's zone."""
        return local(self._expr)

    def _part(self, part: str) -> Series:
        return self._with(_part(self._local(), part))

    @property
    def second(self) -> Series:
        """Second of the minute."""
        self._only_times("second")
        return self._part("second")

    @property
    def microsecond(self) -> Series:
        """Microsecond of the second."""
        self._only_times("microsecond")
        within = _part(self._local(), "microseconds")
        return self._with(operations.arithmetic("mod", within, literal(1_000_000)))

    @property
    def dayofweek(self) -> Series:
        """Monday is 0."""
        self._only_times("dayofweek")
        day = _part(self._local(), "isodow")
        return self._with(operations.arithmetic("sub", day, literal(1)))

    day_of_week = weekday = dayofweek

    @property
    def date(self) -> Series:
        """The day."""
        self._only_times("date")
        return self._with(call("cast", dtypes.DATE, self._local()))

    @property
    def days_in_month(self) -> Series:
        """Days of the month."""
        self._only_times("days_in_month")
        last = call("function", dtypes.DATE, self._local(), options=("last_day",))
        return self._with(_part(last, "day"))

    daysinmonth = days_in_month

    @property
    def is_month_start(self) -> Series:
        """Whether it is the first of a month."""
        return self._with(operations.compare("eq", _part(self._local(), "day"), literal(1)))

    @property
    def is_month_end(self) -> Series:
        """Whether it is the last of a month."""
        last = call("function", dtypes.DATE, self._local(), options=("last_day",))
        day = call("cast", dtypes.DATE, self._local())
        return self._with(operations.compare("eq", day, last))

    def isocalendar(self) -> IsoCalendar:
        """Year, week and day of ISO weeks."""
        self._only_times("isocalendar")
        return IsoCalendar(self._series._with, self._local())

    def day_name(self) -> Series:
        """In English."""
        return self._with(call("function", dtypes.STRING, self._local(), options=("dayname",)))

    def month_name(self) -> Series:
        """In English."""
        return self._with(call("function", dtypes.STRING, self._local(), options=("monthname",)))

    def strftime(self, date_format: str) -> Series:
        """As text."""
        codes = {date_format[i + 1 : i + 2] for i, c in enumerate(date_format) if c == "%"}
        if not codes <= _FORMATS:
            raise refuse(f"strftime({date_format!r})", "use %Y %m %d %H %M %S and the like")
        self._only_times("strftime")
        written = literal(date_format.replace("%F", "%Y-%m-%d").replace("%T", "%H:%M:%S"))
        return self._with(
            call("function", dtypes.STRING, self._local(), written, options=("strftime",))
        )

    def normalize(self) -> Series:
        """Midnight of the day."""
        return self.floor("D")

    def floor(self, freq: str) -> Series:
        """Rounded down to `freq`."""
        self._only_times("floor")
        return self._with(self._rounded(freq))

    def ceil(self, freq: str) -> Series:
        """Rounded up to `freq`."""
        self._only_times("ceil")
        step = fixed_microseconds(freq)
        down = self._rounded(freq)
        here = self._as_timestamp()
        up = call("add_us", down.dtype, down, call("literal_us", dtypes.DURATION, literal(step)))
        same = operations.compare("eq", down, here)
        return self._with(call("case", down.dtype, same, down, up))

    def _rounded(self, freq: str) -> Expr:
        if self._expr.dtype.kind is not Kind.TIMESTAMPTZ:
            return floored(self._as_timestamp(), freq)
        clock = floored(self._local(), freq)
        return call("timezone", self._expr.dtype, clock, options=(self._expr.dtype.zone,))

    def _as_timestamp(self) -> Expr:
        if self._expr.dtype.kind is Kind.DATE:
            return call("cast", dtypes.TIMESTAMP, self._expr)
        return self._expr

    def tz_localize(self, tz: str | None) -> Series:
        """The clock's times as times of the zone `tz`; None: the zone is dropped."""
        self._only_times("tz_localize")
        kind = self._expr.dtype.kind
        if tz is None:
            return self._with(self._local())
        if kind is Kind.TIMESTAMPTZ:
            raise refuse("tz_localize of times with a time zone", "use dt.tz_convert")
        if str(tz) != "UTC":
            raise refuse(
                f"tz_localize({tz!r}): times that a clock shows twice or never",
                "localize to UTC, then dt.tz_convert",
            )
        dtype = DType(Kind.TIMESTAMPTZ, "TIMESTAMPTZ", zone=str(tz))
        return self._with(call("timezone", dtype, self._as_timestamp(), options=(str(tz),)))

    def tz_convert(self, tz: str | None) -> Series:
        """The same instants, shown in the zone `tz`; None: UTC without a zone."""
        if self._expr.dtype.kind is not Kind.TIMESTAMPTZ:
            raise refuse(
                "tz_convert of times without a time zone", "use dt.tz_localize('UTC') first"
            )
        if tz is None:
            return self._with(call("timezone", dtypes.TIMESTAMP, self._expr, options=("UTC",)))
        dtype = DType(Kind.TIMESTAMPTZ, "TIMESTAMPTZ", zone=str(tz))
        return self._with(call("relabelled", dtype, self._expr))

    # Durations

    @property
    def days(self) -> Series:
        """Whole days."""
        self._only_durations("days")
        return self._with(call("floordiv", dtypes.INT, self._as_int(), literal(_DAY)))

    @property
    def seconds(self) -> Series:
        """Seconds of the day that is not full."""
        self._only_durations("seconds")
        rest = call("mod", dtypes.INT, self._as_int(), literal(_DAY))
        return self._with(call("floordiv", dtypes.INT, rest, literal(1_000_000)))

    def total_seconds(self) -> Series:
        """In seconds."""
        self._only_durations("total_seconds")
        return self._with(call("div", dtypes.FLOAT, self._as_int(), literal(1_000_000)))

    def _as_int(self) -> Expr:
        return call("relabelled", dtypes.INT, self._expr)

    def _only_times(self, what: str) -> None:
        if not self._expr.dtype.is_time:
            raise refuse(f".dt.{what} of durations", "use days, seconds or total_seconds")

    def _only_durations(self, what: str) -> None:
        if self._expr.dtype.kind is not Kind.DURATION:
            raise refuse(f".dt.{what} of times", "subtract two times first")


class IsoCalendar:
    """Fields of ISO weeks."""

    def __init__(self, make: Callable[[Expr, str], Series], expr: Expr) -> None:
        self._make = make
        self._expr = expr

    def __getitem__(self, name: str) -> Series:
        found: Series = getattr(self, name)
        return found

    @property
    def week(self) -> Series:
        """The week's number."""
        return self._make(_part(self._expr, "week"), "week")

    @property
    def year(self) -> Series:
        """The week's year."""
        return self._make(_part(self._expr, "isoyear"), "year")

    @property
    def day(self) -> Series:
        """Monday is 1."""
        return self._make(_part(self._expr, "isodow"), "day")


def local(expr: Expr, zone: str = "") -> Expr:
    """A time as the clock of its zone, or of `zone`, shows it."""
    if expr.dtype.kind is not Kind.TIMESTAMPTZ:
        return expr
    return call("timezone", dtypes.TIMESTAMP, expr, options=(zone or expr.dtype.zone,))


def _part(expr: Expr, part: str) -> Expr:
    return call("date_part", dtypes.INT, expr, options=(part,))
