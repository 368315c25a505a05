"""The second line of defence in front of DuckDB; the first is the gateway's gate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import duckdb

from accel_dask.errors import AccelError, InvalidQuery, ReadOnly, TextLimit, UnsupportedQuery
from accel_dask.literals import form_of
from accel_dask.model.tenant import MIB

MAX_TEXT: Final = MIB // 2
"""Characters of physical SQL, which names every shard; the gateway's own limit is far lower. The
parser holds the interpreter lock, a quarter of a second for this much: nothing else is done
meanwhile, and it must be over before a ping goes unanswered."""

# Functions and views that show the inside of the process, or read files. DuckDB itself refuses
# files, except the shard files that are attached.
_INSIDE: Final = re.compile(
    r'\b(?:duckdb_\w+|pragma_\w+)"?\b'
    r"|\b(?:read_\w+|\w+_scan|scan_\w+|glob|sniff_\w+|parquet_\w+|which_secret|getenv|getvariable"
    r'|current_setting|query|query_table|checkpoint|force_checkpoint|summary)"?\s*\(',
    re.IGNORECASE,
)
_SHARD_FILE: Final = re.compile(
    r"""(?:\bFROM|\bJOIN|,)\s*(?:'[^']*\.duckdb\b|"[^"]*\.duckdb\b)""", re.IGNORECASE
)
_STRING: Final = re.compile(r"'(?:[^']|'')*'")
_QUOTED: Final = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")
_COMMENT: Final = re.compile(r"--|/\*")
_HIDES_QUOTES: Final = re.compile(r"\$\w*\$|\\'")
_WRITES: Final = frozenset(
    {"INSERT", "UPDATE", "DELETE", "CREATE", "CREATE_FUNC", "ALTER", "DROP", "COPY", "MERGE_INTO",
     "EXPORT", "COPY_DATABASE"}
)  # fmt: skip


_ZEROS: Final = bytes.maketrans(b"123456789", b"000000000")
_SHORT: Final = 16 * 1024
"""Characters of a statement whose verdict is kept: dashboards ask the same again and again."""


@dataclass(frozen=True, slots=True)
class Select:
    """What is known of a statement that may run."""

    parameters: int
    """How many values must be bound."""


def check_select(sql: str) -> Select:
    """Check that `sql` is one SELECT that looks at nothing but tables.

    Raises:
        duckdb.Error: it does not parse.
        InvalidQuery: it is not exactly one statement.
        TextLimit: it is too long.
        ReadOnly: it changes something.
        UnsupportedQuery: any other statement, or one that looks at the inside.
    """
    if len(sql) > _SHORT:
        return _check(sql)
    if not sql.isascii() or _may_hide_digits(sql):
        return _known(sql)
    # No keyword has digits, and nothing here tells one from another, so that statements which
    # differ in nothing but digits have one verdict. But the parser may mind them, in names that
    # must differ: then only literals may do without theirs, and if it still minds, it is to say
    # so of the statement itself.
    found = _passed(sql.encode().translate(_ZEROS))
    if found is not None:
        return found
    form = form_of(sql)
    return (form and _passed(form.text.encode())) or _check(sql)


def _may_hide_digits(sql: str) -> bool:
    """Whether digits may stand for something else: numbers of parameters, escaped characters."""
    return "$" in sql or "\\" in sql or "?" in sql or "--" in sql or "/*" in sql or "\0" in sql


def _check(sql: str) -> Select:
    if len(sql) > MAX_TEXT:
        raise TextLimit(f"the query has {len(sql)} characters, more than the {MAX_TEXT} read here")
    statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise InvalidQuery(f"one statement is answered at a time, not {len(statements)}")
    kind = statements[0].type.name
    if kind in _WRITES:
        raise ReadOnly(f"{kind} would change data; only queries are answered here")
    if kind != "SELECT":
        raise UnsupportedQuery(f"{kind} statements are not answered here, only SELECT")
    _refuse_inside(sql)
    return Select(len(statements[0].named_parameters))


_known: Final = lru_cache(maxsize=1000)(_check)
"""A refusal is an exception, which is not kept."""


@lru_cache(maxsize=1000)
def _passed(sql: bytes) -> Select | None:
    """None: it is refused, or does not parse."""
    try:
        return _check(sql.decode())
    except (AccelError, duckdb.Error):
        return None


def _refuse_inside(sql: str) -> None:
    if _has_comment(sql):  # what stands before a name could hide behind it
        raise UnsupportedQuery("comments are not read here; the gateway leaves them out")
    if _SHARD_FILE.search(sql):
        raise UnsupportedQuery("files are not available here")
    # Plain strings may hold any word. Other ways to quote could hide their end, so that then
    # every word counts.
    plain = "$$" not in sql and "\\'" not in sql
    inside = _INSIDE.search(_STRING.sub("''", sql) if plain else sql)
    if inside:
        name = inside[0].rstrip('( "').lower()
        raise UnsupportedQuery(f"{name} is not available here")


def _has_comment(sql: str) -> bool:
    if not _COMMENT.search(sql):
        return False
    plain = not _HIDES_QUOTES.search(sql)
    return _COMMENT.search(_QUOTED.sub("''", sql) if plain else sql) is not None
