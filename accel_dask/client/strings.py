"""The `str` accessor. Missing texts stay missing; tests of them are false, as in pandas 3."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

from accel_dask.client import dtypes, operations
from accel_dask.client.arguments import explained
from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import Expr, Literal, call, literal
from accel_dask.client.unsupported import refuse, rewrite

if TYPE_CHECKING:
    from accel_dask.client.series import Series

_WHITESPACE: Final = "".join(
    chr(code) for code in range(0x3001) if chr(code).isspace()
)  # as Python has it
_NOT_IN_RE2: Final = re.compile(r"\(\?(?:[=!>]|<[=!])|\\[1-9]|\(\?P=|[*+?}]\+")
_SPACE: Final = r"\s\x0b\x1c-\x1f\x{85}\p{Z}"
_CLASSES: Final = {"d": r"\p{Nd}", "w": r"\p{L}\p{N}_", "s": _SPACE}
"""What Python takes for digits, letters and space, inside brackets."""


@explained("str")
class Strings:
    """Operations on a column of texts."""

    def __init__(self, series: Series) -> None:
        kind = series._expr.dtype.kind
        if kind not in {Kind.STRING, Kind.NULL}:
            raise refuse(f".str on a {kind} column", "use .astype(str) first")
        self._series = series
        self._expr = series._expr

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise rewrite(name, "str") or AttributeError(f".str has no {name!r}")

    def _function(self, name: str, *more: Any, dtype: DType = dtypes.STRING) -> Series:
        return self._series._with(_function(name, dtype, self._expr, *map(literal, more)))

    def _test(self, name: str, *more: Any) -> Series:
        found = call("matches", dtypes.BOOL, self._expr, *map(literal, more), options=(name,))
        return self._series._with(found)

    def upper(self) -> Series:
        """In upper case."""
        return self._function("upper")

    def lower(self) -> Series:
        """In lower case."""
        return self._function("lower")

    def capitalize(self) -> Series:
        """The first character in upper, the others in lower case."""
        first = _function("upper", dtypes.STRING, self._part(1, 1))
        rest = _function("lower", dtypes.STRING, self._part(2, None))
        return self._series._with(call("concat", dtypes.STRING, first, rest))

    def len(self) -> Series:
        """Number of characters."""
        return self._function("length", dtype=dtypes.INT)

    def strip(self, to_strip: str | None = None) -> Series:
        """Without whitespace, or characters of `to_strip`, at both ends."""
        return self._function("trim", to_strip or _WHITESPACE)

    def lstrip(self, to_strip: str | None = None) -> Series:
        """As `strip`, at the start."""
        return self._function("ltrim", to_strip or _WHITESPACE)

    def rstrip(self, to_strip: str | None = None) -> Series:
        """As `strip`, at the end."""
        return self._function("rtrim", to_strip or _WHITESPACE)

    def contains(self, pat: str, case: bool = True, na: Any = False, regex: bool = True) -> Series:
        """Whether `pat`, a regular expression unless told otherwise, is in it."""
        _only_false(na)
        is_plain = not regex or pat == re.escape(pat)
        if is_plain and case:
            return self._test("contains", pat)
        pattern = _tested(pat) if regex else re.escape(pat)
        return self._test("regexp_matches", pattern if case else f"(?i){pattern}")

    def match(self, pat: str, case: bool = True, na: Any = False) -> Series:
        """Whether `pat` matches at the start."""
        _only_false(na)
        pattern = _tested(f"^(?:{pat})")
        return self._test("regexp_matches", pattern if case else f"(?i){pattern}")

    def fullmatch(self, pat: str, case: bool = True, na: Any = False) -> Series:
        """Whether `pat` matches the whole text."""
        _only_false(na)
        return self._test("regexp_full_match", _pattern(pat, case=case))

    def startswith(self, pat: str | tuple[str, ...], na: Any = False) -> Series:
        """Whether it begins with `pat`, or one of them."""
        _only_false(na)
        return self._any_of("starts_with", pat)

    def endswith(self, pat: str | tuple[str, ...], na: Any = False) -> Series:
        """Whether it ends with `pat`, or one of them."""
        _only_false(na)
        return self._any_of("ends_with", pat)

    def _any_of(self, name: str, patterns: str | tuple[str, ...]) -> Series:
        if isinstance(patterns, str):
            return self._test(name, patterns)
        found = self._series._with(Literal(dtypes.BOOL, False))
        for pattern in patterns:
            found = found | self._test(name, pattern)
        return found

    def isdigit(self) -> Series:
        """Whether it has only digits, and one at least."""
        return self._test("regexp_full_match", r"[\p{Nd}\p{No}]+")

    def replace(self, pat: str, repl: str, n: int = -1, *, case: bool = True,
                regex: bool = False) -> Series:  # fmt: skip
        """Every `pat` replaced by `repl`."""
        if n not in {-1, 0, 1} or not isinstance(repl, str):
            raise refuse("str.replace with a count or function", "use regex=True with groups")
        if not regex and case and n != 1:
            if not pat:
                raise refuse("str.replace of an empty text", "give a pattern")
            return self._function("replace", pat, repl)
        found = _pattern(pat if regex else re.escape(pat), case=case)
        repl = repl if regex else repl.replace("\\", "\\\\")
        return self._function("regexp_replace", found, repl, *([] if n == 1 else ["g"]))

    def slice(self, start: int | None = None, stop: int | None = None,
              step: int | None = None) -> Series:  # fmt: skip
        """The characters from `start` to before `stop`."""
        if step not in {None, 1}:
            raise refuse("str.slice with a step", "take slices without one")
        if (start or 0) < 0 or (stop or 0) < 0:
            return self._series._with(self._slice_from_end(start or 0, stop))
        start = start or 0
        length = None if stop is None else max(stop - start, 0)
        return self._series._with(self._part(start + 1, length))

    def _slice_from_end(self, start: int, stop: int | None) -> Expr:
        length = _function("length", dtypes.INT, self._expr)

        def at(position: int) -> Expr:
            if position >= 0:
                return literal(position)
            moved = operations.arithmetic("add", length, literal(position))
            return _function("greatest", dtypes.INT, moved, literal(0))

        first = at(start)
        last = length if stop is None else at(stop)
        many = operations.arithmetic("sub", last, first)
        many = _function("greatest", dtypes.INT, many, literal(0))
        from_ = operations.arithmetic("add", first, literal(1))
        return _function("substring", dtypes.STRING, self._expr, from_, many)

    def _part(self, first: int, length: int | None) -> Expr:
        more = [literal(first)] + ([] if length is None else [literal(length)])
        return _function("substring", dtypes.STRING, self._expr, *more)

    def __getitem__(self, key: Any) -> Series:
        if isinstance(key, slice):
            return self.slice(key.start, key.stop, key.step)
        return self.get(key)

    def get(self, i: int) -> Series:
        """The character at `i`; missing beyond the ends."""
        length = _function("length", dtypes.INT, self._expr)
        where = literal(i + 1) if i >= 0 else operations.arithmetic("add", length, literal(i + 1))
        there = call("and", dtypes.BOOL,
                     operations.compare("ge", where, literal(1)),
                     operations.compare("le", where, length))  # fmt: skip
        part = _function("substring", dtypes.STRING, self._expr, where, literal(1))
        return self._series._with(call("case", dtypes.STRING, there, part, _missing()))

    def split(self, pat: str = "", *, regex: bool = False, expand: bool = False) -> Split:
        """The parts between `pat`; take one with `.str.get(i)` or `.str[i]`."""
        if regex or expand or not pat:
            raise refuse(
                "str.split by whitespace, with regex or expand", "use .str.split(text).str.get(i)"
            )
        return Split(self._series, pat)

    def find(self, sub: str) -> Series:
        """Where `sub` begins; -1: nowhere."""
        found = _function("strpos", dtypes.INT, self._expr, literal(sub))
        return self._series._with(operations.arithmetic("sub", found, literal(1)))

    def count(self, pat: str) -> Series:
        """How often the regular expression `pat` matches."""
        found = _function("regexp_extract_all", dtypes.STRING, self._expr, literal(_pattern(pat)))
        return self._series._with(_function("len", dtypes.INT, found))

    def extract(self, pat: str, *, expand: bool = False) -> Series:
        """The group of the regular expression `pat`; missing where it does not match."""
        if expand or re.compile(pat).groups != 1:
            raise refuse("str.extract with several groups", "extract one group with expand=False")
        pattern = literal(_pattern(pat))
        matches = call("matches", dtypes.BOOL, self._expr, pattern, options=("regexp_matches",))
        part = _function("regexp_extract", dtypes.STRING, self._expr, pattern, literal(1))
        return self._series._with(call("case", dtypes.STRING, matches, part, _missing()))

    def cat(self, others: Any = None, sep: str = "", na_rep: str | None = None) -> Series:
        """This and `others` put together; missing if one is, unless `na_rep` stands for it."""
        if others is None or isinstance(others, list):
            raise refuse("str.cat of all rows, or of several columns", "cat one column at a time")
        mine, other = self._series, others
        if na_rep is not None:
            mine, other = mine.fillna(na_rep), other.fillna(na_rep)
        found: Series = mine + sep + other if sep else mine + other
        return found.rename(self._series.name)


Word = str  # in the class below `str` is what pandas calls the parts


class Split:
    """The parts of texts; `.str.get(i)` and `.str[i]` take one."""

    def __init__(self, series: Series, separator: str) -> None:
        self._series = series
        self._separator = separator

    @property
    def str(self) -> Split:
        """Itself."""
        return self

    def __getattr__(self, name: Word) -> NoReturn:
        raise rewrite(name, "str") or AttributeError(f"parts of texts have no {name!r}")

    def get(self, i: int) -> Series:
        """Part `i`; missing where there are not so many."""
        parts = _function(
            "string_split", dtypes.STRING, self._series._expr, literal(self._separator)
        )
        where = literal(i + 1 if i >= 0 else i)
        return self._series._with(_function("list_extract", dtypes.STRING, parts, where))

    def __getitem__(self, key: int) -> Series:
        return self.get(key)


def _function(name: str, dtype: DType, *operands: Expr) -> Expr:
    return call("function", dtype, *operands, options=(name,))


def _missing() -> Expr:
    return Literal(dtypes.NULL, None)


def _only_false(na: Any) -> None:
    if na is not False and na is not None and dtypes.plain(na) is not None:
        raise refuse("na=True", "add | s.isna()")


def _pattern(pat: str, *, case: bool = True) -> str:
    """A regular expression that the engine reads as Python does.

    Raises:
        UnsupportedOperation: it uses what RE2 has not.
    """
    if _NOT_IN_RE2.search(pat):
        raise refuse(
            f"the pattern {pat!r}: look-around and back-references", "use a simpler pattern"
        )
    found = _of_all_scripts(pat)
    return found if case else f"(?i){found}"


def _tested(pat: str) -> str:
    """As `_pattern`; `$` is also before a last line's end, which is not part of any match here."""
    _pattern(pat)
    return _of_all_scripts(pat, end=r"(?:\n?\z)")


def _of_all_scripts(pat: str, *, end: str = "$") -> str:
    """With `\\d`, `\\w` and `\\s` of all scripts, which the engine takes for those of ASCII."""
    found: list[str] = []
    in_brackets = False
    at = 0
    while at < len(pat):
        char, following = pat[at], pat[at + 1 : at + 2]
        if char == "\\":
            found.append(_escape(following, pat, in_brackets=in_brackets))
            at += 2
            continue
        if char == "[" and not in_brackets:
            in_brackets = True
            # A bracket that comes first is one of the characters.
            start = re.match(r"\[\^?\]?", pat[at:])
            char = start[0] if start else char
        elif char == "]":
            in_brackets = False
        elif char == "$" and not in_brackets:
            char, at = end, at + 1 - len(end)
        found.append(char)
        at += len(char)
    return "".join(found)


def _escape(letter: str, pat: str, *, in_brackets: bool) -> str:
    inside = _CLASSES.get(letter.lower())
    if inside is None:
        return f"\\{letter}"
    if letter.islower():
        return inside if in_brackets else f"[{inside}]"
    if in_brackets:
        raise refuse(f"the pattern {pat!r}: \\{letter} in brackets", "write [^...] of the others")
    return f"[^{inside}]"
