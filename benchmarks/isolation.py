"""What a tenant sees of another one's worst day: latency of its dashboards, alone and beside it.

    python benchmarks/isolation.py [--rounds 3] [--seconds 30] [--rows 6000000] [--policy default]
        [--noise heavy] [--plot FILE] [--json FILE] [--markdown]

The drill that `accel-dask drill noisy-neighbour` runs, on a cluster of its own for each policy: the
default one, equal fixed weights, nice values alone, a process each without weights, and one DuckDB
for both tenants. The victim's dashboard queries (1 to 20 ms each) arrive at random times, 30 a
second, whatever the answers do. Under each line stands which processes waited for a core by the
kernel's account, and how much other work there was on the machine: with more than a few hundredths
of a core of it the ratios mean little.

A virtual machine that uses all of its cores is stopped by its hypervisor now and then, and one such
stop can be a whole 99th percentile. So each drill is gone through several times on one cluster, and
the limits, checked at the end, are for the median of the rounds' ratios, of all queries; every
round is told. With each stands how often the machine kept even a real-time thread waiting (3 ms and
more), and the 99th percentile of the queries that were not under way then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from held_up import HeldUp

from accel_dask.drill.arrivals import percentile
from accel_dask.drill.drill import Plan, drill
from accel_dask.drill.loads import Seen
from accel_dask.drill.plot import plot
from accel_dask.drill.report import as_data, caption, meanwhile
from accel_dask.drill.site import DrillSite, Target
from accel_dask.drill.verdicts import Attack, Limits, Measured, Verdict, verdicts
from accel_dask.local import LocalAccelCluster
from accel_dask.model.member import Worker


@dataclass(frozen=True)
class Policy:
    name: str
    environ: dict[str, str]
    attacks: tuple[Attack, ...]
    limit: float | None
    is_shared: bool = False

    @property
    def limits(self) -> Limits:
        return Limits(ratio=self.limit)


Round = list[Measured]
"""The victim alone, then beside each attack."""

HEAVY = (Attack.HEAVY,)
POLICIES = (
    Policy("default", {}, tuple(Attack), 1.3),
    Policy("equal fixed weights", {"ACCEL_HOST_CPU_POLICY": "fixed"}, HEAVY, 2.0),
    Policy("nice alone", {"ACCEL_HOST_ENFORCEMENT": "nice"}, HEAVY, 1.5),
    Policy(
        "a process each, no weights",
        {"ACCEL_HOST_ENFORCEMENT": "none", "ACCEL_HOST_CPU_POLICY": "none"},
        HEAVY,
        None,
    ),
    Policy("one DuckDB for both", {}, HEAVY, None, is_shared=True),
)


@contextmanager
def environ(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def line(policy: Policy, one: Measured) -> str:
    p50, p95, p99 = (one.victim.percentile(share) for share in (0.5, 0.95, 0.99))
    return (
        f"{policy.name:28} {one.name:9} {p50:7.1f} {p95:7.1f} {p99:7.1f} {one.ratio:6.2f} "
        f"{one.victim.failed:7}  {meanwhile(one)}"
    )


def run_policy(policy: Policy, plan: Plan, rows: int, rounds: int) -> list[Round]:
    found: list[Round] = []
    with environ(policy.environ), LocalAccelCluster() as cluster:
        for host in cluster.view.records(Worker):
            print(f"# {policy.name}: {host.enforcement}", flush=True)
        target = Target(store=cluster.store, mirror=cluster.mirror)
        with DrillSite(target, rows=rows, shares_one_tenant=policy.is_shared) as site:
            for number in range(1, rounds + 1):
                print(f"# {policy.name}, round {number} of {rounds}", flush=True)
                found.append([])
                for one in drill(site, plan):
                    found[-1].append(one)
                    tell(policy, one)
    return found


def tell(policy: Policy, one: Measured) -> None:
    print(line(policy, one), flush=True)
    if one.waits is not None:
        print(f"#   {one.waits.text(6)}", flush=True)
    if one.noisy is not None:
        for text, count in one.noisy.failures.items():
            print(f"#   noisy: {count} x {text}", flush=True)


def median(rounds: Sequence[Round]) -> Round:
    """Of each attack the round with the median ratio, and the median of what the noisy tenant
    keeps."""
    return [typical(attempts) for attempts in zip(*rounds, strict=True)]


def typical(attempts: Sequence[Measured]) -> Measured:
    one = sorted(attempts, key=lambda one: one.ratio)[len(attempts) // 2]
    if one.kept is None:
        return one
    kept = sorted(attempts, key=lambda one: one.kept or 0.0)[len(attempts) // 2]
    return replace(one, noisy=kept.noisy, noisy_alone=kept.noisy_alone)


def ratios(rounds: Sequence[Round], number: int) -> str:
    """Those of one attack."""
    return ", ".join(f"{one[number].ratio:.2f}" for one in rounds)


def undisturbed(seen: Seen, held_up: HeldUp) -> list[float]:
    """Latencies of the queries during which the machine ran whoever was due."""
    return [
        ms
        for at, ms in zip(seen.sent_at, seen.latencies_ms, strict=True)
        if not held_up.between(seen.started + at, seen.started + at + ms / 1000)
    ]


def machine(policy: Policy, rounds: Sequence[Round], held_up: HeldUp) -> Iterator[str]:
    for number, measured in enumerate(rounds, 1):
        alone = percentile(undisturbed(measured[0].alone, held_up), 0.99)
        for one in measured:
            start = one.victim.started
            times = held_up.between(start, start + one.victim.seconds)
            longest = max((end - begin for begin, end in times), default=0.0) * 1000
            p99 = percentile(undisturbed(one.victim, held_up), 0.99)
            yield (
                f"# {policy.name}, round {number}, {one.name}: the machine held up everybody "
                f"{len(times)} times, for {sum(end - begin for begin, end in times) * 1000:.0f} ms "
                f"in all, {longest:.0f} at most; p99 of the other queries {p99:.1f} ms "
                f"({p99 / max(alone, 0.001):.2f} x)"
            )


def markdown(policy: Policy, rounds: Sequence[Round]) -> Iterator[str]:
    """Lines of the table in docs/benchmarks.md."""
    for number, one in enumerate(median(rounds)):
        p50, p95, p99 = (f"{one.victim.percentile(share):.1f}" for share in (0.5, 0.95, 0.99))
        limit = f"<= {policy.limit:g} x" if policy.limit and one.attack else ""
        other = f"{one.waits.others_cores:.2f}" if one.waits else ""
        ratio = f"{one.ratio:.2f} x ({ratios(rounds, number)})" if one.attack else ""
        yield (
            f"| {policy.name} | {one.name} | {p50} / {p95} / {p99} | {ratio} | {limit} "
            f"| {meanwhile(one)} | {other} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each policy's drill")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--rate", type=float, default=30.0, help="of the victim, per second")
    parser.add_argument("--policy", help="only the policies with this in their name")
    parser.add_argument("--noise", type=Attack, action="append", help="only this; may be repeated")
    parser.add_argument("--plot", type=Path, help="picture of the first policy")
    parser.add_argument("--json", type=Path, help="all figures")
    parser.add_argument("--markdown", action="store_true", help="the table for the docs, too")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        f"{'policy':28} {'beside':9} {'p50 ms':>7} {'p95 ms':>7} {'p99 ms':>7} {'x p99':>6} "
        f"{'failed':>7}  the noisy tenant"
    )
    chosen = [policy for policy in POLICIES if (options.policy or "") in policy.name]
    found: list[tuple[Policy, Verdict]] = []
    data = {}
    head = (
        "policy|victim beside|p50 / p95 / p99 ms|against alone: median (rounds)|limit|noisy tenant|"
        "other cores"
    )
    rows = [f"|{head}|", "|---" * 7 + "|"]
    for policy in chosen:
        attacks = tuple(options.noise) if options.noise else policy.attacks
        plan = Plan(attacks=attacks, seconds=options.seconds, rate=options.rate)
        with HeldUp() as held_up:
            rounds = run_policy(policy, plan, options.rows, options.rounds)
        print(*machine(policy, rounds, held_up), sep="\n", flush=True)
        measured = median(rounds)
        if policy.limit is not None:  # the others are there for contrast
            failures = [v for one in rounds for v in verdicts(one, Limits(ratio=None))]
            judged = dict.fromkeys((*failures, *verdicts(measured, policy.limits)))
            found += [(policy, verdict) for verdict in judged]
        data[policy.name] = [as_data(one, policy.limits, rows=options.rows) for one in rounds]
        rows += markdown(policy, rounds)
        if options.plot and policy is chosen[0]:
            told = f"{caption(data[policy.name][0])}; the median of {options.rounds} rounds each"
            plot(measured, policy.limits, options.plot, told)
    for policy, verdict in found:
        held = "held" if verdict.has_held else "NOT HELD"
        print(f"{held}: {policy.name}: {verdict.text}")
    if options.markdown:
        print(*rows, sep="\n")
    if options.json:
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if not all(verdict.has_held for _, verdict in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
