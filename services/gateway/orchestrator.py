"""The way of a replica's sequences: queue, prefill, decode, release; and back to the queue when a phase lets one go.

All of it runs on one event loop and nothing here waits, except where a lease is forked. A lease is
released once the phase said that it has let go of it. When a phase's stream breaks, the phase may live and write on:
its leases are abandoned, and memd ends them when the phase lets go or is gone.
"""

from collections.abc import Callable, Mapping

from services.gateway.attempts import Attempts
from services.gateway.building import NoteSegments, build_error
from services.gateway.deadlines import Deadlines
from services.gateway.forks import Forks
from services.gateway.leases import LeaseKeeper
from services.gateway.load import Load, load_of
from services.gateway.peers import Peers
from services.gateway.ports import PhasePort, RequestWatch
from services.gateway.prospects import Prospects
from services.gateway.queue import SequenceQueue, num_computed_tokens
from services.gateway.quiet import Quiet
from services.gateway.reporting import Reporter
from services.gateway.requests import Request, Sequence, State
from services.gateway.trials import Trials
from tandem.clock import Clock
from tandem.errors import DeadlineError, NotReadyError, SequenceFailedError, SlowReaderError, TandemError
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


class Orchestrator:
    """Owns a replica's requests from `take_on` on. A `PhaseListener` of both phases."""

    def __init__(
        self,
        *,
        ports: Mapping[Phase, PhasePort],
        leases: LeaseKeeper,
        queue: SequenceQueue,
        prospects: Prospects,
        peers: Peers,
        reporter: Reporter,
        watch: RequestWatch,
        deadlines: Deadlines,
        clock: Clock,
        unix_ns: Callable[[], int],
        note_segments: NoteSegments,
        one_process: bool = False,  # the phases are one, and end together
    ) -> None:
        self._leases = leases
        self._peers = peers
        self._reporter = reporter
        self._watch = watch
        self._deadlines = deadlines
        self._clock = clock
        self._unix_ns = unix_ns
        self._note_segments = note_segments
        self._one_process = one_process
        self._queue = queue
        self._prospects = prospects
        self._trials: Trials[Sequence] = Trials()
        self._requests: dict[Request, None] = {}  # oldest here first
        self._builds: set[Request] = set()  # of them, those of the gateway's own
        self._unsent: set[Request] = set()  # of them, clients' of which no phase has had anything
        self._owners: dict[Sequence, Request] = {}
        self._attempts = Attempts(ports, prospects)
        self._prefilled: dict[Sequence, None] = {}  # wait for decode to come back, oldest first
        self._forks = Forks(leases, self._on_forked, self._note_quiet)
        self._builds_are_over = False
        self._quiet = Quiet()

    @property
    def load(self) -> Load:
        """Now."""
        num_queued = len(self._queue) + len(self._trials)
        return load_of(num_queued, self._attempts, len(self._prefilled), self._builds)

    # From clients

    def take_on(self, request: Request) -> None:
        """Its answers come through `request.output`. It may have been begun in another replica."""
        if not request.was_sent:
            self._unsent.add(request)
        self._begin(request)

    def admit_build(self, request: Request) -> None:
        """Takes on one that no client sees; it ends with an error as soon as a phase lets it go. NotReadyError."""
        if self._builds_are_over:
            raise NotReadyError("nothing is built here any more")
        self._builds.add(request)
        self._begin(request)

    def end(self, request: Request, error: TandemError | None) -> None:
        """Ends what is left of a request, for its client with `error`; None when there is no client.

        Nothing happens when it is not here.
        """
        if request in self._requests:
            self._give_up(request, error)
            self.dispatch()

    def abort(self, request: Request) -> None:
        """Ends the answers of a request that is here with FinishReason.ABORT."""
        for sequence in request.unfinished:
            request.output.put(sequence.last_words())
            self._retire(sequence)
        self._complete(request, FinishReason.ABORT)
        self.dispatch()

    def build_no_more(self) -> None:
        """Of the gateway's own; those under way end."""
        self._builds_are_over = True
        for build in tuple(self._builds):
            self.end(build, NotReadyError("nothing is built here any more"))

    def withdraw(self) -> tuple[Request, ...]:
        """Gives up all that clients wait for, to go on elsewhere from the last tokens; builds end."""
        for build in tuple(self._builds):
            self._give_up(build, NotReadyError("the replica is lost"))
        requests = tuple(self._requests)
        for request in requests:
            for sequence in request.unfinished:
                self._queue.withdraw(sequence)
                self._leave(sequence)
            self._forget(request)
            request.start_elsewhere()
        return requests

    @property
    def gives_turns(self) -> bool:
        """Whether what waits is sent as soon as there is room for it."""
        return not self._trials.are_on and self._attempts.takes(Phase.PREFILL) and self._attempts.takes(Phase.DECODE)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way, in the phases neither."""
        return not (self._requests or self._attempts or self._forks)

    async def quiet_within(self, timeout_s: float) -> bool:
        """Whether it becomes so in that time."""
        return await self._quiet.within(timeout_s)

    # From the phases

    def phase_connected(self, phase: Phase) -> None:
        """Sequences may go to it."""
        self._peers.set(phase, True)
        self._attempts.note_connected(phase)
        self._hand_over_waiting()
        self.dispatch()

    def phase_lost(self, phase: Phase, lease_ids: frozenset[int]) -> None:
        """Its stream broke with these leases in it."""
        self._peers.set(phase, False)
        alone = (len(self._attempts) if self._one_process else len(lease_ids)) == 1
        for lease_id in lease_ids:
            self._lose(phase, lease_id, alone)
        self.dispatch()

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
        self.dispatch()

    def _on_prefilled(self, entry: Prefilled, now_s: float) -> None:
        sequence = self._let_go(entry.output.lease_id, prefilled=entry)
        if sequence is None:
            return
        sequence.to(State.PREFILLED)
        self._trials.clear(sequence, Phase.PREFILL)
        request = self._owners[sequence]
        is_first = sequence.note_prefilled(entry)
        if is_first:
            self._on_first_token(request, sequence, entry)
        self._take_token(sequence, entry.output, now_s)
        if sequence.state is State.PREFILLED:
            self._prefilled[sequence] = None
            self._hand_over_waiting()
        if entry.segments and is_first and sequence.index == 0:
            self._note_segments(sequence.arrival, entry.segments)

    def _on_first_token(self, request: Request, sequence: Sequence, entry: Prefilled) -> None:
        """Before it is taken in."""
        self._reporter.prefilled(request, sequence, entry)
        if sequence.index == 0:
            self._watch.prefilled(request, num_computed_tokens(sequence, entry))
            if len(request.sequences) > 1:
                self._forks.start(request, entry.output.lease_id)

    def _on_output(self, output: SequenceOutput, now_s: float) -> None:
        if output.finish_reason is not FinishReason.NONE:
            sequence = self._let_go(output.lease_id)
        else:
            sequence = self._attempts.sequence(output.lease_id)
        if sequence is not None and sequence.state is State.DECODING:
            if self._trials:
                self._trials.clear(sequence, Phase.DECODE)
            self._take_token(sequence, output, now_s)

    def _on_dropped(self, phase: Phase, dropped: SequenceDropped, failed_alone: bool) -> None:
        if dropped.reason is DropReason.DRAINING:
            self._attempts.note_ending(phase)
        sequence = self._let_go(dropped.lease_id)
        if sequence is None:
            return
        self._leases.release(dropped.lease_id)
        failed = dropped.reason is DropReason.FAILED
        if failed and self._trials.strike(sequence, phase, alone=failed_alone) >= MAX_FAILURES:
            error = SequenceFailedError(f"the request failed {MAX_FAILURES} times, last with: {dropped.message}")
            self.end(self._owners[sequence], error)
        else:
            self._requeue(sequence, dropped.reason.name.lower())

    def _lose(self, phase: Phase, lease_id: int, alone: bool) -> None:
        sequence = self._let_go(lease_id, self._leases.abandon)
        if sequence is None:
            return
        self._leases.abandon(lease_id)
        if self._trials.strike(sequence, phase, alone=alone) >= MAX_LOSSES:
            error = SequenceFailedError(f"{phase} went away {MAX_LOSSES} times with nothing but this request in it")
            self.end(self._owners[sequence], error)
        else:
            self._requeue(sequence, "phase_lost")

    # Sequences on their way

    def _begin(self, request: Request) -> None:
        self._requests[request] = None
        self._owners.update((sequence, request) for sequence in request.sequences)
        self._quiet.disturb()
        for sequence in request.queued:
            self._queue.push(sequence)
        self.dispatch()

    def dispatch(self) -> None:
        """Sends what may be sent now; to be called when something may have changed."""
        if self._trials.are_on:
            self._hand_over_waiting()
        if self._attempts.takes(Phase.PREFILL):
            if (suspect := self._trials.take()) is not None:
                self._send(suspect)
            while not self._trials.are_on and self._has_place and (sequence := self._queue.take()) is not None:
                self._start(sequence)
        self._watch.changed()

    @property
    def _has_place(self) -> bool:
        """Whether the phases may have one more sequence."""
        return len(self._attempts) + len(self._prefilled) < self._prospects.num_places

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
        self._note_sent(self._owners[sequence])
        sequence.note_sent(self._unix_ns())
        self._attempts.begin(sequence, Phase.PREFILL, sequence.lease_id)

    def _note_sent(self, request: Request) -> None:
        if request in self._unsent:
            self._unsent.remove(request)
            self._watch.sent(request)

    def _hand_over_waiting(self) -> None:
        """To decode; or back to the queue, so that a suspect finds nobody in decode, and blocks in the pool."""
        for sequence, lease_id in [(each, each.lease_id) for each in self._prefilled if each.lease_id is not None]:
            if not self._trials.admit(sequence):
                del self._prefilled[sequence]
                self._leases.release(lease_id)
                self._requeue(sequence, "trial")
            elif self._attempts.takes(Phase.DECODE):
                del self._prefilled[sequence]
                self._attempts.begin(sequence, Phase.DECODE, lease_id)

    def _take_token(self, sequence: Sequence, output: SequenceOutput, now_s: float) -> None:
        request = self._owners[sequence]
        self._reporter.token(request, sequence, now_s)
        piece = sequence.push(output, now_s)
        try:
            request.output.put(piece)
        except SlowReaderError as error:
            self.end(request, error)
            return
        if piece.finish_reason is not FinishReason.NONE:
            self._retire(sequence)
            if request.finished:
                self._complete(request, piece.finish_reason)

    def _let_go(
        self, lease_id: int, end_lease: Callable[[int], None] | None = None, prefilled: Prefilled | None = None
    ) -> Sequence | None:
        """A phase has this lease no more. Returns its sequence, unless that has ended or left: then the lease ends."""
        attempt = self._attempts.end(lease_id, is_prefilled=prefilled is not None)
        if attempt is None:
            return None
        sequence = attempt.sequence
        is_here = sequence.lease_id == lease_id
        if attempt.phase is Phase.PREFILL and is_here:
            self._queue.leave_prefill(sequence, prefilled)
        if sequence.state is State.FINISHED or not is_here:
            (end_lease or self._leases.release)(lease_id)
            self._note_quiet()
            return None
        return sequence

    def _requeue(self, sequence: Sequence, reason: str) -> None:
        sequence.start_over()
        if sequence.arrival.is_build:
            self.end(self._owners[sequence], build_error(reason))
        elif not self._trials.take_back(sequence):
            self._queue.push(sequence)
        self._reporter.sent_back(sequence, reason)

    # Ends

    def _retire(self, sequence: Sequence) -> None:
        """The client gets no more of this sequence: out of every queue, and out of the phase that has it."""
        sequence.to(State.FINISHED)
        self._queue.retire(sequence)
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """The queue has it no more; nor has anybody else here from now on, or soon."""
        self._trials.discard(sequence)
        self._prefilled.pop(sequence, None)
        if sequence.lease_id is not None and not self._attempts.abort(sequence.lease_id):
            self._leases.release(sequence.lease_id)

    def _give_up(self, request: Request, error: TandemError | None) -> None:
        if error is not None:
            request.output.fail(error)
        for sequence in request.unfinished:
            self._retire(sequence)
        self._watch.ended(request)
        self._forget(request)
        self._reporter.failed(request, error, self._unix_ns(), len(self._unsent))

    def _complete(self, request: Request, reason: FinishReason) -> None:
        self._watch.ended(request)
        self._forget(request)
        self._reporter.completed(request, reason, self._unix_ns(), len(self._unsent))

    def _forget(self, request: Request) -> None:
        del self._requests[request]
        for sequence in request.sequences:
            del self._owners[sequence]
        self._builds.discard(request)
        self._unsent.discard(request)
        self._forks.discard(request)
        self._note_quiet()

    def _on_forked(self, sibling: Sequence) -> None:
        self._queue.push(sibling)
        self.dispatch()

    def _note_quiet(self) -> None:
        if self.is_quiet:
            self._quiet.settle()
