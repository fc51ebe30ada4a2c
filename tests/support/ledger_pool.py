"""A ledger of a few blocks with one holder, which computes, keeps, claims and gives up."""

from tandem.kv.ledger import Ledger
from tandem.kv.records import ledger_bytes
from tandem.kv.store import CopySource, KeyedBlock, PromptTokens, SequenceUpdate
from tests.support.contents import key

BLOCK_SIZE = 4
NUM_BLOCKS = 8


class Pool:
    """A ledger with one holder."""

    def __init__(self, max_segment_blocks: int = 0) -> None:
        self.max_segment_blocks = max_segment_blocks
        self.buffer = bytearray(ledger_bytes(NUM_BLOCKS, BLOCK_SIZE))
        self.ledger = Ledger.create(self.buffer, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, epoch=1)
        self.holder = self.ledger.add_holder("decode", 1)
        self.num_leases = 0

    def open(self) -> int:
        self.num_leases += 1
        self.ledger.acquire_sequence(self.holder, self.num_leases, "r", create=True, now_s=0.0)
        return self.num_leases

    def compute(self, *publish: KeyedBlock, now_s: float = 0.0) -> int:
        """A lease that has published these as its first blocks."""
        lease_id = self.open()
        blocks = self.ledger.lease_blocks(self.holder, len(publish), 0)
        update = SequenceUpdate(lease_id, blocks, len(blocks) * BLOCK_SIZE, publish)
        self.ledger.update_sequences(self.holder, [update], now_s, self.max_segment_blocks)
        return lease_id

    def keep(self, *publish: KeyedBlock, now_s: float = 0.0) -> None:
        """Cached blocks."""
        self.ledger.release_sequences([self.compute(*publish, now_s=now_s)])

    def claim(self, *numbers: int, prompt: PromptTokens | None = None, now_s: float = 0.0) -> CopySource | None:
        lease_id = self.open()
        lease = self.ledger.claim_prefix(self.holder, lease_id, [*map(key, numbers)], 0, prompt=prompt, now_s=now_s)
        return lease.copy_source

    def evict(self, num_blocks: int) -> list[bytes]:
        """The keys of the blocks that are given up for so many."""
        seen = self.ledger.published.journal.last_number
        num_free = self.ledger.statistics().num_free_blocks
        self.ledger.return_blocks(self.holder, self.ledger.lease_blocks(self.holder, num_free + num_blocks, 0))
        return [event.key for event in self.ledger.published.journal.after(seen, 99)]
