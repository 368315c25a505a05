"""Columns of frames: assigning and naming them, their categories, times and texts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from client_world import LocalTransport, local_session, same

import accel_dask.client.pandas as apd
from accel_dask.client.session import Session
from accel_dask.errors import UnsupportedOperation

TEXTS = ["\xa0x\u3000", "été", "a b", "A1", "٣", "x\n", "ab_", "", "ﬁ", None]
START = dt.datetime(2024, 3, 30, tzinfo=dt.UTC)
ROWS = pa.table(
    {
        "w": TEXTS,
        "i": pa.array(range(10), pa.int64()),
        "b": [True, False] * 5,
        "t": pa.array([dt.datetime(2024, 1, 1 + n) for n in range(10)], pa.timestamp("us")),  # noqa: DTZ001
        "z": pa.array([START + n * dt.timedelta(hours=5) for n in range(10)],
                      pa.timestamp("us", tz="UTC")),
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[Session, LocalTransport]]:
    session, transport = local_session()
    transport.put("t", ROWS, ("i",), loaded=True)
    yield session, transport
    session.close()


@pytest.fixture
def df(world: tuple[Session, LocalTransport]) -> Any:
    return world[0].table("t")


@pytest.fixture
def theirs() -> pd.DataFrame:
    return ROWS.to_pandas()


def test_assigning_to_an_attribute_replaces_the_column(df: Any) -> None:
    df.i = df.i * 2
    assert df.i.sum() == df["i"].sum() == 90
    with pytest.raises(UnsupportedOperation, match=r"df\['double'\] = "):
        df.double = df.i * 2


def test_labels_can_be_read_as_in_pandas_and_replaced(df: Any) -> None:
    assert df.columns.tolist() == ["w", "i", "b", "t", "z"]
    df.columns = [name.upper() for name in df.columns]
    assert df.I.sum() == 45
    with pytest.raises(ValueError, match="1 labels for 5 columns"):
        df.columns = ["x"]


def test_columns_can_be_inserted_taken_out_and_named(df: Any) -> None:
    df.insert(1, "half", df.i / 2)
    assert list(df.columns) == ["w", "half", "i", "b", "t", "z"]
    half = df.pop("half")
    half.name = "h"
    assert "half" not in df
    assert (half.name, half.sum()) == ("h", 22.5)


def test_comparing_a_frame_compares_its_values(df: Any, theirs: pd.DataFrame) -> None:
    same((df[["i", "b"]] == 1).compute(), theirs[["i", "b"]] == 1)
    same((df[["i"]] != 1).sum().compute(), (theirs[["i"]] != 1).sum())


def test_scalars_of_numpy_stand_beside_columns(df: Any, theirs: pd.DataFrame) -> None:
    same((np.float64(2) - df.i).compute(), np.float64(2) - theirs.i)
    same((np.int64(3) < df.i).compute(), np.int64(3) < theirs.i)
    with pytest.raises(UnsupportedOperation, match=r"np\.sqrt"):
        np.sqrt(df.i)


@pytest.mark.parametrize(
    "pattern", [r"\w", r"\d", r"\s", r"^\w+$", r"[^\w]", r"[\d_]", "x$", r"\W", r"[]x]", "[$]"]
)
def test_patterns_know_the_letters_and_ends_that_python_knows(
    pattern: str, df: Any, theirs: pd.DataFrame
) -> None:
    same(df.w.str.contains(pattern).compute(), theirs.w.astype("str").str.contains(pattern))


def test_extremes_of_groups_have_the_keys_as_their_index(df: Any, theirs: pd.DataFrame) -> None:
    expected = theirs.groupby("b").i.nlargest(2).droplevel(-1)
    same(df.groupby("b").i.nlargest(2).compute(), expected)
    expected = theirs.groupby("b").i.nsmallest(9).droplevel(-1)
    same(df.groupby("b").i.nsmallest(9).compute(), expected)


def test_patterns_that_mean_something_else_to_the_engine_are_refused(df: Any) -> None:
    for pattern in (r"(?<!a)b", r"(?>a)", "a++", r"[\W]"):
        with pytest.raises(UnsupportedOperation, match="pattern"):
            df.w.str.contains(pattern)


def test_whitespace_and_digits_of_all_scripts_are_known(df: Any, theirs: pd.DataFrame) -> None:
    texts = theirs.w.astype("str").str
    same(df.w.str.strip().compute(), texts.strip())
    same(df.w.str.isdigit().compute(), texts.isdigit())


def test_labels_of_bins_are_values(world: tuple[Session, LocalTransport], df: Any) -> None:
    bins = apd.cut(df.i, [-1, 4, 9], labels=["low", "high"])
    assert (bins == "low").sum() == 5
    assert (bins == "none").sum() == 0
    assert bins.isin(["high"]).sum() == 5
    assert bins.max() == "high"
    assert bins.astype(str).compute().tolist() == ["low"] * 5 + ["high"] * 5
    assert bins.map({"low": 1}).sum() == 5


def test_bins_of_other_categories_are_not_the_same_values(df: Any) -> None:
    one = df.assign(c=apd.cut(df.i, [-1, 4, 9], labels=["low", "high"]))[["c"]]
    other = df.assign(c=apd.cut(df.i, [-1, 4, 9], labels=["small", "large"]))[["c"]]
    for make in (lambda: apd.concat([one, other]), lambda: one.merge(other, on="c"),
                 lambda: one.c.isin(other.c)):  # fmt: skip
        with pytest.raises(UnsupportedOperation, match="categories"):
            make()
    with pytest.raises(UnsupportedOperation, match="categories"):
        apd.cut(df.i, [-1, 9], labels=["a"]) == apd.cut(df.i, [-1, 9], labels=["b"])  # noqa: B015
    same(
        apd.concat([one.assign(c=one.c.astype(str)), other.assign(c=other.c.astype(str))])
        .c.value_counts().sort_index().compute(),
        pd.Series([5] * 4, pd.Index(["high", "large", "low", "small"], name="c"), name="count"),
    )  # fmt: skip


def test_arrow_gets_labels_durations_and_zones_instead_of_what_was_sent(df: Any) -> None:
    shown = df.assign(
        c=apd.cut(df.i, [-1, 4, 8], labels=["low", "high"]), d=apd.cut(df.i, [-1, 4, 9]),
        u=df.t - df.t.min(), p=df.z.dt.tz_convert("Europe/Paris"),
    )[["c", "d", "u", "p"]]  # fmt: skip
    table = pa.table(shown)
    assert table["c"].to_pylist() == ["low"] * 5 + ["high"] * 4 + [None]
    assert table["d"].to_pylist()[0] == "(-1, 4]"
    assert table["u"].to_pylist()[1] == dt.timedelta(days=1)
    assert str(table["p"].type) == "timestamp[us, tz=Europe/Paris]"
    assert table.to_pandas()["c"].cat.ordered
    counted = shown.groupby("c").agg(n=("u", "count"))
    assert counted.to_polars()["c"].to_list() == ["low", "high"]


def test_bins_go_on_evenly_where_clocks_are_changed(df: Any, theirs: pd.DataFrame) -> None:
    def of(frame: Any, freq: str) -> Any:
        local = frame.assign(p=frame.z.dt.tz_convert("Europe/Paris"))
        return local.resample(freq, on="p").i.sum()

    for freq in ("h", "30min", "D"):
        same(of(df, freq).compute(), of(theirs, freq))
    with pytest.raises(UnsupportedOperation, match="tz_convert"):
        of(df, "6h")
    kolkata = df.assign(p=df.z.dt.tz_convert("Asia/Kolkata")).resample("6h", on="p").i.sum()
    expected = theirs.assign(p=theirs.z.dt.tz_convert("Asia/Kolkata")).resample("6h", on="p")
    same(kolkata.compute(), expected.i.sum())
