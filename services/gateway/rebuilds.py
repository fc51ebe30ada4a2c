"""Entries that were built and had gone when they were wanted: each is built again later than the time before. Pure."""

from collections import OrderedDict
from dataclasses import dataclass

MAX_DOUBLINGS = 6


@dataclass(slots=True)
class _Record:
    """Of one segment, since its entry was found the last time."""

    num_builds: int = 0
    num_misses: int = 0  # since the last build


class Rebuilds:
    """Where there is no room for entries, building them for each prompt would only double the work."""

    def __init__(self, num_remembered: int) -> None:
        """So many segments; the longest untouched are forgotten."""
        self._num_remembered = num_remembered
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._records

    def note_built(self, key: bytes) -> None:
        """Its entry is there, for as long as memd keeps it."""
        record = self._records.setdefault(key, _Record())
        record.num_builds += 1
        record.num_misses = 0
        self._records.move_to_end(key)
        if len(self._records) > self._num_remembered:
            self._records.popitem(last=False)

    def note_found(self, key: bytes) -> None:
        """It was of use."""
        self._records.pop(key, None)

    def is_due(self, key: bytes) -> bool:
        """A prompt lacks it. Whether it is time to build it: after twice as many as the time before."""
        record = self._records.get(key)
        if record is None:
            return True
        record.num_misses += 1
        return record.num_misses >= 1 << min(record.num_builds, MAX_DOUBLINGS)
