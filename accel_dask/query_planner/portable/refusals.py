"""How the portable subset refuses: one error, which names the construct."""

from __future__ import annotations

from typing import NoReturn

from sqlglot import exp

from accel_dask.errors import NotPortable


def refuse(construct: str, because: str = "") -> NoReturn:
    """
    Raises:
        NotPortable: always.
    """
    reason = because or "it is not among what is proven to mean the same everywhere"
    raise NotPortable(f"{construct[:200]} is not sent to the fallback engine: {reason}")


def told(node: exp.Expr) -> str:
    """A construct as the user may have written it."""
    return node.sql(dialect="duckdb")[:120]


def check_arguments(node: exp.Expr, *known: str) -> None:
    """Refuse a node that carries more than is read here."""
    for key, value in node.args.items():
        if key not in known and value not in (None, False, []):
            refuse(told(node), f"its {key.strip('_')} is not read here")
