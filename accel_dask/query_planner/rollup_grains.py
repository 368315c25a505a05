"""What of a time column is the same for all of its values in one grain, by the query's text.

A rollup has the beginning of the grain under the column's own name, so whatever is said to be the
same here may be left in the query as it is.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from sqlglot import exp

_DERIVED: Final = {
    "minute": frozenset(["minute", "hour", "day", "week", "month", "quarter", "year"]),
    "hour": frozenset(["hour", "day", "week", "month", "quarter", "year"]),
    "day": frozenset(["day", "week", "month", "quarter", "year"]),
    "week": frozenset(["week"]),
    "month": frozenset(["month", "quarter", "year"]),
    "quarter": frozenset(["quarter", "year"]),
    "year": frozenset(["year"]),
}
"""Of each grain those that it lies in."""

_TRUNCATED: Final = {
    **{grain: grain for grain in _DERIVED},
    "decade": "year",
    "century": "year",
    "millennium": "year",
}
_PARTS: Final = {
    "minute": "minute",
    "hour": "hour",
    **dict.fromkeys(["day", "dayofmonth", "dow", "dayofweek", "weekday", "isodow"], "day"),
    **dict.fromkeys(["doy", "dayofyear"], "day"),
    **dict.fromkeys(["week", "weekofyear", "yearweek", "isoyear"], "week"),
    "month": "month",
    "quarter": "quarter",
    **dict.fromkeys(["year", "decade", "century", "millennium"], "year"),
}
"""Parts of a time, each with the grain in which it does not change."""
_FUNCTIONS: Final = {
    **{part: grain for part, grain in _PARTS.items() if part not in {"dow", "doy"}},
    "dayname": "day",
    "monthname": "month",
    "last_day": "month",
}
_FORMATS: Final = {
    **dict.fromkeys("Yy", "year"),
    **dict.fromkeys("mbB", "month"),
    **dict.fromkeys("djaAwu", "day"),
    **dict.fromkeys("HIp", "hour"),
    "M": "minute",
}
"""Codes of strftime."""

_CALL_BEFORE: Final = r'(?<![\w.$"])(?:{})\s*\(\s*'
"""A call of one of some functions, up to its first argument."""


def _before(functions: str, behind: str = "") -> re.Pattern[str]:
    return re.compile(_CALL_BEFORE.format(functions) + behind + "$", re.IGNORECASE)


_BEFORE: Final = (
    (_before("date_trunc|datetrunc", r"'(\w+)'\s*,\s*"), _TRUNCATED),
    (_before("date_part|datepart", r"'(\w+)'\s*,\s*"), _PARTS),
    (_before("extract", r"(\w+)\s+from\s+"), _PARTS),
    (re.compile(r'(?<![\w.$"])(\w+)\s*\(\s*$'), _FUNCTIONS),
)
_CLOSED: Final = re.compile(r"\s*\)")
_CAST_BEFORE: Final = _before("cast")
_CAST_BEHIND: Final = re.compile(r"\s*as\s+date\s*\)", re.IGNORECASE)
_DATE_BEHIND: Final = re.compile(r"\s*::\s*date\b(?!\s*[\[(])", re.IGNORECASE)
_FORMAT_BEFORE: Final = _before("strftime")
_FORMAT_BEHIND: Final = re.compile(r"\s*,\s*'([^']*)'\s*\)")
_LOOK_BACK: Final = 80
_TIME: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.0+)?)?)?")
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")


def is_derived(grain: str, text: str, start: int, end: int) -> bool:
    """Whether what stands around the column's name at `start` to `end` of `text` is a function
    of it that is the same for all values in one `grain`."""
    before, behind = text[max(0, start - _LOOK_BACK) : start], text[end : end + _LOOK_BACK]
    derived = _DERIVED[grain]
    if _DATE_BEHIND.match(behind):
        return "day" in derived
    if _CAST_BEFORE.search(before) and _CAST_BEHIND.match(behind):
        return "day" in derived
    if _FORMAT_BEFORE.search(before):
        found = _FORMAT_BEHIND.match(behind)
        return found is not None and _is_format_derived(found[1], derived)
    if not _CLOSED.match(behind):
        return False
    for spelling, grains in _BEFORE:
        called = spelling.search(before)
        if called is not None:
            return grains.get(called[1].lower()) in derived
    return False


def _is_format_derived(template: str, derived: frozenset[str]) -> bool:
    codes = re.findall(r"%(.?)", template.replace("%%", ""))
    return all(_FORMATS.get(code) in derived for code in codes)


def is_aligned_comparison(grain: str, column: exp.Expr) -> bool:
    """Whether `column` is compared in a way that is the same for all values in one `grain`:
    `>=` or `<` the beginning of one, or with NULL."""
    parent = column.parent
    if isinstance(parent, exp.Is):
        return parent.this is column and isinstance(parent.expression, exp.Null)
    if isinstance(parent, exp.GTE | exp.LT) and parent.this is column:
        return _begins(grain, parent.expression)
    if isinstance(parent, exp.LTE | exp.GT) and parent.expression is column:
        return _begins(grain, parent.this)
    return False


def _begins(grain: str, constant: exp.Expr) -> bool:
    """Whether `constant` is certainly the beginning of a `grain`."""
    while isinstance(constant, exp.Paren):
        constant = constant.this
    if isinstance(constant, exp.Sub | exp.Add):
        is_day = _is_today(constant.this) and _is_days(constant.expression)
        return is_day and grain in {"minute", "hour", "day"}
    if _is_today(constant):
        return grain in {"minute", "hour", "day"}
    is_date = False
    if type(constant) is exp.Cast:
        is_date = constant.to.this is exp.DType.DATE
        if not is_date and constant.to.this not in {exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ}:
            return False
        constant = constant.this
    if not isinstance(constant, exp.Literal) or not constant.is_string:
        return False
    found = (_DAY if is_date else _TIME).fullmatch(constant.name)
    if found is None:
        return False
    try:
        at = datetime.fromisoformat(constant.name)
    except ValueError:
        return False
    return at == _beginning(grain, at)


def _is_today(node: exp.Expr) -> bool:
    return isinstance(node, exp.CurrentDate) and not any(node.args.values())


def _is_days(node: exp.Expr) -> bool:
    if isinstance(node, exp.Interval):
        unit = node.args.get("unit")
        is_whole = unit is not None and unit.name.upper() in {"DAY", "DAYS", "WEEK", "WEEKS"}
        return is_whole and isinstance(node.this, exp.Literal) and node.this.name.isdigit()
    return isinstance(node, exp.Literal) and not node.is_string and node.name.isdigit()


def _beginning(grain: str, at: datetime) -> datetime:
    at = at.replace(microsecond=0, second=0)
    if grain == "minute":
        return at
    at = at.replace(minute=0)
    if grain == "hour":
        return at
    at = at.replace(hour=0)
    if grain == "week":
        return at - timedelta(days=at.weekday()) if at.year > 1 else at.replace(year=2)
    if grain in {"month", "quarter", "year"}:
        at = at.replace(day=1)
    if grain == "quarter":
        at = at.replace(month=at.month - (at.month - 1) % 3)
    return at.replace(month=1) if grain == "year" else at
