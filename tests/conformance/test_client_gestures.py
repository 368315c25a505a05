"""What people do with a frame costs one query each, counted by the gateway's own receipts."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

import duckdb
import narwhals as nw
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from gateway_world import World, flights
from matplotlib import pyplot as plt

from accel_dask.client import DataFrame, Session, display
from accel_dask.errors import UnknownColumn, UnsupportedOperation


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    made.start()
    made.tenant("acme")
    made.serve("acme", {"flights": (1, [flights(1, 100)])})
    yield made
    made.close()


@pytest.fixture
def df(session: Session) -> DataFrame:
    frame = session.table("flights")
    frame.peek(1).compute()  # from now on its columns are known to be those of the epoch
    return frame[["id", "carrier", "delay"]]


@pytest.fixture(autouse=True)
def no_figures_left() -> Iterator[None]:
    yield
    plt.close("all")


def queries(world: World) -> int:
    """Statements that the gateway has answered, failed ones included."""
    return len(world.app._receipts.last("acme", 1000))  # type: ignore[arg-type]


def altair(df: DataFrame) -> None:
    import altair as alt

    drawn = alt.Chart(df).mark_point().encode(x="id:Q", y="delay:Q", color="carrier:N").to_dict()
    (rows,) = drawn["datasets"].values()
    assert len(rows) == 100


def plotly(df: DataFrame) -> None:
    import plotly.express as px

    assert len(px.scatter(df, x="id", y="delay").data[0].x) == 100


def itables(df: DataFrame) -> None:
    from itables import to_html_datatable

    assert "carrier" in to_html_datatable(df)


def matplotlib(df: DataFrame) -> None:
    assert len(df.plot(x="id", y="delay").lines) == 1


def series_plot(df: DataFrame) -> None:
    assert len(df.delay.plot().lines) == 1


GESTURES: dict[str, Callable[[DataFrame], Any]] = {
    "preview": lambda df: df._repr_html_(),
    "preview of groups": lambda df: df.groupby("carrier").size()._repr_html_(),
    "preview of a pivot": lambda df: df.describe()._repr_html_(),
    "len": len,
    "shape": lambda df: df.shape,
    "empty": lambda df: df.empty,
    "describe": lambda df: df.describe().compute(),
    "describe a series": lambda df: df.delay.describe().compute(),
    "value_counts": lambda df: df.carrier.value_counts().compute(),
    "unique": lambda df: df.carrier.unique(),
    "a sum": lambda df: df.delay.sum(),
    "sums": lambda df: df.sum(numeric_only=True).compute(),
    "quantiles": lambda df: df.delay.quantile(0.9),
    "corr": lambda df: df[["id", "delay"]].corr().compute(),
    "to_pandas": lambda df: df.to_pandas(),
    "to_arrow": lambda df: df.to_arrow(),
    "to_polars": lambda df: df.to_polars(),
    "batches": lambda df: list(df.to_pandas_batches()),
    "pyarrow": pa.table,
    "polars": pl.DataFrame,
    "pandas": pd.DataFrame.from_arrow,
    "narwhals": lambda df: nw.from_native(df, eager_only=True).shape,
    "duckdb": lambda df: duckdb.sql("SELECT count(*), max(id) FROM df").fetchall(),
    "altair": altair,
    "plotly": plotly,
    "itables": itables,
    "plot": matplotlib,
    "plot a series": series_plot,
}


@pytest.mark.parametrize("name", GESTURES)
def test_a_gesture_is_one_query(world: World, df: DataFrame, name: str) -> None:
    before = queries(world)
    GESTURES[name](df)
    assert queries(world) == before + 1


FREE: dict[str, Callable[[DataFrame], Any]] = {
    "repr": repr,
    "columns": lambda df: (df.columns, [*iter(df)], "id" in df),
    "dtypes": lambda df: df.dtypes,
    "completion": lambda df: (dir(df), df._ipython_key_completions_()),
    "sql": lambda df: df.sql,
    "building": lambda df: df[df.id > 3].groupby("carrier").delay.mean().reset_index(),
    "explain": lambda df: df.explain(),
}


@pytest.mark.parametrize("name", FREE)
def test_looking_costs_nothing(world: World, df: DataFrame, name: str) -> None:
    before = queries(world)
    FREE[name](df)
    assert queries(world) == before


def test_columns_complete_and_a_slip_is_told_what_was_meant(df: DataFrame) -> None:
    from IPython.core.completer import provisionalcompleter
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.user_ns["df"] = df
    try:
        with provisionalcompleter():
            for text in ("df.car", 'df["car', "df[df.car"):
                found = [one.text for one in shell.Completer.completions(text, len(text))]
                assert any("carrier" in one for one in found), (text, found)
    finally:
        del shell.user_ns["df"]
        InteractiveShell.clear_instance()
    with pytest.raises(UnknownColumn, match="did you mean 'carrier'"):
        df["carier"]
    with pytest.raises(AttributeError, match="did you mean 'delay'"):
        _ = df.dely
    with pytest.raises(UnsupportedOperation, match=r"write where/mask"):
        _ = df.apply


def test_a_cell_of_sql_is_one_query_and_may_be_kept(world: World, session: Session) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    import accel_dask.client.pandas as apd

    shell = InteractiveShell.instance()
    apd.use_session(session)
    try:
        with redirect_stdout(io.StringIO()):
            shell.run_line_magic("load_ext", "accel_dask.client.magic")
        before = queries(world)
        sql = "SELECT carrier, count(*) AS n FROM flights GROUP BY carrier"
        answer = shell.run_cell_magic("accel", "found", sql)
        assert answer["n"].sum() == shell.user_ns["found"]["n"].sum() == 100
        assert queries(world) <= before + 2, "its schema, once, and its rows"
    finally:
        InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [
        ("numpy", {"id": "int64", "carrier": "str", "delay": "float64"}),
        ("numpy_nullable", {"id": "Int64", "carrier": "string", "delay": "Float64"}),
        ("pyarrow", {"id": "int64[pyarrow]", "carrier": "string[pyarrow]",
                     "delay": "double[pyarrow]"}),
    ],
)  # fmt: skip
def test_dtypes_are_those_of_the_backend_whole_or_in_batches(
    df: DataFrame, backend: str, kinds: dict[str, str]
) -> None:
    whole = df.compute(dtype_backend=backend)
    assert whole.dtypes.astype(str).to_dict() == kinds
    for batch in df.to_pandas_batches(dtype_backend=backend):
        assert batch.dtypes.astype(str).to_dict() == kinds
    assert df.to_polars().schema == {"id": pl.Int64, "carrier": pl.String, "delay": pl.Float64}


def test_progress_is_shown_for_what_takes_long_and_for_nothing_else(
    world: World, session: Session, df: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[float, int]] = []
    waits: list[float] = []

    class Screen(display.Progress):
        def show(self, seconds: float, rows: int) -> None:
            shown.append((seconds, rows))
            world.executors[0].before = lambda order: None
            released.set()

    released = threading.Event()
    monkeypatch.setattr(display, "Progress", Screen)
    usual_ms, session.options.progress_ms = session.options.progress_ms, 20_000
    df[df.id == 1].compute()
    assert shown == [], "what takes less than that shows none"
    session.options.progress_ms = usual_ms
    world.executors[0].before = lambda order: waits.append(float(released.wait(20)))
    assert len(df[df.id == 2].compute()) == 1
    assert waits == [1.0]
    assert shown
    assert shown[0][0] >= 0.3


def test_the_terminal_shows_progress_on_one_line_and_wipes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with display.Progress() as progress:
        progress.show(1.26, 0)
        progress.show(2.0, 12_345)
    text = screen.getvalue()
    assert "running for 1.3 s (Ctrl-C ends it)" in text
    assert "12,345 rows so far" in text
    assert "\n" not in text
    assert text.endswith("\r\x1b[K")
