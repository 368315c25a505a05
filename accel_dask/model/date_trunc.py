"""Calls of `date_trunc` that DuckDB's optimiser may answer wrongly, and how to write them.

Where `date_trunc('hour', d)` is compared with a constant, DuckDB 2.0 compares `d` with a range
instead, and casts its ends to the type of `d`. Of a DATE both are the same day: midnight is not
found. It does so over a bare column only. `coalesce(d, NULL)` is none, and the same otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r"""
      (?P<skipped>--[^\n]*|/\*.*?\*/|\s+)
    | (?P<text>'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    | "(?P<quoted>(?:[^"]|"")*)"
    | (?P<word>[^\W\d][\w$]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_NAMES: Final = frozenset(["date_trunc", "datetrunc"])
_DAY_OR_LONGER: Final = frozenset(
    f"{unit}{plural}"
    for unit in ("day", "week", "month", "quarter", "year", "decade")
    for plural in ("", "s")
)
"""Of these the ends of the range are days themselves. What is not listed counts as shorter."""


class Truncation(NamedTuple):
    """A call of date_trunc, of a column or an expression, to less than a day."""

    comma: int
    """Where in the text the comma between its arguments is; -1: it is called in another way."""
    close: int
    """Where its closing parenthesis is."""
    column: str
    """The column's own name in lower case, without its table's; empty: an expression."""

    @property
    def is_understood(self) -> bool:
        return self.comma >= 0

    @property
    def edits(self) -> tuple[tuple[int, int, str], ...]:
        """Start, end, and what to put there. Neither touches the argument's own text."""
        return (
            (self.comma, self.comma + 1, ", coalesce("),
            (self.close, self.close + 1, ", NULL))"),
        )


def short_truncations(sql: str) -> list[Truncation]:
    """All in `sql`, in the order of their ends."""
    return list(_found(sql)) if "trunc" in sql.lower() else []


def rewritten(sql: str) -> str:
    """`sql`, an expression, as DuckDB answers it rightly whatever the types in it."""
    edits = [
        edit for found in short_truncations(sql) if found.is_understood for edit in found.edits
    ]
    for start, end, replacement in sorted(edits, reverse=True):
        sql = sql[:start] + replacement + sql[end:]
    return sql


def _found(sql: str) -> Iterator[Truncation]:
    tokens = [token for token in _TOKEN.finditer(sql) if token["skipped"] is None]
    open_calls: list[list[int] | None] = []
    """Of each open parenthesis: None, or where the call's tokens of `(` and `,` are."""
    for index, token in enumerate(tokens):
        match token["other"]:
            case "(" | "[" | "{":
                is_call = index > 0 and token["other"] == "(" and _name(tokens[index - 1]) in _NAMES
                open_calls.append([index] if is_call else None)
            case ")" | "]" | "}":
                marks = open_calls.pop() if open_calls else None
                if marks is not None:
                    yield from _of_call(tokens, marks, index)
            case ",":
                if open_calls and open_calls[-1] is not None:
                    open_calls[-1].append(index)
            case _:
                pass


def _of_call(tokens: list[re.Match[str]], marks: list[int], close: int) -> Iterator[Truncation]:
    end = tokens[close].start()
    if len(marks) != 2:
        yield Truncation(-1, end, "")
        return
    first, comma = marks
    unit, argument = tokens[first + 1 : comma], tokens[comma + 1 : close]
    if len(unit) == 1 and (unit[0]["text"] or "").strip("'").lower() in _DAY_OR_LONGER:
        return
    if not any(map(_name, argument)):
        return  # a constant or a parameter
    yield Truncation(tokens[comma].start(), end, _column(argument))


def _column(tokens: list[re.Match[str]]) -> str:
    names, dots = tokens[::2], tokens[1::2]
    is_column = all(map(_name, names)) and all(dot["other"] == "." for dot in dots)
    return _name(tokens[-1]) if is_column and len(tokens) % 2 else ""


def _name(token: re.Match[str]) -> str:
    """In lower case; empty: it is none."""
    return (token["word"] or (token["quoted"] or "").replace('""', '"')).lower()
