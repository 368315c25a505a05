"""What the names in a query's FROM stand for: from a column to the tables it is taken from.

Pure; used by shard pruning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sqlglot import exp

from accel_dask.model.routing import DatasetRoute
from accel_dask.query_planner.plan import CATALOG
from accel_dask.query_planner.predicates import Operand, Place, Predicate
from accel_dask.query_planner.pruning_conditions import kind_of

_UPPER: Final = re.compile("[A-Z]+")
_PLAIN_NAME: Final = re.compile(r"[a-z_][a-z0-9_]*", re.ASCII)


def folded(name: str) -> str:
    """A name as the engine compares it: letters of ASCII without case."""
    return _UPPER.sub(lambda found: found[0].lower(), name)


class Link(NamedTuple):
    """Rows count only where `column` equals a value of one of `others`."""

    column: int
    others: tuple[Place, ...]


@dataclass(eq=False, slots=True)
class Reading:
    """A dataset as one place of the query reads it. A table in a CTE that is named twice is
    read twice."""

    number: int
    node: exp.Table
    route: DatasetRoute
    conditions: list[Predicate] = field(default_factory=list)
    """Rows that do not pass all of them change nothing."""
    links: tuple[Link, ...] = ()


class Origin(NamedTuple):
    """Where a column's values are taken from, unchanged."""

    place: Place
    type: str
    is_nullable: bool = False
    """An outer join may have put in NULL instead."""


Origins = tuple[Origin, ...]
"""None: not known. Several, all of one type: each value is from one of them, and a condition on
the column may be put to each of them."""


@dataclass(frozen=True, slots=True)
class Output:
    """The columns of a query or table."""

    columns: tuple[tuple[str, Origins], ...] = ()
    """In order. The name is '' where the engine makes up one that is no plain word."""
    is_complete: bool = True
    """False: nothing is known of the columns."""

    def sealed(self) -> Output:
        """Without origins: conditions must not be followed further in."""
        return Output(tuple((name, ()) for name, _ in self.columns), self.is_complete)

    def renamed(self, alias: object) -> Output:
        """Behind `AS t(x, y)`."""
        names = alias.args.get("columns") if isinstance(alias, exp.TableAlias) else None
        if not names or not self.is_complete:
            return self
        if len(names) > len(self.columns):
            return UNKNOWN_OUTPUT
        given = [folded(name.name) for name in names]
        kept = [name for name, _ in self.columns[len(given) :]]
        return output_of(
            zip((*given, *kept), (origins for _, origins in self.columns), strict=True)
        )


UNKNOWN_OUTPUT: Final = Output(is_complete=False)


def output_of(columns: Iterable[tuple[str, Origins]]) -> Output:
    """An output with `columns`, unless the engine would rename some of them."""
    found = tuple(columns)
    names = [name for name, _ in found if name]
    if len(set(names)) < len(names):
        return UNKNOWN_OUTPUT
    if len(names) < len(found) and not all(map(_PLAIN_NAME.fullmatch, names)):
        return UNKNOWN_OUTPUT
    return Output(found)


@dataclass(eq=False, slots=True)
class Source:
    """A name in FROM."""

    name: str
    output: Output
    tenant: str = ""
    """Folded; of a dataset that carries its own name."""
    columns: dict[str, Origins] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = {name: origins for name, origins in self.output.columns if name}


Key = tuple[Source, str]
"""A column of a source."""


class Member(NamedTuple):
    """A source in a tree of joins."""

    source: Source
    is_nullable: bool = False
    is_blocked: bool = False
    """Which of its rows are there decides about others: no condition from further out may leave
    out any."""

    def origins(self, name: str) -> Origins:
        if self.is_blocked:
            return ()
        found = self.source.columns[name]
        if not self.is_nullable:
            return found
        return tuple(origin._replace(is_nullable=True) for origin in found)

    def all_origins(self) -> Iterator[Origin]:
        for name in self.source.columns:
            yield from self.origins(name)


class Merged(NamedTuple):
    """A column that USING made of several."""

    key: Key | None
    """Whose value it has; None: that depends on the row."""
    sources: frozenset[Source]


class Condition(NamedTuple):
    """An expression and the joins whose names it sees."""

    expression: exp.Expr
    scope: Joined


@dataclass(frozen=True, slots=True)
class Joined:
    """A tree of joins."""

    members: tuple[Member, ...] = ()
    certain: tuple[Condition, ...] = ()
    """Conditions that are TRUE of each of its rows."""
    equal: tuple[tuple[Key, Key], ...] = ()
    """Columns that are equal in each of its rows, by USING."""
    merged: Mapping[str, Merged] = field(default_factory=dict)
    has_star: bool = True
    """Whether `*` is the columns of all members in order."""

    def nullable(self) -> tuple[Member, ...]:
        return tuple(member._replace(is_nullable=True) for member in self.members)

    def blocked(self) -> tuple[Member, ...]:
        return tuple(member._replace(is_blocked=True) for member in self.members)

    def key_of(self, column: exp.Column) -> Key | None:
        """The source's column that `column` names, if that is certain."""
        if not isinstance(column.this, exp.Identifier) or column.args.get("join_mark"):
            return None
        name = folded(column.name)
        if column.args.get("table") is None:
            return self.unqualified(name)
        table = folded(column.table)
        owners = [m.source for m in self.members if m.source.name == table]
        if len(owners) != 1 or name not in owners[0].columns:
            return None
        if column.args.get("db") is not None and not self._is_own(column, owners[0]):
            return None
        return owners[0], name

    def unqualified(self, name: str) -> Key | None:
        """The column that `name` alone stands for, if that is certain."""
        if not all(member.source.output.is_complete for member in self.members):
            return None
        owners = [m.source for m in self.members if name in m.source.columns]
        merged = self.merged.get(name)
        if merged is not None:
            return merged.key if merged.sources == frozenset(owners) else None
        return (owners[0], name) if len(owners) == 1 else None

    def origins_of(self, column: exp.Column) -> Origins:
        """Where the values of `column` are taken from."""
        key = self.key_of(column)
        if key is None:
            return ()
        found = next((m for m in self.members if m.source is key[0]), None)
        return () if found is None else found.origins(key[1])

    def _is_own(self, column: exp.Column, source: Source) -> bool:
        """`tenant.table.column`, and not a field of something called like the tenant."""
        if not source.tenant:
            return False
        tenant, catalog = folded(column.text("db")), folded(column.text("catalog"))
        return (
            tenant == source.tenant
            and catalog in {"", CATALOG}
            and all(member.source.name not in {tenant, catalog} for member in self.members)
        )


def merged_columns(
    names: Iterable[str], left: Joined, right: Joined, how: str
) -> dict[str, Merged]:
    """What USING makes of `names`."""
    found = {}
    for name in names:
        ours, theirs = left.unqualified(name), right.unqualified(name)
        key = {"INNER": ours, "LEFT": ours, "SEMI": ours, "ANTI": ours, "RIGHT": theirs}.get(how)
        if how == "INNER" and (ours is None or theirs is None or not _is_one_type(ours, theirs)):
            key = None
        members = left.members if how in {"SEMI", "ANTI"} else (*left.members, *right.members)
        sources = frozenset(m.source for m in members if name in m.source.columns)
        found[name] = Merged(key, sources)
    return found


def equal_columns(names: Iterable[str], left: Joined, right: Joined) -> tuple[tuple[Key, Key], ...]:
    """The pairs that USING compares."""
    pairs = ((left.unqualified(name), right.unqualified(name)) for name in names)
    return tuple((ours, theirs) for ours, theirs in pairs if ours and theirs)


def _type_of(key: Key) -> str | None:
    origins = key[0].columns[key[1]]
    return origins[0].type if origins else None


def _is_one_type(one: Key, other: Key) -> bool:
    return _type_of(one) is not None and _type_of(one) == _type_of(other)


class EqualColumns:
    """Classes of columns that are equal, and not NULL, in each row that counts."""

    def __init__(self, joined: Joined) -> None:
        self._class_of: dict[Key, list[Key]] = {}
        for one, other in joined.equal:
            self._unite(one, other)

    def add(self, condition: Condition) -> None:
        """If `condition` is `column = column`."""
        node = condition.expression
        if not isinstance(node, exp.EQ):
            return
        if not isinstance(node.this, exp.Column) or not isinstance(node.expression, exp.Column):
            return
        one, other = condition.scope.key_of(node.this), condition.scope.key_of(node.expression)
        if one is not None and other is not None:
            self._unite(one, other)

    def _unite(self, one: Key, other: Key) -> None:
        if not _is_one_type(one, other):
            return
        ours, theirs = self.of(one), self.of(other)
        if ours is theirs:
            return
        joined = [*ours, *theirs]
        for key in joined:
            self._class_of[key] = joined

    def of(self, key: Key) -> list[Key]:
        """All that equal `key`, and itself."""
        return self._class_of.get(key) or [key]

    def __iter__(self) -> Iterator[list[Key]]:
        return iter({id(keys): keys for keys in self._class_of.values()}.values())


class Resolver:
    """Finds the operands of one condition, among the tables that it may filter."""

    def __init__(
        self, scope: Joined, targets: Iterable[Member], classes: EqualColumns | None = None
    ) -> None:
        self._scope = scope
        self._targets = {member.source: member for member in targets}
        self._classes = classes
        self._known: dict[int, Operand | None] = {}
        self.nullable: set[int] = set()
        """Tables found that an outer join may fill with NULLs."""

    def operand(self, column: exp.Column) -> Operand | None:
        """What `column`, a node of the condition, stands for; None: that is not known."""
        if id(column) not in self._known:
            self._known[id(column)] = self._operand(column)
        return self._known[id(column)]

    def _operand(self, column: exp.Column) -> Operand | None:
        key = self._scope.key_of(column)
        column_type = None if key is None else _type_of(key)
        if key is None or column_type is None:
            return None
        equal = self._classes.of(key) if self._classes is not None else [key]
        places: list[Place] = []
        for source, name in (key, *equal):
            member = self._targets.get(source)
            for origin in member.origins(name) if member is not None else ():
                places.append(origin.place)
                if origin.is_nullable:
                    self.nullable.add(origin.place.table)
        if not places:
            return None
        kind, scale = kind_of(column_type)
        return Operand(tuple(dict.fromkeys(places)), kind, scale)
