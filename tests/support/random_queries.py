"""Random tables, laid out at random, and random queries over them whose answers are determined.

What is generated has one right answer, as a multiset or in a total order: no LIMIT without an
order over all columns, no aggregate that depends on the order of rows, doubles that add up exactly.
Nothing that fails at run time: divisors are never zero, texts are only cast by `try_cast`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import duckdb
from hypothesis import strategies as st
from sqllogic_runner import Layout

T = TypeVar("T")


class Choices(Protocol):
    """Where randomness comes from. The first option is the simplest."""

    def integer(self, low: int, high: int) -> int: ...

    def pick(self, options: Sequence[T]) -> T: ...

    def chance(self, percent: int) -> bool: ...


class SeededChoices:
    """Choices of a pseudo-random generator."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def pick(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def chance(self, percent: int) -> bool:
        return self._random.random() * 100 < percent


class DrawnChoices:
    """Choices that Hypothesis makes, and shrinks towards the first option."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def pick(self, options: Sequence[T]) -> T:
        return options[self._draw(st.integers(0, len(options) - 1))]

    def chance(self, percent: int) -> bool:
        return self._draw(st.integers(0, 99)) >= 100 - percent


@dataclass(frozen=True, slots=True)
class World:
    """Tables of one sharding: `<prefix>_fact`, `_more`, `_dim`, `_none`."""

    prefix: str
    layouts: tuple[Layout, ...]
    replicas: tuple[int, ...]
    """Of each table, in order of `layouts`."""
    rollups: tuple[str, ...] = ()
    """Of the fact, as `parse_rollup` reads them."""

    def table(self, name: str) -> str:
        return f"{self.prefix}_{name}"


COLUMNS = {
    "fact": {
        "id": "int", "k": "int", "n": "int", "m": "dec", "x": "dbl", "s": "str", "d": "date",
        "moment": "ts", "b": "bool",
    },
    "more": {"id": "int", "k": "int", "m": "dec", "s": "str", "d": "date"},
    "dim": {"k": "int", "label": "str", "grp": "int", "w": "dec"},
    "none": {"id": "int", "k": "int", "s": "str", "d": "date"},
}  # fmt: skip
"""Columns and kinds of types of each table."""

_TEXTS = "['a', 'b', 'B', '', 'über', 'a''b', 'ab', '東', NULL, 'a%', 'zz']"
_FACT = """
CREATE TABLE {name} AS SELECT
    i AS id,
    CASE WHEN hash(i + {seed}) % 9 > 0 THEN (hash(i * 3 + {seed}) % 7)::INTEGER END AS k,
    CASE WHEN hash(i * 5 + {seed}) % 6 > 0 THEN (hash(i * 7 + {seed}) % 11)::BIGINT - 4 END AS n,
    CASE WHEN hash(i * 11 + {seed}) % 8 > 0
        THEN ((hash(i * 13 + {seed}) % 20001)::DECIMAL(9, 2) - 10000) / 100 END AS raw,
    CASE hash(i * 17 + {seed}) % 10 WHEN 0 THEN 'NaN'::DOUBLE WHEN 1 THEN NULL
        ELSE (hash(i * 19 + {seed}) % 81)::DOUBLE / 4 - 10 END AS x,
    {texts}[1 + (hash(i * 23 + {seed}) % 11)::INTEGER] AS s,
    DATE '2023-11-20' + (hash(i * 29 + {seed}) % {days})::INTEGER AS d,
    CASE WHEN hash(i * 31 + {seed}) % 7 > 0 THEN TIMESTAMP '2023-11-20 00:00:00'
        + to_minutes((hash(i * 37 + {seed}) % 100000)::BIGINT) END AS moment,
    [true, false, NULL][1 + (hash(i * 41 + {seed}) % 3)::INTEGER] AS b
FROM range({rows}) t(i)
"""


def make_world(engine: duckdb.DuckDBPyConnection, prefix: str, seed: int) -> World:
    """Create random tables in `engine`, and say how a cluster is to hold them."""
    choose = SeededChoices(seed)
    days = choose.pick([1, 40, 90, 400])
    for name, least, most in (("fact", 20, 160), ("more", 0, 60), ("dim", 3, 9)):
        rows = choose.integer(least, most)
        engine.execute(
            _FACT.format(
                name="raw", rows=rows, seed=choose.integer(0, 10**6), days=days, texts=_TEXTS
            )
        )
        select = {
            "fact": "id, k, n, raw::DECIMAL(9, 2) AS m, x, s, d, moment, b",
            "more": "id * 2 AS id, k, raw::DECIMAL(9, 2) AS m, s, d",
            "dim": "id AS k, s AS label, n AS grp, raw::DECIMAL(9, 2) AS w",
        }[name]
        engine.execute(f"CREATE TABLE {prefix}_{name} AS SELECT {select} FROM raw")
        if name != "dim" and choose.chance(60):
            # Rows that are there twice, in whatever shards.
            engine.execute(f"INSERT INTO {prefix}_{name} FROM {prefix}_{name} WHERE id % 5 = 0")
        engine.execute("DROP TABLE raw")
    engine.execute(f"CREATE TABLE {prefix}_none (id BIGINT, k INTEGER, s VARCHAR, d DATE)")
    splits = ("id % 5", "date_trunc('month', d)", "id % 3", "week(d) % 8", "k", "0")
    layouts = (
        _layout(choose, f"{prefix}_fact", splits[:-1]),
        _layout(choose, f"{prefix}_more", splits),
        Layout(table=f"{prefix}_dim", spread=choose.pick(["everywhere", "everywhere", "spread"])),
        Layout(table=f"{prefix}_none", empty=choose.integer(1, 3)),
    )
    replicas = tuple(choose.pick([1, 1, 1, 2]) for _ in layouts)
    return World(prefix, layouts, replicas, _rollups(seed))


def _rollups(seed: int) -> tuple[str, ...]:
    """One that answers many queries, and some at random."""
    draw = random.Random(seed)
    dimensions = ["k", "s", "b", "n", "d", "date_trunc('week', d)", "date_trunc('day', moment)"]
    measures = [f"{call}({name})" for call in ("sum", "avg") for name in ("n", "m", "x", "k")]
    measures += [f"{call}({name})" for call in ("min", "max", "count") for name in COLUMNS["fact"]]
    found = [f"most: k, b; count(*), {', '.join(measures[:20])}"]
    for number in range(draw.randint(1, 3)):
        keys = draw.sample(dimensions[: draw.choice([5, 7])], draw.randint(1, 2))
        if {"d", "date_trunc('week', d)"} <= set(keys):
            keys.remove("d")
        values = draw.sample(measures, draw.randint(1, 12))
        found.append(f"r{number}: {', '.join(keys)}; {', '.join(values)}")
    return tuple(found)


def _layout(choose: Choices, table: str, splits: Sequence[str]) -> Layout:
    return Layout(
        table=table,
        split_by=choose.pick(splits),
        sort_by=choose.pick(["", "d", "d,id", "k"]),
        empty=choose.pick([0, 0, 1, 2]),
        # Together on the hosts of others, but not with all rows of the query.
        spread=choose.pick(["spread"] * 5 + ["together"]),
    )


def as_loaded(engine: duckdb.DuckDBPyConnection, world: World) -> None:
    """Make plain DuckDB's tables what a load makes of them: NaN becomes NULL."""
    engine.execute(f"UPDATE {world.table('fact')} SET x = NULL WHERE isnan(x)")


# Queries


@dataclass(frozen=True, slots=True)
class RandomQuery:
    sql: str
    order: tuple[int, ...] | None
    """Columns that the rows are ordered by; None: not at all."""


@dataclass(frozen=True, slots=True)
class Column:
    sql: str
    kind: str


@dataclass(frozen=True, slots=True)
class Source:
    """What stands in FROM, and the columns it gives."""

    sql: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Selected:
    """A query without its order."""

    sql: str
    kinds: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [f"c{index}" for index in range(len(self.kinds))]


_LITERALS = {
    "int": ["0", "1", "2", "3", "-1", "5", "6", "100"],
    "dec": ["0", "1.5", "-12.34", "50", "99.99", "-100"],
    "dbl": ["0.0", "2.5", "-1.25", "9.75", "100.0"],
    "str": ["'a'", "'b'", "''", "'über'", "'a''b'", "'zz'", "'東'", "'none'"],
    "date": [
        "DATE '2023-11-20'", "DATE '2023-12-01'", "DATE '2023-12-31'", "DATE '2024-01-15'",
        "DATE '2024-06-01'", "DATE '2030-01-01'",
        "CAST(DATE '2024-02-29' - INTERVAL 1 MONTH AS DATE)",
    ],
    "ts": ["TIMESTAMP '2023-12-01 00:00:00'", "TIMESTAMP '2024-01-10 12:00:00'"],
    "bool": ["true", "false"],
}  # fmt: skip
_COMPARE = ["=", "<", ">=", "<=", ">", "<>"]
_JOINS = ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "SEMI JOIN", "ANTI JOIN"]


class QueryWriter:
    """Writes queries over the tables of one world."""

    def __init__(self, choose: Choices, world: World) -> None:
        self._choose = choose
        self._world = world
        self._aliases = 0
        self._ctes: list[tuple[str, Selected]] = []

    def query(self) -> RandomQuery:
        choose = self._choose
        ctes = ""
        for _ in range(choose.pick([0, 0, 0, 1, 1, 2])):
            name, selected = self._alias("q"), self.select(depth=1)
            materialized = choose.pick(["", "", "MATERIALIZED ", "NOT MATERIALIZED "])
            self._ctes.append((name, selected))
            ctes += ", " if ctes else "WITH "
            ctes += f"{name} AS {materialized}({selected.sql})"
        order = choose.pick(["none", "all", "limit", "some"])
        selected = self.body(depth=0, may_be_inexact=order in {"none", "some"})
        sql, columns = f"{ctes} {selected.sql}".strip(), tuple(range(len(selected.kinds)))
        if order == "none":
            return RandomQuery(sql, None)
        if order == "some":
            columns = (choose.integer(0, len(columns) - 1),)
            if selected.kinds[columns[0]] == "inexact":
                return RandomQuery(sql, None)
        sql += self._order(columns)
        if order == "limit":
            sql += self._limit()
        return RandomQuery(sql, columns)

    def _order(self, columns: Sequence[int]) -> str:
        ways = ["", " DESC", " NULLS FIRST", " DESC NULLS LAST", " ASC NULLS LAST"]
        return " ORDER BY " + ", ".join(f"{i + 1}{self._choose.pick(ways)}" for i in columns)

    def _limit(self) -> str:
        offset = f" OFFSET {self._choose.integer(0, 9)}" if self._choose.chance(30) else ""
        return f" LIMIT {self._choose.pick([5, 1, 3, 20, 100, 1000, 0])}{offset}"

    def _alias(self, letter: str) -> str:
        self._aliases += 1
        return f"{letter}{self._aliases}"

    # SELECT

    def body(self, depth: int, *, may_be_inexact: bool = False) -> Selected:
        """A SELECT, or two of them in a set operation."""
        if self._choose.chance(12):
            return self._set_operation(depth)
        return self.select(depth, may_be_inexact=may_be_inexact)

    def _set_operation(self, depth: int) -> Selected:
        kinds = [self._choose.pick(["int", "str", "date", "dec"]) for _ in range(2)]
        operation = self._choose.pick(
            ["UNION ALL", "UNION", "EXCEPT", "INTERSECT", "EXCEPT ALL", "INTERSECT ALL"]
        )
        sides = [self._plain_select(depth + 1, kinds) for _ in range(2)]
        return Selected(f"{sides[0]} {operation} {sides[1]}", tuple(kinds))

    def _plain_select(self, depth: int, kinds: Sequence[str]) -> str:
        source = self.source(depth)
        items = [self.expression(source, kind, 1) for kind in kinds]
        return f"SELECT {_named(items)} FROM {source.sql}{self._where(source, depth)}"

    def select(self, depth: int, *, may_be_inexact: bool = False) -> Selected:
        source = self.source(depth)
        where = self._where(source, depth)
        forms = ["plain", "total", "grouped", "grouped", "window", "distinct", "of columns"]
        form = self._choose.pick(forms)
        if form == "of columns":
            return self._of_columns()
        if form == "total":
            items, kinds = self._aggregates(source, may_be_inexact)
            return Selected(f"SELECT {_named(items)} FROM {source.sql}{where}", kinds)
        if form == "grouped":
            return self._grouped(source, where, may_be_inexact)
        kinds = tuple(self._kind() for _ in range(self._choose.integer(1, 4)))
        items = [self.expression(source, kind, 2) for kind in kinds]
        if form == "window":
            item, kind = self._window(source)
            items, kinds = [*items, item], (*kinds, kind)
        distinct = "DISTINCT " if form == "distinct" else ""
        sql = f"SELECT {distinct}{_named(items)} FROM {source.sql}{where}"
        if form == "window" and self._choose.chance(20):
            sql += f" QUALIFY {self._window(source)[0]} <= {self._choose.integer(0, 3)}"
        if depth > 0 and self._choose.chance(10):
            sql = f"({sql}{self._order(range(len(items)))}{self._limit()})"
        return Selected(sql, kinds)

    def _grouped(self, source: Source, where: str, may_be_inexact: bool) -> Selected:
        choose = self._choose
        key_kinds = [
            choose.pick(["int", "str", "date", "bool"]) for _ in range(choose.pick([1, 2]))
        ]
        keys = [self.expression(source, kind, 1) for kind in key_kinds]
        items, kinds = self._aggregates(source, may_be_inexact)
        numbers = ", ".join(str(index + 1) for index in range(len(keys)))
        group = choose.pick(["ALL", numbers, ", ".join(keys)])
        if choose.chance(20):
            group = self._groupings(keys)
            items, kinds = [*items, f"grouping({keys[0]})"], (*kinds, "int")
        having = ""
        if choose.chance(30):
            item, kind = self._aggregate(source, inexact=False)
            having = f" HAVING {self._comparison(item, kind)}"
        if choose.chance(15):
            item, kind = self._group_window(source, keys)
            items, kinds = [*items, item], (*kinds, kind)
        if choose.chance(8) and group != "ALL":
            having += f" QUALIFY {self._group_window(source, keys)[0]} < {choose.integer(1, 6)}"
        sql = f"SELECT {_named([*keys, *items])} FROM {source.sql}{where} GROUP BY {group}{having}"
        return Selected(sql, (*key_kinds, *kinds))

    def _groupings(self, keys: Sequence[str]) -> str:
        """Several ways to group at once."""
        every = ", ".join(keys)
        return self._choose.pick(
            [
                f"ROLLUP ({every})",
                f"CUBE ({every})",
                f"GROUPING SETS (({every}), ({keys[-1]}), ())",
                f"GROUPING SETS (({keys[0]}), ({every}))",
            ]
        )

    def _group_window(self, source: Source, keys: Sequence[str]) -> tuple[str, str]:
        """A window over the rows of a grouped result. Rows that tie get the same value."""
        choose = self._choose
        partition = choose.pick(["", "", f"PARTITION BY {keys[0]} "])
        number = self.expression(source, "int", 0)
        order = choose.pick(["count(*)", f"max({number})", f"sum({number}) DESC"])
        return choose.pick(
            [
                (f"rank() OVER ({partition}ORDER BY {order})", "int"),
                (f"sum(count(*)) OVER ({partition})", "int"),
                (f"max(min({number})) OVER ({partition}ORDER BY {order})", "int"),
            ]
        )

    def _of_columns(self) -> Selected:
        """Aggregates and groups of the fact's columns alone, which a rollup may have."""
        choose = self._choose
        names = [name for name in ("k", "b", "s", "d") if choose.chance(35)]
        kinds = [COLUMNS["fact"][name] for name in names]
        items = list(names)
        for _ in range(choose.integer(1, 3)):
            value = choose.pick(["n", "m", "x", "k"])
            item, kind = choose.pick(
                [
                    ("count(*)", "int"),
                    (f"sum({value})", COLUMNS["fact"][value]),
                    (f"avg({value})", "dbl"),
                    (f"min({value})", COLUMNS["fact"][value]),
                    (f"count({value})", "int"),
                ]
            )
            filtered = f" FILTER (WHERE k {choose.pick(_COMPARE)} 3)" if choose.chance(20) else ""
            items.append(item + filtered)
            kinds.append(kind)
        conditions = ["", "", "k > 1", "b", "k IS NULL OR b", "NOT b AND k <> 5", "s = 'a'"]
        where = choose.pick(conditions)
        where = f" WHERE {where}" if where else ""
        group = f" GROUP BY {choose.pick(['ALL', ', '.join(names)])}" if names else ""
        having = " HAVING count(*) > 1" if group and choose.chance(30) else ""
        sql = f"SELECT {_named(items)} FROM {self._world.table('fact')}{where}{group}{having}"
        return Selected(sql, tuple(kinds))

    def _aggregates(self, source: Source, inexact: bool) -> tuple[list[str], tuple[str, ...]]:
        found = [self._aggregate(source, inexact) for _ in range(self._choose.integer(1, 4))]
        return [item for item, _ in found], tuple(kind for _, kind in found)

    def _aggregate(self, source: Source, inexact: bool) -> tuple[str, str]:
        choose = self._choose
        kind = self._kind()
        argument = self.expression(source, kind, 1)
        number = choose.pick(["int", "dec", "dbl"])
        value = self.expression(source, number, 1)
        column = self._column(source, "str")
        options = [
            ("count(*)", "int"),
            (f"count({argument})", "int"),
            (f"sum({value})", number),
            (f"min({argument})", kind),
            (f"max({argument})", kind),
            (f"count(DISTINCT {argument})", "int"),
            (f"avg({value})", "dbl"),
            (f"sum(DISTINCT {value})", number),
            (f"bool_and({self.condition(source, 1)})", "bool"),
            (f"bool_or({self.condition(source, 1)})", "bool"),
            (f"median({value})", "dbl" if number != "dec" else "other"),
            (f"quantile_disc({value}, 0.3)", number),
            (f"string_agg({column}::VARCHAR, ',' ORDER BY {column})", "str"),
            (f"list({column} ORDER BY {column} DESC NULLS FIRST)", "other"),
        ]
        ordinal = self.expression(source, "int", 1)
        options += [
            (f"count_if({self.condition(source, 1)})", "int"),
            (f"regr_count({value}, {ordinal})", "int"),
            (f"approx_count_distinct({argument})", "int"),
            (f"product(({ordinal} % 3))", "dbl"),
            (f"median(DISTINCT {value})", "dbl" if number != "dec" else "other"),
            (f"quantile_cont({value}, 0.7)", "dbl" if number != "dec" else "other"),
            (f"quantile_disc({argument}, [0.1, 0.5])", "other"),
            (f"mad({ordinal})", "other"),
            (f"histogram({column})", "other"),
            (f"max({ordinal}, 2)", "other"),
            (f"first({column} ORDER BY {column})", "other"),
            (f"last({column}::VARCHAR ORDER BY {column} NULLS FIRST)", "str"),
            (f"list(DISTINCT {column} ORDER BY {column})", "other"),
            (f"string_agg(DISTINCT {column}::VARCHAR, '-' ORDER BY {column}::VARCHAR)", "str"),
            self._extreme(source),
        ]
        if inexact:
            names = ("stddev", "var_pop", "sem", "entropy", "fsum")
            options += [(f"{name}({value})", "inexact") for name in names]
        item, result = choose.pick(options)
        if choose.chance(15):
            item += f" FILTER (WHERE {self.condition(source, 1)})"
        return item, result

    def _extreme(self, source: Source) -> tuple[str, str]:
        """A value of the row with the largest or smallest id, which is of one row, or of equal
        ones."""
        ids = [column.sql for column in source.columns if column.sql.endswith(".id")]
        if not ids:
            return "any_value(1)", "int"
        by = self._choose.pick(ids)
        own = [one for one in source.columns if one.sql.split(".")[0] == by.split(".")[0]]
        value = self._choose.pick(own)
        return self._choose.pick(
            [
                (f"arg_max({value.sql}, {by})", value.kind),
                (f"min_by({value.sql}, {by})", value.kind),
                (f"arg_max({value.sql}, {by}, 2)", "other"),
                (f"string_agg({value.sql}::VARCHAR, '' ORDER BY {by})", "str"),
                (f"list({value.sql} ORDER BY {by} DESC)", "other"),
            ]
        )

    def _window(self, source: Source) -> tuple[str, str]:
        choose = self._choose
        partition = ""
        if choose.chance(70):
            keys = [self._column(source, choose.pick(["int", "date", "str"])) for _ in range(2)]
            partition = f"PARTITION BY {', '.join(keys[: choose.pick([1, 1, 2])])} "
        order = f"ORDER BY {self._column(source, choose.pick(['date', 'int', 'dec']))}"
        # Peers get the same value, so ties do not matter.
        return choose.pick(
            [
                (f"rank() OVER ({partition}{order})", "int"),
                (f"dense_rank() OVER ({partition}{order} DESC NULLS LAST)", "int"),
                (f"count(*) OVER ({partition})", "int"),
                (f"sum({self.expression(source, 'int', 0)}) OVER ({partition}{order})", "int"),
                (f"max({self.expression(source, 'dec', 0)}) OVER ({partition}{order})", "dec"),
                (f"cume_dist() OVER ({partition}{order})", "dbl"),
            ]
        )

    # FROM and WHERE

    def source(self, depth: int) -> Source:
        choose = self._choose
        left = self._relation(depth)
        if not choose.chance(45 if depth == 0 else 25):
            return left
        right = self._relation(depth)
        join = choose.pick(_JOINS)
        on = self._equality(left, right)
        if join in {"JOIN", "LEFT JOIN"} and choose.chance(25):
            both = Source("", (*left.columns, *right.columns))
            on += f" AND {self.condition(both, 1)}"
        if join in {"SEMI JOIN", "ANTI JOIN"}:
            return Source(f"{left.sql} {join} {right.sql} ON {on}", left.columns)
        return Source(f"{left.sql} {join} {right.sql} ON {on}", (*left.columns, *right.columns))

    def _equality(self, left: Source, right: Source) -> str:
        for kind in self._choose.pick([("int", "date", "str"), ("date", "int", "str")]):
            sides = [[c for c in side.columns if c.kind == kind] for side in (left, right)]
            if sides[0] and sides[1]:
                # Keys before numbers that are rarely equal.
                return " = ".join(
                    next((c.sql for c in side if c.sql.endswith(".k")), side[0].sql)
                    for side in sides
                )
        return "true = true"

    def _relation(self, depth: int) -> Source:
        choose = self._choose
        if self._ctes and choose.chance(40):
            name, selected = choose.pick(self._ctes)
            return self._given(name, selected)
        if depth < 2 and choose.chance(15):
            selected = self.body(depth + 1)
            return self._given(f"({selected.sql})", selected)
        table = choose.pick(["fact"] * 6 + ["more", "more", "dim", "dim", "none"])
        alias = self._alias("t")
        columns = tuple(Column(f"{alias}.{name}", kind) for name, kind in COLUMNS[table].items())
        return Source(f"{self._world.table(table)} AS {alias}", columns)

    def _given(self, sql: str, selected: Selected) -> Source:
        alias = self._alias("s")
        pairs = zip(selected.names, selected.kinds, strict=True)
        return Source(
            f"{sql} AS {alias}", tuple(Column(f"{alias}.{name}", kind) for name, kind in pairs)
        )

    def _where(self, source: Source, depth: int) -> str:
        if not self._choose.chance(60):
            return ""
        if depth < 2 and self._choose.chance(15):
            return f" WHERE {self._subquery(source)}"
        return f" WHERE {self.condition(source, 2)}"

    def _subquery(self, source: Source) -> str:
        """A condition with a subquery in it."""
        choose = self._choose
        inner = self._relation(2)
        kind = choose.pick(["int", "date", "dec"])
        value, found = self.expression(source, kind, 0), self.expression(inner, kind, 0)
        where = self._where(inner, 2)
        condition = self.condition(inner, 1)
        return choose.pick(
            [
                f"{value} IN (SELECT {found} FROM {inner.sql}{where})",
                f"{value} > (SELECT min({found}) FROM {inner.sql}{where})",
                f"EXISTS (SELECT 1 FROM {inner.sql} WHERE {value} = {found} AND {condition})",
                f"NOT EXISTS (SELECT 1 FROM {inner.sql} WHERE {value} = {found})",
                f"{value} NOT IN (SELECT {found} FROM {inner.sql}{where})",
                f"{value} <= (SELECT max({found}) FROM {inner.sql} WHERE {found} <> {value})",
            ]
        )

    def condition(self, source: Source, depth: int) -> str:
        choose = self._choose
        if depth > 0 and choose.chance(35):
            sides = [self.condition(source, depth - 1) for _ in range(2)]
            return choose.pick(
                [
                    f"({sides[0]} AND {sides[1]})",
                    f"({sides[0]} OR {sides[1]})",
                    f"NOT ({sides[0]})",
                    f"({sides[0]} OR {sides[1]}) IS NOT TRUE",
                ]
            )
        kind = self._kind()
        return self._comparison(self.expression(source, kind, depth), kind)

    def _comparison(self, value: str, kind: str) -> str:
        choose = self._choose
        if kind not in _LITERALS:
            return f"{value} IS NOT NULL"
        some = [choose.pick(_LITERALS[kind]) for _ in range(3)]
        options = [
            f"{value} {choose.pick(_COMPARE)} {some[0]}",
            f"{value} IS NULL",
            f"{value} BETWEEN {some[0]} AND {some[1]}",
            f"{value} IN ({', '.join(some)})",
            f"{value} NOT IN ({some[0]}, {some[1]})",
            f"{value} IS DISTINCT FROM {some[0]}",
            f"{some[0]} {choose.pick(_COMPARE)} {value}",
            f"{value} IN ({some[0]}, NULL)",
        ]
        if kind == "str":
            pattern = choose.pick(["a%", "%b", "%", "_", "ü%", "a_b"])
            options += [f"{value} LIKE '{pattern}'", f"{value} NOT LIKE '{pattern}'"]
        if kind == "date":
            options += [
                f"month({value}) = {choose.integer(1, 12)}",
                f"date_trunc('month', {value}) = DATE '2023-12-01'",
                f"date_trunc('hour', {value}) {choose.pick(_COMPARE)} {some[0]}",
                f"{value} >= {some[0]} AND {value} < {some[1]}",
                f"year({value}) > 2023",
            ]
        return choose.pick(options)

    # Expressions

    def _kind(self) -> str:
        return self._choose.pick(["int", "str", "date", "dec", "dbl", "ts", "bool"])

    def _column(self, source: Source, kind: str) -> str:
        """A column, of this kind if there is one. Not one whose last digits may vary."""
        exact = [column for column in source.columns if column.kind not in {"inexact", "other"}]
        found = [column for column in exact if column.kind == kind] or exact
        return self._choose.pick(found).sql if found else "CAST(NULL AS VARCHAR)"

    def expression(self, source: Source, kind: str, depth: int) -> str:
        choose = self._choose
        columns = [column.sql for column in source.columns if column.kind == kind]
        if depth > 0 and choose.chance(35):
            return self._compound(source, kind, depth - 1)
        if columns and not choose.chance(8):
            return choose.pick(columns)
        # A bare number in GROUP BY or ORDER BY would name a column.
        cast = {"int": "BIGINT", "dec": "DECIMAL(9, 2)"}.get(kind)
        literal = choose.pick(_LITERALS[kind])
        return f"CAST({literal} AS {cast})" if cast else f"({literal})"

    def _compound(self, source: Source, kind: str, depth: int) -> str:
        one = self.expression(source, kind, depth)
        two = self.expression(source, kind, depth)
        options = [
            f"coalesce({one}, {two})",
            f"nullif({one}, {two})",
            f"CASE WHEN {self.condition(source, 0)} THEN {one} ELSE {two} END",
            f"greatest({one}, {two})",
        ]
        options += {
            "int": [
                f"({one} + {two})", f"({one} % 3)", f"abs({one})", f"({one} - {two})",
                f"length({self.expression(source, 'str', depth)})",
                f"month({self.expression(source, 'date', depth)})",
                f"date_diff('day', {self.expression(source, 'date', depth)}, DATE '2024-01-01')",
            ],
            "dec": [f"({one} + {two})", f"({one} - {two})", f"(- {one})", f"abs({one})"],
            "dbl": [f"({one} + {two})", f"({one} * 2)", f"floor({one})"],
            "str": [
                f"upper({one})", f"({one} || {two})", f"left({one}, 1)", f"concat({one}, {two})",
                f"{self.expression(source, 'int', depth)}::VARCHAR",
                f"{self.expression(source, 'date', depth)}::VARCHAR",
            ],
            "date": [
                f"({one} + CAST({self.expression(source, 'int', 0)} AS INTEGER))",
                f"date_trunc('month', {one})::DATE", f"last_day({one})",
                f"{self.expression(source, 'ts', depth)}::DATE",
            ],
            "ts": [
                f"({one} + INTERVAL 1 DAY)", f"date_trunc('hour', {one})",
                f"date_trunc('minute', {self.expression(source, 'date', depth)})",
            ],
            "bool": [f"NOT {one}", f"({one} AND {two})", f"({self.condition(source, depth)})"],
        }[kind]  # fmt: skip
        return self._choose.pick(options)


def _named(items: Sequence[str]) -> str:
    return ", ".join(f"{item} AS c{index}" for index, item in enumerate(items))
