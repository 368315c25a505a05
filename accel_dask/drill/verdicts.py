"""What a drill is held to, and whether it held. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from accel_dask.drill.loads import Seen
from accel_dask.drill.run_delay import Waits


class Attack(StrEnum):
    """What the noisy tenant does, or somebody on its Dask workers."""

    HEAVY = "heavy"
    MEMORY = "memory"
    FLOOD = "flood"
    PYTHON = "python"
    REFRESH = "refresh"

    @property
    def text(self) -> str:
        """For people."""
        return {
            Attack.HEAVY: "eight clients with heavy scans and joins",
            Attack.MEMORY: "eight clients that ask for more memory than there is",
            Attack.FLOOD: "64 clients that connect anew for every query",
            Attack.PYTHON: "pure Python on every thread of the Dask workers",
            Attack.REFRESH: "one refresh of the data after the other",
        }[self]

    @property
    def is_measured_alone(self) -> bool:
        """Whether the noisy tenant's own throughput says something: it is not refused most of
        what it asks."""
        return self is Attack.HEAVY


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the drill is held to."""

    ratio: float | None = 1.3
    """The victim's 99th percentile beside an attack, against alone; None: no limit."""
    kept: float = 0.8
    """Of the noisy tenant's throughput without the victim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The victim beside one attack, or alone."""

    attack: Attack | None
    victim: Seen
    alone: Seen
    waits: Waits | None = None
    noisy: Seen | None = None
    noisy_alone: Seen | None = None
    refreshes: int = 0

    @property
    def name(self) -> str:
        return str(self.attack) if self.attack else "alone"

    @property
    def ratio(self) -> float:
        """The victim's 99th percentile against alone."""
        return self.victim.percentile(0.99) / max(self.alone.percentile(0.99), 0.001)

    @property
    def kept(self) -> float | None:
        """Of the noisy tenant's throughput without the victim; None: not measured."""
        if self.noisy is None or self.noisy_alone is None:
            return None
        return self.noisy.per_second / max(self.noisy_alone.per_second, 0.001)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One limit, and whether it held."""

    attack: Attack
    has_held: bool
    text: str

    def __str__(self) -> str:
        return f"{'held' if self.has_held else 'NOT HELD'}: {self.text}"


def verdicts(measured: Iterable[Measured], limits: Limits) -> Iterator[Verdict]:
    """Every limit, in the order of the attacks."""
    for one in measured:
        if one.attack is None:
            continue
        yield from _of(one, one.attack, limits)


def _of(one: Measured, attack: Attack, limits: Limits) -> Iterator[Verdict]:
    if limits.ratio is not None:
        text = f"beside {attack} the victim's p99 is {one.ratio:.2f} x alone (<= {limits.ratio} x)"
        yield Verdict(attack, one.victim.answered > 0 and one.ratio <= limits.ratio, text)
    if one.victim.failures:
        texts = "; ".join(f"{count} x {text}" for text, count in one.victim.failures.items())
        yield Verdict(attack, False, f"beside {attack} queries of the victim failed: {texts}")
    if limits.ratio is not None and one.kept is not None:
        text = (
            f"the noisy tenant keeps {one.kept:.0%} of its throughput of {attack} beside the "
            f"victim (>= {limits.kept:.0%})"
        )
        yield Verdict(attack, one.kept >= limits.kept, text)
