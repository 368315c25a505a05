"""Limits that a client sets for one call, in headers. They lower the tenant's, never raise them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from accel_dask.errors import InvalidQuery
from accel_dask.model.tenant import Quota

AskedLimits = tuple[tuple[str, int], ...]
"""Names of `Quota`'s fields, in their order here, and the values asked for."""

PREFIX: Final = "x-accel-"
LIMITS: Final = (
    "deadline_ms",
    "max_cpu_ms",
    "max_scan_rows",
    "max_scan_bytes",
    "max_gather_rows",
    "max_gather_bytes",
    "max_result_rows",
    "max_result_bytes",
)
_BY_HEADER: Final = {PREFIX + name.replace("_", "-"): name for name in LIMITS}
_LIMITING: Final = (PREFIX + "max-", PREFIX + "deadline", PREFIX + "timeout")
_MAX_DIGITS: Final = 18


def read_limits(headers: Mapping[str, Iterable[str]]) -> AskedLimits:
    """The limits in a call's headers.

    Raises:
        InvalidQuery: a limit that there is not, or a value that is none.
    """
    asked: dict[str, int] = {}
    for header, values in headers.items():
        key = header.lower()
        name = _BY_HEADER.get(key)
        if name is not None:
            for value in values:
                asked[name] = min(_number(key, value), asked.get(name, 10**_MAX_DIGITS))
        elif key.startswith(_LIMITING):
            raise InvalidQuery(f"there is no limit {key[:60]}; there are {', '.join(_BY_HEADER)}")
    return tuple((name, asked[name]) for name in LIMITS if name in asked)


def _number(key: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS and int(value)):
        raise InvalidQuery(f"{key} must be a whole number of at least 1, not {value[:30]!r}")
    return int(value)


def lowered(quota: Quota, asked: AskedLimits) -> Quota:
    """`quota` with what was asked for where that is less."""
    if not asked:
        return quota
    lower = {name: value for name, value in asked if value < getattr(quota, name)}
    return replace(quota, **lower)


def lowered_at_engine(quota: Quota, asked: AskedLimits) -> Quota:
    """`quota` with the limits of a fallback's answer, where less was asked for."""
    wanted = dict(asked)
    return replace(
        quota,
        fallback_max_rows=min(
            quota.fallback_max_rows, wanted.get("max_result_rows", quota.fallback_max_rows)
        ),
        fallback_max_bytes=min(
            quota.fallback_max_bytes, wanted.get("max_result_bytes", quota.fallback_max_bytes)
        ),
    )


def whose(quota: Quota, asked: AskedLimits, name: str, tenant: str) -> str:
    """Who set the limit `name`, for people."""
    value = dict(asked).get(name)
    if value is not None and value < getattr(quota, name):
        return f"the client's own limit ({PREFIX}{name.replace('_', '-')})"
    return f"tenant {tenant}'s limit"
