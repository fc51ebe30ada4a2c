"""A sequence in a phase: its state, tokens and blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic

from tandem.errors import LeaseError
from tandem.kv.layout import num_blocks_for
from tandem.kv.occupants import domain_in, must_wipe
from tandem.kv.store import CopySource, KeyedBlock, SequenceLease
from tandem.model.batch import SequenceRows
from tandem.phase.keys import SequenceKeys
from tandem.phase.refreshing import Refreshing
from tandem.phase.selective import SelectivePrefill, SpanEntry, outcomes
from tandem.phase.session import ResultT, Session
from tandem.reuse.plan import Scores
from tandem.reuse.refresh import spans_of
from tandem.runner.sampler import Draw
from tandem.runner.steps import EntryCopy, TokenCopy
from tandem.types import Block, SegmentOutcome, SequenceDropped, SequenceSpec, Span


class SequenceState(Enum):
    """Where a sequence is between its submission and its end in this phase."""

    ACQUIRING = "acquiring"  # its lease is asked for
    ABANDONED = "abandoned"  # let go while its lease is asked for; ends with the answer
    WAITING = "waiting"
    FOLLOWING = "following"  # prefill: a running prompt computes what it could share
    RUNNING = "running"
    SEALING = "sealing"  # prefill: the token is drawn, memd is being told
    LEAVING = "leaving"  # let go; ends when no step touches it
    ENDED = "ended"


_TRANSITIONS: Mapping[SequenceState, frozenset[SequenceState]] = {
    SequenceState.ACQUIRING: frozenset({SequenceState.ABANDONED, SequenceState.WAITING, SequenceState.ENDED}),
    SequenceState.ABANDONED: frozenset({SequenceState.ENDED}),
    SequenceState.WAITING: frozenset({SequenceState.RUNNING, SequenceState.FOLLOWING, SequenceState.LEAVING}),
    SequenceState.FOLLOWING: frozenset({SequenceState.WAITING, SequenceState.LEAVING}),
    SequenceState.RUNNING: frozenset({SequenceState.SEALING, SequenceState.LEAVING, SequenceState.ENDED}),
    SequenceState.SEALING: frozenset({SequenceState.LEAVING, SequenceState.ENDED}),
    SequenceState.LEAVING: frozenset({SequenceState.ENDED}),
    SequenceState.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class WorkingSequence(Generic[ResultT]):
    """Touched on the loop only; a step reads what it was given until it ends, and nobody writes it meanwhile."""

    spec: SequenceSpec
    session: Session[ResultT]
    submitted_s: float
    keys: SequenceKeys
    state: SequenceState = SequenceState.ACQUIRING
    farewell: SequenceDropped | None = None  # what is said at the end, when it was let go
    prompt_token_ids: tuple[int, ...] = ()
    token_ids: list[int] = field(default_factory=list)  # the prompt and the output
    output_token_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    num_computed: int = 0  # tokens whose KV is in the blocks
    num_cached: int = 0  # of them, those that were there when the lease was acquired, or were copied
    wipes: list[int] = field(default_factory=list)  # of its blocks, to be zeroed by its next step
    copy_source: CopySource | None = None  # found for the tokens behind its blocks
    copy: TokenCopy | None = None  # to be made by its next step
    entry_copies: tuple[EntryCopy, ...] = ()  # the same
    copied_from: tuple[Block, ...] = ()  # until memd is told
    entries: tuple[SpanEntry, ...] = ()  # what memd has of its segments, once it was asked
    selective: SelectivePrefill | None = None  # how it is computed where entries are of use
    refreshing: Refreshing | None = None  # decode: how what is approximate is computed anew, where that is on
    started_s: float | None = None  # when the first of its steps began

    def __post_init__(self) -> None:
        self.prompt_token_ids = self.spec.token_ids[: self.spec.num_prompt_tokens]
        self.token_ids = list(self.spec.token_ids)
        self.output_token_ids = self.token_ids[self.spec.num_prompt_tokens :]

    @property
    def lease_id(self) -> int:
        """Names it everywhere."""
        return self.spec.lease_id

    @property
    def priority(self) -> int:
        """See `Ranked`."""
        return self.spec.priority

    @property
    def arrival_unix_ns(self) -> int:
        """See `Ranked`."""
        return self.spec.arrival_unix_ns

    @property
    def num_uncomputed(self) -> int:
        """Rows that are left until the next token can be drawn."""
        return len(self.token_ids) - self.num_computed if self.selective is None else self.selective.num_rows

    @property
    def num_next_rows(self) -> int:
        """Of them, those that may be in one step."""
        return self.num_uncomputed if self.selective is None else self.selective.num_next_rows

    @property
    def num_publishable_tokens(self) -> int | None:
        """Behind them stands approximate KV, or will; what is computed behind that is nobody else's. None: nowhere."""
        planned = None if self.selective is None else self.selective.num_exact_tokens
        return min((limit for limit in (self.spec.num_publishable_tokens, planned) if limit is not None), default=None)

    def enter(self, state: SequenceState) -> None:
        """LeaseError when the table has no such transition."""
        if state not in _TRANSITIONS[self.state]:
            raise LeaseError(f"sequence {self.lease_id}: {self.state.value} does not lead to {state.value}")
        self.state = state

    def adopt(self, lease: SequenceLease) -> None:
        """Takes what the ledger says as the truth; the last token is computed in any case, for its logits."""
        self.block_ids = [block.block_id for block in lease.blocks]
        num_begun = num_blocks_for(lease.num_sealed_tokens, self.keys.block_size)
        self.wipes = self._foreign(lease.blocks[num_begun:])
        self.num_computed = self.num_cached = min(lease.num_sealed_tokens, len(self.token_ids) - 1)
        self.copy_source = lease.copy_source
        self.entries, self.selective = (), None
        self.keys.note_published(lease.num_sealed_tokens)

    @property
    def num_found_tokens(self) -> int:
        """Tokens that it need not compute: in its blocks, or to be copied behind them."""
        return self.num_computed + (self.copy_source.num_tokens if self.copy_source else 0)

    def begin_copies(self, block_size: int) -> None:
        """Its next step copies what was found: into the block behind those that it shares, and of entries."""
        source, self.copy_source = self.copy_source, None
        if source is not None:
            target = self.block_ids[self.num_computed // block_size]
            self.copy = TokenCopy(source.block.block_id, target, source.num_tokens)
            self.copied_from = (source.block,)
            self.num_computed += source.num_tokens
            self.num_cached = self.num_computed
        if self.selective is not None:
            self.entry_copies = self.selective.copies(self.block_ids)
            self.copied_from += self.selective.blocks

    def add_blocks(self, blocks: Sequence[Block]) -> None:
        """Behind those that it has."""
        self.block_ids.extend(block.block_id for block in blocks)
        self.wipes += self._foreign(blocks)

    def _foreign(self, blocks: Sequence[Block]) -> list[int]:
        """Those that another domain's KV may be in."""
        domain = domain_in(self.spec.cache_namespace, self.spec.domain)
        return [block.block_id for block in blocks if must_wipe(block.occupant, domain)]

    def take_wipes(self) -> Sequence[int]:
        """For the step that is being prepared."""
        wipes, self.wipes = self.wipes, []
        return wipes

    def take_copy(self) -> TokenCopy | None:
        """For the step that is being prepared."""
        copy, self.copy = self.copy, None
        return copy

    def take_entry_copies(self) -> tuple[EntryCopy, ...]:
        """The same."""
        copies, self.entry_copies = self.entry_copies, ()
        return copies

    def take_copied_from(self) -> tuple[Block, ...]:
        """For the first update after the copy."""
        blocks, self.copied_from = self.copied_from, ()
        return blocks

    def num_missing_blocks(self, block_size: int) -> int:
        """Blocks that the positions of `token_ids` need beyond those it has."""
        return max(0, num_blocks_for(len(self.token_ids), block_size) - len(self.block_ids))

    def publish(self) -> tuple[KeyedBlock, ...]:
        """The full blocks computed since the last call, as far as others may have them."""
        limit = self.num_publishable_tokens
        end = self.num_computed if limit is None else min(self.num_computed, limit)
        return self.keys.publish(self.token_ids[:end])

    def publishable_keys(self) -> Sequence[bytes]:
        """Of the blocks that are published by and by, and of those that were."""
        limit = self.num_publishable_tokens
        return self.keys.of(self.token_ids if limit is None else self.token_ids[:limit])

    def rows(self, num_tokens: int) -> SequenceRows:
        """The next `num_tokens` rows, which are at most `num_next_rows`."""
        if self.selective is not None:
            return self.selective.rows(self.token_ids, self.block_ids, num_tokens)
        end = self.num_computed + num_tokens
        return SequenceRows(self.token_ids[self.num_computed : end], self.num_computed, self.block_ids)

    def num_asking(self, num_tokens: int) -> int | None:
        """See `StepPart`."""
        return None if self.selective is None else self.selective.num_asking(num_tokens)

    def advance(self, num_tokens: int, scores: Scores | None) -> None:
        """Its next rows are done; `scores` where they were a probe's."""
        if self.selective is None:
            self.num_computed += num_tokens
        else:
            self.selective.advance(num_tokens, scores)
            self.num_computed = self.selective.num_complete_tokens

    def segment_outcomes(self) -> tuple[SegmentOutcome, ...]:
        """Of each span of its `reuse`, once its prompt is computed."""
        if self.spec.reuse is None:
            return ()
        return outcomes(self.spec.reuse.spans, self.entries, self.num_cached, self._approximate_positions())

    def approximate(self) -> tuple[Span, ...]:
        """Of its prompt, once that is computed."""
        return spans_of(sorted(self._approximate_positions()))

    def _approximate_positions(self) -> frozenset[int]:
        return frozenset() if self.selective is None else self.selective.approximate_positions()

    def draw(self, banned_token_ids: tuple[int, ...]) -> Draw:
        """How the token after `token_ids` is drawn."""
        return Draw(
            sampling=self.spec.sampling,
            position=len(self.token_ids),
            prompt_token_ids=self.prompt_token_ids,
            output_token_ids=self.output_token_ids,
            banned_token_ids=banned_token_ids,
        )

    def append(self, token_id: int) -> None:
        """The drawn token."""
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)
