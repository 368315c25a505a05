"""The inputs of a query: parts that the tenant's other executors answer, fetched all at once.

All or nothing: an input is complete or the query fails. Nothing of a part whose stream broke is
used; it is asked for again, of another executor that can give the same part, as a whole.

The query's own thread sends the tickets and waits for all answers together. What would block it
(connecting, pings, calls by Flight) is done on others, and what comes of it is told by mail.
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import pyarrow as pa

from accel_dask.errors import (
    AccelError,
    ColdReadFailed,
    ExecutorUnavailable,
    InvariantViolated,
    MemoryLimit,
    NotResident,
    QueryCancelled,
    ResourceExhausted,
    RowLimit,
    StaleEpoch,
)
from accel_dask.model.measured import MeasuredPart
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import Input, Piece, Source, Ticket
from accel_dask.worker_plugin.executor.flight_call import FlightCall
from accel_dask.worker_plugin.executor.frame_call import FrameCall
from accel_dask.worker_plugin.executor.gathered import (
    InputMemory,
    Inputs,
    InputStats,
    input_memory_bytes,
)
from accel_dask.worker_plugin.executor.mailbox import Mailbox
from accel_dask.worker_plugin.executor.part_call import PartCall
from accel_dask.worker_plugin.executor.peers import PeerClients

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 0.25
"""A peer that is not heard of for this long is asked whether it is there."""
LOST_SECONDS: Final = 2.0
"""A peer that nobody can take the place of is given up after so long without a sign."""
_TICK_SECONDS: Final = 0.1
_TICK_MS: Final = 100
_THREADS_PER_QUERY: Final = 16
_SPARE_THREADS: Final = 16
_FRAME_SPARE_BYTES: Final = MIB
"""How much longer a frame may be than what is in it."""

_ELSEWHERE: Final = (
    ExecutorUnavailable,
    StaleEpoch,
    NotResident,
    ResourceExhausted,
    ColdReadFailed,
)
"""What another executor with the same data may do better."""


class Peers:
    """What an executor needs to ask its peers. Safe to use from several threads."""

    def __init__(self, tenant: str, quota: Quota, key: bytes) -> None:
        self.clients: Final = PeerClients()
        self.memory: Final = InputMemory(tenant, input_memory_bytes(quota))
        self.key: Final = key
        # Threads start with the first calls. They wait for peers and do nothing else.
        self._threads = ThreadPoolExecutor(
            quota.concurrency * _THREADS_PER_QUERY + _SPARE_THREADS, "peer"
        )

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` on a thread of the peers'.

        Raises:
            ExecutorUnavailable: there is no room for one more, or the executor ends.
        """
        try:
            self._threads.submit(work)
        except RuntimeError as error:
            raise ExecutorUnavailable("this executor has no thread left to ask others") from error

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.clients.close()


class _Share:
    """One piece: who is asked for it now, and what has come of it."""

    def __init__(self, of: Input, piece: Piece, clients: PeerClients) -> None:
        self.of: Final = of
        # A peer that hangs costs seconds each time: until the others know, it comes last.
        self.sources: Final = deque(
            sorted(piece.alternatives, key=lambda source: clients.was_silent(source.address))
        )
        self.batches: list[pa.RecordBatch] = []
        self.schema: pa.Schema | None = None
        self.call: PartCall | None = None
        """None: not asked yet, or complete."""
        self.failure: AccelError | None = None
        self.asked_at = time.monotonic()
        self.asked = 0
        """Executors so far."""

    def measured(self, call: PartCall) -> MeasuredPart:
        """Of the call that gave all of it."""
        told = call.measured()
        return MeasuredPart(
            address=call.source.address,
            rows=sum(batch.num_rows for batch in self.batches),
            bytes=sum(batch.nbytes for batch in self.batches),
            ms=round((time.monotonic() - self.asked_at) * 1000, 3),
            cpu_ms=told.cpu_ms if told else 0.0,
            scanned_rows=told.scanned_rows if told else None,
            alternatives=self.asked - 1,
        )


@dataclass(frozen=True, slots=True)
class _Sent:
    """The ticket is on its way; or it is not."""

    share: _Share
    call: FrameCall
    failure: BaseException | None


@dataclass(frozen=True, slots=True)
class _Ended:
    share: _Share
    call: FlightCall
    failure: BaseException | None


@dataclass(frozen=True, slots=True)
class _Silent:
    """The peer leaves pings unanswered."""

    share: _Share
    call: PartCall


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class Fetch:
    """Fetches the inputs of one query. `run` by one thread, stopped by any."""

    def __init__(self, peers: Peers, ticket: Ticket, deadline: float) -> None:
        """`deadline`: monotonic seconds."""
        self._peers: Final = peers
        self._ticket: Final = ticket
        self._deadline: Final = deadline
        self._mail: Mailbox[_Sent | _Ended | _Silent | _Stop] = Mailbox()
        self._lock = threading.Lock()
        """Guards what calls by Flight add, from their own threads."""
        self._is_over = False
        self._rows: dict[str, int] = dict.fromkeys((one.name for one in ticket.inputs), 0)
        self._bytes: dict[str, int] = dict(self._rows)
        self._shares = [
            _Share(one, piece, peers.clients)
            for one in ticket.inputs
            for piece in _asked(one, ticket)
        ]
        self._streams: dict[int, tuple[_Share, FrameCall]] = {}
        """Calls that frames are read of, by their sockets."""
        self._poll: select.poll | None = None
        """Of `_streams` as they are; None: to be made."""
        self._looked_at = time.monotonic()
        self._pinged: set[PartCall] = set()
        self._measured: list[MeasuredPart] = []

    def stop(self) -> None:
        """End it from another thread: `run` raises `QueryCancelled`. Does not block."""
        self._mail.put(_Stop())

    def run(self) -> Inputs:
        """All of all inputs.

        Raises:
            AccelError: a part's own, if its query is at fault or nobody can give it; a limit's;
                `QueryCancelled` when it was stopped.
        """
        try:
            for share in self._shares:
                self._ask_next(share)
            while any(share.call is not None for share in self._shares):
                self._handle_next()
            return self._complete()
        except BaseException:
            self._abandon()
            raise

    def close(self) -> None:
        """Whoever makes one closes it, also if it was never run."""
        self._mail.close()

    def _ask_next(self, share: _Share) -> None:
        """Ask the next executor that can give the piece.

        Raises:
            AccelError: there is none; what the last one said.
        """
        while share.sources:
            source = share.sources.popleft()
            share.asked += 1
            try:
                if source.ticket_port:
                    self._ask_by_frames(share, source)
                else:
                    self._ask_by_flight(share, source)
            except ExecutorUnavailable as error:
                share.call = None
                share.failure = error
            else:
                return
        assert share.failure is not None
        raise share.failure

    def _ask_by_frames(self, share: _Share, source: Source) -> None:
        peers = self._peers
        call = FrameCall(peers.clients, source, self._ticket.tenant, peers.key)
        share.call = call
        if call.ask_now():
            self._listen(share, call)
        else:
            peers.submit(partial(self._send, share, call))

    def _ask_by_flight(self, share: _Share, source: Source) -> None:
        peers = self._peers
        call = FlightCall(peers.clients, source, self._ticket.tenant, peers.key, self._deadline)
        share.call = call
        peers.submit(partial(self._call, share, call))

    def _listen(self, share: _Share, call: FrameCall) -> None:
        call.admit_by(partial(self._admit, share))
        self._streams[call.fileno()] = (share, call)
        self._poll = None

    def _let_go(self, call: PartCall) -> None:
        """Nothing more is wanted of it."""
        if isinstance(call, FrameCall):
            self._streams = {
                number: stream for number, stream in self._streams.items() if stream[1] is not call
            }
            self._poll = None
            call.close()
        elif isinstance(call, FlightCall) and not call.cancel():
            with contextlib.suppress(ExecutorUnavailable):  # then its deadline ends it
                self._peers.submit(call.send_cancellation)

    def _handle_next(self) -> None:
        """Wait for what happens next, a tick at most."""
        if self._poll is None:
            self._poll = select.poll()
            for descriptor in (self._mail.fileno(), *self._streams):
                self._poll.register(descriptor, select.POLLIN)
        is_more_here = any(call.has_more for _, call in self._streams.values())
        found = {number for number, _ in self._poll.poll(0 if is_more_here else _TICK_MS)}
        if self._mail.fileno() in found:
            while (message := self._mail.take()) is not None:
                self._handle(message)
        for number, (share, call) in tuple(self._streams.items()):
            if (number in found or call.has_more) and share.call is call:
                call.last_sign = time.monotonic()
                self._advance(share, call)
        if time.monotonic() - self._looked_at > _TICK_SECONDS:
            self._look_for_silence()

    def _handle(self, message: _Sent | _Ended | _Silent | _Stop) -> None:
        if isinstance(message, _Stop):
            raise QueryCancelled("stopped")
        share, call = message.share, message.call
        if share.call is not call:
            return  # it was given up before
        if isinstance(message, _Silent):
            self._let_go(call)
            self._try_elsewhere(share, call.unavailable())
        elif message.failure is not None:
            self._try_elsewhere(share, message.failure)
        elif isinstance(message, _Sent):
            self._listen(share, message.call)
        else:
            self._complete_share(share, call)

    def _advance(self, share: _Share, call: FrameCall) -> None:
        try:
            is_whole = call.advance(
                lambda schema: self._take_schema(share, call, schema),
                lambda batch: self._take_batch(share, call, batch),
            )
        except Exception as error:  # noqa: BLE001 - raised again if nobody else can give it
            is_unheard = call.is_unheard
            self._let_go(call)
            if is_unheard and isinstance(error, ExecutorUnavailable):
                # It may take no parts in this way, or have no room for one more connection.
                share.sources.appendleft(replace(call.source, ticket_port=0))
                share.asked -= 1
            self._try_elsewhere(share, error)
        else:
            if is_whole:
                self._let_go(call)
                self._complete_share(share, call)

    def _complete_share(self, share: _Share, call: PartCall) -> None:
        share.call = None
        self._measured.append(share.measured(call))

    def _try_elsewhere(self, share: _Share, failure: BaseException) -> None:
        share.call = None
        self._discard(share)
        if not isinstance(failure, _ELSEWHERE):
            raise failure
        share.failure = failure
        self._ask_next(share)

    def _look_for_silence(self) -> None:
        now = self._looked_at = time.monotonic()
        for share in self._shares:
            call = share.call
            silent = call is not None and now - call.last_sign > SILENT_SECONDS
            if call is not None and silent and call not in self._pinged:
                self._pinged.add(call)
                self._peers.submit(partial(self._ping, share, call))

    def _complete(self) -> Inputs:
        tables = {}
        for one in self._ticket.inputs:
            shares = [share for share in self._shares if share.of is one]
            schema = shares[0].schema
            batches = [batch for share in shares for batch in share.batches]
            tables[one.name] = pa.Table.from_batches(batches, schema)
        size = sum(self._bytes.values())
        stats = InputStats(sum(self._rows.values()), size, len(self._shares), tuple(self._measured))
        return Inputs(tables, stats, lambda: self._peers.memory.give_back(size))

    def _abandon(self) -> None:
        with self._lock:
            self._is_over = True
            self._peers.memory.give_back(sum(self._bytes.values()))
        for share in self._shares:
            call, share.call = share.call, None
            share.batches = []
            if call is not None:
                self._let_go(call)

    def _discard(self, share: _Share) -> None:
        """Nothing of what came of the piece so far counts."""
        with self._lock:
            batches, share.batches, share.schema = share.batches, [], None
            size = sum(batch.nbytes for batch in batches)
            self._rows[share.of.name] -= sum(batch.num_rows for batch in batches)
            self._bytes[share.of.name] -= size
            self._peers.memory.give_back(size)

    # On threads of the peers'.

    def _send(self, share: _Share, call: FrameCall) -> None:
        failure: BaseException | None = None
        try:
            call.ask()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            failure = error
        self._mail.put(_Sent(share, call, failure))

    def _call(self, share: _Share, call: FlightCall) -> None:
        failure: BaseException | None = None
        try:
            call.read(
                lambda schema: self._take_schema(share, call, schema),
                lambda batch: self._take_batch(share, call, batch),
            )
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            failure = error
        self._mail.put(_Ended(share, call, failure))

    def _ping(self, share: _Share, call: PartCall) -> None:
        is_there = call.is_answering()
        if share.call is not call:
            return
        may_wait = not share.sources and time.monotonic() - call.last_sign < LOST_SECONDS
        if is_there or may_wait:
            self._pinged.discard(call)  # it is asked again at the next tick
        else:
            self._mail.put(_Silent(share, call))

    # There, or where frames are read.

    def _admit(self, share: _Share, size: int) -> None:
        """Before there is room made for a frame of `size` bytes."""
        with self._lock:
            content = size - _FRAME_SPARE_BYTES
            self._check_limits(share.of, 0, sum(self._bytes.values()) + content)
            self._peers.memory.check(content)

    def _take_schema(self, share: _Share, call: PartCall, schema: pa.Schema) -> bool:
        """Whether rows are wanted."""
        with self._lock:
            self._check_wanted(share, call)
            share.schema = schema
            others = [s.schema for s in self._shares if s.of is share.of and s.schema is not None]
            same = all(schema.equals(other, check_metadata=True) for other in others)
        if not same:
            log.error("%s of query %s: %s", share.of.name, self._ticket.query_id, others)
            raise InvariantViolated(
                f"executors of tenant {self._ticket.tenant} gave parts of one query in different "
                f"forms ({_difference(others)}); query {self._ticket.query_id} was not answered"
            )
        return not self._ticket.describe_only

    def _take_batch(self, share: _Share, call: PartCall, batch: pa.RecordBatch) -> None:
        one, rows, size = share.of, batch.num_rows, batch.nbytes
        with self._lock:
            self._check_wanted(share, call)
            # They bound the query: all of its inputs together.
            total_rows, total_bytes = sum(self._rows.values()), sum(self._bytes.values())
            self._check_limits(one, total_rows + rows, total_bytes + size)
            self._peers.memory.reserve(size)
            self._rows[one.name] += rows
            self._bytes[one.name] += size
            share.batches.append(batch)

    def _check_wanted(self, share: _Share, call: PartCall) -> None:
        if self._is_over or share.call is not call:
            raise QueryCancelled("nobody waits for it any more")

    def _check_limits(self, one: Input, rows: int, size: int) -> None:
        tenant = self._ticket.tenant
        if rows > one.max_rows:
            raise RowLimit(
                f"the query gathers more than {one.max_rows} rows from several executors, the "
                f"limit of tenant {tenant}; filter or aggregate more"
            )
        if size > one.max_bytes:
            raise MemoryLimit(
                f"the query gathers more than {one.max_bytes} bytes from several executors, the "
                f"limit of tenant {tenant}; filter, aggregate or select less"
            )


def _asked(one: Input, ticket: Ticket) -> tuple[Piece, ...]:
    """All pieces; for the form of an answer the first is enough."""
    return one.pieces[:1] if ticket.describe_only else one.pieces


def _difference(schemas: list[pa.Schema]) -> str:
    first = schemas[0]
    for other in schemas[1:]:
        if first.names != other.names:
            return f"columns {', '.join(first.names)} and {', '.join(other.names)}"
        for mine, theirs in zip(first, other, strict=True):
            if not mine.equals(theirs, check_metadata=True):
                return f"column {mine.name} as {mine.type} and {theirs.type}"
    return "of different types"
