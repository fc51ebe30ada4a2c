"""The way of every sequence: queue, prefill, decode, release; and back to the queue whenever a phase lets it go.

All of it runs on one event loop and nothing here waits, except where a lease is forked and at the end. A lease is
released once the phase said that it has let go of it. When a phase's stream breaks, the phase may live and write on:
its leases are abandoned, and memd ends them when the phase lets go or is gone.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from services.gateway.leases import LeaseKeeper
from services.gateway.load import Bounds, Load
from services.gateway.peers import Peers
from services.gateway.ports import PhasePort, Timers
from services.gateway.rates import retry_delay_s
from services.gateway.reporting import Reporter
from services.gateway.requests import Request, Sequence, State
from tandem.clock import Clock
from tandem.errors import (
    DeadlineError,
    DuplicateRequestError,
    NotFoundError,
    NotReadyError,
    QueueFullError,
    SequenceFailedError,
    SlowReaderError,
    TandemError,
)
from tandem.scheduler.waiting import OrderingPolicy, WaitingQueue, num_dispatchable
from tandem.types import (
    DecodeResult,
    DropReason,
    FinishReason,
    Phase,
    Prefilled,
    PrefillResult,
    SequenceDropped,
    SequenceOutput,
)

MAX_FAILURES = 2  # of a phase on one sequence
MAX_LOSSES = 8  # of phases in a row that went away with one sequence: it may be what ends them
SETTLE_S = 2.0  # from the last request's end until the phases have said that they let go

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A lease that a phase has. Its sequence may have ended for the client already."""

    sequence: Sequence
    phase: Phase


class Orchestrator:
    """Owns all requests from `admit` on. A `PhaseListener` of both phases."""

    def __init__(
        self,
        *,
        ports: Mapping[Phase, PhasePort],
        leases: LeaseKeeper,
        policy: OrderingPolicy,
        bounds: Bounds,
        peers: Peers,
        reporter: Reporter,
        clock: Clock,
        unix_ns: Callable[[], int],
        timers: Timers,
    ) -> None:
        self._ports = ports
        self._leases = leases
        self._bounds = bounds
        self._peers = peers
        self._reporter = reporter
        self._clock = clock
        self._unix_ns = unix_ns
        self._timers = timers
        self._queue: WaitingQueue[Sequence] = WaitingQueue(policy)
        self._requests: dict[str, Request] = {}
        self._owners: dict[Sequence, Request] = {}
        self._deadlines: dict[Request, asyncio.TimerHandle] = {}
        self._undispatched: set[Request] = set()
        self._attempts: dict[int, _Attempt] = {}  # by lease: what the phases have
        self._prefilled: dict[Sequence, None] = {}  # wait for decode to come back, oldest first
        self._ending_phases: set[Phase] = set()  # connected, but they hand back what they are sent
        self._forking: set[asyncio.Task[None]] = set()
        self._draining = False
        self._quiet = asyncio.Event()
        self._quiet.set()

    @property
    def load(self) -> Load:
        """Now."""
        num_prefilling = sum(attempt.phase is Phase.PREFILL for attempt in self._attempts.values())
        num_decoding = len(self._attempts) - num_prefilling + len(self._prefilled)
        return Load(len(self._queue), num_prefilling, num_decoding)

    # From clients

    def admit(self, request: Request, remaining_s: float | None) -> None:
        """Takes a request on; its answers come through `request.output`.

        NotReadyError while draining, DuplicateRequestError, QueueFullError, DeadlineError when no time is left.
        """
        if self._draining:
            raise NotReadyError("the gateway is shutting down; try again soon")
        if request.request_id in self._requests:
            raise DuplicateRequestError(f"request_id {request.request_id!r} is running; choose another")
        self._check_room()
        if remaining_s is not None:
            self._set_deadline(request, remaining_s)
        self._requests[request.request_id] = request
        self._owners.update((sequence, request) for sequence in request.sequences)
        self._undispatched.add(request)
        self._quiet.clear()
        first = request.sequences[0]
        self._queue.push(first, first.entry())
        self._reporter.admitted(request)
        self._dispatch()

    def cancel(self, request: Request) -> None:
        """The client has gone. Nothing happens when the request has ended."""
        self._end(request, None)

    def abort(self, request_id: str) -> None:
        """Ends a request's answers with FinishReason.ABORT. NotFoundError when it is not running."""
        request = self._requests.get(request_id)
        if request is None:
            raise NotFoundError(f"request_id {request_id!r} is not running")
        for sequence in request.unfinished:
            request.output.put(sequence.last_words())
            self._retire(sequence)
        self._complete(request, FinishReason.ABORT)
        self._dispatch()

    async def drain(self, timeout_s: float) -> None:
        """Takes on nothing more, lets what runs end for `timeout_s`, then ends the rest with NotReadyError."""
        self._draining = True
        _log.info("gateway.draining", num_requests=len(self._requests), timeout_s=timeout_s)
        if not await self._is_quiet_within(timeout_s):
            for request in tuple(self._requests.values()):
                self._end(request, NotReadyError("the gateway is shutting down; send the request again"))
            await self._is_quiet_within(SETTLE_S)

    # From the phases

    def phase_connected(self, phase: Phase) -> None:
        """Sequences may go to it."""
        self._peers.set(phase, True)
        self._ending_phases.discard(phase)
        self._hand_over_waiting()
        self._dispatch()

    def phase_lost(self, phase: Phase, lease_ids: frozenset[int]) -> None:
        """Its stream broke with these leases in it."""
        self._peers.set(phase, False)
        for lease_id in lease_ids:
            self._lose(phase, lease_id)
        self._dispatch()

    def phase_result(self, result: PrefillResult | DecodeResult) -> None:
        """What a phase says after a step."""
        if isinstance(result, PrefillResult):
            for entry in result.prefilled:
                self._on_prefilled(entry)
        else:
            for output in result.outputs:
                self._on_output(output)
        phase = Phase.PREFILL if isinstance(result, PrefillResult) else Phase.DECODE
        for dropped in result.dropped:
            self._on_dropped(phase, dropped)
        self._dispatch()

    def _on_prefilled(self, entry: Prefilled) -> None:
        sequence = self._let_go(entry.output.lease_id)
        if sequence is None:
            return
        sequence.to(State.PREFILLED)
        request = self._owners[sequence]
        if not sequence.output_token_ids:
            sequence.num_cached_tokens = min(entry.num_cached_tokens, len(sequence.arrival.prompt_token_ids))
            self._reporter.prefilled(request, sequence, entry)
            if sequence.index == 0 and len(request.sequences) > 1:
                self._start_forks(request, entry.output.lease_id)
        self._take_token(sequence, entry.output)
        if sequence.state is State.PREFILLED:
            self._prefilled[sequence] = None
            self._hand_over_waiting()

    def _on_output(self, output: SequenceOutput) -> None:
        if output.finish_reason is not FinishReason.NONE:
            sequence = self._let_go(output.lease_id)
        else:
            attempt = self._attempts.get(output.lease_id)
            sequence = None if attempt is None else attempt.sequence
        if sequence is not None and sequence.state is State.DECODING:
            self._take_token(sequence, output)

    def _on_dropped(self, phase: Phase, dropped: SequenceDropped) -> None:
        if dropped.reason is DropReason.DRAINING:
            self._ending_phases.add(phase)
        sequence = self._let_go(dropped.lease_id)
        if sequence is None:
            return
        self._leases.release(dropped.lease_id)
        if dropped.reason is DropReason.FAILED:
            sequence.num_failures += 1
        if sequence.num_failures >= MAX_FAILURES:
            error = SequenceFailedError(f"the request failed {MAX_FAILURES} times, last with: {dropped.message}")
            self._end(self._owners[sequence], error)
        else:
            self._requeue(sequence, dropped.reason.name.lower())

    def _lose(self, phase: Phase, lease_id: int) -> None:
        sequence = self._let_go(lease_id, self._leases.abandon)
        if sequence is None:
            return
        self._leases.abandon(lease_id)
        sequence.num_losses += 1
        if sequence.num_losses >= MAX_LOSSES:
            error = SequenceFailedError(f"{phase} went away {MAX_LOSSES} times in a row while it had the request")
            self._end(self._owners[sequence], error)
        else:
            self._requeue(sequence, "phase_lost")

    # Sequences on their way

    def _dispatch(self) -> None:
        port = self._ports[Phase.PREFILL]
        if self._takes(Phase.PREFILL):
            num_running = len(self._attempts) + len(self._prefilled)
            for _ in range(num_dispatchable(len(self._queue), num_running, self._bounds.max_running)):
                self._start(port, self._queue.pop())
        num_waiting = len(self._undispatched)
        self._reporter.load(num_waiting, len(self._requests) - num_waiting)

    def _takes(self, phase: Phase) -> bool:
        """Whether there is sense in sending it sequences."""
        return self._ports[phase].connected and phase not in self._ending_phases

    def _start(self, port: PhasePort, sequence: Sequence) -> None:
        if sequence.lease_id is None:
            sequence.lease_id = self._leases.open()
        self._undispatched.discard(self._owners[sequence])
        self._submit(port, sequence, State.PREFILLING, Phase.PREFILL, sequence.lease_id)

    def _hand_over_waiting(self) -> None:
        port = self._ports[Phase.DECODE]
        if not self._takes(Phase.DECODE):
            return
        for sequence in tuple(self._prefilled):
            del self._prefilled[sequence]
            if sequence.lease_id is not None:
                self._submit(port, sequence, State.DECODING, Phase.DECODE, sequence.lease_id)

    def _submit(self, port: PhasePort, sequence: Sequence, state: State, phase: Phase, lease_id: int) -> None:
        sequence.to(state)
        self._attempts[lease_id] = _Attempt(sequence, phase)
        port.submit(sequence.spec(lease_id))

    def _take_token(self, sequence: Sequence, output: SequenceOutput) -> None:
        request = self._owners[sequence]
        self._reporter.token(request, sequence)
        piece = sequence.push(output, self._clock.now())
        try:
            request.output.put(piece)
        except SlowReaderError as error:
            self._end(request, error)
            return
        if piece.finish_reason is not FinishReason.NONE:
            self._retire(sequence)
            if request.finished:
                self._complete(request, piece.finish_reason)

    def _let_go(self, lease_id: int, end_lease: Callable[[int], None] | None = None) -> Sequence | None:
        """A phase has this lease no more. Returns its sequence, unless that has ended: then the lease ends here."""
        attempt = self._attempts.pop(lease_id, None)
        if attempt is None:
            return None
        if attempt.sequence.state is State.FINISHED:
            (end_lease or self._leases.release)(lease_id)
            self._note_quiet()
            return None
        return attempt.sequence

    def _requeue(self, sequence: Sequence, reason: str) -> None:
        sequence.lease_id = None
        sequence.to(State.QUEUED)
        self._queue.push(sequence, sequence.entry())
        self._reporter.sent_back(sequence, reason)

    # Ends

    def _retire(self, sequence: Sequence) -> None:
        """The client gets no more of this sequence: out of every queue, and out of the phase that has it."""
        sequence.to(State.FINISHED)
        self._queue.discard(sequence)
        self._prefilled.pop(sequence, None)
        if sequence.lease_id is None:
            return
        attempt = self._attempts.get(sequence.lease_id)
        if attempt is None:
            self._leases.release(sequence.lease_id)
        else:
            self._ports[attempt.phase].abort(sequence.lease_id)

    def _end(self, request: Request, error: TandemError | None) -> None:
        """Ends what is left of a request, for its client with `error`; None when there is no client."""
        if self._requests.get(request.request_id) is not request:
            return
        if error is not None:
            request.output.fail(error)
        for sequence in request.unfinished:
            self._retire(sequence)
        self._forget(request)
        self._reporter.failed(request, error, self._unix_ns(), len(self._undispatched))
        self._dispatch()

    def _complete(self, request: Request, reason: FinishReason) -> None:
        self._forget(request)
        self._reporter.completed(request, reason, self._unix_ns(), len(self._undispatched))

    def _forget(self, request: Request) -> None:
        del self._requests[request.request_id]
        for sequence in request.sequences:
            del self._owners[sequence]
        self._undispatched.discard(request)
        timer = self._deadlines.pop(request, None)
        if timer is not None:
            timer.cancel()
        self._note_quiet()

    def _check_room(self) -> None:
        num_waiting = len(self._undispatched)
        if num_waiting >= self._bounds.max_waiting:
            delay_s = retry_delay_s(num_waiting, self._reporter.requests.per_second())
            raise QueueFullError(f"{num_waiting} requests are waiting; try again in {delay_s:.0f} s", delay_s)

    def _set_deadline(self, request: Request, remaining_s: float) -> None:
        if remaining_s <= 0:
            raise DeadlineError("the deadline passed before the request was taken on")
        error = DeadlineError("the deadline passed before the answer was complete")
        self._deadlines[request] = self._timers.call_later(remaining_s, self._end, request, error)

    # Forks

    def _start_forks(self, request: Request, parent_lease_id: int) -> None:
        for sibling in request.sequences[1:]:
            if sibling.state is State.HELD:
                self._spawn(self._fork(request, sibling, parent_lease_id))

    async def _fork(self, request: Request, sibling: Sequence, parent_lease_id: int) -> None:
        num_tokens = len(request.arrival.prompt_token_ids) - 1
        lease_id = await self._leases.fork(parent_lease_id, request.request_id, num_tokens)
        if sibling.state is State.HELD:
            sibling.lease_id = lease_id
            sibling.to(State.QUEUED)
            self._queue.push(sibling, sibling.entry())
            self._dispatch()
        elif lease_id is not None:
            self._leases.release(lease_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._forking.add(task)
        task.add_done_callback(self._forked)

    def _forked(self, task: asyncio.Task[None]) -> None:
        self._forking.discard(task)
        self._note_quiet()

    def _note_quiet(self) -> None:
        if not (self._requests or self._attempts or self._forking):
            self._quiet.set()

    async def _is_quiet_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True
