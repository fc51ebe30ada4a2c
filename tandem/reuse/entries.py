"""Canonical entries by segment: which are worth building, which are there, which go when room is needed.

An entry is the KV of a segment computed alone, behind the model's first token and nothing else, so that it depends on
the namespace and the tokens only: nobody's text before it can have changed it. It is built when its segment is seen for
the second time, or at once where a client declared it. The owner of the memory carries out what is decided here.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from tandem.errors import StorageError


class Sight(Enum):
    """What a prompt that has the segment does about it."""

    FIRST = auto()  # compute it as part of the prompt
    BUILD = auto()  # the same, and make its entry
    BEING_BUILT = auto()  # the same; another prompt makes its entry
    READY = auto()  # reuse its entry


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """`block_ids` hold the first token and then the segment's; `domain` is whose quota it counts to."""

    key: bytes
    domain: bytes
    token_ids: tuple[int, ...]
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SegmentQuota:
    """Blocks of all entries and of one domain's; how many keys seen once are remembered."""

    num_blocks: int
    num_domain_blocks: int
    num_sights: int


@dataclass(frozen=True, slots=True)
class SegmentStatistics:
    """Since the start."""

    num_entries: int
    num_blocks: int
    num_hits: int
    num_evicted: int


class SegmentIndex:
    """Entries in the order of their last use. Not for several threads."""

    def __init__(self, quota: SegmentQuota) -> None:
        self._quota = quota
        self._entries: OrderedDict[bytes, SegmentEntry] = OrderedDict()
        self._seen_once: OrderedDict[bytes, None] = OrderedDict()
        self._being_built: set[bytes] = set()
        self._num_users: dict[bytes, int] = {}
        self._num_hits = 0
        self._num_evicted = 0

    def see(self, key: bytes, *, is_declared: bool) -> Sight:
        """A prompt has the segment. Who is told to build it calls `add` or `abandon`."""
        if key in self._entries:
            return Sight.READY
        if key in self._being_built:
            return Sight.BEING_BUILT
        if is_declared or key in self._seen_once:
            self._seen_once.pop(key, None)
            self._being_built.add(key)
            return Sight.BUILD
        self._remember(key)
        return Sight.FIRST

    def use(self, key: bytes, token_ids: Sequence[int]) -> SegmentEntry | None:
        """The entry, kept until `leave`; None: there is none, or it is of other tokens."""
        entry = self._entries.get(key)
        if entry is None or entry.token_ids != tuple(token_ids):
            return None
        self._entries.move_to_end(key)
        self._num_users[key] = self._num_users.get(key, 0) + 1
        self._num_hits += 1
        return entry

    def leave(self, key: bytes) -> None:
        """The entry was copied. StorageError: nobody uses it."""
        if key not in self._num_users:
            raise StorageError(f"segment {key.hex()[:16]} is not in use")
        self._num_users[key] -= 1
        if self._num_users[key] == 0:
            del self._num_users[key]

    def make_room(self, domain: bytes, num_blocks: int) -> tuple[SegmentEntry, ...] | None:
        """Gives up entries, the longest unused first, until as many more blocks are within both quotas.

        They are the caller's to free. None, and nothing is given up: what is in use leaves no room.
        """
        own = self._oldest(self._num_blocks(domain) + num_blocks - self._quota.num_domain_blocks, domain)
        if own is None:
            return None
        num_freed = sum(len(entry.block_ids) for entry in own)
        others = self._oldest(self._num_blocks() + num_blocks - num_freed - self._quota.num_blocks, None, own)
        if others is None:
            return None
        evicted = (*own, *others)
        for entry in evicted:
            del self._entries[entry.key]
        self._num_evicted += len(evicted)
        return evicted

    def add(self, entry: SegmentEntry) -> None:
        """It was built. StorageError: nobody was told to, or `make_room` was not asked."""
        if entry.key not in self._being_built:
            raise StorageError(f"segment {entry.key.hex()[:16]} is not being built")
        if self._num_blocks() + len(entry.block_ids) > self._quota.num_blocks:
            raise StorageError(f"{len(entry.block_ids)} blocks are more than the quota for segments leaves")
        self._being_built.remove(entry.key)
        self._entries[entry.key] = entry

    def abandon(self, key: bytes) -> None:
        """It was not built after all; the next sight counts as the second."""
        self._being_built.discard(key)
        self._remember(key)

    def remove_domain(self, domain: bytes) -> tuple[SegmentEntry, ...]:
        """A domain is deleted: its entries that are not in use, the caller's to free; call again for the rest."""
        removed = tuple(self._idle(domain))
        for entry in removed:
            del self._entries[entry.key]
        return removed

    def statistics(self) -> SegmentStatistics:
        """As they are now."""
        return SegmentStatistics(len(self._entries), self._num_blocks(), self._num_hits, self._num_evicted)

    def _remember(self, key: bytes) -> None:
        self._seen_once[key] = None
        if len(self._seen_once) > self._quota.num_sights:
            self._seen_once.popitem(last=False)

    def _num_blocks(self, domain: bytes | None = None) -> int:
        return sum(len(entry.block_ids) for entry in self._entries.values() if domain in (None, entry.domain))

    def _idle(self, domain: bytes | None) -> Iterator[SegmentEntry]:
        """Not in use, the longest unused first; of one domain, or of all."""
        for entry in self._entries.values():
            if domain in (None, entry.domain) and entry.key not in self._num_users:
                yield entry

    def _oldest(
        self, num_missing: int, domain: bytes | None, besides: Sequence[SegmentEntry] = ()
    ) -> list[SegmentEntry] | None:
        """Entries that hold the missing blocks; None: there are not as many."""
        found: list[SegmentEntry] = []
        for entry in self._idle(domain):
            if num_missing <= 0:
                break
            if entry not in besides:
                found.append(entry)
                num_missing -= len(entry.block_ids)
        return found if num_missing <= 0 else None
