"""Decode: continuous batching of prefilled sequences, one token each a step.

Who steps, joins and is preempted is decided by `tandem.scheduler.decode`; no step awaits memd.
"""

from collections.abc import Sequence

import structlog

from services.decode.refreshes import Refreshes
from tandem.phase.engine import PhaseEngine
from tandem.phase.outfit import Outfit
from tandem.phase.refreshing import Refreshing
from tandem.phase.sequence import SequenceState, WorkingSequence
from tandem.phase.stepper import StepPart, StepResult
from tandem.phase.stopping import banned_tokens, finish_reason
from tandem.phase.waiting import WaitingRoom
from tandem.runner.sampler import SampledToken
from tandem.scheduler.decode import (
    BlockStock,
    DecodeCandidate,
    DecodePlan,
    Grant,
    PoolState,
    WaitingCandidates,
    plan_step,
)
from tandem.types import DecodeResult, DropReason, FinishReason, Phase, SequenceOutput

_log = structlog.get_logger()

REFUSALS_UNTIL_DRY = 2  # the first one makes memd ask the other phase for what it can spare
BARREN_AFTER_S = 2.0

DecodeSequence = WorkingSequence[DecodeResult]


class DecodeEngine(PhaseEngine[SequenceOutput, DecodeResult]):
    """Carries out the plans; everything but the steps themselves happens on the loop."""

    def __init__(self, outfit: Outfit, refreshes: Refreshes | None = None) -> None:
        """Without `refreshes` approximate KV stays as it is."""
        self._refreshes = refreshes or Refreshes(None)
        self._waiting = WaitingCandidates()
        super().__init__(Phase.DECODE, outfit, DecodeResult, lambda: WaitingRoom(self._waiting, self._candidate))
        self._batch: list[DecodeSequence] = []
        self._progress_s = outfit.clock.now()

    def prepare(self) -> Sequence[StepPart]:
        """The running and the joining that have the blocks for their next row, and what is beside their step."""
        self._roster.settle()
        plan = self._plan()
        self._let_go(plan)
        self._note_progress(plan)
        self._batch = [self._enter(grant) for grant in plan.grants]
        self._leases.supply.demand(plan.demand)
        parts = [_part(sequence) for sequence in self._batch]
        return parts + self._refreshes.prepare(self._batch, sum(len(part.rows.token_ids) for part in parts))

    def finish(self, results: Sequence[StepResult]) -> None:
        """Each running sequence's token, and the end of those it ends."""
        num_running = len(self._batch)
        self._refreshes.finish(results[num_running:])
        for sequence, token in zip(self._batch, results[:num_running], strict=True):
            sequence.num_computed = len(sequence.token_ids)
            if sequence.state is SequenceState.RUNNING and isinstance(token, SampledToken):
                self._take(sequence, token)

    def fail(self, message: str) -> None:
        """The step's sequences are dropped."""
        for sequence in self._batch:
            self._roster.leave(sequence, DropReason.FAILED, message)

    def num_needed_spare(self) -> int:
        """One for each running sequence."""
        return len(self._roster.running)

    def _plan(self) -> DecodePlan:
        limits = self._outfit.limits
        stock = BlockStock(self._leases.supply.num_spare, limits.num_pool_blocks, self._pool_state())
        running = [self._candidate(sequence) for sequence in self._roster.running]
        return plan_step(running, self._waiting, stock, limits.max_sequences)

    def _candidate(self, sequence: DecodeSequence) -> DecodeCandidate:
        spec = sequence.spec
        missing = sequence.num_missing_blocks(self._outfit.limits.block_size)
        return DecodeCandidate(spec.lease_id, spec.priority, spec.arrival_unix_ns, len(sequence.block_ids), missing)

    def _pool_state(self) -> PoolState:
        if self._leases.supply.num_refusals < REFUSALS_UNTIL_DRY:
            return PoolState.OPEN
        if self._outfit.clock.now() - self._progress_s < BARREN_AFTER_S:
            return PoolState.DRY
        return PoolState.BARREN

    def _note_progress(self, plan: DecodePlan) -> None:
        if plan.grants or not plan.demand.num_running_blocks or self._leases.supply.memd_away:
            self._progress_s = self._outfit.clock.now()

    def _let_go(self, plan: DecodePlan) -> None:
        for lease_id in plan.preempted:
            self._roster.leave(self._roster.get(lease_id), DropReason.PREEMPTED)
        for lease_id in plan.hopeless:
            message = f"needs more than the pool's {self._outfit.limits.num_pool_blocks} blocks"
            self._roster.leave(self._roster.get(lease_id), DropReason.FAILED, message)
        if plan.preempted:
            self._outfit.metrics.preemptions.inc(len(plan.preempted))
            self._leases.supply.forgive()
        self._roster.settle()

    def _enter(self, grant: Grant) -> DecodeSequence:
        sequence = self._roster.get(grant.lease_id)
        if sequence.state is SequenceState.WAITING:
            self._roster.enter(sequence, SequenceState.RUNNING)
            self._refreshes.join(sequence)
        if grant.num_blocks:
            blocks = self._leases.grow(grant.lease_id, grant.num_blocks, sequence.num_computed, sequence.publish())
            sequence.add_blocks(blocks)
        return sequence

    def _take(self, sequence: DecodeSequence, token: SampledToken) -> None:
        sequence.append(token.token_id)
        room = self._outfit.limits.max_context_tokens - len(sequence.token_ids)
        reason = finish_reason(sequence.spec.stop, token.token_id, len(sequence.output_token_ids), room)
        num_refreshed = 0 if sequence.refreshing is None else self._count_refreshed(sequence.refreshing)
        output = SequenceOutput(sequence.lease_id, token.token_id, token.logprobs, reason, num_refreshed)
        self._outbox.say(sequence.session, output)
        if reason is not FinishReason.NONE:
            _log.info(
                "sequence.finished",
                request_id=sequence.spec.request_id,
                lease_id=sequence.lease_id,
                reason=reason.name,
                num_output_tokens=len(sequence.output_token_ids),
            )
            self._roster.end(sequence)

    def _count_refreshed(self, refreshing: Refreshing) -> int:
        num_refreshed = refreshing.take_num_refreshed()
        self._outfit.metrics.refreshed_tokens.inc(num_refreshed)
        return num_refreshed


def _part(sequence: DecodeSequence) -> StepPart:
    """One row, or those that were never sealed as well, in the step in which it joins."""
    banned = banned_tokens(sequence.spec.stop, len(sequence.output_token_ids))
    return StepPart(sequence.rows(sequence.num_uncomputed), sequence.draw(banned), sequence.take_wipes())
