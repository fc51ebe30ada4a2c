"""One item, computed in full and with its documents' canonical entries: what all its cases start from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.approx.answer import Prefilled, follow, greedy
from bench.approx.item import Item
from bench.approx.model import ApproxModel
from bench.approx.settings import Settings
from bench.approx.timing import Stopwatch, Timed
from tandem.reuse.plan import Placement, place
from tandem.reuse.segments import Segment, SegmentRules, find_segments

NAMESPACE = b"bench"


@dataclass(frozen=True, slots=True)
class Entry:
    """A document's canonical KV, and where the prompt has the document."""

    placement: Placement
    blocks: range


@dataclass(frozen=True, slots=True)
class Prepared:
    """`expected`: full recompute's logits over the first tokens of its own `continuation`."""

    item: Item
    full: Timed[Prefilled]
    continuation: Timed[list[int]]
    expected: torch.Tensor  # [answer_tokens, vocab_size]
    entries: Timed[tuple[Entry, ...]]
    own_blocks: range  # of the cases, one after another

    @property
    def placements(self) -> tuple[Placement, ...]:
        """In the order of the prompt."""
        return tuple(entry.placement for entry in self.entries.value)


def prepare(model: ApproxModel, item: Item, settings: Settings, stopwatch: Stopwatch) -> Prepared:
    """Takes all of the model's blocks."""
    model.give_back()
    room = len(item.token_ids) + settings.continuation_tokens
    full_blocks, own_blocks = model.take_blocks(room), model.take_blocks(room)
    full = stopwatch.time(lambda: full_prefill(model, item, full_blocks, settings.chunk_tokens))
    continuation = stopwatch.time(lambda: greedy(model, full.value, settings.continuation_tokens))
    segments = find_segments(item.token_ids, NAMESPACE, SegmentRules(), item.spans)
    return Prepared(
        item=item,
        full=full,
        continuation=continuation,
        expected=follow(model, full.value, continuation.value[: settings.answer_tokens]),
        entries=stopwatch.time(lambda: _entries(model, segments)),
        own_blocks=own_blocks,
    )


def full_prefill(model: ApproxModel, item: Item, blocks: range, chunk_tokens: int) -> Prefilled:
    """Nothing reused."""
    return Prefilled(len(item.token_ids), blocks, model.prefill(item.token_ids, blocks, chunk_tokens))


def _entries(model: ApproxModel, segments: Sequence[Segment]) -> tuple[Entry, ...]:
    found = []
    for segment in segments:
        placement = place(segment.key, segment.start, len(segment.token_ids), num_exact=0)
        if placement is not None:
            found.append(Entry(placement, model.build(segment.token_ids)))
    return tuple(found)
