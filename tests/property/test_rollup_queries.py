"""Random queries over random rollups and shardings answer as plain DuckDB does."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import pytest
from planner_spread_world import SpreadWorld, cooled, plain_database, spread_world

WORLDS: Final = int(os.environ.get("ACCEL_ROLLUP_WORLDS", "5"))
QUERIES: Final = 60
"""Of each world."""

pytestmark = pytest.mark.timeout(120 + 4 * WORLDS)

T = TypeVar("T")

_DIMENSIONS = ["carrier", "day", '"at"', "name", "flag", "note", "small", "big", "fee"]
_NUMBERS = ["x", "delay", "gap", "price", "small", "fee"]
_VALUES = [*_NUMBERS, "name", "note", "day", '"at"', "big", "odd", "carrier"]
_DAY_GRAINS = ["", "", "week", "month", "quarter"]
_TIME_GRAINS = ["", "minute", "hour", "day", "day", "week", "month"]
_LITERALS = {
    "carrier": ["0", "2", "7"],
    "day": ["'2013-01-01'", "DATE '2013-01-07'", "'2013-01-04'", "'2013-02-01'"],
    '"at"': ["'2013-01-01'", "TIMESTAMP '2013-01-01 12:00:00'", "'2013-01-02'", "'2012-12-31'"],
    "name": ["'n1'", "'n5'", "'N1'"],
    "flag": ["true"],
    "note": ["'it''s 1'", "''"],
    "small": ["1", "3.5"],
    "big": ["0", "2"],
    "fee": ["1.2", "5", "0"],
}


@dataclass
class Writer:
    """Writes rollups, and queries that mostly ask for what one of them has."""

    draw: random.Random
    known: list[tuple[list[str], list[str]]] = field(default_factory=list)
    """Columns of the dimensions, and measures, of each rollup."""
    names: list[str] = field(default_factory=list)
    measures: list[str] = field(default_factory=list)

    def pick(self, options: Sequence[T]) -> T:
        return self.draw.choice(options)

    def some(self, options: Sequence[T], least: int, most: int) -> list[T]:
        return self.draw.sample(options, min(len(options), self.draw.randint(least, most)))

    def rollup(self, number: int) -> str:
        names = self.some(_DIMENSIONS, 1, 4)
        dimensions = [self._dimension(name) for name in names]
        measures = ["count(*)"]
        for function in ("sum", "avg", "min", "max", "count"):
            arguments = _NUMBERS if function in {"sum", "avg"} else _VALUES
            measures += [f"{function}({name})" for name in self.some(arguments, 0, 3)]
        self.known.append((names, measures))
        return f"r{number}: {', '.join(dimensions)}; {', '.join(measures)}"

    def _dimension(self, name: str) -> str:
        grains = {"day": _DAY_GRAINS, '"at"': _TIME_GRAINS}.get(name, [""])
        grain = self.pick(grains)
        return f"date_trunc('{grain}', {name})" if grain else name

    # Queries

    def query(self) -> str:
        self.names, self.measures = self.some(_DIMENSIONS, 1, 3), []
        if self.draw.random() < 0.8:
            self.names, self.measures = self.pick(self.known)
        form = self.pick(["total", "grouped", "grouped", "grouped", "joined", "distinct", "cte"])
        where = f" WHERE {self.condition()}" if self.draw.random() < 0.5 else ""
        if form == "total":
            return f"SELECT {self.values()} FROM flights{where}"
        keys = [self.key() for _ in range(self.draw.randint(1, 2))]
        named = ", ".join(f"{key} AS k{n}" for n, key in enumerate(keys))
        if form == "distinct":
            return f"SELECT DISTINCT {named} FROM flights{where}"
        source = "flights"
        if form == "joined":
            kind = self.pick(["JOIN", "LEFT JOIN", "SEMI JOIN", "ANTI JOIN"])
            source = f"flights f {kind} airlines a ON f.carrier = a.carrier"
            named = re.sub(r"\bcarrier\b", "f.carrier", named)
            keys = [re.sub(r"\bcarrier\b", "f.carrier", key) for key in keys]
            where = re.sub(r"\bcarrier\b", "f.carrier", where)
        values = self.values()
        if form == "joined":
            values = re.sub(r"\bcarrier\b", "f.carrier", values)
        numbers = ", ".join(str(n + 1) for n in range(len(keys)))
        groups = [numbers, "ALL", ", ".join(keys), f"CUBE ({', '.join(keys)})"]
        group = self.pick(groups if form != "joined" else groups[:3])
        having = " HAVING count(*) > 1" if self.draw.random() < 0.3 else ""
        sql = f"SELECT {named}, {values} FROM {source}{where} GROUP BY {group}{having}"
        if form == "cte":
            return f"WITH t AS ({sql}) SELECT count(*), max(k0), min(v0) FROM t"
        return sql

    def key(self) -> str:
        name = self.pick(self.names)
        if name == "day":
            part = self.pick(["week", "month", "year"])
            return self.pick([name, name, f"date_trunc('{part}', day)", f"{part}(day)"])
        if name == '"at"':
            part = self.pick(["hour", "day", "week", "month", "minute"])
            return self.pick(
                [f"date_trunc('{part}', \"at\")", '"at"::DATE', f'{part}("at")', '"at"']
            )
        if name == "name":
            return self.pick([name, f"upper({name})"])
        return name

    def condition(self) -> str:
        parts = [self._comparison() for _ in range(self.draw.randint(1, 3))]
        return self.pick([" AND ", " OR "]).join(parts)

    def _comparison(self) -> str:
        name = self.pick(self.names if self.draw.random() < 0.97 else _DIMENSIONS)
        literal = self.pick(_LITERALS[name])
        is_time = name in {"day", '"at"'}
        operator = self.pick(["<", ">="] if is_time else ["=", "<", ">=", "<>", "<=", ">"])
        if self.draw.random() < 0.1:
            operator = self.pick(["=", ">", "<="])
        told = f"{name} {operator} {literal}"
        if self.draw.random() < 0.15:
            told = f"{name} IS {self.pick(['', 'NOT '])}NULL"
        if is_time and self.draw.random() < 0.3:
            told = f"year({name}) = 2013 AND month({name}) < {self.pick([2, 3, 12])}"
        return f"NOT ({told})" if self.draw.random() < 0.15 else f"({told})"

    def values(self) -> str:
        return ", ".join(f"{self._value()} AS v{n}" for n in range(self.draw.randint(1, 3)))

    def _value(self) -> str:
        if self.measures and self.draw.random() < 0.6:
            found = self.pick(self.measures)
            is_filtered = self.draw.random() < 0.2
            return f"{found} FILTER (WHERE {self.condition()})" if is_filtered else found
        number, value, dimension = self.pick(_NUMBERS), self.pick(_VALUES), self.pick(self.names)
        found = self.pick(
            [
                "count(*)",
                "count(*)",
                f"count({value})",
                f"sum({number})",
                f"avg({number})",
                f"min({value})",
                f"max({value})",
                f"count({dimension})",
                f"count(DISTINCT {dimension})",
                f"sum({number}) / nullif(count(*), 0)",
                f"max({dimension})",
                f"rank() OVER (ORDER BY count(*), max({dimension}))",
                "sum(count(*)) OVER ()",
            ]
        )
        if (
            found.endswith(")")
            and "/" not in found
            and "OVER" not in found
            and self.draw.random() < 0.2
        ):
            found += f" FILTER (WHERE {self.condition()})"
        return found


_DOUBLE = re.compile(r"(?<![\w.'])-?\d+\.\d+(?:e[-+]\d+)?(?![\w.'])")


def _rounded(rows: list[str]) -> list[str]:
    """The last digits of an average depend on how it is put together; 0.0 is also -0.0."""
    return sorted(_DOUBLE.sub(lambda found: f"{float(found[0]) + 0.0:.12g}", row) for row in rows)


def test_random_queries_over_random_rollups() -> None:
    plain = plain_database()
    counts: Counter[str] = Counter()
    for seed in range(WORLDS):
        writer = Writer(random.Random(seed))
        rollups = {"flights": tuple(writer.rollup(n) for n in range(writer.pick([2, 4, 6])))}
        world = spread_world(seed, plain, hosts=writer.pick([1, 2, 3]), rollups=rollups)
        if seed % 3 == 2:
            world = cooled(world, seed)
        for _ in range(QUERIES):
            counts["rollup" if _check(world, writer.query()) else "rows"] += 1
        world.sharded.close()
    plain.close()
    print(f"\n{counts['rollup']} of {counts.total()} queries were answered from rollups")
    assert counts["rollup"] > counts.total() // 5


def _check(world: SpreadWorld, sql: str) -> bool:
    """Compare with plain DuckDB; whether a rollup was used."""
    plan = world.plan(sql)
    assert "of an error" not in str(plan.rollups)
    found, expected = world.run(plan), world.expected(sql)
    told = f"{sql}\n{plan.rollups}\n{plan.fragments[0].sql}"
    assert (found.names, found.types) == (expected.names, expected.types), told
    assert _rounded(found.rows) == _rounded(expected.rows), told
    return any(one.rollup for one in plan.datasets)
