"""Both phases' work, decided by the schedulers that serve: `tandem.scheduler.prefill` and `tandem.scheduler.decode`."""

from collections.abc import Callable
from typing import Protocol

from bench.simulate.sequences import BlockPool, SimSequence
from bench.simulate.step_times import StepContent
from bench.simulate.systems import EngineLimits
from tandem.scheduler.decode import BlockStock, DecodeCandidate, DecodePlan, PoolState, WaitingCandidates, plan_step
from tandem.scheduler.line import Line
from tandem.scheduler.prefill import RunningPrompt, WaitingPrompt, admit, share_budget
from tandem.scheduler.rank import rank_key


class SimWork(Protocol):
    """One phase's part of a process's steps."""

    def submit(self, sequence: SimSequence) -> None:
        """It waits from now on."""
        ...

    def prepare(self) -> StepContent | None:
        """The next step; None when there is nothing to do now."""
        ...

    def finish(self, now_s: float) -> None:
        """The step that was prepared is done."""
        ...

    @property
    def num_sequences(self) -> int:
        """In the step that was prepared last."""
        ...

    @property
    def num_waiting(self) -> int:
        """Sequences that found no place yet."""
        ...

    @property
    def num_backlog_tokens(self) -> int:
        """Of prompts, to be computed."""
        ...


class PrefillWork:
    """`hand_over` gets every sequence that has the token of its last chunk. `budget`: a step's tokens."""

    def __init__(
        self,
        limits: EngineLimits,
        pool: BlockPool,
        budget: Callable[[], int],
        clock: Callable[[], float],
        hand_over: Callable[[SimSequence], None],
    ) -> None:
        self._limits = limits
        self._pool = pool
        self._budget = budget
        self._clock = clock
        self._hand_over = hand_over
        self._sequences: dict[int, SimSequence] = {}
        self._waiting: Line[WaitingPrompt] = Line(rank_key)
        self._running: Line[SimSequence] = Line(rank_key)
        self._batch: list[tuple[SimSequence, int]] = []

    @property
    def num_sequences(self) -> int:
        """See `SimWork`."""
        return len(self._batch)

    @property
    def num_waiting(self) -> int:
        """See `SimWork`."""
        return len(self._waiting)

    @property
    def num_backlog_tokens(self) -> int:
        """See `SimWork`."""
        return sum(sequence.num_uncomputed for sequence in self._sequences.values())

    def submit(self, sequence: SimSequence) -> None:
        """See `SimWork`."""
        self._sequences[sequence.lease_id] = sequence
        missing = sequence.num_missing_blocks(self._limits.block_size)
        self._waiting.add(WaitingPrompt(sequence.lease_id, sequence.priority, sequence.arrival_unix_ns, missing))

    def prepare(self) -> StepContent | None:
        """See `SimWork`."""
        self._admit()
        chunks = share_budget((_running_view(sequence) for sequence in self._running), self._budget())
        self._batch = [(self._sequences[chunk.lease_id], chunk.num_tokens) for chunk in chunks]
        if not self._batch:
            return None
        for sequence, _ in self._batch:
            sequence.started_s = self._clock() if sequence.started_s is None else sequence.started_s
        rows = sum(num_tokens for _, num_tokens in self._batch)
        keys = sum(sequence.num_computed * num_tokens for sequence, num_tokens in self._batch) / rows
        return StepContent(num_prompt_rows=rows, num_keys_before=keys)

    def finish(self, now_s: float) -> None:
        """See `SimWork`."""
        for sequence, num_tokens in self._batch:
            sequence.num_computed += num_tokens
            if sequence.num_uncomputed == 0:
                self._running.discard(sequence.lease_id)
                del self._sequences[sequence.lease_id]
                self._hand_over(sequence)

    def _admit(self) -> None:
        admission = admit(
            self._waiting,
            num_places=self._limits.max_sequences - len(self._running),
            num_spare_blocks=max(0, self._pool.num_free - self._limits.num_reserve_blocks),
        )
        for lease_id in admission.lease_ids:
            self._waiting.discard(lease_id)
            sequence = self._sequences[lease_id]
            self._pool.give(sequence, sequence.num_missing_blocks(self._limits.block_size))
            self._running.add(sequence)


class DecodeWork:
    """`finished` gets every sequence that has all of its answer, `preempted` every one that lost its blocks."""

    def __init__(
        self,
        limits: EngineLimits,
        pool: BlockPool,
        finished: Callable[[SimSequence], None],
        preempted: Callable[[SimSequence], None],
    ) -> None:
        self._limits = limits
        self._pool = pool
        self._finished = finished
        self._preempted = preempted
        self._sequences: dict[int, SimSequence] = {}
        self._running: Line[SimSequence] = Line(rank_key)
        self._waiting = WaitingCandidates()
        self._joined: set[int] = set()  # the leases of `_running`
        self._candidates: dict[int, DecodeCandidate] = {}  # as they were last planned
        self._batch: list[SimSequence] = []

    @property
    def num_sequences(self) -> int:
        """See `SimWork`."""
        return len(self._batch)

    @property
    def num_waiting(self) -> int:
        """See `SimWork`."""
        return len(self._waiting)

    @property
    def num_backlog_tokens(self) -> int:
        """See `SimWork`."""
        return 0

    def submit(self, sequence: SimSequence) -> None:
        """See `SimWork`."""
        self._sequences[sequence.lease_id] = sequence
        self._waiting.add(self._candidate(sequence))

    def prepare(self) -> StepContent | None:
        """See `SimWork`."""
        plan = self._plan()
        while gone := (*plan.preempted, *plan.hopeless):
            for lease_id in gone:
                self._preempt(lease_id)
            plan = self._plan()  # their blocks are back at once
        self._batch = [self._enter(grant.lease_id, grant.num_blocks) for grant in plan.grants]
        if not self._batch:
            return None
        keys = sum(sequence.num_tokens for sequence in self._batch)
        return StepContent(num_decode_rows=len(self._batch), num_decode_keys=keys)

    def finish(self, now_s: float) -> None:
        """See `SimWork`."""
        for sequence in self._batch:
            sequence.num_computed = sequence.num_tokens
            sequence.token_times_s.append(now_s)
            if sequence.is_complete:
                self._forget(sequence)
                self._finished(sequence)

    def _plan(self) -> DecodePlan:
        running = [self._candidate(sequence) for sequence in self._running]
        stock = BlockStock(self._pool.num_free, self._pool.num_blocks, PoolState.DRY)  # the pool is asked in no time
        return plan_step(running, self._waiting, stock, self._limits.max_sequences)

    def _candidate(self, sequence: SimSequence) -> DecodeCandidate:
        """Made anew only when it has changed."""
        known = self._candidates.get(sequence.lease_id)
        held, missing = sequence.num_blocks, sequence.num_missing_blocks(self._limits.block_size)
        if known is not None and known.num_held_blocks == held and known.num_missing_blocks == missing:
            return known
        made = DecodeCandidate(sequence.lease_id, sequence.priority, sequence.arrival_unix_ns, held, missing)
        self._candidates[sequence.lease_id] = made
        return made

    def _enter(self, lease_id: int, num_blocks: int) -> SimSequence:
        sequence = self._sequences[lease_id]
        if num_blocks:
            self._pool.give(sequence, num_blocks)
        if lease_id not in self._joined:
            self._joined.add(lease_id)
            self._waiting.discard(lease_id)
            self._running.add(sequence)
        return sequence

    def _preempt(self, lease_id: int) -> None:
        sequence = self._sequences[lease_id]
        self._forget(sequence)
        self._pool.take_back(sequence)
        sequence.num_preemptions += 1
        self._preempted(sequence)

    def _forget(self, sequence: SimSequence) -> None:
        lease_id = sequence.lease_id
        self._waiting.discard(lease_id)
        self._running.discard(lease_id)
        self._joined.discard(lease_id)
        self._candidates.pop(lease_id, None)
        del self._sequences[lease_id]


def _running_view(sequence: SimSequence) -> RunningPrompt:
    return RunningPrompt(sequence.lease_id, sequence.priority, sequence.arrival_unix_ns, sequence.num_uncomputed)
