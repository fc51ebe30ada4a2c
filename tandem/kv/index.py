"""What a ledger's records imply, kept beside them so that no operation has to search: built from them at any time."""

from collections import defaultdict, deque
from dataclasses import dataclass, field

import numpy as np

from tandem.errors import LeaseError, LedgerCorruptError, NotFoundError
from tandem.kv.blocks import BlockState
from tandem.kv.contents import ContentIndex, domain_of
from tandem.kv.records import LeaseState, LedgerRecords
from tandem.kv.store import HolderProcess
from tandem.types import ContentKind


@dataclass(slots=True)
class HolderEntry:
    """An attached phase: its record's slot, its spare blocks and the leases it works on."""

    slot: int
    service: str
    pid: int
    process: HolderProcess | None
    spare: set[int] = field(default_factory=set)
    lease_ids: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, records: LedgerRecords, slot: int) -> "HolderEntry":
        """As recorded, without its blocks and leases."""
        record = records.holders[slot]
        names = ("process_pid", "process_namespace", "process_began_ticks")
        process = HolderProcess(*(int(record[name]) for name in names))
        service = bytes(record["service"]).decode("utf-8", "replace")
        return cls(slot, service, int(record["pid"]), process if process.began_ticks else None)


@dataclass(slots=True)
class LeaseEntry:
    """A sequence lease: its record's slot, and by position its blocks and their reference records' slots."""

    slot: int
    holder_id: int
    block_ids: list[int] = field(default_factory=list)
    reference_slots: list[int] = field(default_factory=list)


@dataclass(slots=True)
class LedgerIndex:
    """Who is there, what is free, and in which order free blocks are given out."""

    holders: dict[int, HolderEntry] = field(default_factory=dict)
    leases: dict[int, LeaseEntry] = field(default_factory=dict)
    free_blocks: deque[int] = field(default_factory=deque)
    contents: ContentIndex = field(default_factory=ContentIndex)
    free_holder_slots: list[int] = field(default_factory=list)
    free_lease_slots: list[int] = field(default_factory=list)
    free_reference_slots: list[int] = field(default_factory=list)

    @classmethod
    def build(cls, records: LedgerRecords) -> "LedgerIndex":
        """Of a ledger that `check` accepts."""
        index = cls()
        index._read_holders(records)
        index._read_leases(records)
        index._read_references(records)
        index._read_blocks(records)
        index._read_contents(records)
        return index

    def holder(self, holder_id: int) -> HolderEntry:
        """NotFoundError when it is not attached."""
        entry = self.holders.get(holder_id)
        if entry is None:
            raise NotFoundError(f"holder {holder_id} is not attached")
        return entry

    def lease(self, lease_id: int) -> LeaseEntry:
        """NotFoundError when it is not open."""
        entry = self.leases.get(lease_id)
        if entry is None:
            raise NotFoundError(f"lease {lease_id} does not exist; it was released, has expired, or never was")
        return entry

    def take_lease_slot(self) -> int:
        """LeaseError when all lease records are in use."""
        if not self.free_lease_slots:
            raise LeaseError(f"{len(self.leases)} leases are open, more than the ledger has records for")
        return self.free_lease_slots.pop()

    def move_lease(self, lease_id: int, holder_id: int) -> None:
        """To another holder, or with 0 to none."""
        entry = self.leases[lease_id]
        if entry.holder_id in self.holders:
            self.holders[entry.holder_id].lease_ids.discard(lease_id)
        if holder_id != 0:
            self.holders[holder_id].lease_ids.add(lease_id)
        entry.holder_id = holder_id

    def compare(self, records: LedgerRecords) -> None:
        """LedgerCorruptError when it is not what the records imply."""
        fresh = LedgerIndex.build(records)
        if (self.holders, self.leases) != (fresh.holders, fresh.leases):
            raise LedgerCorruptError("the index of holders and leases is not what their records imply")
        if _unordered(self.contents) != _unordered(fresh.contents):
            raise LedgerCorruptError("the index of published and cached blocks is not what their records imply")
        for name in ("free_blocks", "free_holder_slots", "free_lease_slots", "free_reference_slots"):
            kept, implied = sorted(getattr(self, name)), sorted(getattr(fresh, name))
            if kept != implied:
                raise LedgerCorruptError(f"{name}: {sorted(set(kept) ^ set(implied)) or kept} differ from the records")

    def _read_holders(self, records: LedgerRecords) -> None:
        for slot, holder_id in enumerate(records.holders["holder_id"].tolist()):
            if holder_id == 0:
                self.free_holder_slots.append(slot)
            else:
                self.holders[holder_id] = HolderEntry.read(records, slot)

    def _read_leases(self, records: LedgerRecords) -> None:
        fields = zip(*(records.leases[name].tolist() for name in ("state", "lease_id", "holder_id")), strict=True)
        for slot, (state, lease_id, holder_id) in enumerate(fields):
            if state == LeaseState.UNUSED:
                self.free_lease_slots.append(slot)
                continue
            self.leases[lease_id] = LeaseEntry(slot, holder_id)
            if holder_id != 0:
                self.holders[holder_id].lease_ids.add(lease_id)

    def _read_references(self, records: LedgerRecords) -> None:
        places: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for slot, (lease_id, block_id, _, ordinal) in enumerate(records.references.tolist()):
            if lease_id == 0:
                self.free_reference_slots.append(slot)
            else:
                places[lease_id].append((ordinal, block_id, slot))
        for lease_id, place in places.items():
            entry = self.leases[lease_id]
            for _, block_id, slot in sorted(place):
                entry.block_ids.append(block_id)
                entry.reference_slots.append(slot)

    def _read_blocks(self, records: LedgerRecords) -> None:
        states, owners = records.blocks["state"].tolist(), records.blocks["owner"].tolist()
        for block_id, (state, owner) in enumerate(zip(states, owners, strict=True)):
            if state == BlockState.FREE:
                self.free_blocks.append(block_id)
            elif state == BlockState.SPARE:
                self.holders[owner].spare.add(block_id)

    def _read_contents(self, records: LedgerRecords) -> None:
        """In the order of their last use, and what was used together as a sequence is given up: its end first."""
        table = records.blocks
        oldest_first = np.lexsort((-table["ordinal"].astype(np.int64), table["used_at_s"]))
        for block_id in oldest_first[table["published"][oldest_first] != 0].tolist():
            domain = domain_of(records.namespace(block_id))
            self.contents.add(block_id, records.parent_key(block_id), records.content_key(block_id), domain)
            if records.kind(block_id) is ContentKind.SEGMENT:
                self.contents.segments.add(block_id, domain)
            if records.is_pinned(block_id):
                self.contents.num_pinned += 1
            elif table["state"].item(block_id) == BlockState.CACHED:
                self.contents.keep(block_id)


def _unordered(contents: ContentIndex) -> tuple[object, ...]:
    """What two of them must agree on."""
    children = {parent: set(found) for parent, found in contents.children.items()}
    return contents.block_ids, children, contents.blocks.unordered(), contents.segments.unordered(), contents.num_pinned


class HolderProcesses:
    """Who the holders are, as far as that is known."""

    def __init__(self, records: LedgerRecords, index: LedgerIndex) -> None:
        self._records = records
        self._index = index

    def get(self, holder_id: int) -> HolderProcess | None:
        """NotFoundError when it is not attached."""
        return self._index.holder(holder_id).process

    def note(self, holder_id: int, process: HolderProcess) -> None:
        """From now on it is known, also to the next memd. NotFoundError when it is not attached."""
        entry = self._index.holder(holder_id)
        self._records.write_holder_process(entry.slot, process)
        entry.process = process
