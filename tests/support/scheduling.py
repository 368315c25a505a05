"""Which tests share a process when several run them (`pytest -n`)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from xdist.scheduler import LoadScopeScheduling

CLUSTERS: Final = "clusters"
ENGINES: Final = "engines"
TOGETHER: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tests/cluster/": CLUSTERS,
        "tests/chaos/": CLUSTERS,
        "tests/property/test_distributed_queries.py": CLUSTERS,
        "tests/contract/test_olap_": ENGINES,
        "tests/property/test_olap_": ENGINES,
        "tests/conformance/test_client_fallback.py": ENGINES,
        "tests/conformance/test_gateway_fallback.py": ENGINES,
    }
)
"""By how paths begin. Clusters take what cores there are and would disturb each other's deadlines;
OLAP engines are started once per process."""


def group_of(nodeid: str) -> str:
    """What runs in one process, in its own order: a file, or several."""
    file = nodeid.split("::", maxsplit=1)[0]
    return next((name for start, name in TOGETHER.items() if file.startswith(start)), file)


def order_of(nodeid: str) -> int:
    """Clusters take longest and come first. Beside them runs what has no deadlines of its own; what
    has, comes when they are done."""
    group = group_of(nodeid)
    if group == CLUSTERS:
        return 0
    return 1 if group.startswith("tests/property/") else 2


class GroupScheduling(LoadScopeScheduling):
    """Groups in the order in which they were collected."""

    def __init__(self, config: Any, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def remove_node(self, node: Any) -> str | None:
        """What the process was at when it died (a test out of time ends it), which is not tried
        again; the rest of its groups is for others."""
        groups = self.assigned_work.pop(node)
        left = [
            (group, test) for group in groups.values() for test, done in group.items() if not done
        ]
        if not left:
            return None
        group, died = left[0]
        group[died] = True
        self.workqueue.update(
            {name: group for name, group in groups.items() if not all(group.values())}
        )
        for other in self.nodes:
            self._reschedule(other)
        return died

    def _reschedule(self, node: Any) -> None:
        if (
            node in self.registered_collections
        ):  # a process that took another's place collects first
            super()._reschedule(node)
