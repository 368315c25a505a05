"""What notebooks show: previews, notices and progress."""

from __future__ import annotations

import html
import sys
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from accel_dask.errors import AccelError

if TYPE_CHECKING:
    from accel_dask.client.lazy import Lazy


def preview_html(frame: Lazy) -> str:
    """The first rows of `frame`, by one bounded query, and where they came from."""
    count = frame._session.options.preview_rows
    if not count:
        return f"<pre>{html.escape(repr(frame))}</pre>"
    try:
        if frame._view.finish is None:
            shown = frame._like(frame._view.limited(count + 1)).compute()
        else:
            shown = frame.compute()
    except AccelError as error:
        return f"<pre>{html.escape(repr(frame))}\n{html.escape(str(error))}</pre>"
    shown = shown if hasattr(shown, "to_html") else shown.to_frame()
    more = " · more rows" if len(shown) > count else ""
    last = frame._session.last_query
    footer = html.escape((last.line() if last else "") + more)
    return f"{shown.head(count).to_html()}<p style='color:gray;font-size:smaller'>{footer}</p>"


def notice(text: str) -> None:
    """Tell people something, where they see it."""
    warnings.warn(text, UserWarning, stacklevel=6)


class Progress:
    """A line that says how long a query has been running; gone when it ends."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def show(self, seconds: float, rows: int) -> None:
        text = f"running for {seconds:.1f} s" + (f", {rows:,} rows so far" if rows else "")
        self._shown = True
        ipython = sys.modules.get("IPython")
        if ipython is None or ipython.get_ipython() is None:
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{text}")
            return
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(f"<i>{text}</i>"), display_id=True)
        else:
            self._handle.update(HTML(f"<i>{text}</i>"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            from IPython.display import HTML

            self._handle.update(HTML(""))
        elif self._shown and sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")
