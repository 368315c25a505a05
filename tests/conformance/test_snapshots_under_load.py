"""Snapshots of the client while epochs are switched under it, through a real gateway."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from gateway_world import World, flights, wait_until

from accel_dask.client import Session, connect
from accel_dask.errors import EpochRetired

EPOCHS, CLIENTS = 6, 3


def report(session: Session, seen: Counter[str]) -> None:
    """What a report of several queries sees: one epoch, or an error that says so."""
    df = session.table("flights")
    with session.snapshot() as pinned:
        epoch = pinned["flights"]
        try:
            found = [
                int(df.version.max()),
                int(df.version.min()),
                *map(int, df.groupby("carrier").version.max().compute()),
                int(df[df.id > 3].version.sum() / (df.id > 3).sum()),
            ]
        except EpochRetired:
            seen["retired"] += 1
            return
    assert set(found) == {epoch}, (epoch, found)
    seen[f"epoch {epoch}"] += 1


def test_reports_under_load_never_mix_epochs() -> None:
    made = World()
    stop = threading.Event()
    seen: Counter[str] = Counter()
    try:
        made.start()
        made.tenant("acme")
        made.serve("acme", {"flights": (1, [flights(1, 60)])})

        def work() -> None:
            with connect(made.url, user="acme", token="secret-of-acme") as session:
                while not stop.is_set():
                    report(session, seen)

        with ThreadPoolExecutor(CLIENTS) as pool:
            working = [pool.submit(work) for _ in range(CLIENTS)]
            try:
                for number in range(2, EPOCHS + 1):
                    before = seen[f"epoch {number - 1}"]
                    wait_until(lambda n=number, b=before: seen[f"epoch {n - 1}"] > b, 30)  # type: ignore[misc]
                    made.serve("acme", {"flights": (number, [flights(number, 60)])},
                               generation=number)  # fmt: skip
                wait_until(lambda: seen[f"epoch {EPOCHS}"] >= CLIENTS, 30)
            finally:
                stop.set()
            for one in working:
                one.result(30)
    finally:
        made.close()
    assert all(seen[f"epoch {number}"] for number in range(1, EPOCHS + 1))
