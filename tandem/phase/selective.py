"""The rows of a prompt that takes parts of its KV from segments' entries, and what came of its segments.

Such a prompt first brings all that is in nobody's cache to a probe, whose scores choose which of the reused tokens are
computed too, and then the chosen to the model. Both go in as many steps as the budget wants.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tandem.kv.contents import block_keys
from tandem.model.batch import SequenceRows
from tandem.reuse.plan import Placement, ReusePlan, ReusePolicy, Scores, choose, place, plan_reuse
from tandem.runner.probe import num_asking
from tandem.runner.segment_kv import NUM_FIRST
from tandem.runner.selective import chosen_rows
from tandem.runner.steps import EntryCopy
from tandem.types import Block, SegmentOutcome, SegmentReuse, Span


@dataclass(frozen=True, slots=True)
class SpanEntry:
    """A span's entry by its full blocks: what is shorter than one is computed with the prompt.

    `blocks` are those that are there, from the first on.
    """

    span: Span
    keys: tuple[bytes, ...]
    blocks: tuple[Block, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether there is nothing to build."""
        return len(self.blocks) == len(self.keys)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a placement comes from."""

    placement: Placement
    blocks: tuple[Block, ...]


class SelectivePrefill:
    """Which rows come next. Touched on the loop only, between two steps."""

    def __init__(self, plan: ReusePlan, sources: Sequence[_Source]) -> None:
        self._plan = plan
        self._sources = sources
        self._asks_from = len(plan.fresh) - num_asking(plan)  # of the rows of the probe
        self._scores: Scores = np.zeros(plan.num_tokens, dtype=np.float32)
        self._chosen = None if plan.num_chosen else choose(plan, self._scores)  # None: the probe is not done
        self._num_done = 0  # rows, of the probe or of the chosen

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Everything that is copied from."""
        return tuple(block for source in self._sources for block in source.blocks)

    @property
    def num_exact_tokens(self) -> int:
        """Of the prompt's beginning: behind them stands, and is computed, approximate KV."""
        return self._plan.placements[0].start

    @property
    def num_complete_tokens(self) -> int:
        """Of the prompt's beginning: those whose KV will not be written any more."""
        if self._chosen is None:
            return self._plan.num_exact
        return self._chosen[self._num_done] if self._num_done < len(self._chosen) else self._plan.num_tokens

    @property
    def num_next_rows(self) -> int:
        """At most so many may be in one step: what the probe sees is not what the model sees."""
        return len(self._positions) - self._num_done

    @property
    def num_rows(self) -> int:
        """That are left, those of the probe included."""
        plan = self._plan
        num_chosen = len(plan.fresh) + len(plan.heads) + plan.num_chosen if self._chosen is None else 0
        return self.num_next_rows + num_chosen

    def copies(self, block_ids: Sequence[int]) -> tuple[EntryCopy, ...]:
        """Into a sequence's own blocks; made once, before its first rows."""
        return tuple(
            EntryCopy(source.placement, [block.block_id for block in source.blocks], block_ids)
            for source in self._sources
        )

    def rows(self, token_ids: Sequence[int], block_ids: Sequence[int], num_rows: int) -> SequenceRows:
        """The next ones."""
        return chosen_rows(token_ids, self._positions[self._num_done : self._num_done + num_rows], block_ids)

    def num_asking(self, num_rows: int) -> int | None:
        """How many of the next rows the probe asks; None: it is the model's turn."""
        if self._chosen is not None:
            return None
        return min(num_rows, max(0, self._num_done + num_rows - self._asks_from))

    def advance(self, num_rows: int, scores: Scores | None) -> None:
        """The next rows are done; `scores` are what a probe said of them."""
        self._num_done += num_rows
        if scores is not None:
            self._scores[: len(scores)] += scores
        if self._chosen is None and self._num_done == len(self._plan.fresh):
            self._chosen, self._num_done = choose(self._plan, self._scores), 0

    def approximate_positions(self) -> frozenset[int]:
        """Reused and not computed; all reused ones while that is not decided."""
        reused = {position for source in self._sources for position in source.placement.positions}
        return frozenset(reused - {*(self._chosen or self._plan.fresh)})

    @property
    def _positions(self) -> Sequence[int]:
        return self._plan.fresh if self._chosen is None else self._chosen


def entries_of(token_ids: Sequence[int], reuse: SegmentReuse, block_size: int) -> tuple[SpanEntry, ...]:
    """What to ask for."""
    first = reuse.first_token_id
    return tuple(
        SpanEntry(span, block_keys(reuse.namespace, (first, *token_ids[span.start : span.end]), block_size))
        for span in reuse.spans
    )


def plan_selective(
    num_tokens: int, num_exact: int, entries: Sequence[SpanEntry], policy: ReusePolicy, block_size: int
) -> SelectivePrefill | None:
    """`num_tokens` counts what was emitted, too; `num_exact` of them are there already. None: compute the others."""
    sources = tuple(_sources(entries, num_exact, block_size))
    plan = plan_reuse(num_tokens, num_exact, [source.placement for source in sources], policy)
    return SelectivePrefill(plan, sources) if sources and plan is not None else None


def outcomes(
    spans: Sequence[Span], entries: Sequence[SpanEntry], num_exact: int, approximate: Container[int]
) -> tuple[SegmentOutcome, ...]:
    """One for each span. `num_exact` tokens of the prompt were there as they are; `approximate` are positions."""
    found = {entry.span for entry in entries if entry.is_whole}
    return tuple(_outcome(span, span in found, num_exact, approximate) for span in spans)


def _sources(entries: Sequence[SpanEntry], num_exact: int, block_size: int) -> Iterator[_Source]:
    for entry in entries:
        if not entry.blocks:
            continue
        num_tokens = len(entry.blocks) * block_size - NUM_FIRST
        placement = place(entry.keys[len(entry.blocks) - 1], entry.span.start, num_tokens, num_exact)
        if placement is not None:
            yield _Source(placement, entry.blocks)


def _outcome(span: Span, found: bool, num_exact: int, approximate: Container[int]) -> SegmentOutcome:
    num_approximate = sum(position in approximate for position in range(span.start, span.end))
    num_reused = max(0, min(span.end, num_exact) - span.start)
    return SegmentOutcome(
        num_exact=num_reused,
        num_approximate=num_approximate,
        num_computed=span.end - span.start - num_reused - num_approximate,
        found=found,
    )
