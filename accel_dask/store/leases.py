"""What every store's leases have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

LEASE_MARGIN: Final = 0.1
"""The part of a lease's life that its holder does not rely on: clocks run differently."""


def allows(may_renew: Callable[[], bool] | None) -> bool:
    """The watchdog's word; one that fails does not vouch for anything."""
    try:
        return may_renew is None or may_renew()
    except Exception:  # foreign code on the keeper's thread
        logger.exception("the watchdog of a lease failed; the lease is not renewed")
        return False


def tell(on_lost: Callable[[], None] | None) -> None:
    """Call the holder; its failure must not end the thread that keeps leases."""
    try:
        if on_lost is not None:
            on_lost()
    except Exception:  # foreign code on the keeper's thread
        logger.exception("the holder of a lease failed when it was told of the loss")
