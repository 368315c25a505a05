"""One writer per engine. What each spells out is proven on the engine by the differential tests;
those of engines that no test has are marked, and used only where the operator says so."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from accel_dask.errors import ConfigError, NotPortable
from accel_dask.query_planner.portable.tree import Node, OrderKey, ScannedColumn
from accel_dask.query_planner.portable.types import TEXT, TIMESTAMP, Kind, SqlType
from accel_dask.query_planner.portable.write import EngineTable, Writer


class PostgresWriter(Writer):
    """PostgreSQL: NaN is equal to itself and greatest; texts compare by the database's locale."""

    name = "postgres"

    def type_name(self, kind: SqlType, size: int) -> str:
        plain = {Kind.DOUBLE: "DOUBLE PRECISION", Kind.TEXT: "TEXT"}
        return plain.get(kind.kind) or super().type_name(kind, size)

    def text_literal(self, value: str) -> str:
        return f'({self.text(value)} COLLATE "C")'

    def cast(self, text: str, kind: SqlType, size: int = 63) -> str:
        found = super().cast(text, kind, size)
        return f'({found} COLLATE "C")' if kind == TEXT else found

    def scanned(self, column: ScannedColumn) -> str:
        name = self.quote(column.name)
        if column.type.kind is Kind.TEXT:
            return f'({name} COLLATE "C")'
        if column.type.kind is Kind.DOUBLE:
            return f"NULLIF({name}, CAST('NaN' AS DOUBLE PRECISION))"
        return name

    def whole_division(self, node: Node) -> str:
        left, right = (self.number(one, node) for one in node.args)
        return f"({left} / {right})"

    def part(self, node: Node) -> str:
        value = self.expression(node.args[0])
        return f"CAST(FLOOR(EXTRACT({node.text} FROM {value})) AS BIGINT)"

    def shifted(self, node: Node) -> str:
        return f"({self.expression(node.args[0])} + INTERVAL '{node.text}')"

    def add_days(self, node: Node) -> str:
        return f"({self.expression(node.args[0])} + ({node.text}))"

    def days_between(self, node: Node) -> str:
        left, right = (self.expression(one) for one in node.args)
        return f"CAST(({left} - {right}) AS BIGINT)"


class SparkWriter(Writer):
    """Spark SQL as Sail reads it: a doubled quote in a text is lost, a backslash escapes, integers
    wrap around, TIMESTAMP has a time zone, -0.0 is less than 0.0."""

    name = "spark"
    can_pin = True

    def quote(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def text(self, value: str) -> str:
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"

    def type_name(self, kind: SqlType, size: int) -> str:
        plain = {Kind.TEXT: "STRING", Kind.TIMESTAMP: "TIMESTAMP_NTZ"}
        return plain.get(kind.kind) or super().type_name(kind, size)

    def timestamp(self, value: str) -> str:
        return f"TIMESTAMP_NTZ '{value}'"

    def table(self, table: EngineTable) -> str:
        name = ".".join(self.quote(part) for part in table.name)
        if table.snapshot is None:
            return name
        if not table.snapshot.isdecimal():
            raise NotPortable(f"{table.snapshot!r} is no snapshot of an Iceberg table")
        return f"{name} VERSION AS OF {table.snapshot}"

    def scanned(self, column: ScannedColumn) -> str:
        name = self.quote(column.name)
        if column.type.kind is Kind.DOUBLE:
            return f"CASE WHEN isnan({name}) THEN NULL ELSE {self._unsigned(name)} END"
        return name

    @staticmethod
    def _unsigned(number: str) -> str:
        """A double without the sign of zero, by which Sail sorts and tells apart in NULLIF."""
        return f"({number} + CAST(0e0 AS DOUBLE))"

    def in_list(self, node: Node) -> str:
        """IN of anything but constants is wrong there for some of its texts."""
        value, *others = node.args
        if all(one.op == "literal" for one in others):
            return super().in_list(node)
        text = self.expression(value)
        return "(" + " OR ".join(f"{text} = {self.expression(one)}" for one in others) + ")"

    def expression(self, node: Node) -> str:
        found = super().expression(node)
        is_signed = node.op in {"neg", "mul", "div"} and node.type.kind is Kind.DOUBLE
        return self._unsigned(found) if is_signed else found

    def part(self, node: Node) -> str:
        value = self.expression(node.args[0])
        found = {
            "DOW": f"(dayofweek({value}) - 1)",
            "ISODOW": f"((dayofweek({value}) + 5) % 7 + 1)",
            "DOY": f"dayofyear({value})",
            "WEEK": f"weekofyear({value})",
        }
        return self.cast(found.get(node.text) or f"{node.text.lower()}({value})", _BIGINT)

    def shifted(self, node: Node) -> str:
        number, unit = node.text.split()
        count = int(number)
        if unit == "WEEK":
            count, unit = 7 * count, "DAY"
        sign = "-" if count < 0 else "+"
        return f"({self.expression(node.args[0])} {sign} INTERVAL '{abs(count)}' {unit})"

    def add_days(self, node: Node) -> str:
        return f"date_add({self.expression(node.args[0])}, {node.text})"

    def days_between(self, node: Node) -> str:
        left, right = (self.expression(one) for one in node.args)
        return self.cast(f"datediff({left}, {right})", _BIGINT)


_BIGINT: Final = SqlType(Kind.INT, 64)


_INT_CHARACTERS: Final = 40


class MariaDbWriter(Writer):
    """MariaDB: texts compare without case and trailing spaces unless told otherwise, truth values
    are integers, NULLs come first."""

    name = "mariadb"
    collation = "utf8mb4_nopad_bin"

    def quote(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def text(self, value: str) -> str:
        return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"

    def text_literal(self, value: str) -> str:
        return f"(_utf8mb4{self.text(value)} COLLATE {self.collation})"

    def type_name(self, kind: SqlType, size: int) -> str:
        plain = {
            Kind.INT: "SIGNED",
            Kind.BOOL: "SIGNED",
            Kind.TEXT: "CHAR",
            Kind.TIMESTAMP: "DATETIME(6)",
        }
        return plain.get(kind.kind) or super().type_name(kind, size)

    def cast(self, text: str, kind: SqlType, size: int = 63) -> str:
        if kind == TEXT:  # without a length it cuts off what it thinks is too long
            return self._plain_text(f"CAST({text} AS CHAR({_INT_CHARACTERS}))")
        return super().cast(text, kind, size)

    def _plain_text(self, text: str) -> str:
        return f"(CONVERT({text} USING utf8mb4) COLLATE {self.collation})"

    def scanned(self, column: ScannedColumn) -> str:
        name = self.quote(column.name)
        if column.type.kind is Kind.TEXT:
            return self._plain_text(name)
        return f"({name} <> 0)" if column.type.kind is Kind.BOOL else name

    def order_key(self, text: str, key: OrderKey) -> str:
        nulls = "DESC" if key.nulls_first else "ASC"
        return f"({text} IS NULL) {nulls}, {text} {'DESC' if key.is_descending else 'ASC'}"

    def limited(self, limit: int | None, offset: int) -> str:
        return super().limited((1 << 63) - 1 if offset and limit is None else limit, offset)

    def same(self, node: Node) -> str:
        left, right = (self.expression(one) for one in node.args)
        return f"({left} <=> {right})"

    def narrowed(self, node: Node) -> str:
        return self.expression(node.args[0])  # a cast would clamp; it computes with 65 digits

    def concat(self, node: Node) -> str:
        left, right = (self.expression(one) for one in node.args)
        return f"CONCAT({left}, {right})"

    def truncated(self, node: Node) -> str:
        value = self.expression(node.args[0])
        day = f"DATE({value})"
        year = f"({day} - INTERVAL (DAYOFYEAR({value}) - 1) DAY)"
        found = {
            "DAY": day,
            "WEEK": f"({day} - INTERVAL WEEKDAY({value}) DAY)",
            "MONTH": f"({day} - INTERVAL (DAYOFMONTH({value}) - 1) DAY)",
            "QUARTER": f"({year} + INTERVAL (QUARTER({value}) - 1) QUARTER)",
            "YEAR": year,
        }
        if node.text in found:
            return self.cast(found[node.text], TIMESTAMP)
        start = self.cast(day, TIMESTAMP)
        minutes = f"HOUR({value}) * 60" + (f" + MINUTE({value})" if node.text == "MINUTE" else "")
        return f"({start} + INTERVAL ({minutes}) MINUTE)"

    def part(self, node: Node) -> str:
        value = self.expression(node.args[0])
        found = {
            "DAY": f"DAYOFMONTH({value})",
            "DOW": f"(DAYOFWEEK({value}) - 1)",
            "ISODOW": f"(WEEKDAY({value}) + 1)",
            "DOY": f"DAYOFYEAR({value})",
            "WEEK": f"WEEK({value}, 3)",
        }
        return found.get(node.text) or f"{node.text}({value})"

    def shifted(self, node: Node) -> str:
        count, unit = node.text.split()
        value = self.expression(node.args[0])
        return self._in_calendar(f"{value} + INTERVAL ({count}) {unit}", value, node.type)

    def add_days(self, node: Node) -> str:
        value = self.expression(node.args[0])
        return self._in_calendar(f"DATE_ADD({value}, INTERVAL ({node.text}) DAY)", value, node.type)

    def _in_calendar(self, moved: str, value: str, kind: SqlType) -> str:
        """An error beyond the year 9999, or before 1, where it would say NULL."""
        return f"COALESCE({moved}, {self.cast(f'EXP(1000 + YEAR({value}))', kind)})"

    def days_between(self, node: Node) -> str:
        left, right = (self.expression(one) for one in node.args)
        return f"DATEDIFF({left}, {right})"


class MySqlWriter(MariaDbWriter):
    """MySQL 8, from its documentation: another name for the collation that pads nothing."""

    name = "mysql"
    is_verified = False
    collation = "utf8mb4_0900_bin"


class StarRocksWriter(MariaDbWriter):
    """StarRocks >= 3.4, from its documentation: texts compare byte by byte, LIKE escapes by a
    backslash only, Iceberg tables are read as of a snapshot."""

    name = "starrocks"
    is_verified = False
    can_pin = True

    def text_literal(self, value: str) -> str:
        return self.text(value)

    def type_name(self, kind: SqlType, size: int) -> str:
        plain = {
            Kind.INT: "BIGINT",
            Kind.BOOL: "BOOLEAN",
            Kind.TEXT: "VARCHAR",
            Kind.TIMESTAMP: "DATETIME",
        }
        return plain.get(kind.kind) or super().type_name(kind, size)

    def cast(self, text: str, kind: SqlType, size: int = 63) -> str:
        return f"CAST({text} AS {self.type_name(kind, size)})"

    def scanned(self, column: ScannedColumn) -> str:
        return self.quote(column.name)

    def timestamp(self, value: str) -> str:
        return f"CAST('{value}' AS DATETIME)"

    def _in_calendar(self, moved: str, value: str, kind: SqlType) -> str:  # noqa: ARG002
        return moved

    def order_key(self, text: str, key: OrderKey) -> str:
        return Writer.order_key(self, text, key)

    def narrowed(self, node: Node) -> str:
        raise NotPortable(f"{self.name} makes NULL of {node.type} with too many digits")

    def like(self, node: Node) -> str:
        return f"({self.expression(node.args[0])} LIKE {self.text(node.text)})"

    def truncated(self, node: Node) -> str:
        return f"date_trunc('{node.text.lower()}', {self.expression(node.args[0])})"

    def part(self, node: Node) -> str:
        if node.text == "WEEK":
            return f"weekofyear({self.expression(node.args[0])})"
        if node.text == "ISODOW":
            return f"((dayofweek({self.expression(node.args[0])}) + 5) % 7 + 1)"
        return super().part(node)

    def shifted(self, node: Node) -> str:
        count, unit = node.text.split()
        return f"date_add({self.expression(node.args[0])}, INTERVAL {count} {unit})"

    def table(self, table: EngineTable) -> str:
        name = ".".join(self.quote(part) for part in table.name)
        if table.snapshot is None:
            return name
        if not table.snapshot.isdecimal():
            raise NotPortable(f"{table.snapshot!r} is no snapshot of an Iceberg table")
        return f"{name} FOR VERSION AS OF {table.snapshot}"


class DorisWriter(StarRocksWriter):
    """Apache Doris, from its documentation."""

    name = "doris"


class DremioWriter(Writer):
    """Dremio, from its documentation: standard SQL, Iceberg tables as of a snapshot."""

    name = "dremio"
    is_verified = False
    can_pin = True

    def scanned(self, column: ScannedColumn) -> str:
        name = self.quote(column.name)
        if column.type.kind is Kind.DOUBLE:
            return f"CASE WHEN IS_NAN({name}) THEN NULL ELSE {name} END"
        return name

    def whole_division(self, node: Node) -> str:
        left, right = (self.number(one, node) for one in node.args)
        return f"({left} / {right})"

    def table(self, table: EngineTable) -> str:
        name = ".".join(self.quote(part) for part in table.name)
        if table.snapshot is None:
            return name
        if not table.snapshot.isdecimal():
            raise NotPortable(f"{table.snapshot!r} is no snapshot of an Iceberg table")
        return f"{name} AT SNAPSHOT '{table.snapshot}'"


_WRITERS: Final[tuple[type[Writer], ...]] = (
    PostgresWriter,
    SparkWriter,
    MariaDbWriter,
    MySqlWriter,
    StarRocksWriter,
    DorisWriter,
    DremioWriter,
)
DIALECTS: Final[Mapping[str, type[Writer]]] = MappingProxyType(
    {writer.name: writer for writer in _WRITERS}
)


def dialect_named(name: str) -> type[Writer]:
    """
    Raises:
        ConfigError: there is none of this name.
    """
    if name not in DIALECTS:
        raise ConfigError(f"unknown dialect {name!r}; there are {', '.join(sorted(DIALECTS))}")
    return DIALECTS[name]
