"""The gateway's queue: sequences, as the dispatcher sees them."""

from collections.abc import Callable

from services.gateway.quotas import TenantQuotas
from services.gateway.requests import Arrival, Sequence
from services.gateway.reuse import PromptReuse, sightings
from services.gateway.speed import PrefillSpeed
from tandem.kv.cache_store import CacheNews
from tandem.phase.keys import SequenceKeys
from tandem.reuse.plan import ReusePolicy
from tandem.scheduler.dispatch import Claim, Dispatcher
from tandem.scheduler.fair_share import ANSWER_TOKEN_WORK
from tandem.scheduler.reused_spans import KnownEntries, ReusedSpan
from tandem.types import Prefilled

NUM_KNOWN_ENTRIES = 16_384  # keys of segments; some 2 MB
HEAD_TOKENS = ReusePolicy().head_tokens


class SequenceQueue:
    """Those that wait for prefill, and what prefill has of them."""

    def __init__(
        self,
        dispatcher: Dispatcher[Sequence],
        quotas: TenantQuotas,
        block_size: Callable[[], int],
        unix_ns: Callable[[], int],
        on_entered: Callable[[], object] = lambda: None,
    ) -> None:
        """`block_size` is known when there are sequences. `on_entered`: one that was behind a quota has its place."""
        self._quotas = quotas
        self._dispatcher = dispatcher
        self._block_size = block_size
        self._unix_ns = unix_ns
        self._on_entered = on_entered
        self._speed = PrefillSpeed()
        self._entries = KnownEntries(NUM_KNOWN_ENTRIES)
        self._keys: dict[Sequence, SequenceKeys] = {}  # of those that have waited and are not retired
        self._parked: set[Sequence] = set()  # behind a quota of their tenant

    def __len__(self) -> int:
        return len(self._dispatcher) + len(self._parked)

    def push(self, sequence: Sequence) -> None:
        """It waits from now on."""
        if sequence.arrival.is_build:
            self._line_up(sequence)
        else:
            self._parked.add(sequence)
            self._quotas.running.enter(sequence, self._let_in)

    def take(self) -> Sequence | None:
        """Whose turn it is; None while prefill has enough. What is taken counts as sent."""
        return self._dispatcher.take(self._unix_ns())

    def put_off(self, sequence: Sequence) -> None:
        """It was taken, and is not sent after all."""
        self._dispatcher.finish(sequence, 0)

    def leave_prefill(self, sequence: Sequence, prefilled: Prefilled | None) -> None:
        """Prefill has it no more; `prefilled`, before its token is taken in, when it is complete."""
        if prefilled is None:
            self._dispatcher.finish(sequence)
            return
        num_computed = num_computed_tokens(sequence, prefilled)
        self._speed.note(num_computed, prefilled.compute_ms)
        self._dispatcher.finish(sequence, num_computed)
        if prefilled.segments:
            self._note_segments(sequence, prefilled)

    def retire(self, sequence: Sequence) -> None:
        """It gets no further."""
        self._dispatcher.discard(sequence)
        if self._keys.pop(sequence, None) is not None and sequence.num_new_tokens:
            self._dispatcher.charge(sequence.arrival.tenant, ANSWER_TOKEN_WORK * sequence.num_new_tokens)
        if sequence.arrival.is_build:
            return
        self._parked.discard(sequence)
        self._quotas.rates.note_answer(sequence.arrival.tenant, sequence.num_new_tokens)
        self._quotas.running.leave(sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """It goes on in another replica, and keeps the place that it has among its tenant's."""
        self._dispatcher.discard(sequence)
        self._dispatcher.finish(sequence)
        self._keys.pop(sequence, None)
        if sequence in self._parked:
            self._parked.remove(sequence)
            self._quotas.running.leave(sequence)

    def hear(self, news: CacheNews) -> None:
        """memd tells what is in its cache."""
        self._dispatcher.hear(news)

    def forget_entries(self) -> None:
        """memd has gone, or begun anew: what was found in segments is to be found again."""
        self._entries.clear()

    def note_entry(self, key: bytes) -> None:
        """A segment's entry has been built."""
        self._entries.note(key, found=True)

    def least_prefill_s(self, sequence: Sequence) -> float:
        """How long its prompt takes at the least, when it is next and alone; 0 when that is not known."""
        return self._speed.least_s(self._dispatcher.sent_work_tokens(sequence))

    def _let_in(self, sequence: Sequence) -> None:
        self._parked.remove(sequence)
        self._line_up(sequence)
        self._on_entered()

    def _line_up(self, sequence: Sequence) -> None:
        self._dispatcher.push(sequence, self._claim(sequence))

    def _claim(self, sequence: Sequence) -> Claim:
        arrival, token_ids, block_size = sequence.arrival, sequence.token_ids, self._block_size()
        keys = self._keys.setdefault(sequence, SequenceKeys(arrival.cache_namespace, block_size))
        is_forked = sequence.lease_id is not None
        reuse = None if is_forked else arrival.reuse
        return Claim(
            priority=arrival.priority,
            arrival_unix_ns=arrival.unix_ns,
            index=sequence.index,
            tenant=arrival.tenant,
            num_tokens=len(token_ids),
            keys=() if is_forked else keys.claimable(token_ids),
            block_size=block_size,
            num_held_tokens=(len(token_ids) - 1) // block_size * block_size if is_forked else 0,
            reused=() if reuse is None else self._expected(reuse),
            num_certain_tokens=_num_certain_tokens(arrival, reuse),
        )

    def _expected(self, reuse: PromptReuse) -> tuple[ReusedSpan, ...]:
        return tuple(
            ReusedSpan(span.start, span.end, HEAD_TOKENS, reuse.spec.ratio)
            for span, segment in zip(reuse.spec.spans, reuse.segments, strict=True)
            if segment.key in self._entries
        )

    def _note_segments(self, sequence: Sequence, prefilled: Prefilled) -> None:
        """What was found is known."""
        reuse = sequence.arrival.reuse
        if reuse is None:
            return
        for segment, found in sightings(reuse, prefilled.segments):
            self._entries.note(segment.key, found=found)


def _num_certain_tokens(arrival: Arrival, reuse: PromptReuse | None) -> int | None:
    """Nobody waits for an entry's blocks, and in a full quota they are not kept."""
    if arrival.is_build:
        return 0
    return None if reuse is None else reuse.spec.spans[0].start


def num_computed_tokens(sequence: Sequence, prefilled: Prefilled) -> int:
    """By prefill, before its token is taken in."""
    num_approximate = sum(outcome.num_approximate for outcome in prefilled.segments) if prefilled.segments else 0
    return max(1, sequence.num_tokens - prefilled.num_cached_tokens - num_approximate)
