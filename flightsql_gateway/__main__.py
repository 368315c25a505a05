"""`python -m flightsql_gateway`: one gateway, as the settings and the environment say.

Prints `READY <url>` when it serves. SIGTERM or SIGINT drains it and ends it.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import threading
from dataclasses import replace

from accel_dask.config import load_settings
from accel_dask.errors import AccelError
from accel_dask.store.connect import open_store
from accel_dask.transport import use_calling_threads
from flightsql_gateway.app import DRAIN_SECONDS, GatewayApp
from flightsql_gateway.short_turns import take_short_turns

log = logging.getLogger("flightsql_gateway")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="flightsql_gateway", description=__doc__)
    parser.add_argument("--config", help="settings file (TOML); default: $ACCEL_CONFIG")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0: any free one")
    parser.add_argument("--metrics-port", type=int, help="port of Prometheus metrics; 0: none")
    parser.add_argument("--drain-seconds", type=float, default=DRAIN_SECONDS)
    parser.add_argument("--log-level", default="INFO")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    take_short_turns()  # before there are other threads
    logging.getLogger("sqlglot").setLevel(logging.ERROR)
    # Flight sends the traceback of what a handler raises; there must be none to send.
    sys.tracebacklimit = 0
    # Many threads hand the interpreter to each other for a few microseconds of work each.
    sys.setswitchinterval(0.0005)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        return _serve(options, stop)
    except AccelError as error:
        log.error("%s", error)
        return 1


def _serve(options: argparse.Namespace, stop: threading.Event) -> int:
    settings = load_settings(options.config)
    overrides = {
        name: value
        for name in ("host", "port", "metrics_port")
        if (value := getattr(options, name)) is not None
    }
    store = open_store(settings.store)
    use_calling_threads()  # not before: the store's own gRPC works with its pool alone
    app = GatewayApp(replace(settings.gateway, **overrides), store)
    try:
        url = app.start()
        # What is there by now stays: a full collection that looks through all of it takes as long
        # as several queries.
        gc.collect()
        gc.freeze()
        print(f"READY {url}", flush=True)  # noqa: T201 - who started this waits for it
        stop.wait()
        log.info("draining for at most %.0f s", options.drain_seconds)
    finally:
        is_drained = app.close(options.drain_seconds)
        store.close()
    if not is_drained:
        log.warning("queries were still running; they end here")
        logging.shutdown()
        os._exit(0)  # Flight's threads cannot be stopped otherwise
    return 0


if __name__ == "__main__":
    sys.exit(main())
