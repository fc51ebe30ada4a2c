"""What a router is told of a request: how long it is, and by which keys its KV may be found."""

from services.gateway.requests import Request
from services.gateway.reuse import PromptReuse
from tandem.kv.contents import block_keys
from tandem.reuse.plan import ReusePolicy
from tandem.reuse.segments import Segment
from tandem.routing.prompt import Prompt, PromptSegment
from tandem.scheduler.reused_spans import ReusedSpan

HEAD_TOKENS = ReusePolicy().head_tokens


def prompt_of(request: Request, block_size: int) -> Prompt:
    """With the tokens that its first unfinished answer has: it may have been begun elsewhere."""
    token_ids = request.unfinished[0].token_ids
    arrival = request.arrival
    if not arrival.cache_namespace:
        return Prompt(len(token_ids), block_size)
    keys = block_keys(arrival.cache_namespace, token_ids[:-1], block_size)
    segments = () if arrival.reuse is None else _segments(arrival.reuse, block_size)
    return Prompt(len(token_ids), block_size, keys, segments)


def unkeyed(request: Request, block_size: int) -> Prompt:
    """For a router that has no choice."""
    return Prompt(request.unfinished[0].num_tokens, block_size)


def _segments(reuse: PromptReuse, block_size: int) -> tuple[PromptSegment, ...]:
    spans = [ReusedSpan(span.start, span.end, HEAD_TOKENS, reuse.spec.ratio) for span in reuse.spec.spans]
    return tuple(
        PromptSegment(_entry_keys(segment, reuse, block_size), span)
        for segment, span in zip(reuse.segments, spans, strict=True)
    )


def _entry_keys(segment: Segment, reuse: PromptReuse, block_size: int) -> tuple[bytes, ...]:
    """Of the whole blocks that computing the segment behind the first token leaves."""
    entry = (reuse.spec.first_token_id, *segment.token_ids)
    return tuple(block_keys(reuse.spec.namespace, entry, block_size))
