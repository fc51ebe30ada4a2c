"""What is in a replica's cache, as its memd tells, and what will soon be there.

A `PrefixView`: a belief that follows memd's events with their delay. What it says wrong costs a good place, never a
wrong answer.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared, CacheEvent


class PublishedBlocks:
    """The keys of published blocks; at most as many as the pool has blocks: beyond that the oldest are forgotten.

    Several views may be over one.
    """

    def __init__(self, num_blocks: Callable[[], int]) -> None:
        """`num_blocks`: of the pool."""
        self.position: CachePosition | None = None  # from which to hear on; None: from what is there now
        self._num_blocks = num_blocks
        self._keys: OrderedDict[bytes, None] = OrderedDict()  # longest known first

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def hear(self, news: CacheNews) -> Sequence[bytes]:
        """Follows memd; the keys that came or went. A stream that begins anew begins with `CacheCleared`."""
        self.position = news.position
        changed = [key for event in news.events for key in self._follow(event)]
        num_over = len(self._keys) - self._num_blocks() if changed else 0
        return [*changed, *(self._keys.popitem(last=False)[0] for _ in range(num_over))]

    def clear(self) -> Sequence[bytes]:
        """All is gone; what is there now is to be heard from the beginning."""
        self.position = None
        gone = tuple(self._keys)
        self._keys.clear()
        return gone

    def _follow(self, event: CacheEvent) -> Sequence[bytes]:
        match event:
            case BlockStored(key=key):
                came = () if key in self._keys else (key,)
                self._keys[key] = None
                return came
            case BlockRemoved(key=key):
                if key not in self._keys:
                    return ()
                del self._keys[key]
                return (key,)
            case CacheCleared():
                gone = tuple(self._keys)
                self._keys.clear()
                return gone


class PublishedPrefixes:
    """Published blocks, and those of the sequences that were sent and have not ended: who follows finds them too.

    Of either there are at most as many as the pool has blocks; beyond that the oldest are forgotten.
    """

    def __init__(self, num_blocks: Callable[[], int], blocks: PublishedBlocks | None = None) -> None:
        """`num_blocks`: of the pool. `blocks` may be heard by somebody else, who hands on the changes."""
        self.blocks = blocks or PublishedBlocks(num_blocks)
        self._num_blocks = num_blocks
        self._num_senders: OrderedDict[bytes, int] = OrderedDict()  # sequences under way; longest unsent first

    def num_present(self, keys: Sequence[bytes]) -> int:
        """See `PrefixView`."""
        for number, key in enumerate(keys):
            if not self._is_present(key):
                return number
        return len(keys)

    def sent(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """See `PrefixView`."""
        came = self._absent(keys)
        for key in reversed(keys):
            self._num_senders[key] = self._num_senders.get(key, 0) + 1
            self._num_senders.move_to_end(key)
        num_over = len(self._num_senders) - self._num_blocks()
        return [*came, *self._absent([self._num_senders.popitem(last=False)[0] for _ in range(num_over)])]

    def ended(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """A sequence that was sent with these keys is under way no more; memd has told of what it published."""
        known = [key for key in keys if key in self._num_senders]
        for key in known:
            self._num_senders[key] -= 1
            if not self._num_senders[key]:
                del self._num_senders[key]
        return self._absent(known)

    def hear(self, news: CacheNews) -> Sequence[bytes]:
        """As of `PublishedBlocks`, but for those that are there by what was sent."""
        return [key for key in self.blocks.hear(news) if key not in self._num_senders]

    def clear(self) -> Sequence[bytes]:
        """See `PrefixView`."""
        gone = tuple({**dict.fromkeys(self.blocks.clear()), **self._num_senders})
        self._num_senders.clear()
        return gone

    def _absent(self, keys: Sequence[bytes]) -> list[bytes]:
        return [key for key in keys if not self._is_present(key)]

    def _is_present(self, key: bytes) -> bool:
        return key in self.blocks or key in self._num_senders
