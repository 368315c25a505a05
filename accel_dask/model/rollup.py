"""Rollups: what a declaration says, checked, and the table that it makes of a shard's rows.

A dimension is a column, or a time grain over one: `date_trunc('day', ts)`. A measure is `count(*)`
or `count`, `sum`, `min`, `max` or `avg` of a column. In the rollup's table a dimension has its
column's own name and type, at the beginning of its grain, so that an expression that does not look
below the grain gives the same over either table.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from accel_dask.errors import ConfigError, SchemaUnsupported
from accel_dask.model.dataset import Rollup
from accel_dask.model.ids import DatasetId
from accel_dask.model.snapshot import Column

GRAINS: Final = ("minute", "hour", "day", "week", "month", "quarter", "year")
MAX_ROLLUPS: Final = 8
"""Of one dataset. Each costs a few bytes a shard in the epoch's record."""
_MAX_PARTS: Final = 32
_NAME: Final = r'(?:"(?:[^"]|"")+"|[^\W\d]\w*)'
_DIMENSION: Final = re.compile(
    rf"\s*(?:date_trunc\s*\(\s*'(?P<grain>\w+)'\s*,\s*(?P<over>{_NAME})\s*\)|(?P<plain>{_NAME}))\s*",
    re.IGNORECASE,
)
_MEASURE: Final = re.compile(
    rf"\s*(?P<function>\w+)\s*\(\s*(?P<argument>\*|{_NAME})\s*\)\s*", re.IGNORECASE
)
_FUNCTIONS: Final = ("count", "sum", "min", "max", "avg")
_TABLE_PREFIX: Final = "rollup_"
_MEASURE_PREFIX: Final = "rollup:"
"""Before the name of a measure's column, which no column of a source is likely to have."""

_INTEGERS: Final = frozenset(
    ["TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"]
)
_FLOATS: Final = frozenset(["FLOAT", "DOUBLE"])
_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),(\d+)\)")
_MAX_SUMMED_DIGITS: Final = 26
"""The sum of a trillion decimals of so many digits does not overflow."""
_SCALARS: Final = _INTEGERS | frozenset(
    [
        "BOOLEAN", "DATE", "HUGEINT", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE",
        "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP_S", "UHUGEINT", "UUID", "VARCHAR",
    ]
)  # fmt: skip
_GRAINS_OF: Final = {"DATE": GRAINS[3:], "TIMESTAMP": GRAINS}


@dataclass(frozen=True, slots=True)
class Dimension:
    """A column that a rollup is grouped by."""

    column: str
    grain: str = ""
    """Of `GRAINS`; empty: its values as they are."""

    def __str__(self) -> str:
        name = _plain_or_quoted(self.column)
        return f"date_trunc('{self.grain}', {name})" if self.grain else name


@dataclass(frozen=True, slots=True)
class Measure:
    """An aggregate of a column; of all rows, without one."""

    function: str
    column: str | None = None

    def __str__(self) -> str:
        name = "*" if self.column is None else _plain_or_quoted(self.column)
        return f"{self.function}({name})"


COUNT: Final = Measure("count")


@dataclass(frozen=True, slots=True, kw_only=True)
class RollupTable:
    """A rollup over the columns of a snapshot."""

    name: str
    dimensions: tuple[tuple[Dimension, Column], ...]
    measures: tuple[tuple[Measure, Column], ...]
    """As they are kept; `count(*)` is the first, and averages are sums and counts."""

    @property
    def table(self) -> str:
        return _TABLE_PREFIX + self.name

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(column for _, column in (*self.dimensions, *self.measures))


def rollup_name(table: str) -> str:
    """The rollup whose table this is."""
    return table.removeprefix(_TABLE_PREFIX)


def grains_of(kind: str) -> tuple[str, ...]:
    """The grains over a column of this type, finest first."""
    return _GRAINS_OF.get(kind, ())


def parse_rollup(text: str) -> Rollup:
    """The rollup that `name: dimensions; measures` declares, each comma-separated.

    Raises:
        ConfigError: it is written in another way.
    """
    name, colon, rest = text.partition(":")
    dimensions, semicolon, measures = rest.partition(";")
    if not colon or not semicolon:
        raise ConfigError(
            f"the rollup {text!r} is not of the form \"name: date_trunc('day', ts), carrier; "
            'count(*), sum(delay)"'
        )
    return Rollup(name=name.strip(), dimensions=_elements(dimensions), measures=_elements(measures))


def read_rollups(text: str) -> tuple[Rollup, ...]:
    """The `[[rollup]]` tables of a TOML text, each with name, dimensions and measures.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        tables = tomllib.loads(text)["rollup"]
        found = [(one["name"], one["dimensions"], one["measures"]) for one in tables]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"rollups are [[rollup]] tables with name, dimensions and measures: {error!r}"
        ) from error
    for name, *lists in found:
        texts = [name, *(text for one in lists for text in one)]
        if not all(isinstance(text, str) for text in texts) or any(map(_is_text, lists)):
            raise ConfigError(f"rollup {name!r}: dimensions and measures are lists of texts")
    return tuple(
        Rollup(name=name, dimensions=tuple(dimensions), measures=tuple(measures))
        for name, dimensions, measures in found
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def told_rollup(rollup: Rollup) -> str:
    """As `parse_rollup` reads it."""
    return f"{rollup.name}: {', '.join(rollup.dimensions)}; {', '.join(rollup.measures)}"


def check_rollups(dataset: DatasetId, rollups: Sequence[Rollup]) -> None:
    """What can be checked without the snapshot's columns.

    Raises:
        ConfigError: names dataset, rollup and what cannot be used.
    """
    if len(rollups) > MAX_ROLLUPS:
        raise ConfigError(
            f"dataset {dataset}: {len(rollups)} rollups are declared, the limit is {MAX_ROLLUPS}; "
            "drop those that answer the fewest queries"
        )
    names = Counter(rollup.name.lower() for rollup in rollups)
    for rollup in rollups:
        where = f"dataset {dataset}, rollup {rollup.name!r}"
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", rollup.name):
            raise ConfigError(
                f"{where}: the name cannot be used; use letters, digits and underscores, "
                "beginning with a letter"
            )
        if names[rollup.name.lower()] > 1:
            raise ConfigError(f"{where}: there are two rollups of that name")
        if not rollup.dimensions or not rollup.measures:
            raise ConfigError(f"{where}: name at least one dimension and one measure")
        if len(rollup.dimensions) + len(rollup.measures) > _MAX_PARTS:
            raise ConfigError(f"{where}: dimensions and measures are limited to {_MAX_PARTS}")
        columns = Counter(_dimension(where, text).column.lower() for text in rollup.dimensions)
        twice = next((name for name, count in columns.items() if count > 1), None)
        if twice is not None:
            raise ConfigError(
                f"{where}: column {twice!r} is in two dimensions; keep the finer one, coarser "
                "grains are derived from it"
            )
        for text in rollup.measures:
            _measure(where, text)


def rollup_table(dataset: DatasetId, rollup: Rollup, columns: Iterable[Column]) -> RollupTable:
    """The table of `rollup` over rows with `columns`.

    Raises:
        ConfigError: as `check_rollups`.
        SchemaUnsupported: names the dataset, the rollup and the column that it cannot use.
    """
    held = {column.name.lower(): column for column in columns}
    where = f"dataset {dataset}, rollup {rollup.name!r}"
    dimensions = []
    for text in rollup.dimensions:
        dimension = _dimension(where, text)
        column = _held(where, dimension.column, held)
        _check_dimension(where, dimension, column)
        dimensions.append((replace(dimension, column=column.name), column))
    measures: dict[Measure, Column] = {}
    kept = [_kept(where, text, held) for text in rollup.measures]
    for measure, column_type in [(COUNT, "BIGINT"), *(one for found in kept for one in found)]:
        name = _MEASURE_PREFIX + str(measure)
        is_count = measure.function == "count"
        measures[measure] = Column(name=name, type=column_type, nullable=not is_count)
    names = Counter(c.name.lower() for c in [*(c for _, c in dimensions), *measures.values()])
    if max(names.values()) > 1:
        raise SchemaUnsupported(f"{where}: a column is named like one of its measures")
    return RollupTable(
        name=rollup.name, dimensions=tuple(dimensions), measures=tuple(measures.items())
    )


def resolve_rollups(
    dataset: DatasetId, rollups: Sequence[Rollup], columns: Sequence[Column]
) -> tuple[Rollup, ...]:
    """`rollups` in one spelling, so that shards do not depend on how they were written.

    Raises:
        ConfigError, SchemaUnsupported: as `rollup_table`.
    """
    check_rollups(dataset, rollups)
    resolved = []
    for rollup in rollups:
        table = rollup_table(dataset, rollup, columns)
        resolved.append(
            Rollup(
                name=rollup.name,
                dimensions=tuple(str(dimension) for dimension, _ in table.dimensions),
                measures=tuple(str(measure) for measure, _ in table.measures),
            )
        )
    return tuple(resolved)


def _elements(text: str) -> tuple[str, ...]:
    """The comma-separated elements of a list, parentheses and quotes kept whole."""
    found, depth, quote, start = [], 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "," and depth == 0:
            found.append(text[start:at])
            start = at + 1
        else:
            depth += (letter == "(") - (letter == ")")
    found.append(text[start:])
    return tuple(element.strip() for element in found if element.strip())


def _dimension(where: str, text: str) -> Dimension:
    found = _DIMENSION.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"{where}: {text!r} is no dimension; write a column's name or date_trunc('day', column)"
        )
    grain = (found["grain"] or "").lower()
    if grain and grain not in GRAINS:
        raise ConfigError(
            f"{where}: {grain!r} in {text!r} is no grain; choose one of {', '.join(GRAINS)}"
        )
    return Dimension(_unquoted(found["over"] or found["plain"]), grain)


def _measure(where: str, text: str) -> Measure:
    found = _MEASURE.fullmatch(text)
    function = found["function"].lower() if found else ""
    if found is None or function not in _FUNCTIONS:
        raise ConfigError(
            f"{where}: {text!r} is no measure; write count(*), or count, sum, min, max or avg of "
            "one column"
        )
    if found["argument"] == "*":
        if function != "count":
            raise ConfigError(f"{where}: {text!r}: only count takes *")
        return COUNT
    return Measure(function, _unquoted(found["argument"]))


def _kept(where: str, text: str, held: dict[str, Column]) -> list[tuple[Measure, str]]:
    """The measures that are kept for `text`, each with its type."""
    measure = _measure(where, text)
    if measure.column is None:
        return [(COUNT, "BIGINT")]
    column = _held(where, measure.column, held)
    count = (Measure("count", column.name), "BIGINT")
    if measure.function == "count":
        return [count]
    if measure.function in {"min", "max"}:
        if not _is_scalar(column.type):
            raise _cannot(where, text, column, "of such values no order is kept")
        return [(Measure(measure.function, column.name), column.type)]
    if measure.function == "avg" and column.type == "BOOLEAN":
        raise _cannot(where, text, column, "it is no number")
    total = (Measure("sum", column.name), _sum_type(where, text, column))
    return [total, count] if measure.function == "avg" else [total]


def _sum_type(where: str, text: str, column: Column) -> str:
    """DuckDB's own type of the sum."""
    if column.type in _INTEGERS or column.type == "BOOLEAN":
        return "HUGEINT"
    if column.type in _FLOATS:
        return "DOUBLE"
    decimal = _DECIMAL.fullmatch(column.type)
    if decimal is None:
        why = "its sums may overflow" if "HUGEINT" in column.type else "it is no number"
        raise _cannot(where, text, column, why)
    if int(decimal[1]) > _MAX_SUMMED_DIGITS:
        raise _cannot(where, text, column, "its sums may overflow")
    return f"DECIMAL(38,{decimal[2]})"


def _check_dimension(where: str, dimension: Dimension, column: Column) -> None:
    if dimension.grain and dimension.grain not in grains_of(column.type):
        grains = ", ".join(grains_of(column.type)) or "none"
        raise _cannot(where, str(dimension), column, f"its grains are: {grains}")
    if column.type in _FLOATS:
        raise _cannot(
            where, str(dimension), column, "numbers that are not exact make no dimensions"
        )
    if not _is_scalar(column.type):
        raise _cannot(where, str(dimension), column, "its values make no dimensions")


def _is_scalar(kind: str) -> bool:
    return kind in _SCALARS or kind in _FLOATS or _DECIMAL.fullmatch(kind) is not None


def _cannot(where: str, text: str, column: Column, why: str) -> SchemaUnsupported:
    return SchemaUnsupported(
        f"{where}: {text} cannot be used, column {column.name} is of type {column.type}: {why}"
    )


def _held(where: str, name: str, held: dict[str, Column]) -> Column:
    column = held.get(name.lower())
    if column is None:
        near = difflib.get_close_matches(name.lower(), held, n=1)
        raise SchemaUnsupported(
            f"{where} names column {name!r}, which the dataset does not hold"
            + (f"; did you mean {held[near[0]].name!r}?" if near else "")
        )
    return column


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _plain_or_quoted(name: str) -> str:
    if re.fullmatch(r"[^\W\d]\w*", name):
        return name
    return '"' + name.replace('"', '""') + '"'
