"""How much of each waiting prompt will be found in the cache, kept true while the cache changes. Pure.

A prompt's forecast changes only when the first block that it lacks comes, or the last one that it has goes. So each
prompt watches those two keys, and a change of the cache concerns those who watch its keys. They are looked at again
a few at a time: one prefix may be what thousands wait for, and no single decision should pay for all of them.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from tandem.scheduler.prefix_view import PrefixView

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Watch:
    """A prompt's keys, and how many of the first were there when it was last looked at."""

    keys: Sequence[bytes]
    num_present: int

    @property
    def watched(self) -> Sequence[bytes]:
        """The last key that is there, the first that is not."""
        return self.keys[max(0, self.num_present - 1) : self.num_present + 1]


class Forecast(Generic[Item]):
    """Of the items between `enter` and `leave`."""

    def __init__(self, view: PrefixView) -> None:
        self._view = view
        self._watches: dict[Item, _Watch] = {}
        self._watchers: dict[bytes, dict[Item, None]] = {}
        self._stale: dict[Item, None] = {}  # oldest first

    def enter(self, item: Item, keys: Sequence[bytes]) -> int:
        """It waits from now on; how many of its first blocks are there."""
        watch = _Watch(keys, self._view.num_present(keys))
        self._watch(item, watch)
        return watch.num_present

    def leave(self, item: Item) -> int:
        """It waits no longer; how many of its first blocks are there now."""
        watch = self._unwatch(item)
        self._stale.pop(item, None)
        return self._view.num_present(watch.keys)

    def note(self, changed_keys: Iterable[bytes]) -> None:
        """They came or went."""
        for key in changed_keys:
            self._stale.update(self._watchers.get(key, {}))

    def refresh(self, limit: int) -> Iterator[tuple[Item, int]]:
        """Looks again at up to `limit` items that a change concerns: those with another number of blocks, and it."""
        for item in tuple(islice(self._stale, limit)):
            del self._stale[item]
            before = self._unwatch(item)
            after = _Watch(before.keys, self._view.num_present(before.keys))
            self._watch(item, after)
            if after.num_present != before.num_present:
                yield item, after.num_present

    def _watch(self, item: Item, watch: _Watch) -> None:
        self._watches[item] = watch
        for key in watch.watched:
            self._watchers.setdefault(key, {})[item] = None

    def _unwatch(self, item: Item) -> _Watch:
        watch = self._watches.pop(item)
        for key in watch.watched:
            watchers = self._watchers[key]
            del watchers[item]
            if not watchers:
                del self._watchers[key]
        return watch
