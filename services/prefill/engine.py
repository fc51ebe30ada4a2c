"""Prefill: continuous batching of prompts in chunks, and each one's first token.

Who is admitted and how a step is shared is decided by `tandem.scheduler.prefill`. A prompt is admitted with all its
blocks; its token is said only when memd knows that its KV is complete, for decode may take over from then on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from services.prefill.doorman import Desk, Doorman, Room
from services.prefill.reuse import EntrySearch
from tandem.phase.engine import PhaseEngine
from tandem.phase.outfit import Outfit
from tandem.phase.sequence import SequenceState, WorkingSequence
from tandem.phase.stepper import StepPart, StepResult
from tandem.phase.stopping import banned_tokens, finish_reason
from tandem.phase.waiting import WaitingRoom
from tandem.reuse.plan import ReusePolicy
from tandem.runner.sampler import SampledToken
from tandem.scheduler.prefill import RunningPrompt, WaitingPrompt, admit, share_budget
from tandem.types import DropReason, Phase, Prefilled, PrefillResult, SequenceOutput

_log = structlog.get_logger()

PromptSequence = WorkingSequence[PrefillResult]

DEFAULT_POLICY = ReusePolicy()


@dataclass(frozen=True, slots=True)
class _Running:
    """A prompt's chunk in the step under way."""

    sequence: PromptSequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class _Sealing:
    """What will be said of a prompt when memd has been told."""

    sequence: PromptSequence
    prefilled: Prefilled


class PrefillEngine(PhaseEngine[Prefilled, PrefillResult]):
    """Carries out the plans; everything but the steps themselves happens on the loop."""

    def __init__(self, outfit: Outfit, budget: Callable[[], int], policy: ReusePolicy = DEFAULT_POLICY) -> None:
        """`budget` is asked for the tokens that the next step's chunks may have together.

        `policy` says when segments are reused, and what of them is computed; the ratio is each prompt's own.
        """
        self._policy = policy
        super().__init__(Phase.PREFILL, outfit, PrefillResult, self._make_waiting_room)
        self._budget = budget
        self._batch: list[_Running] = []

    def prepare(self) -> Sequence[StepPart]:
        """The next chunks, after those prompts were admitted for which there are blocks."""
        self._roster.settle()
        if not self._roster.running and not self._doorman.num_settled:
            self._doorman.call_followers()  # whom they followed has left
        self._admit()
        chunks = share_budget(map(_running_view, self._roster.running), self._budget())
        self._batch = [_Running(self._roster.get(chunk.lease_id), chunk.num_tokens) for chunk in chunks]
        return [self._part(part) for part in self._batch]

    def finish(self, results: Sequence[StepResult]) -> None:
        """Seals what the chunks computed; whoever has its token is said when memd knows."""
        sealing = []
        for part, result in zip(self._batch, results, strict=True):
            token, scores = (result, None) if isinstance(result, SampledToken) else (None, result)
            sequence = part.sequence
            sequence.advance(part.num_tokens, scores)
            if sequence.state is not SequenceState.RUNNING:
                continue
            copied_from = sequence.take_copied_from()
            self._leases.seal(sequence.lease_id, sequence.num_computed, sequence.publish(), copied_from)
            if token is not None:
                self._roster.enter(sequence, SequenceState.SEALING)
                sealing.append(_Sealing(sequence, self._prefilled(sequence, token)))
        if sealing or self._doorman.has_followers:
            self._outfit.crew.spawn(self._say_when_sealed(sealing))

    def fail(self, message: str) -> None:
        """The step's prompts are dropped."""
        for part in self._batch:
            self._roster.leave(part.sequence, DropReason.FAILED, message)

    def num_needed_spare(self) -> int:
        """What runs has all of its blocks."""
        return 0

    def _admit(self) -> None:
        room = self._room()
        admission = admit(
            tuple(self._doorman.admissible()), num_places=room.num_places, num_spare_blocks=room.num_spare_blocks
        )
        for lease_id in admission.lease_ids:
            self._enter(self._roster.get(lease_id))
        self._leases.supply.demand(admission.demand)
        self._doorman.look()

    def _room(self) -> Room:
        num_places = self._outfit.limits.max_sequences - len(self._roster.running)
        return Room(num_places, self._leases.supply.num_spare)

    def _make_waiting_room(self) -> WaitingRoom[WaitingPrompt, PrefillResult]:
        desk = Desk(
            roster=lambda: self._roster,
            view=self._waiting_view,
            room=self._room,
            wake=self._outfit.steps.wake.set,
        )
        search = EntrySearch(self._leases, self._policy, self._outfit.limits.block_size)
        self._doorman = Doorman(self._leases, search, self._outfit.crew, desk)
        return WaitingRoom(self._doorman, self._waiting_view)

    def _enter(self, sequence: PromptSequence) -> None:
        missing = sequence.num_missing_blocks(self._outfit.limits.block_size)
        if missing:
            blocks = self._leases.grow(sequence.lease_id, missing, sequence.num_computed)
            sequence.add_blocks(blocks)
        sequence.begin_copies(self._outfit.limits.block_size)
        self._roster.enter(sequence, SequenceState.RUNNING)

    def _waiting_view(self, sequence: PromptSequence) -> WaitingPrompt:
        spec = sequence.spec
        missing = sequence.num_missing_blocks(self._outfit.limits.block_size)
        return WaitingPrompt(spec.lease_id, spec.priority, spec.arrival_unix_ns, missing)

    def _part(self, part: _Running) -> StepPart:
        sequence = part.sequence
        if sequence.started_s is None:
            sequence.started_s = self._outfit.clock.now()
        is_last = part.num_tokens == sequence.num_uncomputed
        banned = banned_tokens(sequence.spec.stop, len(sequence.output_token_ids))
        return StepPart(
            rows=sequence.rows(part.num_tokens),
            draw=sequence.draw(banned) if is_last else None,
            wipes=sequence.take_wipes(),
            copy=sequence.take_copy(),
            entries=sequence.take_entry_copies(),
            num_asking=sequence.num_asking(part.num_tokens),
        )

    def _prefilled(self, sequence: PromptSequence, token: SampledToken) -> Prefilled:
        spec = sequence.spec
        room = self._outfit.limits.max_context_tokens - len(sequence.token_ids) - 1
        reason = finish_reason(spec.stop, token.token_id, len(sequence.output_token_ids) + 1, room)
        started_s = sequence.submitted_s if sequence.started_s is None else sequence.started_s
        return Prefilled(
            output=SequenceOutput(spec.lease_id, token.token_id, token.logprobs, reason),
            wait_ms=(started_s - sequence.submitted_s) * 1000,
            compute_ms=(self._outfit.clock.now() - started_s) * 1000,
            num_cached_tokens=min(sequence.num_cached, spec.num_prompt_tokens),
            segments=sequence.segment_outcomes(),
            num_publishable_tokens=sequence.num_publishable_tokens,
            approximate=sequence.approximate(),
        )

    async def _say_when_sealed(self, sealing: Sequence[_Sealing]) -> None:
        await self._leases.updates.flush()
        for done in sealing:
            sequence = done.sequence
            if sequence.state is SequenceState.SEALING and not self._leases.is_lost(sequence.lease_id):
                self._outbox.say(sequence.session, done.prefilled)
                _log.info("sequence.prefilled", **_fields(sequence, done.prefilled))
                self._roster.end(sequence)
        self._outbox.deliver()
        self._doorman.call_followers()


def _running_view(sequence: PromptSequence) -> RunningPrompt:
    spec = sequence.spec
    return RunningPrompt(spec.lease_id, spec.priority, spec.arrival_unix_ns, sequence.num_next_rows)


def _fields(sequence: PromptSequence, prefilled: Prefilled) -> dict[str, object]:
    return {
        "request_id": sequence.spec.request_id,
        "lease_id": sequence.lease_id,
        "num_tokens": len(sequence.spec.token_ids),
        "num_cached_tokens": prefilled.num_cached_tokens,
        "num_approximate_tokens": sum(segment.num_approximate for segment in prefilled.segments),
        "wait_ms": prefilled.wait_ms,
        "compute_ms": prefilled.compute_ms,
    }
