"""What a cache of a size can give to one request after another: the policy of memd's ledger, without a system.

Blocks are kept by their contents; when room is needed, the longest unused go first, and of one sequence its end before
its beginning (`tandem.kv.contents`). A sequence's blocks stay while it is worked on, and at least its last prompt token
is computed. Pure.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tandem.kv.contents import block_keys
from tandem.kv.layout import num_blocks_for


@dataclass(frozen=True, slots=True)
class Served:
    """A request that a system has answered, and what of its prompt that reused."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    num_cached_tokens: int

    @property
    def kept(self) -> tuple[int, ...]:
        """The tokens with KV: the last one of the answer was never computed."""
        return (*self.prompt, *self.answer[:-1])


def replay(served: Iterable[Served], block_size: int, num_blocks: int | None) -> tuple[int, ...]:
    """The prompt tokens reused of each request, in the order given, with `num_blocks`, or with any number of them."""
    cached: OrderedDict[bytes, None] = OrderedDict()  # longest unused first
    return tuple(_serve(request, cached, block_size, num_blocks) for request in served)


def _serve(request: Served, cached: OrderedDict[bytes, None], block_size: int, num_blocks: int | None) -> int:
    keys = block_keys(b"", request.kept, block_size)
    num_claimed = _num_claimed(keys[: (len(request.prompt) - 1) // block_size], cached)
    for key in keys[:num_claimed]:
        del cached[key]
    if num_blocks is not None:
        num_left = num_blocks - num_blocks_for(len(request.kept), block_size)
        while len(cached) > max(0, num_left):
            cached.popitem(last=False)
    for key in reversed(keys):
        cached[key] = None
        cached.move_to_end(key)
    return num_claimed * block_size


def _num_claimed(keys: Sequence[bytes], cached: OrderedDict[bytes, None]) -> int:
    for number, key in enumerate(keys):
        if key not in cached:
            return number
    return len(keys)
