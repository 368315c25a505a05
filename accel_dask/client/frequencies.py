"""Frequencies such as `D`, `6h` or `ME`: how times are cut into bins, and which bins there are."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from accel_dask.client import dtypes, operations
from accel_dask.client.expressions import Expr, call, literal
from accel_dask.client.unsupported import refuse

_MICROSECONDS: Final = {
    "us": 1, "ms": 1_000, "s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000,
    "D": 86_400_000_000,
}  # fmt: skip
_CALENDAR: Final = {
    "W": "week", "W-SUN": "week", "MS": "month", "ME": "month", "QS": "quarter", "QE": "quarter",
    "YS": "year", "YE": "year",
}  # fmt: skip
_AT_END: Final = frozenset(["W", "W-SUN", "ME", "QE", "YE"])
_TRUNCATED: Final = {"D": "day", "1D": "day", "h": "hour", "1h": "hour", "min": "minute",
                     "1min": "minute", "s": "second", "1s": "second"}  # fmt: skip
_WRITTEN: Final = re.compile(r"(\d*)([A-Za-z]+(?:-[A-Z]+)?)")
_DAY: Final = _MICROSECONDS["D"]


@dataclass(frozen=True, slots=True)
class Frequency:
    """A parsed frequency."""

    text: str
    unit: str
    count: int

    @property
    def is_calendar(self) -> bool:
        return self.unit in _CALENDAR

    @property
    def microseconds(self) -> int:
        """Length of a bin of a fixed length."""
        return _MICROSECONDS[self.unit] * self.count


def parse(freq: Any) -> Frequency:
    """The frequency `freq`.

    Raises:
        UnsupportedOperation: it is none of those that are served.
    """
    text = str(freq)
    found = _WRITTEN.fullmatch(text)
    if found is not None:
        count, unit = int(found[1] or 1), found[2]
        if unit in _MICROSECONDS and count > 0:
            return Frequency(text, unit, count)
        if unit in _CALENDAR and count == 1:
            return Frequency(text, unit, count)
    served = ", ".join([*_MICROSECONDS, *_CALENDAR])
    raise refuse(f"the frequency {text!r}", f"use {served}, the first of them with a number")


def fixed_microseconds(freq: Any) -> int:
    """The length of `freq`, which must have one.

    Raises:
        UnsupportedOperation: it has none, such as a month.
    """
    found = parse(freq)
    if found.is_calendar:
        raise refuse(f"rounding to {found.text!r}", "use a fixed length, or dt.year and dt.month")
    return found.microseconds


def floored(expr: Expr, freq: Any) -> Expr:
    """The timestamp `expr` rounded down to a fixed frequency, counted from 1970."""
    unit = _TRUNCATED.get(parse(freq).text)
    if unit is not None:
        # What the planner finds rollups by, and engines know.
        return call("date_trunc", dtypes.TIMESTAMP, expr, options=(unit,))
    step = fixed_microseconds(freq)
    here = operations.microseconds(expr)
    within = call("mod", dtypes.INT, here, literal(step))
    return call("timestamp_of", dtypes.TIMESTAMP, operations.arithmetic("sub", here, within))


def zone_of_bins(frequency: Frequency, zone: str) -> str:
    """By whose clock times of `zone` are cut into bins: by its own into days and longer; into
    shorter ones, which go on evenly while clocks are changed, by UTC's if both begin together.

    Raises:
        UnsupportedOperation: they do not, so that bins depend on the first row.
    """
    if frequency.is_calendar or frequency.microseconds >= _DAY or zone == "UTC":
        return zone
    shifts = _shifts(zone)
    if len(shifts) == 1:
        return zone
    if any(shift % frequency.microseconds for shift in shifts):
        raise refuse(
            f"bins of {frequency.text!r} by the clock of {zone}, whose start depends on the first "
            "row when clocks are changed",
            "use shorter bins, days, or .dt.tz_convert('UTC') first",
        )
    return "UTC"


@lru_cache(maxsize=64)
def _shifts(zone: str) -> frozenset[int]:
    """Microseconds between the clocks of `zone` and UTC, winter and summer."""
    from zoneinfo import ZoneInfo

    found = set()
    for year in range(1970, 2038):
        for month in (1, 4, 7, 10):
            shift = dt.datetime(year, month, 1, tzinfo=ZoneInfo(zone)).utcoffset() or dt.timedelta()
            found.add(shift // dt.timedelta(microseconds=1))
    return frozenset(found)


def bin_label(expr: Expr, frequency: Frequency) -> Expr:
    """The bin that the timestamp `expr` is in, by its label.

    Bins of a fixed length that divides a day start at midnight; pandas counts the others from
    the first row's midnight, which is not known here.

    Raises:
        UnsupportedOperation: a length that does not divide a day.
    """
    if not frequency.is_calendar:
        if _DAY % frequency.microseconds:
            raise refuse(
                f"bins of {frequency.text!r}, whose start depends on the first row",
                "use a length that divides a day",
            )
        return floored(expr, frequency.text)
    unit = _CALENDAR[frequency.unit]
    start = call("date_trunc", dtypes.TIMESTAMP, expr, options=(unit,))
    if frequency.unit not in _AT_END:
        return start
    return call("bin_end", dtypes.TIMESTAMP, start, options=(unit,))
