"""Prometheus metrics of a gateway, on a port of their own if one is set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flightsql_gateway.admission import Admission
from flightsql_gateway.auth import Identity
from flightsql_gateway.fallback.engine_figures import BUCKETS
from flightsql_gateway.fallback.governor import Fallback
from flightsql_gateway.receipts import Receipt

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


_GAUGES: Final = {
    "share": "Queries that a tenant may run at once in this gateway",
    "in_use": "Queries that run",
    "queued": "Queries that wait for a place",
}


class _Places(Collector):
    """Reads the places when it is asked, so that queries need not count for it."""

    def __init__(self, admission: Admission, settle: Callable[[], None]) -> None:
        self._admission = admission
        self._settle = settle

    def collect(self) -> Iterator[Metric]:
        self._settle()  # registered first, so that the other metrics are up to date as well
        loads = self._admission.loads()
        for name, told in _GAUGES.items():
            gauge = GaugeMetricFamily(f"accel_gateway_{name}", told, labels=("tenant",))
            for load in loads:
                gauge.add_metric((load.tenant,), getattr(load, name))
            yield gauge
        shed = CounterMetricFamily(
            "accel_gateway_shed", "Queries refused for want of a place", labels=("tenant", "reason")
        )
        for (tenant, reason), count in sorted(self._admission.shed().items()):
            shed.add_metric((tenant, reason), count)
        yield shed


class _Engines(Collector):
    """What tenants' queries at OLAP engines came to, read when it is asked."""

    def __init__(self, fallback: Fallback) -> None:
        self._fallback = fallback

    def collect(self) -> Iterator[Metric]:
        labels = ("tenant", "engine")
        queries = CounterMetricFamily(
            "accel_gateway_engine_queries", "Queries at engines", labels=(*labels, "outcome")
        )
        refused = CounterMetricFamily(
            "accel_gateway_engine_refused", "Queries not sent to an open breaker", labels=labels
        )
        running = GaugeMetricFamily(
            "accel_gateway_engine_running", "Queries that are at an engine", labels=labels
        )
        breaker = GaugeMetricFamily(
            "accel_gateway_engine_breaker_open", "1: the engine is left alone", labels=labels
        )
        seconds = HistogramMetricFamily(
            "accel_gateway_engine_seconds", "Time of a query at an engine", labels=labels
        )
        for way in self._fallback.ways():
            of, counts = (way.tenant, way.name), way.counts()
            for outcome, count in counts.outcomes:
                queries.add_metric((*of, outcome), count)
            refused.add_metric(of, counts.refused)
            running.add_metric(of, counts.running)
            breaker.add_metric(of, float(way.state == "open"))
            below = [*accumulate(counts.histogram)]
            bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
            seconds.add_metric(of, list(zip(bounds, below, strict=True)), counts.seconds)
        yield from (queries, refused, running, breaker, seconds)


class Metrics:
    """Observes receipts, the places of `admission` and the engines of `fallback`."""

    def __init__(
        self, admission: Admission, fallback: Fallback, settle: Callable[[], None] = lambda: None
    ) -> None:
        """`settle`: as for `Receipts`."""
        self.registry = CollectorRegistry()
        self.registry.register(_Places(admission, settle))
        self.registry.register(_Engines(fallback))
        self._queries = Counter(
            "accel_gateway_queries_total",
            "Queries by tenant and outcome",
            ("tenant", "outcome"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "accel_gateway_query_seconds",
            "Total time of a query",
            ("tenant",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._rows = Counter(
            "accel_gateway_rows_total", "Rows sent", ("tenant",), registry=self.registry
        )

    def observe(self, identity: Identity, receipt: Receipt) -> None:
        self._queries.labels(identity.tenant, receipt.outcome).inc()
        self._seconds.labels(identity.tenant).observe(receipt.total_ms / 1000)
        self._rows.labels(identity.tenant).inc(receipt.rows)

    def serve(self, port: int, host: str) -> None:
        """Answer scrapes on a thread of its own."""
        start_http_server(port, addr=host, registry=self.registry)
