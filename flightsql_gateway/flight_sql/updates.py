"""Updates: refused, all but a setting that changes nothing."""

from __future__ import annotations

import re
from typing import Final, NoReturn

from accel_dask.errors import ReadOnly, UnsupportedQuery

# Executors answer in UTC. Some clients set that at connect; agreeing to it changes nothing, while
# agreeing to any other zone and ignoring it would give wrong answers.
_HARMLESS: Final = re.compile(
    r"\s*SET\s+(?:SESSION\s+)?TIME\s?ZONE\s*(?:=|TO|\s)\s*'(?:UTC|ETC/UTC|GMT)'\s*;?\s*",
    re.IGNORECASE,
)


def is_harmless(sql: str) -> bool:
    """Whether `sql` sets what is set already."""
    return len(sql) < 100 and _HARMLESS.fullmatch(sql) is not None


def refuse_update(sql: str) -> int:
    """The rows that `sql` changed: none.

    Raises:
        ReadOnly: it would change something.
        UnsupportedQuery: it is a query, sent as an update or for several rows of parameters.
    """
    if is_harmless(sql):
        return 0
    if re.match(r"\s*(SELECT|WITH|FROM)\b", sql, re.IGNORECASE):
        raise UnsupportedQuery(
            "a query was sent as an update (executemany?); execute it once per row of parameters"
        )
    raise ReadOnly("updates are refused: this is a read-only cache")


def refuse_ingest() -> NoReturn:
    raise ReadOnly("ingesting rows is refused: this is a read-only cache; publish a snapshot")
