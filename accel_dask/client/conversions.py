"""`astype`, and what a pandas or NumPy type is called here."""

from __future__ import annotations

from typing import Any

from accel_dask.client import dtypes
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import Expr, Literal, call
from accel_dask.client.unsupported import refuse


def astype(expr: Expr, dtype: Any) -> Expr:
    """`expr` converted as pandas' `astype(dtype)` converts it.

    Raises:
        UnsupportedOperation: that conversion is none of those that agree with pandas.
    """
    name = _name(dtype)
    kind = expr.dtype.kind
    if name == "category":
        return expr
    if name.startswith("int"):
        return _to_int(expr)
    if name.startswith("float"):
        return _to_float(expr)
    if name in {"str", "string", "object"}:
        return _to_text(expr)
    if name.startswith("bool"):
        return _to_bool(expr)
    if name.startswith("datetime64"):
        if kind is Kind.TIMESTAMP:
            return expr
        if kind in {Kind.DATE, Kind.STRING}:
            return call("cast", dtypes.TIMESTAMP, expr)
    raise refuse(f"astype({dtype!r}) of a {kind} column", "use int, float, str, bool or datetime64")


def _name(dtype: Any) -> str:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    return str(name).lower()


def _to_int(expr: Expr) -> Expr:
    match expr.dtype.kind:
        case Kind.INT if expr.dtype.sql == "BIGINT":
            return expr
        case Kind.INT | Kind.BOOL | Kind.STRING:
            return call("cast", dtypes.INT, expr)
        case Kind.FLOAT | Kind.DECIMAL:
            return call("truncated", dtypes.INT, expr)
        case kind:
            raise refuse(f"astype(int) of a {kind} column", "use dt. fields")


def _to_float(expr: Expr) -> Expr:
    if expr.dtype.kind is Kind.FLOAT and expr.dtype.sql == "DOUBLE":
        return expr
    if expr.dtype.kind in dtypes.NUMBERS | {Kind.STRING}:
        found = call("cast", dtypes.FLOAT, expr)
        # The text 'nan' is one, too.
        return call("nan_guarded", dtypes.FLOAT, found) if expr.dtype.kind is Kind.STRING else found
    raise refuse(f"astype(float) of a {expr.dtype.kind} column", "use dt. fields")


def _to_text(expr: Expr) -> Expr:
    match expr.dtype.kind:
        case Kind.STRING:
            return expr
        case Kind.INT:
            return call("cast", dtypes.STRING, expr)
        case Kind.BOOL:
            return call("bool_text", dtypes.STRING, expr)
        case Kind.CATEGORY:
            operands: list[Expr] = []
            for code, label in enumerate(expr.dtype.categories):
                is_it = call("eq", dtypes.BOOL, expr, Literal(expr.dtype, code))
                operands += (is_it, Literal(dtypes.STRING, str(label)))
            return call("case", dtypes.STRING, *operands, Literal(dtypes.NULL, None))
        case kind:
            raise refuse(
                f"astype(str) of a {kind} column", "use dt.strftime, or round and int first"
            )


def _to_bool(expr: Expr) -> Expr:
    match expr.dtype.kind:
        case Kind.BOOL:
            return expr
        case Kind.INT | Kind.FLOAT | Kind.DECIMAL:
            # Missing numbers are not 0, so they are true.
            return call("ne", dtypes.BOOL, expr, Literal(dtypes.INT, 0))
        case kind:
            raise refuse(f"astype(bool) of a {kind} column", "write a comparison")
