"""The master in a real Dask scheduler process on a real etcd: its start, page, routes, RPC."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from distributed import rpc
from simulated_world import make_dataset
from store_support import etcd_members
from tornado.websocket import websocket_connect

from accel_dask.config import StoreSettings
from accel_dask.model.cluster import ClusterView
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Tenant
from accel_dask.niceness import BEHIND_QUERIES
from accel_dask.store.etcd import EtcdStore
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import put_record

pytestmark = pytest.mark.cluster

START_SECONDS = 40


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class MasterProcess:
    """A Dask scheduler with our preload."""

    settings: StoreSettings
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> MasterProcess:
        self.port, self.web = free_port(), free_port()
        environ = os.environ | {
            "ACCEL_STORE_ENDPOINTS": ",".join(self.settings.endpoints),
            "ACCEL_STORE_PREFIX": self.settings.prefix,
            "ACCEL_MASTER_LEASE_SECONDS": "2",
        }
        environ.pop("ACCEL_CONFIG", None)
        command = (sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1")
        options = ("--port", str(self.port), "--dashboard-address", f"127.0.0.1:{self.web}")
        preload = ("--preload", "accel_dask.scheduler_plugin.preload")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                (*command, *options, *preload), env=environ, stdout=log, stderr=log
            )
        return self

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.web}/{path}"

    def get(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url(path), data=body, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("accel/state.json")[1])
        return found

    def wait_until_it_leads(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if self.state().get("is_leader"):
                    return
            except OSError:
                pass
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"no leader in time:\n{self.log.read_text()}")

    def stop(self, how: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def settings() -> Iterator[StoreSettings]:
    with etcd_members() as etcd:
        yield StoreSettings(endpoints=etcd.endpoints, prefix="/accel/master-test/v1")


@pytest.fixture(scope="module")
def store(settings: StoreSettings) -> Iterator[EtcdStore]:
    with EtcdStore(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def master(
    settings: StoreSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MasterProcess]:
    started = MasterProcess(settings, tmp_path_factory.mktemp("master") / "log").start()
    try:
        started.wait_until_it_leads()
        yield started
    finally:
        assert started.process is not None
        if started.process.poll() is None:
            started.stop()


def test_the_page_its_tab_its_plot_and_its_metrics_are_there(master: MasterProcess) -> None:
    status, html = master.get("accel")
    assert status == 200
    assert 'href="accel"' in html
    assert 'href="accel"' in master.get("status")[1], "the tab is on all pages"
    plots = json.loads(master.get("individual-plots.json")[1])
    assert plots["Individual Accel Queries"] == "/individual-accel-queries"
    assert master.get("individual-accel-queries")[0] == 200
    assert "accel_master_is_leader 1.0" in master.get("metrics")[1]
    assert master.get("health")[0] == 200, "Dask's own routes are still there"


def test_the_master_lets_queries_go_first(master: MasterProcess) -> None:
    assert master.process is not None
    found = os.getpriority(os.PRIO_PROCESS, master.process.pid)
    assert found == max(os.getpriority(os.PRIO_PROCESS, 0), BEHIND_QUERIES)


def test_the_webhook_writes_a_request_and_refuses_nonsense(
    master: MasterProcess, store: EtcdStore
) -> None:
    flights = make_dataset()
    put_record(store, Tenant(tenant=TenantId("acme")))
    put_record(store, flights)

    def is_asked(view: ClusterView) -> bool:
        return view.publish_request(flights.dataset_id) is not None

    with Mirror(store).start() as mirror:
        deadline = time.monotonic() + 10
        body = b'{"tenant": "acme", "dataset": "flights"}'
        status, text = master.get("accel/publish", body)
        while status == 400 and time.monotonic() < deadline:  # its view may be a moment behind
            status, text = master.get("accel/publish", body)
        assert status == 202
        view = mirror.wait_for(is_asked, 10)
        request = view.publish_request(flights.dataset_id)
        assert request is not None
        assert request.nonce == json.loads(text)["nonce"]
        assert request.requested_by == "webhook 127.0.0.1"
    assert master.get("accel/publish", b"nonsense")[0] == 400
    status, text = master.get("accel/publish", b'{"tenant": "acme", "dataset": "other"}')
    assert (status, json.loads(text)["code"]) == (400, "CONFIG_ERROR")
    assert master.state()["requests"][0]["waiting_for"] == "no host is alive"


def test_status_and_publish_answer_over_dasks_own_rpc(master: MasterProcess) -> None:
    async def ask() -> tuple[dict[str, Any], str]:
        async with rpc(master.address) as scheduler:
            state = await scheduler.accel_status()
            try:
                await scheduler.accel_publish(tenant="no", dataset="such")
            except Exception as error:  # noqa: BLE001 - whatever class arrives, its text counts
                return state, str(error)
            return state, ""

    state, refused = asyncio.run(ask())
    assert state["is_leader"]
    assert refused == "there is no dataset no.such; create it first"


def test_the_page_is_alive_in_a_browser(master: MasterProcess, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    port = free_port()
    browser = subprocess.Popen(
        (
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--remote-debugging-port={port}",
            f"--user-data-dir={tmp_path}",
            "--window-size=1500,1200",
            "about:blank",
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        text, image = asyncio.run(look_at(port, master.url("accel")))
    finally:
        browser.terminate()
        browser.wait(20)
    for part in ("this master", "Datasets", "Epochs", "Executors", "Hosts", "Gateways"):
        assert part in text
    assert "this master leads" in text
    assert len(image) > 10_000


async def look_at(port: int, url: str) -> tuple[str, bytes]:
    """The page's text, shadow roots included, and a picture of it, once it shows its tables."""
    read_text = """(() => { const read = node => [...node.childNodes].map(child =>
        child.nodeType === 3 ? child.textContent : child.tagName === 'STYLE' ? '' :
        read(child.shadowRoot || child)).join(' '); return read(document.body); })()"""
    tab = await debugger_of(port)
    socket_ = await websocket_connect(tab, max_message_size=50_000_000)
    calls = 0

    async def call(method: str, **params: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        await socket_.write_message(json.dumps({"id": calls, "method": method, "params": params}))
        while True:
            message = await socket_.read_message()
            assert message is not None
            answer = json.loads(message)
            if answer.get("id") == calls:
                result: dict[str, Any] = answer["result"]
                return result

    await call("Page.enable")
    await call("Page.navigate", url=url)
    deadline = time.monotonic() + 30
    text = ""
    while "Gateways" not in text and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        found = await call("Runtime.evaluate", expression=read_text)
        text = found["result"].get("value", "")
    picture = await call("Page.captureScreenshot", format="png")
    return text, base64.b64decode(picture["data"])


def tabs_of(port: int) -> list[dict[str, str]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
        tabs: list[dict[str, str]] = json.load(answer)
        return tabs


async def debugger_of(port: int) -> str:
    deadline = time.monotonic() + 30
    while True:
        try:
            tabs = await asyncio.to_thread(tabs_of, port)
            return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        except (OSError, StopIteration):
            assert time.monotonic() < deadline, "the browser did not come up"
            await asyncio.sleep(0.2)


def test_a_stopped_master_gives_up_its_leadership_at_once(
    settings: StoreSettings, store: EtcdStore, tmp_path: Path
) -> None:
    own = StoreSettings(endpoints=settings.endpoints, prefix="/accel/stop-test/v1")
    first = MasterProcess(own, tmp_path / "log").start()
    first.wait_until_it_leads()
    with EtcdStore(own) as opened, Mirror(opened).start() as mirror:
        assert mirror.view.leader is not None
        first.stop()
        mirror.wait_for(lambda view: view.leader is None, 1.5, "the leader record to go")


def test_a_killed_master_is_replaced_when_its_lease_ends(
    settings: StoreSettings, tmp_path: Path
) -> None:
    own = StoreSettings(endpoints=settings.endpoints, prefix="/accel/kill-test/v1")
    first = MasterProcess(own, tmp_path / "first").start()
    first.wait_until_it_leads()
    second = MasterProcess(own, tmp_path / "second").start()
    try:
        first.stop(signal.SIGKILL)
        second.wait_until_it_leads()
    finally:
        second.stop()


def test_a_scheduler_without_a_store_ends_with_one_clear_line(tmp_path: Path) -> None:
    nowhere = StoreSettings(endpoints=(f"127.0.0.1:{free_port()}",), prefix="/accel/none/v1")
    lost = MasterProcess(nowhere, tmp_path / "log").start()
    assert lost.process is not None
    assert lost.process.wait(START_SECONDS) == 1
    lines = [line for line in lost.log.read_text().splitlines() if line.startswith("accel-dask:")]
    assert len(lines) == 1
    assert "this scheduler cannot be a master" in lines[0]
    assert nowhere.endpoints[0] in lines[0]
