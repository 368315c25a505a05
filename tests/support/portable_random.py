"""Random queries at the edges of the portable subset, over values at the edges of their types.

Written apart from `random_queries`: every expression is one that engines are known, or suspected,
to answer in ways of their own. What has no determined answer is not generated: sums of doubles are
of quarters, rows have a total order or are a multiset.
"""

from __future__ import annotations

import re
from typing import Final

import duckdb
from random_queries import Choices

_INTS = "0, 1, -1, 2, 7, 10, -10, 100, 2147483647, -2147483648, 46341, NULL"
_BIGS = (
    "0, 1, -1, 3, 9223372036854775807, -9223372036854775808, 9007199254740993, -9007199254740993, "
    "4294967296, 1000000007, NULL"
)
_DOUBLES = (
    "0.0, '-0.0'::DOUBLE, 1.5, -1.5, 0.1, 0.3, 2.5, 3.5, -2.5, 1e15, 1e16, 123456789.125, 1e-7, "
    "1e100, -1e100, 1e-300, NULL, 'NaN'::DOUBLE"
)
_SHORT = "0.00, 0.01, -0.01, 9999999.99, -9999999.99, 1.50, 2.50, 0.05, 33.33, NULL"
_LONG = (
    "0, 0.0000000001, -0.0000000001, 9999999999999999999999999999.9999999999, "
    "-9999999999999999999999999999.9999999999, 1.5, 33.3333333333, NULL"
)
_TEXTS = (
    "'', ' ', 'a', 'A', 'a ', 'a  ', ' a', 'ab', 'aB', 'Ab', 'b', 'B', 'á', 'à', 'ä', 'Ä', "
    "'a' || chr(776), 'ß', 'ss', 'SS', 'ẞ', 'ı', 'I', 'i', 'İ', 'ﬁ', 'fi', '日本', '日本語', '😀', "
    "'😀a', 'a😀b', '𝒳', 'a''b', 'a''''b', 'a\"b', 'a\\b', 'a\\\\b', '\\', '%', 'a%b', 'a_b', '_', "
    "'a' || chr(9) || 'b', 'a' || chr(10), chr(10) || 'a', 'a' || chr(13), chr(160), "
    "'a' || chr(160), "
    "'null', 'NULL', '0', '00', '1', '01', ' 1', '1e0', '1.0', 'true', '2020-01-01', 'æ', 'ae', "
    "'Æ', 'œ', 'ö', 'o', 'oe', 'Z', 'z', '~', '-', '--', '/*x*/', ';', chr(127), chr(57344), "
    "chr(65533), 'e' || chr(769), 'é', 'É', chr(8203), 'a' || chr(8203), chr(173), "
    "'co' || chr(173) "
    "|| 'op', 'coop', 'co-op', '?', '%s', '%(a)s', ':a', '{}', '$1', NULL"
)
_DATES = (
    "'2020-02-29', '2019-12-30', '2021-01-03', '2020-12-31', '1970-01-01', '1969-12-31', "
    "'1900-03-01', '1582-10-15', '1582-10-04', '1000-01-01', '9998-12-31', '2024-02-29', "
    "'2023-03-26', '2000-01-01', '2038-01-20', NULL"
)
_MOMENTS = (
    "'2020-02-29 23:59:59.999999', '1970-01-01 00:00:00', '1969-12-31 23:59:59.999999', "
    "'1969-12-31 23:59:59.000001', '2023-03-26 02:30:00', '2023-10-29 02:30:00.5', "
    "'1900-01-01 00:00:00.000001', '1582-10-10 12:00:00', '1000-01-01 00:00:00', "
    "'9998-12-31 23:59:59.999999', '2038-01-19 03:14:08', '2020-12-31 12:34:56.789', NULL"
)


def _pick(values: str, factor: int) -> str:
    """One of `values`, by the row's number."""
    return f"list_value({values})[1 + (hash(i * {factor}) % len(list_value({values})))::INTEGER]"


_EDGES = f"""
CREATE TABLE edge AS SELECT
    i::BIGINT AS id,
    {_pick(_INTS, 3)}::INTEGER AS i,
    {_pick(_BIGS, 5)}::BIGINT AS l,
    CASE WHEN hash(i * 7) % 7 > 0 THEN (hash(i * 7) % 13)::INTEGER - 6 END AS c,
    {_pick(_DOUBLES, 11)}::DOUBLE AS x,
    CASE WHEN hash(i * 12) % 7 > 0 THEN (hash(i * 13) % 13)::DOUBLE / 4 - 1.5 END AS q,
    {_pick(_SHORT, 17)}::DECIMAL(9, 2) AS m,
    {_pick(_LONG, 19)}::DECIMAL(38, 10) AS w,
    {_pick(_TEXTS, 23)} AS s,
    {_pick(_TEXTS, 29)} AS t,
    {_pick(_DATES, 31)}::DATE AS d,
    {_pick(_MOMENTS, 37)}::TIMESTAMP AS ts,
    [true, false, NULL][1 + (hash(i * 41) % 3)::INTEGER] AS b
FROM range({{rows}}) r(i)
"""
TABLES: Final = ("edge", "other")


def make_edges(engine: duckdb.DuckDBPyConnection, rows: int = 260) -> None:
    """Create the tables `edge` and, smaller and other, `other`."""
    engine.execute(_EDGES.replace("{rows}", str(rows)))
    engine.execute(
        "CREATE TABLE other AS SELECT * REPLACE (id - 200 AS id) FROM edge WHERE id >= 200"
    )


def load_edges(engine: duckdb.DuckDBPyConnection) -> None:
    """Make the tables what a load makes of them: NaN becomes NULL."""
    for table in TABLES:
        engine.execute(f"UPDATE {table} SET x = NULL WHERE isnan(x)")


KINDS: Final = ("int", "dec", "dbl", "str", "str", "str", "date", "ts", "bool")
LITERALS: Final = {
    "int": ("0", "1", "-1", "2", "5", "100", "2147483647", "2147483648", "-2147483648",
            "9223372036854775807", "1000000"),
    "dec": ("0.0", "1.5", "-2.50", "0.001", "100.25", "9999999.99", "12345678901234567890.5",
            "0.333333333333"),
    "dbl": ("0e0", "1.5e0", "-2.5e0", "1e10", "1e-3", "2.5e-1", "-0e0"),
    "str": ("''", "' '", "'a'", "'A'", "'a '", "'ä'", "'ß'", "'😀'", "'a''b'", "'a\\b'", "'\\'",
            "'%'", "'日本'", "'1'", "'z'", "'-- x'", "'?'", "'%s'", "'\'\'; select 1'"),
    "date": ("date '2020-02-29'", "date '1970-01-01'", "date '1582-10-10'", "'2021-01-03'",
             "date '9998-12-31'"),
    "ts": ("timestamp '2020-02-29 23:59:59.999999'", "timestamp '1969-12-31 23:59:59.5'",
           "timestamp '2023-03-26 02:30:00'"),
    "bool": ("true", "false"),
}  # fmt: skip
COLUMNS: Final = {
    "int": ("i", "l", "c", "c", "c"), "dec": ("m", "m", "w"), "dbl": ("x", "q", "q"),
    "str": ("s", "t"), "date": ("d",), "ts": ("ts",), "bool": ("b",),
}  # fmt: skip
POOLS: Final = {
    "UNIT": ("year", "quarter", "month", "week", "day", "hour", "minute", "second"),
    "PART": ("year", "quarter", "month", "week", "day", "dow", "isodow", "doy", "hour", "minute",
             "second"),
    "CALL": ("year", "quarter", "month", "week", "day", "dayofweek", "isodow", "dayofyear"),
    "COMPARE": ("=", "<>", "<", "<=", ">", ">=", "is distinct from", "is not distinct from"),
    "SMALL": ("0", "1", "2", "3", "10", "100"),
    "AT": ("1", "2", "3", "10"),
    "BY": ("2", "3", "-3", "7", "10"),
    "OVER": ("2", "4", "0.5", "-3", "1e1", "3.0"),
    "DAYS": ("0", "1", "13", "31", "1000"),
    "SIGN": ("+", "-"),
    "NOT": ("", "not "),
    "INT": ("bigint", "integer", "smallint"),
    "DECIMAL": ("decimal(12, 2)", "decimal(18, 4)", "decimal(38, 10)", "decimal(38, 0)"),
    "PLACES": ("", " nulls first", " nulls last", " desc", " desc nulls last"),
    "LIKE": (
        "'a%'", "'%a'", "'_'", "'__'", "'%'", "''", "'%\\%'", "'%\\\\%'", "'a_b'", "'%\'\'%'",
        "'%ä%'", "'😀%'", "'_b'", "'A%'", "'% '", "'%.%'", "'[a]%'", "'a!%b' escape '!'",
        "'%!_%' escape '!'", "'%!!%' escape '!'", "'a\\%b' escape '\\'", "'%|%' escape '|'",
    ),
    "number": ("<int>", "<dec>", "<dbl>"),
    "exact": ("<int>", "<dec>"),
    "moment": ("<date>", "<ts>"),
}  # fmt: skip
ANY: Final = (
    "coalesce(<K>, <K>)", "nullif(<K>, <K>)", "case when <bool> then <K> else <K> end",
    "case <int> when <int> then <K> when 1 then <K> end",
)  # fmt: skip
FORMS: Final = {
    "int": (
        "(<int> + <int>)", "(<int> - <int>)", "(<int> * <int>)", "(<int> // <BY>)",
        "(<int> % <BY>)", "(- <int>)", "abs(<int>)", "length(<str>)", "<CALL>(<moment>)",
        "extract(<PART> from <moment>)", "(<date> - <date>)", "cast(<int> as <INT>)",
    ),
    "dec": (
        "(<dec> + <exact>)", "(<dec> - <exact>)", "(<dec> * <exact>)", "(- <dec>)", "abs(<dec>)",
        "cast(<exact> as <DECIMAL>)",
    ),
    "dbl": (
        "(<dbl> + <number>)", "(<dbl> - <number>)", "(<dbl> * <number>)", "(<number> / <OVER>)",
        "(<number> / nullif(<number>, 0))", "(- <dbl>)", "abs(<dbl>)", "cast(<number> as double)",
    ),
    "str": (
        "(<str> || <str>)", "substring(<str>, <AT>, <SMALL>)", "substring(<str>, <AT>)",
        "left(<str>, <SMALL>)", "cast(<int> as varchar)",
    ),
    "date": ("(<date> <SIGN> <DAYS>)", "cast(<ts> as date)"),
    "ts": (
        "date_trunc('<UNIT>', <moment>)", "(<moment> <SIGN> interval <SMALL> <UNIT>)",
        "cast(<date> as timestamp)",
    ),
    "bool": (
        "(<K> <COMPARE> <K>)", "(<str> <COMPARE> <str>)", "(<number> <COMPARE> <number>)",
        "(<date> <COMPARE> <ts>)", "(<K> between <K> and <K>)", "(<K> is <NOT>null)",
        "(<str> <NOT>like <LIKE>)", "(not <bool>)", "(<bool> and <bool>)", "(<bool> or <bool>)",
        "(<K> <NOT>in (<K>, <K>))", "(<K> <NOT>in (<K>))",
    ),
}  # fmt: skip
REFUSED: Final = {
    "int": (
        "strlen(<str>)", "sign(<int>)", "cast(<dec> as bigint)", "cast(<dbl> as bigint)",
        "cast(<bool> as integer)", "greatest(<int>, <int>)", "strpos(<str>, <str>)",
        "datediff('<UNIT>', <date>, <date>)",
    ),
    "dec": ("(<dec> % 1.5)", "round(<dec>, <SMALL>)", "floor(<dec>)"),
    "dbl": ("round(<dbl>, <SMALL>)", "floor(<dbl>)", "sqrt(abs(<dbl>))"),
    "str": (
        "upper(<str>)", "lower(<str>)", "trim(<str>)", "right(<str>, 1)", "reverse(<str>)",
        "replace(<str>, 'a', 'b')", "concat(<str>, <str>)", "cast(<date> as varchar)",
        "cast(<dec> as varchar)", "cast(<dbl> as varchar)",
    ),
    "date": ("last_day(<date>)",),
    "ts": ("time_bucket(interval 1 day, <ts>)",),
    "bool": ("starts_with(<str>, <str>)", "contains(<str>, <str>)", "(<str> ilike <LIKE>)"),
}  # fmt: skip
"""Seldom written: that one of these is let through would show."""
AGGREGATES: Final = (
    "count(*)", "count(<K>)", "count(distinct <K>)", "min(<K>)", "max(<K>)", "sum(<exact>)",
    "avg(<exact>)", "sum(distinct <exact>)", "sum(q)", "avg(q)", "sum(q * 2)",
    "sum(<exact>) / nullif(count(*), 0)", "max(<K>) filter (where <bool>)",
    "sum(<exact>) filter (where <bool>)", "count(*) filter (where <bool>)",
)  # fmt: skip
QUERIES: Final = tuple(
    line.strip()
    for line in """
select id, <A> as c0, <B> as c1, <C> as c2 from edge<where> order by id
select id, <A> as c from edge<where> order by <B><PLACES>, <C><PLACES>, id limit <SMALL>
select id, <A> as c from edge<where> order by <B><PLACES>, id offset <SMALL>
select <agg> as a0, <agg> as a1, <agg> as a2 from edge<where>
select <A> as k0, <agg> as a0, <agg> as a1 from edge<where> group by 1
select <A> as k0, <B> as k1, <agg> as a0 from edge<where> group by 1, 2
select <A> as k0, <agg> as a0 from edge group by 1 having <agg> <COMPARE> <SMALL>
select distinct <A> as c0, <B> as c1 from edge<where>
select a.id as i, b.id as j, a.d as u, b.s as v from edge a <JOIN> other b on a.<A1> = b.<A1>
select a.id, b.id, b.m from edge a <JOIN> other b on a.c = b.c and a.<A1> <COMPARE> b.<A1>
select i, j, count(*) as n from (select <A> as i from edge) a <JOIN> (select <A> as j from other) b on a.i = b.j group by 1, 2
select <A> as c0, <B> as c1 from edge<where> union<ALL> select <A>, <B> from other
with z as (select <A> as k, <agg> as v, count(*) as n from edge<where> group by 1) select <Z> from z
select id from edge where <A> <NOT>in (select <A> from other<where>) order by id
select id from edge where <A> <COMPARE> (select max(<A1>) from other) order by id
""".splitlines()  # noqa: E501
    if line.strip()
)
"""A, B and C are of one random kind each; A1 is a column of A's."""
POOLS_OF_QUERIES: Final = {
    "JOIN": ("join", "left join"),
    "ALL": ("", " all"),
    "where": ("", "", " where <bool>"),
    "Z": (
        "k, v, n", "count(k) as a, max(v) as b, sum(n) as c", "count(distinct v) as a",
        "min(k) as a, max(k) as b, count(*) as c", "k is null as a, v is not null as b",
    ),
}  # fmt: skip
_MARK = re.compile(r"<(\w+)>")
_DEEPEST = 3


class EdgeQueries:
    """Writes one query after another."""

    def __init__(self, choose: Choices) -> None:
        self._choose = choose

    def query(self) -> tuple[str, bool]:
        """SQL, and whether its order is total."""
        pick = self._choose.pick
        if self._choose.chance(15):
            return _names(self._choose), False
        form = pick(QUERIES)
        kinds = {"A": pick(KINDS), "B": pick(KINDS), "C": pick(KINDS)}

        def fill(mark: re.Match[str]) -> str:
            name = mark[1]
            if name in POOLS_OF_QUERIES:
                return _MARK.sub(fill, pick(POOLS_OF_QUERIES[name]))
            if name == "agg":
                return self._filled(pick(AGGREGATES), pick(KINDS), 1)
            if name.endswith("1"):
                return pick(COLUMNS[kinds[name[0]]])
            return self._value(kinds[name], 0) if name in kinds else self._filled(mark[0], "", 0)

        return _MARK.sub(fill, form), "order by" in form

    def _filled(self, form: str, kind: str, depth: int) -> str:
        """`form` with its marks replaced; `<K>` is a value of `kind`."""

        def fill(mark: re.Match[str]) -> str:
            name = mark[1]
            if name in POOLS:
                return _MARK.sub(fill, self._choose.pick(POOLS[name]))
            return self._value(kind if name == "K" else name, depth + 1)

        return _MARK.sub(fill, form)

    def _value(self, kind: str, depth: int) -> str:
        choose = self._choose
        roll = choose.integer(0, 9)
        if depth >= _DEEPEST or roll < 2:
            return choose.pick(COLUMNS[kind])
        if roll == 2:
            return choose.pick(LITERALS[kind])
        if choose.chance(1):
            return self._filled(choose.pick(REFUSED[kind]), kind, depth)
        form = choose.pick(ANY if choose.chance(20) else FORMS[kind])
        return self._filled(
            form, choose.pick(KINDS) if kind == "bool" and form not in ANY else kind, depth
        )


def _names(choose: Choices) -> str:
    """Aliases that are columns too, in other cases, told twice, with and without a table."""
    pick, chance = choose.pick, choose.chance
    pool = ("s", "t", "c", "S", "id", "k", "m", '"K"', "edge", "e")
    values = ("s", "t", "c", "c", "m", "b", "length(s)", "c + 1", "e.c", "edge.s")
    taken = [(pick(values), pick(pool)) for _ in range(choose.integer(1, 3))]
    source = pick((
        "edge", "edge", "edge e", "edge as s", "(select s, c as k, c, t, m, b, id from edge) e",
        "edge join other o on edge.id = o.id", "edge join other using (id)",
        "edge e left join other o using (id, c)",
    ))  # fmt: skip
    items = ", ".join(f"{value} as {name}" if chance(80) else value for value, name in taken)
    keys = pick(("", "1", "all", *(name for _, name in taken), *(value for value, _ in taken)))
    total = pick(("count(*)", "sum(c)", "max(s)", "min(k)", "count(t)"))
    sql = f"select {items}{f', {total} as {pick(pool)}' if keys else ''} from {source}"
    if chance(40):
        sql += f" where {pick(pool)} {pick(('is not null', '= 1', 'in (1, 2)'))}"
    if keys:
        sql += f" group by {keys}"
        if chance(30):
            sql += f" having {pick((*pool, 'count(*)', 'sum(c)'))} {pick(('> 1', 'is not null'))}"
    if chance(40):
        sql += f" order by {pick((*pool, '1', 'c + 1', 'length(s)', 'count(*)'))}"
    if chance(20):
        read = ("edge", "z", "other", "e")
        sql = f"with {pick(read)} as ({sql}) select * from {pick((*read, 'Z'))}"
    return sql
