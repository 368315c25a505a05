"""Whatever pandas has is there, or refused as such with what to write: names and arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from client_world import local_session

import accel_dask.client.pandas as apd
from accel_dask.client.unsupported import of_pandas
from accel_dask.errors import UnsupportedOperation

ROWS = pa.table(
    {
        "k": ["a", "b", None],
        "i": pa.array([1, 2, 3], pa.int64()),
        "t": pa.array([1, 2, 3], pa.timestamp("us")),
        "row": pa.array([1, 2, 3], pa.int64()),
    }
)
OWNERS: dict[str, Callable[[Any], Any]] = {
    "DataFrame": lambda df: df,
    "Series": lambda df: df["i"],
    "DataFrameGroupBy": lambda df: df.groupby("k"),
    "SeriesGroupBy": lambda df: df.groupby("k")["i"],
    "Rolling": lambda df: df["i"].rolling(2),
    "Resampler": lambda df: df.resample("D", on="t")["i"],
    "str": lambda df: df["k"].str,
    "dt": lambda df: df["t"].dt,
    "module": lambda _: apd,
}
NOT_PANDAS_OWN = {"plot"}  # computes


@pytest.fixture(scope="module")
def frame() -> Iterator[Any]:
    session, transport = local_session()
    transport.put("t", ROWS, ("row",))
    yield session.table("t")
    session.close()


@pytest.mark.parametrize("owner", OWNERS)
def test_every_name_of_pandas_is_there_or_refused_with_advice(owner: str, frame: Any) -> None:
    ours = OWNERS[owner](frame)
    unclear = {}
    for name in dir(of_pandas(owner)):
        if name.startswith("_") or name in NOT_PANDAS_OWN:
            continue
        error = _error_of(lambda name=name: getattr(ours, name))
        if error is not None and not (isinstance(error, UnsupportedOperation) and _advises(error)):
            unclear[name] = repr(error)
    assert unclear == {}


@pytest.mark.parametrize("owner", OWNERS)
def test_every_argument_of_pandas_is_taken_or_refused_by_name(owner: str, frame: Any) -> None:
    ours = OWNERS[owner](frame)
    unclear = {}
    for name, argument in _arguments(of_pandas(owner), ours):
        method = getattr(ours, name)
        error = _error_of(lambda method=method, argument=argument: method(**{argument: object()}))
        if not (isinstance(error, UnsupportedOperation) and argument in str(error)):
            unclear[f"{name}({argument}=...)"] = repr(error)
    assert unclear == {}


def _error_of(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - its kind is what is looked at
        return error
    return None


def _advises(error: Exception) -> bool:
    return ";" in str(error)


def _arguments(theirs: Any, ours: Any) -> Iterator[tuple[str, str]]:
    """Of methods that both have, the arguments that only pandas has, and that make a difference."""
    taken_anyway = {"self", "copy", "engine", "engine_kwargs", "group_keys", "ignore_index"}
    taken_anyway |= {"verify_integrity", "args", "kwargs"}
    for name in dir(theirs):
        if name.startswith("_") or name in NOT_PANDAS_OWN | {"query", "compute", "api", "errors"}:
            continue
        method = getattr(theirs, name)
        served = inspect.getattr_static(ours, name, None)
        if not inspect.isroutine(method) or not inspect.isfunction(served):
            continue
        known = inspect.signature(served).parameters
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
            continue
        for argument in inspect.signature(method).parameters:
            if argument not in known and argument not in taken_anyway:
                yield name, argument


def test_explicit_defaults_of_pandas_are_let_through(frame: Any) -> None:
    assert frame["i"].sum(axis=0, skipna=True) == 6
    assert frame["i"].quantile(0.5, interpolation="linear") == 2.0
    found = frame.merge(frame[["row"]], on="row", sort=False, copy=None).sort_values("row", axis=0)
    assert len(found.drop_duplicates("i", ignore_index=True, inplace=False)) == 3
    assert len(apd.concat([frame, frame], join="outer", sort=False)) == 6
    assert frame.groupby("k", group_keys=False)["i"].sum().compute().to_dict() == {"a": 1, "b": 2}


def test_an_error_of_the_caller_stays_what_it_is(frame: Any) -> None:
    with pytest.raises(TypeError, match="right"):
        frame.merge()
    with pytest.raises(TypeError, match="of mine"):
        frame.assign(x=_raising)


def _raising(_: Any) -> None:
    raise TypeError("unexpected keyword argument of mine")


def test_a_refusal_names_the_argument_what_is_taken_and_what_to_write(frame: Any) -> None:
    with pytest.raises(
        UnsupportedOperation, match=r"sum\(axis=...\).*numeric_only.*df\.a \+ df\.b"
    ):
        frame.sum(axis=1)
    with pytest.raises(UnsupportedOperation, match=r"dropna\(inplace=...\).*assign the result"):
        frame.dropna(inplace=True)
    with pytest.raises(UnsupportedOperation, match="so many arguments"):
        frame["k"].str.find("a", 1)


@pytest.mark.parametrize(
    "make",
    [
        lambda df: df.merge(pd.DataFrame({"i": [1]}), on="i"),
        lambda df: apd.concat([df, pd.DataFrame({"i": [1]})]),
        lambda df: df[pd.Series([True, False, True])],
        lambda df: df.groupby(pd.Series(["a", "b", "a"])),
        lambda df: df["i"].where(pd.Series([True, False, True])),
        lambda _: apd.DataFrame({"i": [1]}),
        lambda _: apd.Series([1]),
        lambda _: apd.read_csv("rows.csv"),
        lambda df: df.head(-1),
        lambda df: df["i"].rename({0: 1}),
        lambda df: df[[]].compute(),
        lambda df: df[["k"]].describe(),
        lambda df: df[["i"]] + df["i"],
        lambda df: df["i"].isin(df["k"]),
        lambda df: df.pivot_table("i", "k", "row", aggfunc=["sum", "mean"]),
        lambda df: df.pivot_table("i", "k", df["row"]),
        lambda df: apd.concat([df, df["i"]]),
        lambda df: apd.concat({"a": df}),
        lambda df: df["i"].rolling(2).agg("nunique"),
    ],
)
def test_what_is_local_or_has_no_sql_is_refused_and_nothing_is_fetched(
    make: Callable[[Any], Any], frame: Any
) -> None:
    before = len(frame._session._transport.sent)
    with pytest.raises(UnsupportedOperation):
        make(frame)
    assert len(frame._session._transport.sent) == before
