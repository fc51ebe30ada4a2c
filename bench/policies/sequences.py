"""Simulated sequences whose prompts have contents, and a pool that keeps blocks by them, as memd's ledger does."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.simulate.sequences import BlockPool, SimSequence
from bench.workloads.request import Span
from tandem.kv.domain_blocks import DomainBlocks
from tandem.kv.journal import BlockRemoved, BlockStored, CacheJournal

NAMESPACE = b""  # of all blocks: the keys' own is in their hashes


@dataclass(slots=True, eq=False)
class SharingSequence(SimSequence):
    """A request of a tenant. `keys` are those of its prompt's blocks that it may share, and publishes."""

    tenant: str = ""
    keys: tuple[bytes, ...] = ()
    num_cached_tokens: int = 0  # found when it was last admitted
    num_shared_blocks: int = 0  # of its blocks, those that stand under the first of its keys
    sent_s: float | None = None  # to prefill, the first time


def content_keys(spans: Sequence[Span], block_size: int, namespace: str) -> tuple[bytes, ...]:
    """Of the prompt's full blocks but for its last token; equal keys are equal tokens, and equal tokens before them."""
    keys: list[bytes] = []
    digest = hashlib.sha256(namespace.encode()).digest()
    num_tokens = sum(span.num_tokens for span in spans)
    for parts in list(_blocks(spans, block_size))[: (num_tokens - 1) // block_size]:
        digest = hashlib.sha256(digest + parts.encode()).digest()
        keys.append(digest)
    return tuple(keys)


def _blocks(spans: Sequence[Span], block_size: int) -> Iterator[str]:
    """What each block is made of: spans' names, with the places of the parts."""
    parts: list[str] = []
    room = block_size
    for span in spans:
        at = 0
        while at < span.num_tokens:
            taken = min(room, span.num_tokens - at)
            parts.append(f"{span.content}:{at}+{taken}")
            at, room = at + taken, room - taken
            if room == 0:
                yield "|".join(parts)
                parts, room = [], block_size


class CachingPool(BlockPool):
    """Blocks in use, counted once however many share them, and published ones that nobody uses until room is needed.

    `num_free` counts the latter too. The longest unused of the tenant that has most go first, ends of prompts before
    their beginnings. Every change of what is published is in the journal.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks)
        self.journal = CacheJournal()
        self.block_size = block_size
        self._num_users: dict[bytes, int] = {}  # of published blocks in use
        self._published: DomainBlocks[bytes] = DomainBlocks()

    def claim(self, sequence: SharingSequence) -> None:
        """As many of its first blocks as are published become its own, in a sequence that has none."""
        for key in sequence.keys:
            if key not in self._published:
                break
            if self._published.is_idle(key):
                self._published.use(key)
                self.num_free -= 1
            self._num_users[key] = self._num_users.get(key, 0) + 1
            sequence.num_shared_blocks += 1
        sequence.num_blocks = sequence.num_shared_blocks
        sequence.num_computed = sequence.num_shared_blocks * self.block_size

    def give(self, sequence: SimSequence, num_blocks: int) -> None:
        """See `BlockPool`."""
        super().give(sequence, num_blocks)
        while self._published.num_idle > self.num_free and (key := self._published.first_to_go()) is not None:
            self._published.discard(key)
            self.journal.note(BlockRemoved(key))

    def publish(self, sequence: SharingSequence) -> None:
        """What is computed of it, up to the first block that another has published meanwhile."""
        computed = sequence.keys[: sequence.num_computed // self.block_size]
        parent = computed[sequence.num_shared_blocks - 1] if sequence.num_shared_blocks else NAMESPACE
        for key in computed[sequence.num_shared_blocks :]:
            if key in self._published:
                return
            self._num_users[key] = 1
            self._published.add(key, sequence.tenant.encode())
            sequence.num_shared_blocks += 1
            self.journal.note(BlockStored(NAMESPACE, parent, key))
            parent = key

    def published(self) -> tuple[bytes, ...]:
        """All keys under which something is found."""
        return tuple(self._published)

    def take_back(self, sequence: SimSequence) -> None:
        """See `BlockPool`."""
        if isinstance(sequence, SharingSequence):
            self._let_go(sequence)
        super().take_back(sequence)

    def _let_go(self, sequence: SharingSequence) -> None:
        for key in reversed(sequence.keys[: sequence.num_shared_blocks]):
            self._num_users[key] -= 1
            if self._num_users[key]:
                sequence.num_blocks -= 1  # it stays with the others
            else:
                del self._num_users[key]
                self._published.keep(key)
        sequence.num_shared_blocks = 0
