"""Prometheus metrics of a gateway, on a port of their own if one is set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flightsql_gateway.admission import Admission
from flightsql_gateway.auth import Identity
from flightsql_gateway.receipts import Receipt

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


_GAUGES: Final = {
    "share": "Queries that a tenant may run at once in this gateway",
    "in_use": "Queries that run",
    "queued": "Queries that wait for a place",
}


class _Places(Collector):
    """Reads the places when it is asked, so that queries need not count for it."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
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


class Metrics:
    """Observes receipts, and the places of `admission`."""

    def __init__(self, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Places(admission))
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
