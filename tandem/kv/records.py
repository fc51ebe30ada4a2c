"""The ledger segment: a header and tables of fixed-size records, and how single records are read and written.

============  ==============================  ====================================================================
table         records                         a record is in use when
============  ==============================  ====================================================================
holders       `MAX_HOLDERS`                   ``holder_id != 0``
blocks        ``num_blocks``                  always
tokens        ``num_blocks``                  its block is published: the tokens that it holds
leases        ``num_blocks + EXTRA_LEASES``   ``state != UNUSED``
references    ``REFERENCES_PER_BLOCK`` times  ``lease_id != 0``; says that a block stands at a position of a lease,
              ``num_blocks``                  so a shared block has as many references as leases
============  ==============================  ====================================================================

Every write below stores the field that puts the record into use last. Each store is of at most 8 aligned bytes, so a
process killed between two of them leaves either the old or the new value of each field.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.errors import LedgerCorruptError
from tandem.kv.blocks import BlockRecord, BlockState
from tandem.kv.contents import DOMAIN_BYTES, KEY_BYTES
from tandem.kv.store import HolderProcess, KeyedBlock
from tandem.types import Block, ContentKind

Array = npt.NDArray[Any]
Buffer = Any  # whatever numpy can view writable: mmap, bytearray, memoryview

MAGIC = int.from_bytes(b"TDMLEDGR", "little")
LAYOUT_VERSION = 6
MAX_HOLDERS = 64
EXTRA_LEASES = 256  # leases that have no block yet
REFERENCES_PER_BLOCK = 4
REQUEST_ID_BYTES = 64
ALIGNMENT_BYTES = 64

HEADER = np.dtype(
    [
        ("magic", "u8"),  # stored last at creation
        ("layout_version", "u4"),
        ("num_blocks", "u4"),
        ("block_size", "u4"),  # tokens
        ("reserved", "u4"),
        ("epoch", "u8"),
        ("last_holder_id", "u8"),
        ("sole_domain", "u1", (DOMAIN_BYTES,)),  # of all leases so far: see `tandem.kv.occupants`
    ],
    align=True,
)
HOLDER = np.dtype(
    [
        ("holder_id", "u8"),
        ("pid", "i8"),  # as the holder says
        ("service", "S16"),
        ("process_pid", "i8"),  # as memd sees it; this and the next hold when the last is not 0
        ("process_namespace", "u8"),
        ("process_began_ticks", "u8"),
    ],
    align=True,
)
BLOCK = np.dtype(
    [
        ("owner", "u8"),
        ("generation", "u4"),
        ("num_references", "u4"),
        ("used_at_s", "f8"),  # published or claimed last; this and what follows holds when `published` is 1
        ("content_key", "u1", (KEY_BYTES,)),
        ("parent_key", "u1", (KEY_BYTES,)),  # of the block before it; of the first: the namespace
        ("namespace", "u1", (KEY_BYTES,)),
        ("occupant", "u1", (DOMAIN_BYTES,)),  # this holds always: see `tandem.kv.occupants`
        ("ordinal", "u4"),  # its position in a sequence
        ("num_hits", "u4"),  # claims that got it
        ("kind", "u1"),  # `ContentKind`
        ("pinned", "u1"),  # is not given up
        ("published", "u1"),
        ("state", "u1"),
    ],
    align=True,
)
LEASE = np.dtype(
    [
        ("lease_id", "u8"),
        ("holder_id", "u8"),  # 0: no phase works on it
        ("renewed_at_s", "f8"),
        ("num_sealed_tokens", "u4"),
        ("state", "u1"),
        ("request_id", f"S{REQUEST_ID_BYTES}"),
        ("domain", "u1", (DOMAIN_BYTES,)),
    ],
    align=True,
)
REFERENCE = np.dtype([("lease_id", "u8"), ("block_id", "u4"), ("generation", "u4"), ("ordinal", "u4")], align=True)
TOKEN = np.dtype("u4")


class LeaseState(IntEnum):
    """Of a lease record. A lease found ENDING after a crash is ended by the repair."""

    UNUSED = 0
    OPEN = 1
    ENDING = 2
    ABANDONED = 3  # its owner is done with it, its holder may not be: it ends when nobody holds it


@dataclass(frozen=True, slots=True)
class Reference:
    """Block `block_id` is block `ordinal` of the lease."""

    lease_id: int
    block_id: int
    generation: int
    ordinal: int


def ledger_bytes(num_blocks: int, block_size: int) -> int:
    """Size of a ledger segment."""
    return _offsets(num_blocks, block_size)[-1]


def _offsets(num_blocks: int, block_size: int) -> list[int]:
    """Where the header and each table start, and the end."""
    sizes = [
        HEADER.itemsize,
        HOLDER.itemsize * MAX_HOLDERS,
        BLOCK.itemsize * num_blocks,
        LEASE.itemsize * (num_blocks + EXTRA_LEASES),
        REFERENCE.itemsize * num_blocks * REFERENCES_PER_BLOCK,
        TOKEN.itemsize * num_blocks * block_size,
    ]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
    return offsets


class LedgerRecords:
    """The tables of a ledger segment as numpy views: ``holders``, ``blocks``, ``leases``, ``references``, ``tokens``.

    ``tokens`` is ``[num_blocks, block_size]``.
    """

    def __init__(self, buffer: Buffer, num_blocks: int, block_size: int) -> None:
        _, holders, blocks, leases, references, tokens, _ = _offsets(num_blocks, block_size)
        self.header: Array = np.frombuffer(buffer, HEADER, 1)
        self.holders: Array = np.frombuffer(buffer, HOLDER, MAX_HOLDERS, holders)
        self.blocks: Array = np.frombuffer(buffer, BLOCK, num_blocks, blocks)
        self.leases: Array = np.frombuffer(buffer, LEASE, num_blocks + EXTRA_LEASES, leases)
        self.references: Array = np.frombuffer(buffer, REFERENCE, num_blocks * REFERENCES_PER_BLOCK, references)
        flat: Array = np.frombuffer(buffer, TOKEN, num_blocks * block_size, tokens)
        self.tokens: Array = flat.reshape(num_blocks, block_size)
        self._block_fields = [self.blocks[name] for name in ("generation", "num_references", "owner", "state")]
        self._published: Array = self.blocks["published"]
        self._lease_fields = {name: self.leases[name] for name in LEASE.names or ()}
        self._reference_fields = [self.references[name] for name in ("block_id", "generation", "ordinal", "lease_id")]

    @classmethod
    def create(cls, buffer: Buffer, num_blocks: int, block_size: int, epoch: int) -> "LedgerRecords":
        """Starts a ledger in a zeroed buffer of `ledger_bytes`."""
        records = cls(buffer, num_blocks, block_size)
        header = records.header
        header["layout_version"] = LAYOUT_VERSION
        header["num_blocks"] = num_blocks
        header["block_size"] = block_size
        header["epoch"] = epoch
        header["magic"] = MAGIC
        return records

    @classmethod
    def map(cls, buffer: Buffer) -> "LedgerRecords":
        """Views an existing ledger. LedgerCorruptError when it is none, of another version, or cut short."""
        size_bytes = memoryview(buffer).nbytes
        if size_bytes < HEADER.itemsize:
            raise LedgerCorruptError(f"the ledger has {size_bytes} bytes, less than its header")
        header = np.frombuffer(buffer, HEADER, 1)
        if int(header["magic"][0]) != MAGIC:
            raise LedgerCorruptError("the segment does not start as a ledger does")
        version, num_blocks, block_size = (
            int(header[name][0]) for name in ("layout_version", "num_blocks", "block_size")
        )
        if version != LAYOUT_VERSION:
            raise LedgerCorruptError(f"the ledger has layout version {version}, this program {LAYOUT_VERSION}")
        if size_bytes < (needed_bytes := ledger_bytes(num_blocks, block_size)):
            raise LedgerCorruptError(f"{num_blocks} blocks need {needed_bytes} bytes, not {size_bytes}")
        return cls(buffer, num_blocks, block_size)

    @property
    def num_blocks(self) -> int:
        """Of the pool."""
        return len(self.blocks)

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return int(self.header["block_size"][0])

    @property
    def epoch(self) -> int:
        """Of the segments; drawn at their creation."""
        return int(self.header["epoch"][0])

    def block(self, block_id: int) -> BlockRecord:
        """Reads one block record."""
        generation, num_references, owner, state = self._block_fields
        return BlockRecord(
            BlockState(state.item(block_id)),
            generation.item(block_id),
            owner.item(block_id),
            num_references.item(block_id),
        )

    def generations(self, block_ids: Sequence[int]) -> list[int]:
        """Of several blocks at once."""
        values: list[int] = self.blocks["generation"][list(block_ids)].tolist()
        return values

    def is_current(self, block: Block) -> bool:
        """Whether it has had no other owner since it was referred to."""
        return 0 <= block.block_id < self.num_blocks and self.block(block.block_id).generation == block.generation

    def write_block(self, block_id: int, record: BlockRecord) -> None:
        """Stores generation, references and owner, then the state."""
        generation, num_references, owner, state = self._block_fields
        generation[block_id] = record.generation
        num_references[block_id] = record.num_references
        owner[block_id] = record.owner
        state[block_id] = record.state

    def publish(self, block_id: int, contents: KeyedBlock, now_s: float) -> None:
        """Stores what the block holds, then that this is so."""
        self.blocks["content_key"][block_id] = np.frombuffer(contents.key, np.uint8)
        self.blocks["parent_key"][block_id] = np.frombuffer(contents.parent, np.uint8)
        self.blocks["namespace"][block_id] = np.frombuffer(contents.namespace, np.uint8)
        self.blocks["ordinal"][block_id] = contents.ordinal
        self.tokens[block_id] = contents.token_ids
        self.blocks["kind"][block_id] = contents.kind
        self.blocks["num_hits"][block_id] = 0
        self.blocks["pinned"][block_id] = 0
        self.blocks["used_at_s"][block_id] = now_s
        self._published[block_id] = 1

    def unpublish(self, block_id: int) -> None:
        """The key holds no more."""
        self._published[block_id] = 0

    def is_published(self, block_id: int) -> bool:
        """Whether the block's contents have a key."""
        return bool(self._published.item(block_id))

    def content_key(self, block_id: int) -> bytes:
        """Of a published block."""
        return self._key("content_key", block_id)

    def parent_key(self, block_id: int) -> bytes:
        """Of the block before a published one; of a sequence's first, its namespace."""
        return self._key("parent_key", block_id)

    def namespace(self, block_id: int) -> bytes:
        """Of a published block."""
        return self._key("namespace", block_id)

    def kind(self, block_id: int) -> ContentKind:
        """Of a published block."""
        return ContentKind(self.blocks["kind"].item(block_id))

    def is_pinned(self, block_id: int) -> bool:
        """Whether a published block is not given up."""
        return bool(self.blocks["pinned"].item(block_id))

    def pin(self, block_id: int) -> None:
        """A published block is not given up from now on."""
        self.blocks["pinned"][block_id] = 1

    def set_used(self, block_id: int, now_s: float) -> None:
        """A published block was published or found now."""
        self.blocks["used_at_s"][block_id] = now_s

    def note_use(self, block_ids: Sequence[int], now_s: float) -> None:
        """As `set_used`; a claim found them."""
        chosen = list(block_ids)
        self.blocks["num_hits"][chosen] += 1
        self.blocks["used_at_s"][chosen] = now_s

    def write_reference(self, slot: int, reference: Reference) -> None:
        """Stores what it says, then the lease it belongs to."""
        block_id, generation, ordinal, lease_id = self._reference_fields
        block_id[slot] = reference.block_id
        generation[slot] = reference.generation
        ordinal[slot] = reference.ordinal
        lease_id[slot] = reference.lease_id

    def clear_reference(self, slot: int) -> None:
        """Puts the record out of use."""
        self._reference_fields[3][slot] = 0

    def open_lease(self, slot: int, lease_id: int, request_id: str, now_s: float) -> None:
        """A lease without holder, blocks or sealed tokens; the state is stored last."""
        fields = self._lease_fields
        fields["lease_id"][slot] = lease_id
        fields["holder_id"][slot] = 0
        fields["renewed_at_s"][slot] = now_s
        fields["num_sealed_tokens"][slot] = 0
        fields["request_id"][slot] = request_id.encode("utf-8", "replace")[:REQUEST_ID_BYTES]
        fields["state"][slot] = LeaseState.OPEN

    def set_lease(self, slot: int, field: str, value: float) -> None:
        """Stores one field of a lease."""
        self._lease_fields[field][slot] = value

    def lease_field(self, slot: int, field: str) -> Any:
        """Reads one field of a lease, as a Python value."""
        return self._lease_fields[field].item(slot)

    def new_holder_id(self) -> int:
        """Never given before in this ledger's life."""
        holder_id = int(self.header["last_holder_id"][0]) + 1
        self.header["last_holder_id"] = holder_id
        return holder_id

    def write_holder(self, slot: int, holder_id: int, service: str, pid: int) -> None:
        """Stores what the holder is, then its id. Its process is not known yet."""
        self.holders["process_began_ticks"][slot] = 0
        self.holders["pid"][slot] = pid
        self.holders["service"][slot] = service.encode("utf-8", "replace")[:16]
        self.holders["holder_id"][slot] = holder_id

    def write_holder_process(self, slot: int, process: HolderProcess) -> None:
        """Stores who the holder's process is; when it began comes last."""
        self.holders["process_began_ticks"][slot] = 0
        self.holders["process_pid"][slot] = process.pid
        self.holders["process_namespace"][slot] = process.namespace
        self.holders["process_began_ticks"][slot] = process.began_ticks

    def clear_holder(self, slot: int) -> None:
        """Puts the record out of use."""
        self.holders["holder_id"][slot] = 0

    def _key(self, field: str, block_id: int) -> bytes:
        key: bytes = self.blocks[field][block_id].tobytes()
        return key
