"""The name that DuckDB gives to a column of a SELECT that has none.

It is the expression as DuckDB would write it. Where an expression is replaced by one over partial
results, its name must not change with it. Only plain expressions are named here.
"""

from __future__ import annotations

import re
from typing import Final

_KEYWORD_LIST: Final = """
abort absolute access action add admin after aggregate all also alter always analyse analyze and
anti any approx array as asc asof assertion assignment asymmetric at attach attribute
authorization backward before begin between bigint binary bit boolean both by cache call called
cascade cascaded case cast catalog centuries century chain char character characteristics check
checkpoint class close cluster coalesce collate collation column columns columns comment
comments commit committed compression concurrently configuration conflict connect connection
constraint constraints content continue conversion copy cost create cross csv cube current
cursor cycle data database day days deallocate dec decade decades decimal declare default
defaults deferrable deferred definer delete delimiter delimiters depends desc describe destroy
detach dictionary disable discard disconnect distance distinct do document domain double drop
each else enable encoding encrypted end enum error escape event exact except exclude excluding
exclusive execute exists explain export export_state extension extensions external extract false
family fetch filter first float following for force foreign forward freeze from full function
functions generated generated glob global grant granted group grouping grouping_id groups
handler having header hold hour hours identity if ignore ilike immediate immutable implicit
import in include including increment index indexes inherit inherits initially inline inner
inout input insensitive insert install instead int integer intersect interval into invoker is
isnull isolation join json key label lambda language large last lateral leading leakproof left
level like limit listen load local location lock locked logged macro map map mapping match
matched materialized maxvalue merge method microsecond microseconds millennia millennium
millisecond milliseconds minute minutes minvalue mode month months move name names national
natural nchar nearest new next no none not nothing notify notnull nowait null nullif nulls
numeric object of off offset oids old on only operator option options or order ordinality others
out outer over overlaps overlay overriding owned owner parallel parser partial partition
partitioned passing password percent persistent pivot pivot_longer pivot_wider placing plans
policy position positional pragma preceding precision prepare prepared preserve primary prior
privileges procedural procedure program publication qualify quarter quarters quote range read
real reassign recheck recursive ref references referencing refresh register reindex relative
release rename repeatable replace replica reset resource resources respect restart restrict
returning returns revoke right role rollback rollup row rows rule sample savepoint schema
schemas scope scroll search second seconds secret secure security select semi sequence sequences
serializable server session set setof sets share show similar similarity simple skip smallint
snapshot some sorted source sql stable standalone start statement statistics stdin stdout
storage stored strict strip struct struct subscription substring summarize symmetric sysid
system table tables tablesample tablespace target temp template temporary text then ties time
timestamp to trailing transaction transform treat trigger trim true truncate trusted try_cast
try_cast tuple tuple type types unbounded uncommitted unencrypted union unique unknown unlisten
unlogged unpack unpivot until update use user using vacuum valid validate validator value values
varchar variable variadic varying verbose version view views virtual volatile week weeks when
where whitespace window with within without work wrapper write xml xmlattributes xmlconcat
xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable year
years yes zone
"""
_KEYWORDS: Final = frozenset(_KEYWORD_LIST.split())
"""DuckDB puts names that are one of its keywords in quotes."""

_CALL_LIST: Final = """
any_value approx_count_distinct approx_quantile arbitrary arg_max arg_min argmax argmin array_agg
avg bit_and bit_or bit_xor bool_and bool_or corr count count_if countif covar_pop covar_samp
entropy favg first fsum geomean histogram kahan_sum kurtosis kurtosis_pop last list mad max max_by
mean median min min_by mode product quantile quantile_cont quantile_disc regr_avgx regr_avgy
regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy sem skewness stddev
stddev_pop stddev_samp string_agg sum sum_no_overflow sumkahan var_pop var_samp variance
abs ceil date_trunc floor length lower quarter round upper
"""
_COMPARISONS: Final = {"=": "=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_CALLS: Final = frozenset(_CALL_LIST.split())
"""Functions that are called as they are written."""

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)(?![\w.])|(?P<text>'(?:[^']|'')*')
    |(?P<name>(?:[^\W\d][\w$]*|"(?:[^"]|"")+")(?:\.(?:[^\W\d][\w$]*|"(?:[^"]|"")+"))*)
    |(?P<symbol><>|[<>]=|[-+*/%(),<>=]))""",
    re.VERBOSE,
)
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Unnamed(Exception):
    pass


def derived_name(text: str) -> str | None:
    """The name of the expression `text`; None: not known here."""
    try:
        reader = _Reader(_tokens(text))
        name = reader.sum()
        return name if reader.is_done else None
    except (_Unnamed, IndexError):
        return None


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise _Unnamed
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


class _Reader:
    """Reads an expression and writes it as DuckDB does."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    @property
    def is_done(self) -> bool:
        return self._at == len(self._tokens)

    def sum(self) -> str:
        name = self._product()
        while self._next() in {"+", "-"}:
            name = f"({name} {self._take()} {self._product()})"
        return name

    def _product(self) -> str:
        name = self._factor()
        while self._next() in {"*", "/", "%"}:
            name = f"({name} {self._take()} {self._factor()})"
        return name

    def _factor(self) -> str:
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind in {"number", "text"}:
            return text
        if kind == "symbol":
            if text != "(":
                raise _Unnamed
            name = self.sum()
            self._expect(")")
            return name
        if self._next() == "(":
            return self._call(text)
        return _column(text)

    def _call(self, name: str) -> str:
        called = self._called(name.lower())
        if self._next().lower() != "filter":
            return called
        self._at += 1
        self._expect("(")
        self._expect("where")
        condition = self.sum()
        if self._next() in _COMPARISONS:
            condition = f"({condition} {_COMPARISONS[self._take()]} {self.sum()})"
        self._expect(")")
        return f"{called} FILTER (WHERE {condition})"

    def _called(self, name: str) -> str:
        if name not in _CALLS and name != "grouping":
            raise _Unnamed
        self._expect("(")
        if name == "count" and self._next() in {"*", ")"}:
            if self._next() == "*":
                self._at += 1
            self._expect(")")
            return "count_star()"
        head = ""
        if self._next().lower() == "distinct":
            self._at += 1
            head = "DISTINCT "
        arguments = [self.sum()]
        while self._next() == ",":
            self._at += 1
            arguments.append(self.sum())
        self._expect(")")
        shown = "GROUPING" if name == "grouping" else _quoted_if_needed(name)
        return f"{shown}({head}{', '.join(arguments)})"

    def _next(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _take(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _expect(self, symbol: str) -> None:
        if self._next().lower() != symbol:
            raise _Unnamed
        self._at += 1


def _column(text: str) -> str:
    parts = re.findall(r'"(?:[^"]|"")+"|[^.]+', text)
    names = [part[1:-1].replace('""', '"') if part[0] == '"' else part for part in parts]
    if not all(part[0] == '"' or part.lower() not in _CONSTANTS for part in parts):
        raise _Unnamed
    return ".".join(map(_quoted_if_needed, names))


_CONSTANTS: Final = frozenset(["true", "false", "null", "case", "not", "interval", "date"])


def _quoted_if_needed(name: str) -> str:
    if _PLAIN.fullmatch(name) and name.lower() not in _KEYWORDS:
        return name
    return '"' + name.replace('"', '""') + '"'
