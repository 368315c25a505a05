"""A statement's shape: its text without its values, so that queries of one dashboard count as one.

It still parses. What decides whether a rollup can answer it is kept: parts of times, formats,
places in ORDER BY, and of a time whether it begins a minute, hour, day, month, quarter or year.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

MAX_CHARACTERS: Final = 2000
"""Of a statement that has a shape."""

_TOKEN: Final = re.compile(
    r"""(?P<space>(?:\s|--[^\n]*|/\*.*?\*/)+)|(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")*")
    |(?P<number>\d[\w.]*)|(?P<word>[^\W\d][\w$]*)|(?P<symbol>.)""",
    re.VERBOSE | re.DOTALL,
)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?")
_FORMAT: Final = re.compile(r"(?:%[A-Za-z][-/:. T]*)+")
_PART_WORDS: Final = frozenset(["date_trunc", "datetrunc", "date_part", "datepart", "interval"])
_SIZED_TYPES: Final = frozenset(["decimal", "numeric", "dec", "varchar", "char"])
_LIST: Final = re.compile(r"\bin \((0|'[^']*')(?:,\s?(?:0|'[^']*'))+\)")


def shape_of(sql: str) -> str | None:
    """None: it is too long to have one."""
    if len(sql) > MAX_CHARACTERS:
        return None
    pieces: list[str] = []
    words: list[str] = [""] * 4
    """The tokens before, newest last."""
    depth, placed_at = 0, -1
    for found in _TOKEN.finditer(sql.strip().rstrip(";")):
        kind, piece = found.lastgroup, found[0]
        if kind == "space":
            pieces.append(" ")
            continue
        if kind == "word":
            piece = piece.lower()
            if piece == "by":
                placed_at = depth
            elif depth <= placed_at and piece not in {"asc", "desc", "nulls", "first", "last"}:
                placed_at = depth if words[-1] in {"by", ","} else -1
        elif kind == "symbol":
            depth += (piece == "(") - (piece == ")")
        elif kind == "number":
            is_place = depth == placed_at and words[-1] in {"by", ","}
            is_size = words[-2 if words[-1] == "(" else -4] in _SIZED_TYPES
            piece = piece if is_place or is_size else "0"
        elif kind == "text":
            is_part = words[-1] in _PART_WORDS or (words[-1] == "(" and words[-2] in _PART_WORDS)
            piece = piece if is_part or _FORMAT.fullmatch(piece[1:-1]) else _any_text(piece[1:-1])
        pieces.append(piece)
        words = [*words[1:], piece]
    return _LIST.sub(r"in (\1)", "".join(pieces))


def _any_text(text: str) -> str:
    """A text literal in place of another: of a time, the same beginning of the same unit."""
    if not _TIME.fullmatch(text):
        return "''"
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return "''"
    if at.second or at.microsecond:
        return "'2000-01-01 00:00:01'"
    if at.minute:
        return "'2000-01-01 00:01:00'"
    if at.hour:
        return "'2000-01-01 01:00:00'"
    if at.day > 1:
        return "'2000-01-03'" if at.weekday() == 0 else "'2000-01-02'"  # a Monday, or none
    if at.month > 1:
        return "'2000-04-01'" if at.month in {4, 7, 10} else "'2000-02-01'"
    return "'2000-01-01'"
