"""Log lines of zygote and executors on stderr, which is the host's."""

from __future__ import annotations

import logging
import traceback
from types import TracebackType

_FRAMES = 50


class _Formatter(logging.Formatter):
    """With tracebacks, though `sys.tracebacklimit` is 0 so that Flight sends none."""

    def formatException(  # noqa: N802 - logging's name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        return "".join(traceback.format_exception(ei[1], limit=_FRAMES)).rstrip()


def log_as(name: str) -> None:
    """Log to stderr as `name`, in place of whatever was set up before."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(f"%(asctime)s {name} %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
