"""A gateway's threads ask the kernel for short turns."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest

from flightsql_gateway.short_turns import SLICE_NS, slice_ns, take_short_turns

T = TypeVar("T")


def on_a_thread(work: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join(10)
    return found[0]


def test_threads_inherit_short_turns_and_nobody_else_has_them() -> None:
    before = slice_ns()

    def ask() -> tuple[bool, int]:
        return take_short_turns(), on_a_thread(slice_ns)

    is_known, inherited = on_a_thread(ask)
    assert inherited == (SLICE_NS if is_known else before)
    assert slice_ns() == before


def test_on_a_machine_of_another_kind_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "abacus")
    assert not take_short_turns()


def test_a_thread_that_is_gone_has_no_slice() -> None:
    with pytest.raises(OSError, match="No such process"):
        slice_ns(2**22 - 1)
