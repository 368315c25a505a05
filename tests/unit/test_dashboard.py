"""The /accel page's tables, the metrics and the webhook's body: all that needs no process."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from simulated_world import World, make_dataset, shard_task

from accel_dask.errors import ConfigError
from accel_dask.model.executor import ExecutorState
from accel_dask.model.ids import GatewayId, Revision, TenantId
from accel_dask.model.member import Gateway, TenantLoad
from accel_dask.model.tenant import MIB
from accel_dask.scheduler_plugin.dashboard import _parse_publish
from accel_dask.scheduler_plugin.metrics import AccelCollector
from accel_dask.scheduler_plugin.page import age, mib, render_overview, render_tables
from accel_dask.scheduler_plugin.plugin import AccelSchedulerPlugin
from accel_dask.scheduler_plugin.summary import queries_per_second, summarize

FLIGHTS = make_dataset()


def state_of(world: World, **more: Any) -> dict[str, Any]:
    state = summarize(world.view, world.now_ns)
    return state | {"is_leader": True, "loads": [], "story": []} | more


def busy_world() -> World:
    """Epoch 1 serves, epoch 2 loads, a gateway reports, a request waits."""
    world = World().begin(hosts=1)
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, ["a"])
    world.settle()
    world.publish(FLIGHTS, ["a", "b"], sequence=2)
    world.request(FLIGHTS, "next")
    world.write(
        Gateway(
            gateway=GatewayId("gw-1"),
            address="grpc://127.0.0.1:1",
            applied_revision=Revision(1),
            queries=1_234,
            queries_per_second=12.5,
            per_tenant=(("acme", 12.5),),
            admission=(
                TenantLoad(tenant=TenantId("acme"), share=3, in_use=2, queued=7, shed=4_321),
            ),
        )
    )
    return world


def test_an_empty_cluster_has_a_page_that_says_so() -> None:
    html = render_tables(state_of(World()))
    assert "no dataset is declared" in html
    assert "no host is alive" in html
    assert "Publish requests" not in html
    assert "no leader" in render_overview(state_of(World(), is_leader=False))


def test_the_page_shows_what_operators_ask_for() -> None:
    world = busy_world()
    html = render_tables(state_of(world))
    for text in (
        '<span class="chip READY">READY</span>',
        '<span class="chip LOADING">LOADING</span>',
        "1 of 2 replicas are READY; to load: 1 on host-1",
        "epoch 2 is on its way",
        "flights@1",
        "4,321",
        "1,234",
        "acme 12.5",
        "1.0 MiB of 1.00 GiB",
    ):
        assert text in html
    assert "<b>12.5</b><span>queries per second</span>" in render_overview(state_of(world))


def test_a_failed_executor_is_shown_with_its_reason() -> None:
    world = busy_world()
    world.put_executor(world.plans("host-1")[-1], ExecutorState.FAILED, "out of memory")
    html = render_tables(state_of(world))
    assert '<span class="chip FAILED">FAILED</span>' in html
    assert "out of memory" in html
    assert 'class="tile bad"><b>0 / 1</b>' in render_overview(state_of(world))


def test_whatever_a_record_says_is_only_text_on_the_page() -> None:
    world = World().begin(hosts=1)
    evil = make_dataset(name="<script>alert(1)</script>")
    world.declare(evil)
    world.publish(evil, ["a"])
    worker = next(iter(world.view.workers.values())).record
    world.write(replace(worker, enforcement="<img src=x onerror=alert(1)>"))
    world.fail_load("host-1", "a", retryable=False, code="<b>")
    world.reconcile()
    story = [{"seconds_ago": 1.0, "sentence": "</ul><script>"}]
    html = render_tables(state_of(world, story=story))
    assert "<script" not in html
    assert "<img" not in html
    assert "<b>" not in html


def test_a_tenant_over_its_budget_has_a_red_bar() -> None:
    world = World().begin(hosts=1, memory_bytes_per_host=600 * MIB)
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, [shard_task("a")])
    world.settle()
    assert 'class="bar full"' not in render_tables(state_of(world))
    tenant = next(t for t in world.view.records(type(world.view.tenant("acme"))))  # type: ignore[arg-type]
    world.write(replace(tenant, quota=replace(tenant.quota, memory_bytes_per_host=MIB // 2)))
    assert 'class="bar full"' in render_tables(state_of(world))


def test_the_summary_is_plain_json_without_secrets() -> None:
    world = busy_world()
    text = json.dumps(state_of(world))
    meta = world.view.meta
    assert meta is not None
    assert "ticket_key" not in text
    assert "token_sha256" not in text


def test_rates_add_up_over_gateways() -> None:
    world = busy_world()
    gateway = next(world.view.records(Gateway))
    world.write(replace(gateway, gateway=GatewayId("gw-2"), per_tenant=(("acme", 1.0), ("b", 2.0))))
    assert queries_per_second(world.view) == {"acme": 13.5, "b": 2.0}


def test_the_metrics_are_what_the_summary_says() -> None:
    world = busy_world()
    registry = CollectorRegistry()
    collector = AccelCollector(lambda: state_of(world))
    registry.register(collector)
    text = generate_latest(registry).decode()
    assert "accel_master_is_leader 1.0" in text
    assert 'accel_dataset_epoch{dataset="flights",tenant="acme"} 1.0' in text
    assert 'accel_epochs{dataset="flights",state="LOADING",tenant="acme"} 1.0' in text
    assert 'accel_tenant_queries_per_second{tenant="acme"} 12.5' in text
    assert 'accel_host_shard_bytes{host="host-1"} 1.048576e+06' in text


def test_registering_the_metrics_asks_for_no_state_yet() -> None:
    def not_there_yet() -> dict[str, Any]:
        raise AssertionError("half built")

    CollectorRegistry().register(AccelCollector(not_there_yet))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"tenant": 1, "dataset": "d"}',
        b'{"tenant": "t", "dataset": "d", "snapshot": 7}',
        b"\xff\xfe",
        b'{"tenant": "' + b"x" * 20_000 + b'", "dataset": "d"}',
    ],
)
def test_a_bad_webhook_body_is_refused(body: bytes) -> None:
    with pytest.raises(ConfigError):
        _parse_publish(body)


def test_a_good_webhook_body_is_understood() -> None:
    assert _parse_publish(b'{"tenant": "t", "dataset": "d"}') == ("t", "d", None)
    assert _parse_publish(b'{"tenant": "t", "dataset": "d", "snapshot": "7"}') == ("t", "d", "7")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7300, "2 h 1 min")]
)
def test_ages_are_for_people(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_sizes_are_for_people() -> None:
    assert mib(0) == "0.0 MiB"
    assert mib(3 * 512 * MIB) == "1.50 GiB"


def test_dask_may_take_away_only_hosts_that_hold_nothing() -> None:
    world = busy_world()
    world.host_up("host-2")
    plugin = AccelSchedulerPlugin()
    workers = [SimpleNamespace(name="host-1"), SimpleNamespace(name="host-2")]
    assert plugin.valid_workers_downscaling(None, workers) == [], "before it knows anything"
    plugin.controller = SimpleNamespace(view=world.view)  # type: ignore[assignment]
    assert [w.name for w in plugin.valid_workers_downscaling(None, workers)] == ["host-2"]
