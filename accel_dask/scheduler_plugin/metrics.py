"""The master's Prometheus metrics, on the scheduler's own `/metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Row = dict[str, Any]


class AccelCollector(Collector):
    """Gauges made from the summary whenever they are scraped."""

    def __init__(self, summary: Callable[[], Row]) -> None:
        self._summary = summary

    def describe(self) -> list[Metric]:
        """Nothing: else registering would ask for a summary that is not there yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        state = self._summary()
        yield _gauge("accel_master_is_leader", "1 on the master that leads", [((), _flag(state))])
        yield _gauge("accel_view_revision", "Store revision of the view", [((), state["revision"])])
        yield from _datasets(state)
        yield from _hosts(state)
        yield from _executors(state)
        yield from _gateways(state)


Sample = tuple[tuple[str, ...], float]


def _gauge(name: str, text: str, samples: list[Sample], labels: tuple[str, ...] = ()) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in samples:
        family.add_metric([str(label) for label in values], float(value))
    return family


def _flag(state: Row) -> float:
    return 1.0 if state.get("is_leader") else 0.0


def _datasets(state: Row) -> Iterator[Metric]:
    labels = ("tenant", "dataset")
    rows = state["datasets"]

    def of(field: str) -> list[Sample]:
        return [((r["tenant"], r["dataset"]), r[field] or 0) for r in rows]

    yield _gauge("accel_dataset_epoch", "Epoch that is served, 0: none", of("epoch"), labels)
    yield _gauge("accel_dataset_rows", "Rows of the epoch that is served", of("rows"), labels)
    yield _gauge("accel_dataset_bytes", "Bytes of its shard files, once each", of("bytes"), labels)
    yield _gauge(
        "accel_dataset_age_seconds", "Since the epoch is served", of("since_seconds"), labels
    )
    counts: dict[tuple[str, ...], float] = {}
    for row in state["epochs"]:
        key = (row["tenant"], row["dataset"], row["state"])
        counts[key] = counts.get(key, 0) + 1
    yield _gauge("accel_epochs", "Epochs by state", list(counts.items()), (*labels, "state"))
    yield _gauge(
        "accel_publish_requests", "Publish requests not answered", [((), len(state["requests"]))]
    )


def _hosts(state: Row) -> Iterator[Metric]:
    rows = state["hosts"]
    yield _gauge("accel_hosts", "Live worker hosts", [((), len(rows))])
    yield _gauge(
        "accel_host_enforcement",
        "1; the label says how a host holds processes to their budgets",
        [((r["host"], r["enforcement"]), 1) for r in rows],
        ("host", "enforcement"),
    )
    for field, text in (
        ("memory_bytes", "Memory that a host offers"),
        ("shard_bytes", "Bytes of the shard files of a host"),
        ("executor_bytes", "Resident bytes of a host's executors"),
        ("shards", "READY replicas of a host"),
        ("failed", "FAILED replicas of a host"),
    ):
        samples: list[Sample] = [((r["host"],), r[field]) for r in rows]
        yield _gauge(f"accel_host_{field}", text, samples, ("host",))


def _executors(state: Row) -> Iterator[Metric]:
    counts: dict[tuple[str, ...], float] = {}
    for row in state["executors"]:
        key = (row["tenant"], row["host"], row["state"])
        counts[key] = counts.get(key, 0) + 1
    yield _gauge(
        "accel_executors", "Executors by state", list(counts.items()), ("tenant", "host", "state")
    )


def _gateways(state: Row) -> Iterator[Metric]:
    rows = state["gateways"]
    yield _gauge("accel_gateways", "Live gateways", [((), len(rows))])
    for field, text in (
        ("queries_per_second", "Queries per second of a gateway"),
        ("p50_ms", "Median latency in ms of a gateway"),
        ("p99_ms", "99th percentile of the latency in ms of a gateway"),
    ):
        samples: list[Sample] = [((r["gateway"],), r[field]) for r in rows]
        yield _gauge(f"accel_gateway_{field}", text, samples, ("gateway",))
    tenants: list[Sample] = [((t,), rate) for t, rate in state["queries_per_second"].items()]
    yield _gauge("accel_tenant_queries_per_second", "Queries per second", tenants, ("tenant",))
