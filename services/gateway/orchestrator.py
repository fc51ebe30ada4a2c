"""The way of every sequence: queue, prefill, decode, release; and back to the queue whenever a phase lets it go.

All of it runs on one event loop and nothing here waits, except where a lease is forked and at the end. A lease is
released once the phase said that it has let go of it. When a phase's stream breaks, the phase may live and write on:
its leases are abandoned, and memd ends them when the phase lets go or is gone.
"""

from collections.abc import Callable, Mapping

import structlog

from services.gateway.building import NoteSegments, build_error
from services.gateway.deadlines import Deadlines
from services.gateway.forks import Forks
from services.gateway.leases import LeaseKeeper
from services.gateway.load import Attempt, Bounds, Load, load_of
from services.gateway.peers import Peers
from services.gateway.places import WaitingPlaces
from services.gateway.ports import PhasePort, Timers
from services.gateway.prospects import Prospects
from services.gateway.queue import SequenceQueue
from services.gateway.quiet import Quiet
from services.gateway.reporting import Reporter
from services.gateway.requests import Request, RequestName, Sequence, State
from services.gateway.trials import Trials
from tandem.clock import Clock
from tandem.errors import (
    DeadlineError,
    DuplicateRequestError,
    NotFoundError,
    NotReadyError,
    SequenceFailedError,
    SlowReaderError,
    TandemError,
)
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

MAX_FAILURES = 2  # of a phase on one sequence, with nobody beside it
MAX_LOSSES = 3  # of a phase that went away while it had nothing but that sequence
SETTLE_S = 2.0  # from the last request's end until the phases have said that they let go

_log = structlog.get_logger()


class Orchestrator:
    """Owns all requests from `admit` on. A `PhaseListener` of both phases."""

    def __init__(
        self,
        *,
        ports: Mapping[Phase, PhasePort],
        leases: LeaseKeeper,
        queue: SequenceQueue,
        bounds: Bounds,
        peers: Peers,
        reporter: Reporter,
        clock: Clock,
        unix_ns: Callable[[], int],
        timers: Timers,
        note_segments: NoteSegments,
        one_process: bool = False,  # the phases are one, and end together
    ) -> None:
        self._ports = ports
        self._leases = leases
        self._peers = peers
        self._reporter = reporter
        self._clock = clock
        self._unix_ns = unix_ns
        self._note_segments = note_segments
        self._one_process = one_process
        self._queue = queue
        self._trials: Trials[Sequence] = Trials()
        self._requests: dict[RequestName, Request] = {}
        self._builds: set[Request] = set()  # of them, those of the gateway's own
        self._owners: dict[Sequence, Request] = {}
        self._deadlines = Deadlines(clock, timers, self._end)
        self._prospects = Prospects(bounds.promise, bounds.max_running, clock)
        self._undispatched = WaitingPlaces(bounds, reporter.requests, self._prospects)
        self._attempts: dict[int, Attempt] = {}  # by lease: what the phases have
        self._prefilled: dict[Sequence, None] = {}  # wait for decode to come back, oldest first
        self._ending_phases: set[Phase] = set()  # connected, but they hand back what they are sent
        self._forks = Forks(leases, self._on_forked, self._note_quiet)
        self._draining = False
        self._quiet = Quiet()

    @property
    def load(self) -> Load:
        """Now."""
        num_queued = len(self._queue) + len(self._trials)
        return load_of(num_queued, self._attempts.values(), len(self._prefilled), self._builds)

    # From clients

    def admit(self, request: Request, remaining_s: float | None) -> None:
        """Takes a request on; its answers come through `request.output`.

        NotReadyError while draining, DuplicateRequestError, QueueFullError, DeadlineError when no time is left. One
        that was resumed takes the place of the one that runs under its name.
        """
        self._check_name(request)
        self.check_room(request.arrival.tenant, request.arrival.resumed, request.arrival.priority)
        self._undispatched.check_tokens(request.arrival)
        self._deadlines.set(request, remaining_s)
        self._undispatched.add(request)
        self._reporter.admitted(request)
        self._take_on(request)

    def admit_build(self, request: Request) -> None:
        """Takes on one that no client sees; it ends with an error as soon as a phase lets it go. NotReadyError."""
        if self._draining:
            raise NotReadyError("the gateway is shutting down")
        self._builds.add(request)
        self._take_on(request)

    def check_room(self, tenant: str, resumed: bool, priority: int) -> None:
        """For one more request. NotReadyError while draining, QueueFullError."""
        if self._draining:
            raise NotReadyError("the gateway is shutting down; try again soon")
        self._undispatched.check_room(tenant, resumed, priority)

    def cancel(self, request: Request) -> None:
        """The client has gone. Nothing happens when the request has ended."""
        self._end(request, None)

    def abort(self, request_id: str, tenant: str = "") -> None:
        """Ends a request's answers with FinishReason.ABORT. NotFoundError when none of the tenant's has that name."""
        request = self._requests.get(RequestName(tenant, request_id))
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
        for build in tuple(self._builds):
            self._end(build, NotReadyError("the gateway is shutting down"))
        if not await self._quiet.within(timeout_s):
            for request in tuple(self._requests.values()):
                self._end(request, NotReadyError("the gateway is shutting down; send the request again"))
            await self._quiet.within(SETTLE_S)

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
        alone = (len(self._attempts) if self._one_process else len(lease_ids)) == 1
        for lease_id in lease_ids:
            self._lose(phase, lease_id, alone)
        self._dispatch()

    def phase_result(self, result: PrefillResult | DecodeResult) -> None:
        """What a phase says after a step."""
        now_s = self._clock.now()
        if isinstance(result, PrefillResult):
            for entry in result.prefilled:
                self._on_prefilled(entry, now_s)
        else:
            self._prospects.stepped(len(result.outputs))
            for output in result.outputs:
                self._on_output(output, now_s)
        self._reporter.message_taken()
        phase = Phase.PREFILL if isinstance(result, PrefillResult) else Phase.DECODE
        num_failed = sum(dropped.reason is DropReason.FAILED for dropped in result.dropped)
        for dropped in result.dropped:
            self._on_dropped(phase, dropped, num_failed == 1)
        self._dispatch()

    def _on_prefilled(self, entry: Prefilled, now_s: float) -> None:
        sequence = self._let_go(entry.output.lease_id, prefilled=entry)
        if sequence is None:
            return
        sequence.to(State.PREFILLED)
        self._trials.clear(sequence, Phase.PREFILL)
        request = self._owners[sequence]
        is_first = sequence.note_prefilled(entry)
        if is_first:
            self._reporter.prefilled(request, sequence, entry)
            if sequence.index == 0 and len(request.sequences) > 1:
                self._forks.start(request, entry.output.lease_id)
        self._take_token(sequence, entry.output, now_s)
        if sequence.state is State.PREFILLED:
            self._prefilled[sequence] = None
            self._hand_over_waiting()
        if entry.segments and is_first and sequence.index == 0:
            self._note_segments(sequence.arrival, entry.segments)

    def _on_output(self, output: SequenceOutput, now_s: float) -> None:
        if output.finish_reason is not FinishReason.NONE:
            sequence = self._let_go(output.lease_id)
        else:
            attempt = self._attempts.get(output.lease_id)
            sequence = None if attempt is None else attempt.sequence
        if sequence is not None and sequence.state is State.DECODING:
            if self._trials:
                self._trials.clear(sequence, Phase.DECODE)
            self._take_token(sequence, output, now_s)

    def _on_dropped(self, phase: Phase, dropped: SequenceDropped, failed_alone: bool) -> None:
        if dropped.reason is DropReason.DRAINING:
            self._ending_phases.add(phase)
        sequence = self._let_go(dropped.lease_id)
        if sequence is None:
            return
        self._leases.release(dropped.lease_id)
        failed = dropped.reason is DropReason.FAILED
        if failed and self._trials.strike(sequence, phase, alone=failed_alone) >= MAX_FAILURES:
            error = SequenceFailedError(f"the request failed {MAX_FAILURES} times, last with: {dropped.message}")
            self._end(self._owners[sequence], error)
        else:
            self._requeue(sequence, dropped.reason.name.lower())

    def _lose(self, phase: Phase, lease_id: int, alone: bool) -> None:
        sequence = self._let_go(lease_id, self._leases.abandon)
        if sequence is None:
            return
        self._leases.abandon(lease_id)
        if self._trials.strike(sequence, phase, alone=alone) >= MAX_LOSSES:
            error = SequenceFailedError(f"{phase} went away {MAX_LOSSES} times with nothing but this request in it")
            self._end(self._owners[sequence], error)
        else:
            self._requeue(sequence, "phase_lost")

    # Sequences on their way

    def _take_on(self, request: Request) -> None:
        self._requests[request.name] = request
        self._owners.update((sequence, request) for sequence in request.sequences)
        self._quiet.disturb()
        for sequence in request.queued:
            self._queue.push(sequence)
        self._dispatch()

    def _dispatch(self) -> None:
        if self._trials.are_on:
            self._hand_over_waiting()
        if self._takes(Phase.PREFILL):
            if (suspect := self._trials.take()) is not None:
                self._send(suspect)
            while not self._trials.are_on and self._has_place and (sequence := self._queue.take()) is not None:
                self._start(sequence)
        self._reporter.load(len(self._undispatched), len(self._requests) - len(self._builds))

    @property
    def _has_place(self) -> bool:
        """Whether the phases may have one more sequence."""
        return len(self._attempts) + len(self._prefilled) < self._prospects.num_places

    def _takes(self, phase: Phase) -> bool:
        """Whether there is sense in sending it sequences."""
        return self._ports[phase].connected and phase not in self._ending_phases

    def _start(self, sequence: Sequence) -> None:
        request = self._owners[sequence]
        if self._deadlines.is_hopeless(request, lambda: self._queue.least_prefill_s(sequence)):
            self._queue.put_off(sequence)
            self._give_up(request, DeadlineError("the deadline is before the prompt can be computed"))
        else:
            self._send(sequence)

    def _send(self, sequence: Sequence) -> None:
        if sequence.lease_id is None:
            sequence.lease_id = self._leases.open()
        self._undispatched.discard(self._owners[sequence])
        sequence.sent_unix_ns = self._unix_ns()
        self._submit(sequence, Phase.PREFILL, sequence.lease_id)

    def _hand_over_waiting(self) -> None:
        """To decode; or back to the queue, so that a suspect finds nobody in decode, and blocks in the pool."""
        for sequence, lease_id in [(each, each.lease_id) for each in self._prefilled if each.lease_id is not None]:
            if not self._trials.admit(sequence):
                del self._prefilled[sequence]
                self._leases.release(lease_id)
                self._requeue(sequence, "trial")
            elif self._takes(Phase.DECODE):
                del self._prefilled[sequence]
                self._submit(sequence, Phase.DECODE, lease_id)

    def _submit(self, sequence: Sequence, phase: Phase, lease_id: int) -> None:
        sequence.to(State.PREFILLING if phase is Phase.PREFILL else State.DECODING)
        self._attempts[lease_id] = Attempt(sequence, phase)
        self._prospects.sent(phase, sequence.num_tokens)
        self._ports[phase].submit(sequence.spec(lease_id))

    def _take_token(self, sequence: Sequence, output: SequenceOutput, now_s: float) -> None:
        request = self._owners[sequence]
        self._reporter.token(request, sequence, now_s)
        piece = sequence.push(output, now_s)
        try:
            request.output.put(piece)
        except SlowReaderError as error:
            self._end(request, error)
            return
        if piece.finish_reason is not FinishReason.NONE:
            self._retire(sequence)
            if request.finished:
                self._complete(request, piece.finish_reason)

    def _let_go(
        self, lease_id: int, end_lease: Callable[[int], None] | None = None, prefilled: Prefilled | None = None
    ) -> Sequence | None:
        """A phase has this lease no more. Returns its sequence, unless that has ended: then the lease ends here."""
        attempt = self._attempts.pop(lease_id, None)
        if attempt is None:
            return None
        self._prospects.came_back(attempt.phase, attempt.sequence.num_tokens, prefilled is not None)
        if attempt.phase is Phase.PREFILL:
            self._queue.leave_prefill(attempt.sequence, prefilled)
        if attempt.sequence.state is State.FINISHED:
            (end_lease or self._leases.release)(lease_id)
            self._note_quiet()
            return None
        return attempt.sequence

    def _requeue(self, sequence: Sequence, reason: str) -> None:
        sequence.start_over()
        if sequence.arrival.is_build:
            self._end(self._owners[sequence], build_error(reason))
        elif not self._trials.take_back(sequence):
            self._queue.push(sequence)
        self._reporter.sent_back(sequence, reason)

    # Ends

    def _retire(self, sequence: Sequence) -> None:
        """The client gets no more of this sequence: out of every queue, and out of the phase that has it."""
        sequence.to(State.FINISHED)
        self._queue.retire(sequence)
        self._trials.discard(sequence)
        self._prefilled.pop(sequence, None)
        if sequence.lease_id is None:
            return
        if (attempt := self._attempts.get(sequence.lease_id)) is None:
            self._leases.release(sequence.lease_id)
        else:
            self._ports[attempt.phase].abort(sequence.lease_id)

    def _end(self, request: Request, error: TandemError | None) -> None:
        """Ends what is left of a request, for its client with `error`; None when there is no client."""
        if self._requests.get(request.name) is request:
            self._give_up(request, error)
            self._dispatch()

    def _give_up(self, request: Request, error: TandemError | None) -> None:
        if error is not None:
            request.output.fail(error)
        for sequence in request.unfinished:
            self._retire(sequence)
        self._forget(request)
        self._reporter.failed(request, error, self._unix_ns(), len(self._undispatched))

    def _complete(self, request: Request, reason: FinishReason) -> None:
        self._forget(request)
        self._reporter.completed(request, reason, self._unix_ns(), len(self._undispatched))

    def _forget(self, request: Request) -> None:
        del self._requests[request.name]
        for sequence in request.sequences:
            del self._owners[sequence]
        self._builds.discard(request)
        self._undispatched.discard(request)
        self._deadlines.cancel(request)
        self._note_quiet()

    def _check_name(self, request: Request) -> None:
        name, running = request.request_id, self._requests.get(request.name)
        if running is not None and not request.arrival.resumed:
            raise DuplicateRequestError(f"request_id {name!r} is running; choose another")
        if running is not None:
            self._end(running, DuplicateRequestError(f"request_id {name!r} was resumed over another stream"))

    def _on_forked(self, sibling: Sequence) -> None:
        self._queue.push(sibling)
        self._dispatch()

    def _note_quiet(self) -> None:
        if not (self._requests or self._attempts or self._forks):
            self._quiet.settle()
