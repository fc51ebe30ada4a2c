"""Who ends a phase: sequences that were in it when it went away, or that failed in it, are tried one at a time.

A phase that crashes takes along all that it has, and only one of them may be the cause. A sequence is struck each time
that happens to it; a token from that phase clears it. After two strikes it is a suspect: suspects wait here, go through
the phases one by one, and nobody else is sent anywhere meanwhile, so an innocent one is cleared within a step or two.
Only strikes that met it alone count against it, and more than one of them: a phase can be killed from outside, too.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tandem.types import Phase

NUM_STRIKES_OF_A_SUSPECT = 2

ItemT = TypeVar("ItemT", bound=Hashable)


@dataclass(slots=True)
class _Record:
    """Strikes by one phase, since the last token from it."""

    num_strikes: int = 0
    num_alone: int = 0  # of them, those with nobody else there


class Trials(Generic[ItemT]):
    """Falsy while nobody has been struck."""

    def __init__(self) -> None:
        self._records: dict[ItemT, dict[Phase, _Record]] = {}
        self._line: dict[ItemT, None] = {}  # suspects that wait, the longest first
        self._tried: ItemT | None = None

    def __bool__(self) -> bool:
        return bool(self._records)

    def __len__(self) -> int:
        """Suspects that wait."""
        return len(self._line)

    @property
    def are_on(self) -> bool:
        """Whether there are suspects: nobody else goes to a phase."""
        return bool(self._line) or self._tried is not None

    def strike(self, item: ItemT, phase: Phase, *, alone: bool) -> int:
        """The phase went away with it, or failed on it. How often it was alone there, since its last token."""
        record = self._records.setdefault(item, {}).setdefault(phase, _Record())
        record.num_strikes += 1
        record.num_alone += alone
        return record.num_alone

    def clear(self, item: ItemT, phase: Phase) -> None:
        """The phase had a token for it."""
        records = self._records.get(item)
        if records is not None and records.pop(phase, None) is not None and not self._is_suspect(item):
            self._acquit(item)

    def discard(self, item: ItemT) -> None:
        """It gets no further."""
        self._records.pop(item, None)
        self._acquit(item)

    def take_back(self, item: ItemT) -> bool:
        """A phase let it go. Whether it waits here, as a suspect, for its next trial."""
        if not self._is_suspect(item):
            return False
        self._acquit(item)
        self._line[item] = None
        return True

    def take(self) -> ItemT | None:
        """The next to be tried; None while another is, or nobody waits."""
        if self._tried is None and self._line:
            self._tried = next(iter(self._line))
            del self._line[self._tried]
            return self._tried
        return None

    def admit(self, item: ItemT) -> bool:
        """Whether it may go to a phase now."""
        return not self.are_on or item == self._tried

    def _is_suspect(self, item: ItemT) -> bool:
        records = self._records.get(item, {})
        return any(record.num_strikes >= NUM_STRIKES_OF_A_SUSPECT for record in records.values())

    def _acquit(self, item: ItemT) -> None:
        """It is not tried now, and does not wait for it."""
        self._line.pop(item, None)
        if self._tried == item:
            self._tried = None
        if not self._records.get(item, True):
            del self._records[item]
