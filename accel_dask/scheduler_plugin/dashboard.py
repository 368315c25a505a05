"""The operators' page /accel on the Dask dashboard, its plot for notebooks, and its HTTP routes.

`register_pages` must run before the scheduler builds its web application; this is the one file
that touches what Dask's dashboard does not document as its API.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from typing import Any, Final

import dask
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, InlineStyleSheet, NumeralTickFormatter, Range1d
from bokeh.models.widgets import Div
from bokeh.palettes import Category10
from bokeh.plotting import figure
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.scheduler import env, individual_doc
from distributed.dashboard.scheduler import applications, template_variables
from distributed.http.utils import RequestHandler

from accel_dask.errors import AccelError, ConfigError
from accel_dask.scheduler_plugin.page import STYLE, render_overview, render_tables
from accel_dask.scheduler_plugin.plugin import plugin_of

logger = logging.getLogger(__name__)

PAGE: Final = "accel"
_UPDATE_MS: Final = 1000
_WINDOW_SECONDS: Final = 300.0
_MAX_TENANT_LINES: Final = 10
_MAX_BODY_BYTES: Final = 16 * 1024


def register_pages() -> None:
    """Add the page, its plot and the routes to those of the scheduler being built."""
    applications[f"/{PAGE}"] = accel_doc
    applications["/individual-accel-queries"] = individual_doc(QueryRates, _UPDATE_MS)
    routes_config = list(dask.config.get("distributed.scheduler.http.routes"))
    if __name__ not in routes_config:
        dask.config.set({"distributed.scheduler.http.routes": [*routes_config, __name__]})


def add_tab(scheduler: Any) -> None:
    """Show the page in the navigation bar of all pages."""
    pages = template_variables(scheduler)["pages"]
    if PAGE not in pages:
        pages.insert(0, PAGE)


class QueryRates:
    """Queries per second of each tenant over the last minutes."""

    def __init__(self, scheduler: Any, **options: Any) -> None:
        self._scheduler = scheduler
        self.source: Any = ColumnDataSource({"x": [], "y": [], "tenant": [], "color": []})
        self.root: Any = figure(
            title="Queries per second, by tenant",
            x_axis_type="datetime",
            y_range=Range1d(start=0, end=1),
            tools="",
            toolbar_location=None,
            **options,
        )
        self.root.multi_line(
            xs="x", ys="y", color="color", line_width=2, legend_field="tenant", source=self.source
        )
        self.root.yaxis.formatter = NumeralTickFormatter(format="0,0.[0]")
        self.root.legend.location = "top_left"
        self.root.legend.border_line_alpha = 0
        self.root.legend.background_fill_alpha = 0.6

    def update(self) -> None:
        """Take over what was sampled since."""
        try:
            samples = list(plugin_of(self._scheduler).rates)
        except ConfigError:
            return
        if not samples:
            return
        since = samples[-1][0] - _WINDOW_SECONDS
        samples = [sample for sample in samples if sample[0] >= since]
        tenants = sorted({tenant for _, rates in samples for tenant in rates})
        times = [at * 1000 for at, _ in samples]
        shown = tenants[:_MAX_TENANT_LINES]
        lines = [[rates.get(tenant, 0.0) for _, rates in samples] for tenant in shown]
        self.source.data = {
            "x": [times] * len(shown),
            "y": lines,
            "tenant": shown,
            "color": list(Category10[10][: len(shown)]),
        }
        highest = max((rate for line in lines for rate in line), default=0.0)
        self.root.y_range.end = max(1.0, 1.15 * highest)


class AccelPage:
    """All of the page."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        style = InlineStyleSheet(css=STYLE)
        self._overview = Div(sizing_mode="stretch_width", stylesheets=[style])
        self._tables = Div(sizing_mode="stretch_width", stylesheets=[style])
        self._rates = QueryRates(scheduler, height=190, sizing_mode="stretch_width")
        self.source = self._rates.source
        self.root = column(
            self._overview, self._rates.root, self._tables, sizing_mode="stretch_width"
        )

    def update(self) -> None:
        """Show the present state."""
        try:
            state = plugin_of(self._scheduler).state()
        except ConfigError as error:
            self._overview.text = str(error)
            return
        self._overview.text = render_overview(state)
        self._tables.text = render_tables(state)
        self._rates.update()


def accel_doc(scheduler: Any, extra: Mapping[str, Any], doc: Any) -> None:
    """Build the page for one visitor."""
    page = AccelPage(scheduler)
    page.update()
    add_periodic_callback(doc, page, _UPDATE_MS)
    doc.title = "accel-dask"
    doc.add_root(page.root)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)


class StateHandler(RequestHandler):
    """GET accel/state.json: what the page shows."""

    def get(self) -> None:
        try:
            _answer(self, 200, plugin_of(self.server).state())
        except ConfigError as error:
            _answer(self, 503, {"code": error.code, "message": str(error)})


class PublishHandler(RequestHandler):
    """POST accel/publish with {"tenant", "dataset", "snapshot"?}: a hint that there is a new
    snapshot. The source is asked; the hint itself is not believed."""

    async def post(self) -> None:
        try:
            tenant, dataset, snapshot = _parse_publish(self.request.body)
            by = f"webhook {self.request.remote_ip}"
            nonce = await plugin_of(self.server).request_publish(tenant, dataset, snapshot, by)
            _answer(self, 202, {"nonce": nonce})
        except ConfigError as error:
            _answer(self, 400, {"code": error.code, "message": str(error)})
        except AccelError as error:
            _answer(self, 503, {"code": error.code, "message": str(error)})


def _parse_publish(body: bytes) -> tuple[str, str, str | None]:
    if len(body) > _MAX_BODY_BYTES:
        raise ConfigError(f"the body is larger than {_MAX_BODY_BYTES} bytes")
    message: Any = None
    with contextlib.suppress(ValueError):
        message = json.loads(body)
    if not isinstance(message, dict):
        raise ConfigError('the body must be JSON: {"tenant": ..., "dataset": ...}')
    tenant, dataset = message.get("tenant"), message.get("dataset")
    snapshot = message.get("snapshot")
    if not (isinstance(tenant, str) and isinstance(dataset, str)):
        raise ConfigError('"tenant" and "dataset" must be texts')
    if snapshot is not None and not isinstance(snapshot, str):
        raise ConfigError('"snapshot" must be a text (the source\'s own snapshot id)')
    return tenant, dataset, snapshot


def _answer(handler: Any, status: int, body: Mapping[str, Any]) -> None:
    handler.set_status(status)
    handler.set_header("Content-Type", "application/json")
    handler.write(json.dumps(body))


routes: list[tuple[str, type, dict[str, Any]]] = [
    (r"accel/state.json", StateHandler, {}),
    (r"accel/publish", PublishHandler, {}),
]
