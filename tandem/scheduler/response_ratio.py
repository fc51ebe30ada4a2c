"""Who has waited longest for what is to be done for them: highest response ratio next, ``(wait + work) / work``.

Ratios change with time, so nobody can be kept in their order. But of items with equal work the oldest has the highest
ratio, always. So items stand by age in classes of nearly equal work, and only the classes' oldest are compared: a
choice takes as long with ten thousand as with one in each class.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sortedcontainers import SortedKeyList

from tandem.scheduler.waiting import WaitingEntry

CLASSES_AN_OCTAVE = 4  # within a class works differ by less than a fifth, and so do the ratios that are not looked at
LEAST_WORK_TOKENS = 32  # what the smallest step costs, in tokens of a large one: below it no work is smaller

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True, eq=False)
class Place(Generic[Item]):
    """An item that waits; `number` is that of its push."""

    item: Item
    entry: WaitingEntry
    number: int

    @property
    def age(self) -> tuple[int, int, int]:
        """To sort by, oldest first; no two places have the same."""
        return (self.entry.arrival_unix_ns, self.entry.index, self.number)

    @property
    def cost_tokens(self) -> int:
        """What computing it takes, in tokens."""
        return self.entry.work_tokens + LEAST_WORK_TOKENS

    def urgency(self, now_unix_ns: int) -> tuple[float, int]:
        """To compare by, largest first: time waited for a token, a fixed factor from the ratio; then less work."""
        return ((now_unix_ns - self.entry.arrival_unix_ns) / self.cost_tokens, -self.cost_tokens)


def by_age() -> SortedKeyList:
    """For places, oldest first."""
    return SortedKeyList(key=lambda place: place.age)


class RatioLine(Generic[Item]):
    """Places in no order but that of `best`. `add` and `discard` take O(log n), `best` O(classes)."""

    def __init__(self) -> None:
        self._classes: dict[int, SortedKeyList] = {}

    def __bool__(self) -> bool:
        return bool(self._classes)

    def add(self, place: Place[Item]) -> None:
        """It waits from now on."""
        number = _class_of(place)
        if number not in self._classes:
            self._classes[number] = by_age()
        self._classes[number].add(place)

    def discard(self, place: Place[Item]) -> None:
        """It waits no longer. ValueError when it does not wait."""
        number = _class_of(place)
        self._classes[number].remove(place)
        if not self._classes[number]:
            del self._classes[number]

    def best(self, now_unix_ns: int) -> Place[Item]:
        """The highest response ratio. ValueError when nobody waits."""
        heads: list[Place[Item]] = [line[0] for line in self._classes.values()]
        return max(heads, key=lambda place: place.urgency(now_unix_ns))


def _class_of(place: Place[Item]) -> int:
    return int(math.log2(place.cost_tokens) * CLASSES_AN_OCTAVE)
