"""How Flight's calls move bytes in a process that serves queries."""

from __future__ import annotations

import os
from typing import Final

_EXPERIMENTS: Final = "GRPC_EXPERIMENTS"
_CALLING_THREADS: Final = "-event_engine_client,-event_engine_listener"


def use_calling_threads() -> None:
    """Have gRPC read and write sockets on the threads that wait for them, not on a pool of its
    own: a call of a millisecond then wakes half as many threads and takes two thirds of the time.

    To be called before a process uses Flight for the first time, and after it has connected by
    the Python package grpcio, which reads the same variable when it is loaded and then answers
    nothing. What the operator has set for gRPC stays.
    """
    os.environ.setdefault(_EXPERIMENTS, _CALLING_THREADS)
