"""What a prompt would find on a replica: exact prefixes and segments, counted apart. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.scheduler.prefix_view import PrefixView
from tandem.scheduler.reused_spans import ReusedSpan, num_saved_tokens


@dataclass(frozen=True, slots=True)
class PromptSegment:
    """A span whose KV may be taken from an entry, wherever the entry's blocks, by `keys`, are published."""

    keys: Sequence[bytes]
    span: ReusedSpan


@dataclass(frozen=True, slots=True)
class Prompt:
    """A sequence that asks for a replica. `keys` are of the blocks that it may share: its last token is computed."""

    num_tokens: int
    block_size: int
    keys: Sequence[bytes] = ()
    segments: Sequence[PromptSegment] = ()  # in the order of the prompt

    @property
    def num_blocks(self) -> int:
        """That hold all of it."""
        return -(-self.num_tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class Reuse:
    """Of one prompt on one replica."""

    num_exact_tokens: int
    num_segment_tokens: int  # of the others, those that are taken from entries
    num_computed_tokens: int  # the rest, what is computed of segments nevertheless among it
    certain_keys: Sequence[bytes]  # of the blocks that are there when it has been computed: no approximate one


def expected_reuse(prompt: Prompt, view: PrefixView) -> Reuse:
    """By what the view has."""
    num_exact = view.num_present(prompt.keys) * prompt.block_size
    spans = [each.span for each in prompt.segments if each.span.end > num_exact and _is_whole(each, view)]
    num_taken = num_saved_tokens(spans, num_exact)
    keys = prompt.keys[: spans[0].start // prompt.block_size] if spans else prompt.keys
    return Reuse(num_exact, num_taken, prompt.num_tokens - num_exact - num_taken, keys)


def _is_whole(segment: PromptSegment, view: PrefixView) -> bool:
    return view.num_present(segment.keys) == len(segment.keys)
