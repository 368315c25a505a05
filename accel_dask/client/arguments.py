"""Arguments that pandas' methods have and these have not: explicit defaults and those that make no
difference here are let through, others are refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar

from accel_dask.client.unsupported import refuse

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

_WITHOUT_EFFECT: Final = frozenset(
    ["copy", "engine", "engine_kwargs", "group_keys", "ignore_index", "verify_integrity"]
)
"""Of rows that have no index, or on speed only."""
_AS_IS: Final = (("axis", 0), ("axis", "index"), ("inplace", False), ("sort", False))
"""What is so without being said, whatever pandas' signature has as the default."""
_ADVICE: Final = {
    "axis": "combine the columns: df.a + df.b",
    "inplace": "frames are immutable; assign the result: df = df.method(...)",
    "level": "reset_index(), then name the column",
    "key": "assign a column and sort by it",
    "frac": "say how many rows: sample(n)",
    "margins": "aggregate the margins with groupby",
    "flags": "put them into the pattern: (?i)...",
}
_PULL: Final = "or bring a bounded part to pandas: .head(n).compute()"


def explained(owner: str) -> Callable[[C], C]:
    """A class whose public methods say which argument of pandas' `owner` they do not have."""

    def wrap(cls: C) -> C:
        for name, found in list(vars(cls).items()):
            if inspect.isfunction(found) and not name.startswith("_") and name != "query":
                setattr(cls, name, explained_function(owner, name)(found))
        return cls

    return wrap


def explained_function(owner: str, name: str) -> Callable[[F], F]:
    """The same for one function; `owner` may be a module."""

    def wrap(function: F) -> F:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except TypeError as error:
                trace = error.__traceback__
                if trace is None or trace.tb_next is not None:
                    raise  # not from the call itself
                kept = _without_defaults(owner, name, function, kwargs)
                if len(kept) == len(kwargs):
                    raise _refused(name, function, kwargs, error) from None
            return call(*args, **kept)

        return call  # type: ignore[return-value]

    return wrap


def _without_defaults(
    owner: str, name: str, function: Callable[..., Any], given: dict[str, Any]
) -> dict[str, Any]:
    known = inspect.signature(function).parameters
    defaults = _defaults(owner, name)

    def is_kept(argument: str, value: Any) -> bool:
        if argument in known:
            return True
        is_plain = isinstance(value, str | int)
        if argument in _WITHOUT_EFFECT or (is_plain and (argument, value) in _AS_IS):
            return False
        default = defaults.get(argument, inspect.Parameter.empty)
        return not (value is default or (type(value) is type(default) and value == default))

    return {argument: value for argument, value in given.items() if is_kept(argument, value)}


def _defaults(owner: str, name: str) -> dict[str, Any]:
    """Of the arguments of pandas' own method."""
    from accel_dask.client.unsupported import of_pandas

    found = getattr(of_pandas(owner), name, None)
    try:
        parameters = inspect.signature(found).parameters if callable(found) else {}
    except ValueError:
        return {}
    return {one: parameter.default for one, parameter in parameters.items()}


def _refused(
    name: str, function: Callable[..., Any], given: dict[str, Any], error: TypeError
) -> Exception:
    parameters = inspect.signature(function).parameters
    taken = [
        one for one, parameter in parameters.items()
        if one != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]  # fmt: skip
    more = next((one for one in given if one not in parameters), None)
    takes = f"it takes {', '.join(taken)}" if taken else "it takes nothing"
    if more is not None:
        return refuse(f"{name}({more}=...)", f"{takes}; {_ADVICE.get(more, _PULL)}")
    if "positional argument" in str(error) and "missing" not in str(error):
        return refuse(f"{name} with so many arguments", f"{takes}; name them")
    return error
