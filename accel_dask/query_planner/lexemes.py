"""The statement as a row of lexemes that the gate and DuckDB certainly read alike.

sqlglot's tokens are checked one by one against a strict spelling; comments and whatever else lies
between them are blanked. What is sent to DuckDB is rendered from these lexemes, so nothing that
the gate did not see reaches it.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import TokenError
from sqlglot.tokenizer_core import Token

from accel_dask.errors import InvalidQuery, TextLimit, UnsupportedQuery
from accel_dask.query_planner.functions import (
    FUNCTIONS,
    KEYWORDS_BEFORE_PARENTHESIS,
    KEYWORDS_BEFORE_TEXT,
    SYSTEM_NAMES,
    SYSTEM_PREFIXES,
    TYPES_WITH_ARGUMENTS,
)

MAX_TEXT_BYTES: Final = 64 * 1024
MAX_NESTING: Final = 30
MAX_UNARY_RUN: Final = 20
MAX_SUBSCRIPT_RUN: Final = 20

_DIALECT = DuckDB()


class Kind(Enum):
    WORD = "word"
    QUOTED = "quoted identifier"
    TEXT = "string"
    NUMBER = "number"
    SYMBOL = "symbol"


class Lexeme(NamedTuple):
    text: str
    start: int
    """Offset into the user's text."""
    end: int
    kind: Kind

    @property
    def word(self) -> str:
        """Lower-case name of a word or quoted identifier; else empty."""
        if self.kind is Kind.WORD:
            return self.text.lower()
        if self.kind is Kind.QUOTED:
            return self.text[1:-1].replace('""', '"').lower()
        return ""


_SPELLINGS: Final = (
    (Kind.WORD, re.compile(r"[^\W\d][\w$]*")),
    (Kind.NUMBER, re.compile(r"\d+(?:_\d+)*(?:\.(?:\d+(?:_\d+)*)?)?(?:[eE][+-]?\d+)?")),
    (Kind.QUOTED, re.compile(r'"(?:[^"]|"")+"')),
    (Kind.TEXT, re.compile(r"'(?:[^']|'')*'")),
    (
        Kind.SYMBOL,
        re.compile(
            r"->>|~~\*|\^@|@>|<@|->|::|:=|=>|<>|!=|<=|>=|==|\|\||//|\*\*|<<|>>|~~|&&"
            r"|[-+*/%^=<>&|~:,.;()\[\]{}?$]"
        ),
    ),
)
_OPERATOR_CHARACTERS: Final = frozenset("+-*/<>=~@#%^&|?!")
_SHARD_DATABASE: Final = re.compile(r"s_[0-9a-f]{32}")
_SHIFTS: Final = frozenset(["<<", ">>"])
"""Two tokens to sqlglot's tokenizer, one operator to its parser and to DuckDB."""
_ENDS: Final = frozenset(")]}?$")
"""Symbols that end an expression: what follows one is not an operand."""
_OPENING: Final = {"(": ")", "[": "]", "{": "}"}


def tokenize(sql: str) -> tuple[list[Token], list[Lexeme], list[int]]:
    """sqlglot's tokens of `sql`, their lexemes, and for each token the index of its first
    lexeme (a token such as `GROUP BY` is two lexemes).

    Raises:
        TextLimit: the text, its nesting or a run of operators is too long.
        InvalidQuery: it does not tokenize.
        UnsupportedQuery: a spelling outside what is served here.
    """
    size = len(sql.encode())
    if size > MAX_TEXT_BYTES:
        raise TextLimit(f"the SQL text has {size:,} bytes; the limit is {MAX_TEXT_BYTES:,}")
    if "\0" in sql:
        raise InvalidQuery("the SQL text contains a NUL character")
    try:
        tokens = _DIALECT.tokenize(sql)
    except TokenError as error:
        raise InvalidQuery(f"the SQL text does not tokenize: {_first_line(error)}") from error
    lexemes: list[Lexeme] = []
    first_lexemes: list[int] = []
    for token in tokens:
        first_lexemes.append(len(lexemes))
        found = _lexemes_of(sql, token)
        if lexemes and lexemes[-1].kind is Kind.NUMBER and found[0].start == lexemes[-1].end:
            _check_after_number(sql, lexemes[-1], found[0])
        lexemes.extend(found)
    _check_nesting(lexemes)
    return tokens, lexemes, first_lexemes


def _check_after_number(sql: str, number: Lexeme, following: Lexeme) -> None:
    """`0x1F` would be read as 0 with the name x1F."""
    if following.kind is not Kind.SYMBOL:
        line, column = position(sql, number.start)
        raise UnsupportedQuery(
            f"{(number.text + following.text)[:40]!r} at line {line}, column {column} is not "
            "served here; write numbers in decimal"
        )


def _first_line(error: Exception) -> str:
    return re.sub(r"\x1b\[\d+m", "", str(error)).splitlines()[0][:200]


def _lexemes_of(sql: str, token: Token) -> list[Lexeme]:
    text = sql[token.start : token.end + 1]
    for kind, spelling in _SPELLINGS:
        if spelling.fullmatch(text):
            return [Lexeme(text, token.start, token.end + 1, kind)]
    words = [
        Lexeme(found[0], token.start + found.start(), token.start + found.end(), Kind.WORD)
        for found in re.finditer(r"\S+", text)
    ]
    word_spelling = _SPELLINGS[0][1]
    if len(words) > 1 and all(word_spelling.fullmatch(word.text) for word in words):
        return words
    line, column = position(sql, token.start)
    raise UnsupportedQuery(
        f"{text[:40]!r} at line {line}, column {column} is not served here; write strings as "
        "'...', identifiers plain or as \"...\", numbers in decimal"
    )


def position(sql: str, offset: int) -> tuple[int, int]:
    """Line and column of `offset`, from 1."""
    before = sql[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def _check_nesting(lexemes: list[Lexeme]) -> None:
    depth = cases = unary = subscripts = 0
    previous = ""
    for lexeme in lexemes:
        text = lexeme.word if lexeme.kind is Kind.WORD else lexeme.text
        if lexeme.kind is Kind.SYMBOL and text in _OPENING:
            depth += 1
        elif lexeme.kind is Kind.SYMBOL and text in ")]}":
            depth -= 1
        elif lexeme.kind is Kind.WORD:
            cases += (text == "case") - (text == "end" and cases > 0)
        unary = unary + 1 if text in {"not", "-", "+", "~"} else 0
        if text == "[":
            subscripts = subscripts + 1 if previous == "]" else 0
        if depth + cases > MAX_NESTING:
            raise TextLimit(f"the SQL text is nested deeper than {MAX_NESTING}")
        if unary > MAX_UNARY_RUN or subscripts > MAX_SUBSCRIPT_RUN:
            raise TextLimit("the SQL text has too long a run of unary operators or subscripts")
        previous = text


def check_calls(lexemes: list[Lexeme], declared: frozenset[int]) -> None:
    """Check everything that is called, by its raw spelling: whatever stands before a parenthesis
    must be an allowed function, a type, a keyword, or one of `declared`, the lexemes where the
    statement itself names something with a column list.

    Raises:
        UnsupportedQuery: a function that is not allowed, or a name of the engine's own.
    """
    for index, lexeme in enumerate(lexemes):
        name = lexeme.word
        if name and (
            name in SYSTEM_NAMES
            or name.startswith(SYSTEM_PREFIXES)
            or _SHARD_DATABASE.fullmatch(name)
        ):
            raise UnsupportedQuery(f"{name!r} is a name of the engine itself; it is not served")
        following = lexemes[index + 1] if index + 1 < len(lexemes) else None
        if following is None:
            continue
        before = lexemes[index - 1].text if index else ""
        if name and following.text == "(" and index not in declared:
            _check_call(lexeme, name, before)
        if following.kind is Kind.TEXT:
            _check_before_text(lexeme, name)


def _check_call(lexeme: Lexeme, name: str, before: str) -> None:
    if name in FUNCTIONS:
        return
    if lexeme.kind is Kind.WORD and before != ".":
        if name in KEYWORDS_BEFORE_PARENTHESIS or name in TYPES_WITH_ARGUMENTS:
            return
        if name in {"filter", "group"} and before == ")":
            return
    raise UnsupportedQuery(f"the function {name}() is not served here")


def _check_before_text(lexeme: Lexeme, name: str) -> None:
    is_end = lexeme.kind not in {Kind.WORD, Kind.SYMBOL} or lexeme.text in _ENDS
    if is_end or (name and name not in KEYWORDS_BEFORE_TEXT):
        raise UnsupportedQuery(
            f"{lexeme.text[:40]} directly before a string literal is not served here"
        )


def render(lexemes: list[Lexeme]) -> tuple[str, list[int]]:
    """The statement's text with everything between lexemes blanked, and each lexeme's offset
    in it. Operators that touch are set apart, so that no reader joins them."""
    pieces: list[str] = []
    offsets: list[int] = []
    length = 0
    previous: Lexeme | None = None
    for lexeme in lexemes:
        gap = ""
        if previous is not None:
            gap = " " * min(lexeme.start - previous.end, 1)
            if (
                not gap
                and previous.text[-1] in _OPERATOR_CHARACTERS
                and lexeme.text[0] in _OPERATOR_CHARACTERS
                and previous.text + lexeme.text not in _SHIFTS
            ):
                gap = " "
        pieces += (gap, lexeme.text)
        length += len(gap)
        offsets.append(length)
        length += len(lexeme.text)
        previous = lexeme
    return "".join(pieces), offsets
