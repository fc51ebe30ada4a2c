"""The newest decisions: what was seen, predicted and decided, and what each phase answered."""

from collections import deque
from dataclasses import dataclass, replace

from tandem.partition.status import AppliedShare, DecisionRecord, ShareApplied
from tandem.types import Phase, Split

MAX_DECISIONS = 256


@dataclass(slots=True)
class _Entry:
    record: DecisionRecord
    decided_s: float
    awaited: set[Phase]  # told to answer, and silent so far


class History:
    """Owns the records; time is passed in."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque(maxlen=MAX_DECISIONS)

    def add(self, record: DecisionRecord, now_s: float, awaited: set[Phase]) -> None:
        """A decision that those phases are to answer; who has not answered the one before need not any more."""
        if self._entries:
            self._entries[-1].awaited.clear()
        self._entries.append(_Entry(record, now_s, awaited))

    def applied(self, phase: Phase, answer: ShareApplied, now_s: float) -> Split | None:
        """A phase's answer, and what it was told to apply; None of a decision that is not known any more."""
        for entry in reversed(self._entries):
            if entry.record.decision.decision_id == answer.decision_id:
                entry.awaited.discard(phase)
                share = AppliedShare(phase, answer, (now_s - entry.decided_s) * 1000)
                entry.record = replace(entry.record, applied=(*entry.record.applied, share))
                return entry.record.decision.split
        return None

    def overdue(self, now_s: float, patience_s: float) -> tuple[Phase, ...]:
        """Who has not answered the newest decision in that time; each is named once."""
        if not self._entries or now_s - self._entries[-1].decided_s <= patience_s:
            return ()
        late = tuple(sorted(self._entries[-1].awaited))
        self._entries[-1].awaited.clear()
        return late

    def records(self) -> tuple[DecisionRecord, ...]:
        """Oldest first."""
        return tuple(entry.record for entry in self._entries)
