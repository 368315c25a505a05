"""What notebooks show: previews, notices and progress."""

from __future__ import annotations

import html
import sys
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from accel_dask.errors import AccelError

if TYPE_CHECKING:
    from accel_dask.client.lazy import Lazy

_FOOTER: Final = "color:gray;font-size:smaller;margin:2px 0 8px 0"
_NOTICE: Final = (
    "border-left:4px solid #e0a100;background:#fff8e1;color:#5f4700;padding:6px 12px;margin:4px 0"
)


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
    more = "more rows" if len(shown) > count else f"{len(shown):,} rows"
    last = frame._session.last_query
    footer = html.escape(" · ".join(filter(None, (last.line() if last else "", more))))
    return f"{shown.head(count).to_html()}<p style='{_FOOTER}'>{footer}</p>"


def notice(text: str) -> None:
    """Tell people something, where they see it: in a box of the notebook, else as a warning."""
    if _is_notebook():
        from IPython.display import HTML, display

        display(HTML(f"<div style='{_NOTICE}'>⚠ {html.escape(text)}</div>"))
    else:
        warnings.warn(text, UserWarning, stacklevel=6)


def _is_notebook() -> bool:
    """Whether output goes to a front end that shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


class Progress:
    """A line that says how long a query has been running; gone when it ends."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def show(self, seconds: float, rows: int) -> None:
        text = f"running for {seconds:.1f} s" + (f", {rows:,} rows so far" if rows else "")
        if _is_notebook():
            self._show_html(f"<span style='color:gray'>⏳ {text} · ■ interrupts it</span>")
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text} (Ctrl-C ends it)")
            sys.stderr.flush()
            self._is_shown = True

    def _show_html(self, text: str) -> None:
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(text), display_id=True)
        else:
            self._handle.update(HTML(text))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._show_html("")
        elif self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
