"""Where the digits of literals are in a statement, and its form without them.

Two statements of one form differ in nothing but such digits, so every reader of SQL finds the same
tokens in both, at the same places.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_SCANNED: Final = re.compile(r"""'[^']*'|"[^"]*"|(?<![\w$.])\d+(?:\.\d+)?(?![\w$.])""")
_DIGITS: Final = re.compile(r"\d")
_TWISTED: Final = ("--", "/*", "\\", "$", "?", "\0")
"""Comments, other ways to quote, parameters: what is a literal is not plain to see."""


class Form(NamedTuple):
    """A statement without the digits of its literals."""

    text: str
    """As long as the statement, with zeros for the digits."""
    literals: tuple[tuple[int, int], ...]
    """Start and end of each literal that has digits, with its quotes."""


def form_of(sql: str) -> Form | None:
    """The form of `sql`; None: not plain to see."""
    if any(sign in sql for sign in _TWISTED) or not sql.isascii():
        return None
    pieces: list[str] = []
    literals: list[tuple[int, int]] = []
    at = 0
    for found in _SCANNED.finditer(sql):
        text = found[0]
        if text[0] == '"' or not _DIGITS.search(text):
            continue
        start, end = found.span()
        literals.append((start, end))
        pieces += (sql[at:start], _DIGITS.sub("0", text))
        at = end
    pieces.append(sql[at:])
    return Form("".join(pieces), tuple(literals))
