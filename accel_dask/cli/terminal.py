"""The terminal: where commands print, what they ask, how they are interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import typer
from rich.console import Console

console = Console()

INTERRUPTED = 130
"""Exit code of what was interrupted before it was done."""
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def confirm(question: str, yes: bool) -> None:
    """Ask before what cannot be undone, unless `yes`; a no ends the command with code 1."""
    if not yes:
        typer.confirm(question, abort=True)


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first names with commas; "none"."""
    told = ", ".join(str(name) for name in names[:most])
    return told + (", ..." if len(names) > most else "") if names else "none"


def ignore_interrupts() -> None:
    """From here on, an interrupt changes nothing: what was begun is to be cleared away."""
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """SIGTERM, a closed terminal and Ctrl-C interrupt whatever goes on."""
    interrupted = threading.Event()

    def stop(number: int, frame: object) -> None:
        del number, frame
        interrupted.set()
        raise KeyboardInterrupt

    for number in _INTERRUPTS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and "&" leave it
            signal.signal(number, stop)
    with suppress(KeyboardInterrupt):
        yield interrupted
