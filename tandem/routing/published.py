"""What is in a replica's cache, as its memd tells, and what will soon be there.

A `PrefixView`: a belief that follows memd's events with their delay. What it says wrong costs a good place, never a
wrong answer.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, KeysView, Sequence

from tandem.kv.cache_store import CacheNews, CachePosition
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared, CacheEvent


class PublishedBlocks:
    """The keys of published blocks; at most as many as the pool has blocks: beyond that the oldest are forgotten.

    Several views may be over one; it is heard through one of them at most.
    """

    def __init__(self, num_blocks: Callable[[], int]) -> None:
        """`num_blocks`: of the pool."""
        self.position: CachePosition | None = None  # from which to hear on; None: from what is there now
        self._num_blocks = num_blocks
        self._keys: OrderedDict[bytes, None] = OrderedDict()  # longest known first

    @property
    def keys(self) -> KeysView[bytes]:
        """Always those of now."""
        return self._keys.keys()

    def hear(self, news: CacheNews) -> Sequence[bytes]:
        """Follows memd; the keys that came or went. A stream that begins anew begins with `CacheCleared`."""
        self.position = news.position
        changed = [key for event in news.events for key in self._follow(event)]
        num_over = len(self._keys) - self._num_blocks() if changed else 0
        return [*changed, *(self._keys.popitem(last=False)[0] for _ in range(num_over))]

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
    """Published blocks, and those of the sequences that were sent, until they have ended or memd has told of them.

    So who follows such a sequence finds its blocks too. Of either there are at most as many as the pool has blocks;
    beyond that the oldest are forgotten.
    """

    def __init__(self, num_blocks: Callable[[], int], blocks: PublishedBlocks) -> None:
        """`num_blocks`: of the pool."""
        self._blocks = blocks
        self._published = blocks.keys
        self._num_blocks = num_blocks
        # By key the sequences that compute it, 0 where it has been computed and not been told of; longest unsent first.
        self._num_senders: OrderedDict[bytes, int] = OrderedDict()

    def num_present(self, keys: Sequence[bytes]) -> int:
        """See `PrefixView`."""
        published, sent = self._published, self._num_senders
        for number, key in enumerate(keys):
            if key not in published and key not in sent:
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

    def computed(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """See `PrefixView`."""
        done = self._count_down(keys)
        for key in done:
            if key in self._published:
                del self._num_senders[key]
        return ()

    def ended(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """See `PrefixView`."""
        done = self._count_down(keys)
        for key in done:
            del self._num_senders[key]
        return self._absent(done)

    def hear(self, news: CacheNews) -> Sequence[bytes]:
        """See `PrefixView`. Whoever begins to tell everything has told of all that was computed before."""
        changed = dict.fromkeys(self._blocks.hear(news))
        told: Iterable[bytes] = changed
        if any(isinstance(event, CacheCleared) for event in news.events):
            told = tuple(self._num_senders)
        awaited = {key for key in told if self._num_senders.get(key) == 0}
        for key in awaited:
            del self._num_senders[key]
        stayed = awaited & self._published
        return [
            key for key in {**changed, **dict.fromkeys(awaited)} if key not in self._num_senders and key not in stayed
        ]

    def _count_down(self, keys: Sequence[bytes]) -> list[bytes]:
        """One sequence less computes them; those that no other one computes."""
        known = [key for key in keys if self._num_senders.get(key)]
        for key in known:
            self._num_senders[key] -= 1
        return [key for key in known if not self._num_senders[key]]

    def _absent(self, keys: Sequence[bytes]) -> list[bytes]:
        return [key for key in keys if key not in self._published and key not in self._num_senders]
