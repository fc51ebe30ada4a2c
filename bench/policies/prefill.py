"""Simulated prefill with reuse: prompts in the order in which they were sent, as `services.prefill` takes them."""

from collections import Counter, deque
from collections.abc import Callable

from bench.policies.sequences import CachingPool, SharingSequence
from bench.simulate.step_times import StepContent
from bench.simulate.systems import EngineLimits
from tandem.scheduler.prefill import RunningPrompt, share_budget


class SharingPrefill:
    """Each prompt looks once for what is cached. One whose next block is being computed waits for it, and looks again.

    `prefilled` gets every sequence that has the token of its last chunk.
    """

    def __init__(self, limits: EngineLimits, pool: CachingPool, prefilled: Callable[[SharingSequence], None]) -> None:
        self._limits = limits
        self._pool = pool
        self._prefilled = prefilled
        self._waiting: deque[SharingSequence] = deque()
        self._followers: list[SharingSequence] = []
        self._running: dict[int, SharingSequence] = {}
        self._computing: Counter[bytes] = Counter()  # keys of what runs
        self._batch: list[tuple[SharingSequence, int]] = []

    def submit(self, sequence: SharingSequence) -> None:
        """It waits from now on."""
        self._waiting.append(sequence)

    def prepare(self) -> StepContent | None:
        """The next step; None when there is nothing to do now."""
        self._admit()
        running = (RunningPrompt(lease_id, 0, 0, each.num_uncomputed) for lease_id, each in self._running.items())
        chunks = share_budget(running, self._limits.chunk_tokens)
        self._batch = [(self._running[chunk.lease_id], chunk.num_tokens) for chunk in chunks]
        if not self._batch:
            return None
        rows = sum(num_tokens for _, num_tokens in self._batch)
        keys = sum(sequence.num_computed * num_tokens for sequence, num_tokens in self._batch) / rows
        return StepContent(num_prompt_rows=rows, num_keys_before=keys)

    def finish(self, now_s: float) -> None:
        """The step that was prepared is done."""
        for sequence, num_tokens in self._batch:
            sequence.num_computed += num_tokens
            self._pool.publish(sequence)
            if sequence.num_uncomputed == 0:
                del self._running[sequence.lease_id]
                self._computing -= Counter(sequence.keys)
                self._prefilled(sequence)
        self._waiting.extendleft(reversed(self._followers))
        self._followers.clear()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._limits.max_sequences:
            sequence = self._waiting[0]
            self._pool.claim(sequence)
            missing = sequence.num_missing_blocks(self._limits.block_size)
            if self._follows(sequence):
                self._pool.take_back(sequence)
                self._followers.append(self._waiting.popleft())
            elif missing > self._pool.num_free - self._limits.num_reserve_blocks:
                self._pool.take_back(sequence)
                return
            else:
                self._pool.give(sequence, missing)
                self._enter(self._waiting.popleft())

    def _follows(self, sequence: SharingSequence) -> bool:
        next_key = sequence.keys[sequence.num_shared_blocks : sequence.num_shared_blocks + 1]
        return bool(next_key) and next_key[0] in self._computing

    def _enter(self, sequence: SharingSequence) -> None:
        sequence.num_cached_tokens = sequence.num_computed
        self._running[sequence.lease_id] = sequence
        self._computing.update(sequence.keys)
