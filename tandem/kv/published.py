"""The published blocks of a ledger: which of them a prompt can use, in which order they go, and who is told.

A part of the `Ledger`, over its records and its index. The order of stores is in `tandem.kv.repair`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tandem.errors import LeaseError, NotFoundError, PinQuotaError
from tandem.kv import blocks
from tandem.kv.blocks import BlockState
from tandem.kv.cached_runs import CachedRun, cached_runs
from tandem.kv.contents import KEY_BYTES, domain_of, segment_namespace
from tandem.kv.domain_blocks import NOBODY
from tandem.kv.index import LedgerIndex
from tandem.kv.journal import BlockRemoved, BlockStored, CacheCleared, CacheJournal
from tandem.kv.outcomes import Withdrawal
from tandem.kv.records import LedgerRecords
from tandem.kv.store import CopySource, KeyedBlock, PromptTokens
from tandem.types import Block, ContentKind

MAX_SIBLINGS = 128  # blocks looked at for one to copy from


class PublishedBlocks:
    """Publishes, finds, pins, gives up and withdraws."""

    def __init__(self, records: LedgerRecords, index: LedgerIndex) -> None:
        self.journal = CacheJournal()
        self.num_evictions = 0
        self._records = records
        self._contents = index.contents
        self._free_blocks = index.free_blocks

    def publish(
        self, block_ids: Sequence[int], publish: Sequence[KeyedBlock], now_s: float, num_segment_blocks: int
    ) -> None:
        """Of a lease's `block_ids`, those that have no key yet; where an equal one is published, that is used anew.

        There are at most `num_segment_blocks` of segments, if need be without these.
        """
        equal = b""
        for keyed in publish:
            block_id = block_ids[keyed.ordinal]
            if keyed.key in self._contents.block_ids:
                equal = keyed.key
            elif not self._records.is_published(block_id) and self._has_room(keyed, num_segment_blocks):
                self._publish(block_id, keyed, now_s)
        if equal:
            self._refresh(equal, now_s)

    def use(self, block_id: int) -> None:
        """It is in a lease."""
        self._contents.use(block_id)

    def keep(self, block_id: int) -> None:
        """It is in no lease any more."""
        if not self._records.is_pinned(block_id):
            self._contents.keep(block_id)

    def evict(self) -> int:
        """The block whose turn it is, unpublished; still CACHED. LeaseError when none may go."""
        block_id = self._contents.blocks.first_to_go()
        if block_id is None:
            raise LeaseError("no cached block may be given up")
        self._contents.use(block_id)
        self.journal.note(BlockRemoved(self._unpublish(block_id)))
        self.num_evictions += 1
        return block_id

    def cut_segments(self, num_segment_blocks: int) -> None:
        """Gives up what is beyond, first of those who have most: there may have been room for more before."""
        while len(self._contents.segments) > num_segment_blocks and self._give_up_segment_block(NOBODY):
            pass

    def copy_source(
        self, prompt: PromptTokens, keys: Sequence[bytes], num_blocks: int, now_s: float
    ) -> CopySource | None:
        """The block that begins with most of what comes behind the prompt's first `num_blocks`, named by `keys`."""
        start = num_blocks * self._records.block_size
        token_ids = prompt.token_ids[start : start + self._records.block_size]
        if not token_ids or num_blocks > len(keys):
            return None
        siblings = self._contents.newest_children(
            keys[num_blocks - 1] if num_blocks else prompt.namespace, MAX_SIBLINGS
        )
        return self._most_alike(siblings, token_ids, now_s) if siblings else None

    def find(self, keys: Sequence[bytes], now_s: float) -> tuple[Block, ...]:
        """Those of the first keys, as far as they are published."""
        found = self._contents.run(keys)
        self.note_use(found, now_s)
        return tuple(map(self._block, found))

    def note_use(self, block_ids: Sequence[int], now_s: float) -> None:
        """They were found, one behind the other: the last goes first."""
        self._records.note_use(block_ids, now_s)
        for block_id in reversed(block_ids):
            self._contents.renew(block_id)

    def pin(self, keys: Sequence[bytes], num_pinnable: int) -> int:
        """Keeps published blocks from being given up, at most `num_pinnable` together; how many were not kept before.

        NotFoundError: not all of them are published. PinQuotaError. Then none is.
        """
        found = self._contents.run(keys)
        if len(found) < len(keys):
            raise NotFoundError(f"{len(keys) - len(found)} of {len(keys)} blocks are not in the cache (any more)")
        fresh = [block_id for block_id in dict.fromkeys(found) if not self._records.is_pinned(block_id)]
        if self._contents.num_pinned + len(fresh) > num_pinnable:
            pinned = f"{self._contents.num_pinned} of {num_pinnable} blocks that can be pinned are"
            raise PinQuotaError(f"{pinned}; {len(fresh)} more need a larger memd.pin_fraction, or others removed")
        for block_id in fresh:
            self._records.pin(block_id)
            self._contents.num_pinned += 1
            self._contents.use(block_id)
        return len(fresh)

    def withdraw(self, namespace: bytes) -> Withdrawal:
        """Unpublishes a namespace's blocks, its segments' too; those in no lease are free at once."""
        return self._withdraw_where({namespace, segment_namespace(namespace)}.__contains__)

    def withdraw_domain(self, domain: bytes) -> Withdrawal:
        """The same of all namespaces of a domain (see `domain_of`)."""
        return self._withdraw_where(lambda namespace: domain_of(namespace) == domain)

    def withdraw_all(self) -> Withdrawal:
        """The same of everything."""
        chosen = list(self._contents.block_ids.values())
        num_freed = sum([self._withdraw(block_id) for block_id in chosen])
        if chosen:
            self.journal.note(CacheCleared())
        return Withdrawal(num_freed, len(chosen) - num_freed)

    def runs(self, now_s: float) -> tuple[CachedRun, ...]:
        """What is published now, in few rows. Reads everything."""
        return cached_runs(self._records, self._contents, now_s)

    def stored(self) -> tuple[BlockStored, ...]:
        """The same, block by block, each behind the one before it."""
        chosen = np.fromiter(self._contents.block_ids.values(), dtype=np.int64)
        in_order = chosen[np.argsort(self._records.blocks["ordinal"][chosen], kind="stable")].tolist()
        return tuple(map(self._stored, in_order))

    def _publish(self, block_id: int, keyed: KeyedBlock, now_s: float) -> None:
        self._records.publish(block_id, keyed, now_s)
        domain = domain_of(keyed.namespace)
        self._contents.add(block_id, keyed.parent, keyed.key, domain)
        if keyed.kind is ContentKind.SEGMENT:
            self._contents.segments.add(block_id, domain)
        self.journal.note(BlockStored(keyed.namespace, keyed.parent, keyed.key))

    def _has_room(self, keyed: KeyedBlock, num_segment_blocks: int) -> bool:
        """For a segment's block another one may go. Behind one that is not published nobody would find it."""
        if keyed.kind is ContentKind.PROMPT:
            return True
        if self._is_joined(keyed) and len(self._contents.segments) >= num_segment_blocks:
            self._give_up_segment_block(domain_of(keyed.namespace))
        return self._is_joined(keyed) and len(self._contents.segments) < num_segment_blocks

    def _is_joined(self, keyed: KeyedBlock) -> bool:
        return keyed.parent == keyed.namespace or keyed.parent in self._contents.block_ids

    def _give_up_segment_block(self, domain: bytes) -> bool:
        """One that may go for a block of `domain`, if there is one."""
        block_id = self._contents.segments.first_to_go(domain)
        if block_id is None:
            return False
        self.journal.note(BlockRemoved(self._records.content_key(block_id)))
        self._withdraw(block_id)
        self.num_evictions += 1
        return True

    def _withdraw_where(self, is_in: Callable[[bytes], bool]) -> Withdrawal:
        chosen = [each for each in self._contents.block_ids.values() if is_in(self._records.namespace(each))]
        for block_id in chosen:
            self.journal.note(BlockRemoved(self._records.content_key(block_id)))
        num_freed = sum([self._withdraw(block_id) for block_id in chosen])
        return Withdrawal(num_freed, len(chosen) - num_freed)

    def _withdraw(self, block_id: int) -> bool:
        """Says whether it is free by that."""
        self._unpublish(block_id)
        record = self._records.block(block_id)
        if record.state is not BlockState.CACHED:
            return False
        self._contents.use(block_id)
        self._records.write_block(block_id, blocks.drop_contents(record))
        self._free_blocks.append(block_id)
        return True

    def _most_alike(self, siblings: Sequence[int], token_ids: Sequence[int], now_s: float) -> CopySource | None:
        same = self._records.tokens[siblings, : len(token_ids)] == np.asarray(token_ids, dtype=np.uint32)
        num_tokens = np.logical_and.accumulate(same, axis=1).sum(axis=1)
        best = int(np.argmax(num_tokens))
        if num_tokens[best] == 0:
            return None
        self.note_use([siblings[best]], now_s)
        return CopySource(self._block(siblings[best]), int(num_tokens[best]))

    def _stored(self, block_id: int) -> BlockStored:
        records = self._records
        return BlockStored(records.namespace(block_id), records.parent_key(block_id), records.content_key(block_id))

    def _refresh(self, key: bytes, now_s: float) -> None:
        """Published anew, with all before it: none of them goes before what comes after it."""
        for _ in range(len(self._contents.block_ids)):
            block_id = self._contents.block_ids.get(key)
            if block_id is None:
                break
            self._records.set_used(block_id, now_s)
            self._contents.renew(block_id)
            key = self._records.parent_key(block_id)

    def _unpublish(self, block_id: int) -> bytes:
        key = self._records.content_key(block_id)
        self._contents.num_pinned -= self._records.is_pinned(block_id)
        self._records.unpublish(block_id)
        self._contents.discard(block_id, self._records.parent_key(block_id), key)
        return key

    def _block(self, block_id: int) -> Block:
        return Block(block_id, self._records.block(block_id).generation)


def check_whole(keyed: KeyedBlock, block_size: int) -> None:
    """LeaseError when a block to be published lacks a part of what must be known of it."""
    sizes = [len(key) for key in (keyed.key, keyed.parent, keyed.namespace)]
    if sizes != [KEY_BYTES] * len(sizes) or len(keyed.token_ids) != block_size:
        what = f"block {keyed.ordinal} has {len(keyed.token_ids)} tokens and keys of {sizes} bytes"
        raise LeaseError(f"{what}, not {block_size} and {KEY_BYTES} each")
