"""What a cache of a size can give to one request after another: the policy of memd's ledger, without a system.

Blocks are kept by their contents; when room is needed, the longest unused go first, and of one sequence its end before
its beginning (`tandem.kv.contents`). A sequence's blocks stay while it is worked on, and at least its last prompt token
is computed. Pure.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import islice, pairwise

from tandem.kv.contents import block_keys
from tandem.kv.layout import num_blocks_for
from tandem.kv.published import MAX_SIBLINGS


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


@dataclass(frozen=True, slots=True)
class _Kept:
    """A cached block: the key of the one before it, and its tokens."""

    parent: bytes
    token_ids: tuple[int, ...]


class _Cache:
    """Blocks by key, longest unused first, and by the one before them, newest last."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._children: dict[bytes, dict[bytes, None]] = {}

    def find(self, prompt: Sequence[int], keys: Sequence[bytes]) -> int:
        """How many of the prompt's tokens are there: whole blocks, then the beginning of another."""
        num_blocks = next((number for number, key in enumerate(keys) if key not in self._kept), len(keys))
        parent = keys[num_blocks - 1] if num_blocks else b""
        lacking = prompt[num_blocks * self._block_size :][: self._block_size]
        lengths = {
            key: _num_equal(self._kept[key].token_ids, lacking)
            for key in islice(reversed(self._children.get(parent, {})), MAX_SIBLINGS)
        }
        best = max(lengths, key=lengths.__getitem__, default=None)
        if best is None or lengths[best] == 0:
            return num_blocks * self._block_size
        self._kept.move_to_end(best)
        return num_blocks * self._block_size + lengths[best]

    def shrink(self, num_blocks: int, in_use: Set[bytes]) -> None:
        """Gives up the longest unused, but for what is in use, until so many are left beside that."""
        idle = [key for key in self._kept if key not in in_use]
        for key in idle[: max(0, len(idle) - num_blocks)]:
            parent = self._kept.pop(key).parent
            del self._children[parent][key]

    def use(self, keys: Sequence[bytes], token_ids: Sequence[int]) -> None:
        """A sequence with these blocks has ended."""
        for number, (parent, key) in enumerate(pairwise((b"", *keys))):
            own = tuple(token_ids[number * self._block_size : (number + 1) * self._block_size])
            if key not in self._kept:
                self._kept[key] = _Kept(parent, own)
                self._children.setdefault(parent, {})[key] = None
        for key in reversed(keys):
            self._kept.move_to_end(key)


def replay(served: Iterable[Served], block_size: int, num_blocks: int | None) -> tuple[int, ...]:
    """The prompt tokens reused of each request, in the order given, with `num_blocks`, or with any number of them."""
    cache = _Cache(block_size)
    return tuple(_serve(request, cache, block_size, num_blocks) for request in served)


def _serve(request: Served, cache: _Cache, block_size: int, num_blocks: int | None) -> int:
    keys = block_keys(b"", request.kept, block_size)
    claimable = request.prompt[:-1]
    num_cached = cache.find(claimable, keys[: len(claimable) // block_size])
    if num_blocks is not None:
        in_use = frozenset(keys[: num_cached // block_size])
        cache.shrink(max(0, num_blocks - num_blocks_for(len(request.kept), block_size)), in_use)
    cache.use(keys, request.kept)
    return num_cached


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, theirs) in pairs if mine != theirs), min(len(one), len(other)))
