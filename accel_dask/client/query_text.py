"""`df.query("...")`: the text is parsed as Python and walked; nothing of it is evaluated."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from accel_dask.client.expressions import literal
from accel_dask.client.series import Series
from accel_dask.client.unsupported import refuse
from accel_dask.errors import UnknownColumn, UnsupportedOperation

if TYPE_CHECKING:
    from accel_dask.client.frame import DataFrame

_LOCAL: Final = "__local_"
_QUOTED: Final = "__quoted_"
_PIECES: Final = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`]+)`|@(\w+)|([&|])""")
_WORDS: Final = {"&": " and ", "|": " or "}
"""As pandas reads them here: they bind less than comparisons, other than in Python."""

_OPERATORS: Final[dict[type, Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Pow: operator.pow, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip


def evaluate(frame: DataFrame, text: str, variables: Mapping[str, Any]) -> Series:
    """The mask that `text` means.

    Raises:
        UnsupportedOperation: it is no expression over columns, values and @variables.
        UnknownColumn: it names a column that is not there.
    """
    quoted: list[str] = []

    def plain(found: re.Match[str]) -> str:
        if found[1]:
            return found[1]
        if found[2]:
            quoted.append(found[2])
            return f"{_QUOTED}{len(quoted) - 1}"
        if found[4]:
            return _WORDS[found[4]]
        return f"{_LOCAL}{found[3]}"

    try:
        tree = ast.parse(_PIECES.sub(plain, text).strip(), mode="eval")
    except SyntaxError as error:
        raise UnsupportedOperation(f"query({text!r}) is no expression: {error.msg}") from error
    found = _Reader(frame, variables, quoted).read(tree.body)
    if not isinstance(found, Series):
        raise UnsupportedOperation(f"query({text!r}) is no comparison of columns")
    return found


class _Reader:
    def __init__(self, frame: DataFrame, variables: Mapping[str, Any], quoted: list[str]) -> None:
        self._frame = frame
        self._variables = variables
        self._quoted = quoted

    def read(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self._name(node.id)
            case ast.List() | ast.Tuple():
                return [self.read(one) for one in node.elts]
            case ast.BoolOp():
                return self._connected(node)
            case ast.UnaryOp():
                return self._unary(node)
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return _OPERATORS[type(node.op)](self.read(node.left), self.read(node.right))
            case ast.Compare():
                return self._compared(node)
            case ast.Attribute() | ast.Call():
                return self._called(node)
            case _:
                raise refuse(f"{ast.unparse(node)!r} in query", "write it in Python")

    def _name(self, name: str) -> Any:
        if name.startswith(_QUOTED):
            return self._frame[self._quoted[int(name.removeprefix(_QUOTED))]]
        if name.startswith(_LOCAL):
            wanted = name.removeprefix(_LOCAL)
            if wanted not in self._variables:
                raise UnknownColumn(f"query: there is no variable {wanted!r}")
            return self._variables[wanted]
        frame, view = self._frame, self._frame._view
        key = view.find_in_index(name)
        if key is not None and view.find(name) is None:
            return Series._of(frame._session, view.rows, name, key.expr)
        return frame[name]

    def _connected(self, node: ast.BoolOp) -> Any:
        found = self.read(node.values[0])
        for value in node.values[1:]:
            other = self.read(value)
            found = found & other if isinstance(node.op, ast.And) else found | other
        return found

    def _unary(self, node: ast.UnaryOp) -> Any:
        operand = self.read(node.operand)
        if isinstance(node.op, ast.USub):
            return -operand
        if isinstance(node.op, ast.Not | ast.Invert):
            return ~operand
        return operand

    def _compared(self, node: ast.Compare) -> Any:
        left = self.read(node.left)
        found: Any = None
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.read(comparator)
            one = self._one(op, left, right)
            found = one if found is None else found & one
            left = right
        return found

    def _one(self, op: ast.cmpop, left: Any, right: Any) -> Any:
        is_listed = isinstance(right, list | tuple | set | frozenset)
        if isinstance(op, ast.In | ast.NotIn) or (is_listed and isinstance(op, ast.Eq | ast.NotEq)):
            found = self._column(left).isin(right)
            return ~found if isinstance(op, ast.NotIn | ast.NotEq) else found
        if type(op) not in _OPERATORS:
            raise refuse("`is` in query", "use isna()")
        return _OPERATORS[type(op)](left, right)

    def _column(self, value: Any) -> Series:
        if isinstance(value, Series):
            return value
        frame = self._frame
        return Series._of(frame._session, frame._view.rows, None, literal(value))

    def _called(self, node: ast.Attribute | ast.Call) -> Any:
        """A method of a column, such as `name.str.startswith('a')`."""
        if isinstance(node, ast.Attribute):
            if node.attr.startswith("_"):
                raise refuse(f"{node.attr!r} in query", "use public methods")
            return getattr(self._columns_only(self.read(node.value)), node.attr)
        if not isinstance(node.func, ast.Attribute):
            raise refuse("a function in query", "compute it as a column first")
        given = [self.read(one) for one in node.args]
        named = {one.arg: self.read(one.value) for one in node.keywords if one.arg}
        return self.read(node.func)(*given, **named)

    def _columns_only(self, value: Any) -> Any:
        if type(value).__module__.startswith("accel_dask.client."):
            return value
        raise refuse("an attribute of a value in query", "compute it outside and use @name")
