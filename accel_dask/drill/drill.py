"""The noisy neighbour: a victim's dashboards alone, then beside each attack."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from accel_dask.drill.attacks import Done, dashboards, under
from accel_dask.drill.loads import Seen
from accel_dask.drill.run_delay import RunDelay, Waits
from accel_dask.drill.site import DrillSite
from accel_dask.drill.verdicts import Attack, Measured

_LEAD_SECONDS = 2.0
"""An attack is under way for so long before the victim's queries begin: their clients, too, need
a second to start."""
_WARM_SECONDS = 2.0

OnStep = Callable[[str, float], None]
"""Told of each step, and of about how many seconds it takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure."""

    attacks: Sequence[Attack] = tuple(Attack)
    seconds: float = 15.0
    """Of each measurement."""
    rate: float = 30.0
    """The victim's queries per second."""


def drill(site: DrillSite, plan: Plan, on_step: OnStep = lambda *_: None) -> Iterator[Measured]:
    """The victim alone, then beside each attack, each as soon as it was measured.

    Raises:
        AccelError: the cluster could not be asked, or an attack not be carried out.
    """
    warm_up = min(_WARM_SECONDS, plan.seconds)
    on_step("warming up", warm_up)
    dashboards(site, warm_up, plan.rate).wait()
    on_step("the victim alone", plan.seconds)
    alone, waits = _victim(site, plan)
    yield Measured(attack=None, victim=alone, alone=alone, waits=waits)
    for attack in plan.attacks:
        noisy_alone = None
        if attack.is_measured_alone:
            on_step(f"{attack.text}, alone", plan.seconds)
            with under(site, attack, plan.seconds) as done:
                pass
            noisy_alone = done.seen
        on_step(f"beside {attack.text}", plan.seconds + _LEAD_SECONDS)
        victim, waits, done = _beside(site, plan, attack)
        yield Measured(
            attack=attack,
            victim=victim,
            alone=alone,
            waits=waits,
            noisy=done.seen,
            noisy_alone=noisy_alone,
            refreshes=done.refreshes,
        )


def _beside(site: DrillSite, plan: Plan, attack: Attack) -> tuple[Seen, Waits, Done]:
    with under(site, attack, plan.seconds + _LEAD_SECONDS) as done:
        threading.Event().wait(_LEAD_SECONDS / 2)
        victim, waits = _victim(site, plan)
    return victim, waits, done


def _victim(site: DrillSite, plan: Plan) -> tuple[Seen, Waits]:
    roots = (os.getpid(), *site.target.roots)
    with RunDelay(lambda: roots, site.executors) as delay:
        running = dashboards(site, plan.seconds, plan.rate)
        try:
            seen = running.wait()
        finally:
            running.end()
    return seen, delay.waits()
