"""What a dataset's row filter must not do: give other rows when it is evaluated again.

Every host loads its own replica of a shard, and a lost one is loaded anew. If a filter depends on
the time, on chance or on the session, replicas of one shard differ, and answers with them.
"""

from __future__ import annotations

import re
from typing import Final

from accel_dask.model.date_trunc import short_truncations

# Found in the engine's own list by a test. `age` of one argument counts from today.
UNSTABLE: Final = frozenset({
    "age", "ago", "current_catalog", "current_connection_id", "current_database",
    "current_date", "current_localtime", "current_localtimestamp", "current_query",
    "current_query_id", "current_role", "current_schema", "current_schemas",
    "current_setting", "current_time", "current_timestamp", "current_transaction_id",
    "current_user", "currval", "error", "gen_random_uuid", "get_current_time",
    "get_current_timestamp", "getenv", "getvariable", "in_search_path", "localtime",
    "localtimestamp", "nextval", "now", "pg_conf_load_time", "pg_postmaster_start_time",
    "pg_sleep", "random", "session_user", "setseed", "setval", "sleep_ms", "stats", "today",
    "transaction_timestamp", "txid_current", "user", "uuid", "uuidv4", "uuidv7",
    "vector_type", "write_log",
})  # fmt: skip
_WITHOUT_PARENTHESES: Final = frozenset({
    "current_catalog", "current_date", "current_role", "current_schema", "current_time",
    "current_timestamp", "current_user", "localtime", "localtimestamp", "session_user",
    "user",
})  # fmt: skip
_QUERIES: Final = frozenset({"select", "from", "tablesample"})
_TOKEN: Final = re.compile(
    r"""
      (?P<skipped>--[^\n]*|/\*.*?\*/|\s+|'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | "(?P<quoted>(?:[^"]|"")*)"
    | (?P<word>[^\W\d]\w*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


def unstable_part(row_filter: str) -> str | None:
    """The first thing in it that may give another result the next time; None: there is none."""
    tokens = [found for found in _TOKEN.finditer(row_filter) if found["skipped"] is None]
    for index, token in enumerate(tokens):
        name = (token["word"] or token["quoted"] or "").lower()
        is_called = index + 1 < len(tokens) and tokens[index + 1]["other"] == "("
        if token["word"] and name in _QUERIES and not _is_in_expression(tokens, index):
            return f"a subquery ({name.upper()})"
        if is_called and name in UNSTABLE:
            return f"{name}()"
        if token["word"] and name in _WITHOUT_PARENTHESES:
            return name
    return None


def refusal(dataset: str, row_filter: str | None) -> str | None:
    """Why a dataset may not have this filter, and the way out; None: it may."""
    if row_filter is None:
        return None
    if not all(found.is_understood for found in short_truncations(row_filter)):
        return (
            f"{dataset}: its row_filter calls date_trunc in a way that is not understood; write "
            "date_trunc('hour', x)"
        )
    part = unstable_part(row_filter)
    if part is None:
        return None
    return (
        f"{dataset}: its row_filter has {part}, which may give other rows each time it is "
        "evaluated, and replicas of one shard would differ; use constants and functions of "
        "columns alone (a column of that name must be quoted)"
    )


def _is_in_expression(tokens: list[re.Match[str]], index: int) -> bool:
    """`FROM` of `EXTRACT(year FROM ts)` and its like: not behind an opening parenthesis."""
    name = tokens[index]["word"].lower()
    return name == "from" and index > 0 and tokens[index - 1]["other"] != "("
