"""Runs `.test` files in the sqllogictest format against plain DuckDB and against clusters.

    python tests/support/sqllogic_runner.py tests/sqllogic     # write the expected results again

A file is records with a blank line between them:

    include heads/shop.slt              records of another file, as if they stood here
    statement ok                        run by plain DuckDB alone: makes the tables
    statement error <pattern>           what a cluster must refuse, with a matching typed error
    query <types> [nosort|rowsort] [label]
                                        SQL, a line `----`, then a line a row, tabs between values
    control dataset <table> [key=value ...]
                                        how a cluster holds a table; keys as in `Layout`
    skipif <way> / onlyif <way>         of the record after it: plain, one, several

Types are a letter a column: I whole numbers, R other numbers, T everything else. `nosort` means
that the query's order is total: rows must come in it. Queries of one label have one result.
NULL is written NULL, an empty text (empty).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

import duckdb
from answers import Answer, Refused, difference, plain_answer

from accel_dask.model.dataset import Dataset, SourceSpec, Spread
from accel_dask.model.ids import TenantId

WAYS: Final = ("plain", "one", "several")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a table becomes Parquet files and a dataset."""

    table: str
    split_by: str = "0"
    """An expression: a file, and so a shard, for each value of it."""
    sort_by: str = ""
    empty: int = 0
    """Further files without rows."""
    spread: str = "spread"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a file."""

    place: str
    """`<file>:<line>`."""
    kind: str
    """`ok`, `error` or `query`."""
    sql: str
    types: str = ""
    sort: str = "nosort"
    label: str = ""
    pattern: str = ""
    expected: tuple[str, ...] | None = None
    """None: not written yet."""
    ways: tuple[str, ...] = WAYS


@dataclass(frozen=True, slots=True)
class LogicFile:
    path: Path
    records: tuple[Record, ...]
    layouts: tuple[Layout, ...]


def read_files(folder: Path) -> tuple[LogicFile, ...]:
    """All `.test` files, in order of their names."""
    return tuple(_read(path) for path in sorted(folder.glob("*.test")))


def _read(path: Path) -> LogicFile:
    records: list[Record] = []
    layouts: list[Layout] = []
    ways: tuple[str, ...] = WAYS
    for line, whole_block in _blocks(path):
        block = whole_block
        while block and (condition := re.fullmatch(r"(skipif|onlyif) (\w+)", block[0])):
            assert condition[2] in WAYS, f"{path}:{line}: there is no way {condition[2]}"
            is_only = condition[1] == "onlyif"
            ways = tuple(way for way in ways if (way == condition[2]) == is_only)
            block = block[1:]
        words = block[0].split()
        if words[0] == "include":
            included = _read(path.parent / words[1])
            records.extend(included.records)
            layouts.extend(included.layouts)
        elif words[:2] == ["control", "dataset"]:
            layouts.append(_layout(words[2:]))
        else:
            records.append(replace(_record(f"{path.name}:{line}", words, block), ways=ways))
        ways = WAYS
    return LogicFile(path, tuple(records), tuple(layouts))


def _blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    block: list[str] = []
    first = 0
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        if line.startswith("#"):
            continue
        if line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            yield first, block
            block = []


def _layout(words: list[str]) -> Layout:
    values: dict[str, Any] = dict(word.split("=", 1) for word in words[1:])
    return Layout(table=words[0], **{**values, "empty": int(values.get("empty", 0))})


def _record(place: str, words: list[str], block: list[str]) -> Record:
    if words[0] == "statement":
        sql = "\n".join(block[1:])
        return Record(place=place, kind=words[1], sql=sql, pattern=" ".join(words[2:]))
    assert words[0] == "query", f"{place}: there is no record {words[0]}"
    end = block.index("----") if "----" in block else len(block)
    return Record(
        place=place,
        kind="query",
        sql="\n".join(block[1:end]),
        types=words[1],
        sort=words[2] if len(words) > 2 else "nosort",
        label=words[3] if len(words) > 3 else "",
        expected=tuple(block[end + 1 :]) if end < len(block) else None,
    )


# What an answer looks like in a file


def render(answer: Answer, sort: str) -> tuple[str, ...]:
    lines = ["\t".join(map(_text, row)) for row in answer.rows]
    return tuple(sorted(lines) if sort == "rowsort" else lines)


def _text(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, datetime):
        return value.isoformat(" ")
    text = str(value).replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    return text or "(empty)"


def type_letters(answer: Answer) -> str:
    return "".join(
        "I" if re.match(r"u?int", kind) else "R" if re.match(r"double|float|dec", kind) else "T"
        for kind in answer.types
    )


# Plain DuckDB


class Plain:
    """The tables of all files, in plain DuckDB."""

    def __init__(self, files: tuple[LogicFile, ...]) -> None:
        self.engine = duckdb.connect(config={"threads": 1})
        self.engine.execute("SET GLOBAL TimeZone = 'UTC'")
        self.layouts: dict[str, Layout] = {}
        done: set[str] = set()
        for file in files:
            for record in file.records:
                if record.kind == "ok" and record.place not in done:
                    done.add(record.place)
                    self.engine.execute(record.sql)
            for layout in file.layouts:
                known = self.layouts.setdefault(layout.table, layout)
                assert known == layout, f"{file.path}: {layout.table} is laid out twice"

    def check(self, record: Record) -> Answer:
        """The answer, which must be the expected one."""
        answer = plain_answer(self.engine, record.sql)
        assert type_letters(answer) == record.types, f"{record.place}: types"
        assert render(answer, record.sort) == record.expected, f"{record.place}: {record.sql}"
        return answer

    def datasets(self, tenant: str, directory: Path) -> tuple[Dataset, ...]:
        """The tables as Parquet files under `directory`, and as datasets; a shard a file."""
        return tuple(
            lay_out(self.engine, tenant, layout, directory / layout.table)
            for layout in self.layouts.values()
        )


def lay_out(
    engine: duckdb.DuckDBPyConnection, tenant: str, layout: Layout, directory: Path
) -> Dataset:
    """Write a table's files and declare its dataset."""
    directory.mkdir(parents=True)
    table, split_by = f'"{layout.table}"', layout.split_by
    values = engine.execute(f"SELECT DISTINCT {split_by} AS v FROM {table} ORDER BY v").fetchall()
    order = f"ORDER BY {layout.sort_by}" if layout.sort_by else ""
    conditions = [f"({split_by}) IS NOT DISTINCT FROM $value" for _ in values]
    conditions += ["false"] * (layout.empty + (not values))
    for number, condition in enumerate(conditions):
        file = directory / f"part={number:03}" / "data.parquet"
        file.parent.mkdir()
        given = {"value": values[number][0]} if number < len(values) else {}
        rows = engine.cursor().sql(f"FROM {table} WHERE {condition} {order}", params=given)
        rows.write_parquet(str(file))
    return Dataset(
        tenant=TenantId(tenant),
        name=layout.table,
        source=SourceSpec(connector="parquet", options=(("path", str(directory)),)),
        sort_by=tuple(layout.sort_by.split(",")) if layout.sort_by else (),
        spread=Spread(layout.spread),
        shard_target_bytes=1,
    )


# Clusters


class Client(Protocol):
    def ask(self, sql: str) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Score:
    """How a file went on a cluster."""

    answered: int
    refused: tuple[str, ...]
    wrong: tuple[str, ...]


def run_file(file: LogicFile, plain: Plain, client: Client, way: str) -> Score:
    """Every record of `file` that `way` is to run, beside plain DuckDB."""
    answered = 0
    refused: list[str] = []
    wrong: list[str] = []
    labels: dict[str, Answer] = {}
    for record in file.records:
        if way not in record.ways or record.kind == "ok":
            continue
        try:
            found = client.ask(record.sql)
        except Refused as refusal:
            if record.kind == "error":
                matches = re.search(record.pattern, str(refusal))
                wrong += [] if matches else [f"{record.place}: {refusal}"]
            else:
                kept = refused if refusal.is_by_design else wrong
                kept.append(f"{record.place}: {refusal}")
            continue
        if record.kind == "error":
            wrong.append(f"{record.place}: answered, but is to be refused")
            continue
        answered += 1
        told = _difference(record, plain.check(record), found, labels)
        wrong += [f"{record.place}: {told}\n{record.sql}"] if told else []
    return Score(answered, tuple(refused), tuple(wrong))


def _difference(record: Record, expected: Answer, found: Answer, labels: dict[str, Answer]) -> str:
    order = range(len(expected.names)) if record.sort == "nosort" else None
    told = difference(expected, found, order)
    if told or not record.label:
        return told
    first = labels.setdefault(record.label, found)
    same = render(first, "rowsort") == render(found, "rowsort")
    return "" if same else f"another result than the first query of label {record.label}"


# Writing expected results


def write_expected(file: LogicFile, plain: Plain) -> None:
    """Put plain DuckDB's answers below the queries of `file`."""
    queries = {record.place: record for record in file.records if record.kind == "query"}
    lines: list[str] = []
    for line, block in _numbered(file.path):
        record = queries.get(f"{file.path.name}:{line}")
        if record is None:
            lines += block
            continue
        answer = plain_answer(plain.engine, record.sql)
        head = next(i for i, text in enumerate(block) if text.startswith("query "))
        words = block[head].split()
        words[1] = type_letters(answer)
        block[head] = " ".join(words)
        end = block.index("----") if "----" in block else len(block)
        lines += [*block[:end], "----", *render(answer, record.sort)]
        again = render(plain_answer(plain.engine, record.sql), record.sort)
        assert again == render(answer, record.sort), f"{record.place}: not one answer"
    file.path.write_text("\n".join(lines).strip("\n") + "\n", encoding="utf-8")


def _numbered(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Blocks as `_blocks`, but with their comments, and blank lines as blocks of their own."""
    block: list[str] = []
    first = 0
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        if line.strip():
            if not line.startswith("#") and not first:
                first = number
            block.append(line)
            continue
        if block:
            yield first, block
            block, first = [], 0
        yield number, [""]


def main() -> None:
    files = read_files(Path(sys.argv[1]))
    plain = Plain(files)
    for file in files:
        write_expected(file, plain)
        print(f"{file.path}: {sum(record.kind == 'query' for record in file.records)} queries")


if __name__ == "__main__":
    main()
