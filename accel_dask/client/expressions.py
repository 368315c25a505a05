"""Value expressions: frozen, typed, shared freely; lowered to SQL by `lower`.

Every node knows its type, whether it may be a floating-point NaN (which pandas counts as missing
and the engine as a number), whether it may be missing, and how large it is. Nodes are compared by
identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from accel_dask.client import dtypes
from accel_dask.client.dtypes import DType, Kind
from accel_dask.errors import UnsupportedOperation

if TYPE_CHECKING:
    from accel_dask.client.nodes import Node


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    """Base of all; `dtype` is the type of its value."""

    dtype: DType

    @property
    def args(self) -> tuple[Expr, ...]:
        return ()

    @property
    def may_nan(self) -> bool:
        return False

    @property
    def may_null(self) -> bool:
        return True

    @property
    def size(self) -> int:
        return 1

    @property
    def has_window(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, eq=False)
class Column(Expr):
    """A column of a source of rows."""

    source: Node
    name: str
    nan: bool = False
    null: bool = True

    @property
    def may_nan(self) -> bool:
        return self.nan

    @property
    def may_null(self) -> bool:
        return self.null


@dataclass(frozen=True, slots=True, eq=False)
class Literal(Expr):
    """A plain Python value; None: missing."""

    value: Any

    @property
    def may_null(self) -> bool:
        return self.value is None


@dataclass(frozen=True, slots=True, eq=False)
class Call(Expr):
    """An operation on values of the same row. `lower_values` knows what each `op` is in SQL."""

    op: str
    operands: tuple[Expr, ...]
    options: tuple[Any, ...] = ()
    nan: bool = field(default=False)
    null: bool = field(default=True)
    _size: int = field(default=1)
    _has_window: bool = field(default=False)

    @property
    def args(self) -> tuple[Expr, ...]:
        return self.operands

    @property
    def may_nan(self) -> bool:
        return self.nan

    @property
    def may_null(self) -> bool:
        return self.null

    @property
    def size(self) -> int:
        return self._size

    @property
    def has_window(self) -> bool:
        return self._has_window


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """One key of an order. Missing values come last unless told otherwise."""

    expr: Expr
    is_ascending: bool = True
    nulls_first: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Aggregation(Expr):
    """One value of many rows: of a group, or of a window."""

    func: str
    operands: tuple[Expr, ...]
    options: tuple[Any, ...] = ()
    order: tuple[Key, ...] = ()

    @property
    def args(self) -> tuple[Expr, ...]:
        return (*self.operands, *(key.expr for key in self.order))

    @property
    def size(self) -> int:
        return 1 + sum(one.size for one in self.operands)

    @property
    def has_window(self) -> bool:
        return any(one.has_window for one in self.args)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Which rows around the current one a window takes in; None: without end."""

    preceding: int | Expr | None = None
    following: int | None = 0
    is_range: bool = False
    """True: distances of the order's only key, a number, instead of rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Window(Expr):
    """A function of the rows around each row of `rows`, as they are at that node."""

    rows: Node
    call: Aggregation
    partition: tuple[Expr, ...] = ()
    order: tuple[Key, ...] = ()
    frame: Frame | None = None

    @property
    def args(self) -> tuple[Expr, ...]:
        start = self.frame.preceding if self.frame is not None else None
        others = (start,) if isinstance(start, Expr) else ()
        return (*self.call.args, *self.partition, *(key.expr for key in self.order), *others)

    @property
    def size(self) -> int:
        return 5 + sum(one.size for one in self.args)

    @property
    def has_window(self) -> bool:
        return True


@dataclass(frozen=True, slots=True, eq=False)
class InRows(Expr):
    """Whether a value is among those of a column of other rows."""

    value: Expr
    rows: Node
    column: Expr

    @property
    def args(self) -> tuple[Expr, ...]:
        # Those of the other rows are not of these.
        return (self.value,)

    @property
    def size(self) -> int:
        return 5 + self.value.size

    @property
    def has_window(self) -> bool:
        return self.value.has_window


_MAY_NAN: Final = frozenset(["div", "log", "sqrt", "pow", "nan_guarded"])
_NEVER_NULL: Final = frozenset(
    ["isna", "notna", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "isin", "matches"]
)


def literal(value: Any) -> Literal:
    """A literal of `value`, whose missing forms are all None.

    Raises:
        UnsupportedOperation: it is no scalar that SQL has.
    """
    value = dtypes.plain(value)
    dtype = dtypes.of_value(value)
    if dtype is None:
        raise UnsupportedOperation(
            f"a {type(value).__name__} is not a value that SQL knows; use numbers, texts, dates "
            "or series of the same frame"
        )
    return Literal(dtype, value)


def call(op: str, dtype: DType, *operands: Expr, options: tuple[Any, ...] = ()) -> Call:
    """The operation `op` of type `dtype`."""
    return Call(
        dtype,
        op,
        operands,
        options,
        nan=dtype.kind is Kind.FLOAT and (op in _MAY_NAN or any(one.may_nan for one in operands)),
        null=op not in _NEVER_NULL,
        _size=1 + sum(one.size for one in operands),
        _has_window=any(one.has_window for one in operands),
    )


def clean(expr: Expr) -> Expr:
    """`expr` with NaN as NULL, so that the engine takes it for missing as pandas does."""
    if not expr.may_nan:
        return expr
    return Call(
        expr.dtype, "clean", (expr,), _size=1 + expr.size, _has_window=expr.has_window
    )  # fmt: skip


def aggregation_of(
    func: str,
    dtype: DType,
    operands: tuple[Expr, ...],
    order: tuple[Key, ...],
    options: Mapping[str, Any],
) -> Aggregation:
    """The aggregate `func` over what of `operands` is not missing."""
    return Aggregation(dtype, func, operands, tuple(sorted(options.items())), order)


def walk(expr: Expr) -> Iterator[Expr]:
    """`expr` and everything in it."""
    pending = [expr]
    while pending:
        found = pending.pop()
        yield found
        pending.extend(found.args)
