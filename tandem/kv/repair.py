"""Brings a ledger whose writer was killed between two stores back to a state that `check` accepts.

Which stores an operation makes, in order, and what a kill after any of them leaves:

========  =====================================================  ==============================================
grant     a cached block is unpublished first; then the block:   CACHED, not published: it becomes FREE;
          generation, owner, SPARE                               FREE with an owner: the owner is cleared
return    block: owner 0, then FREE                              SPARE without owner: it becomes FREE
extend    reference (lease last); block: one reference, owner 0, SPARE with a reference: it becomes LEASED
          then LEASED; the lease's sealed tokens after all
publish   of a segment, in a full quota: another as withdraw;    CACHED, not published: it becomes FREE;
          block: what it holds, then that it is published        not published: what it holds means nothing
pin       the block: pinned                                      some are: whoever asked asks again
withdraw  each block is unpublished; one in no lease: FREE       CACHED, not published: it becomes FREE
claim     reference; block: the count, then LEASED; the          CACHED with a reference: it becomes LEASED;
          lease's sealed tokens after all                        what the lease has is sealed, and no more
unclaim   the lease's sealed tokens 0; from its end each block   what of it is published is sealed; a block
          as release                                             that is FREE with a reference loses that
fork      lease OPEN; for each block its reference, then the     more references than counted: counted anew;
          count; the sealed tokens after all                     the child is shorter, and expires
release   lease ENDING; for each block the count, then FREE or   the ENDING lease is ended, its blocks counted
          (published) CACHED at 0, then its reference is         anew, those in no other lease become FREE
          cleared; lease UNUSED                                  or CACHED
abandon   the lease ABANDONED                                    nothing
let go    the lease: holder 0; an ABANDONED one as release       it has no holder: it expires
drop      each spare block as return; each lease: holder 0;      some of it is done: whoever opens the ledger
          the holder's record                                    drops the holders that are gone
revoke    the lease: renewed, then holder 0                      it is renewed: it is revoked one TTL later
========  =====================================================  ==============================================

References are the truth of who holds a LEASED block, and a published block is sealed, so that a holder which asks again
after a kill is told what its lease has. What no kill can leave is not touched here and refused by
`check`: a LEASED block without reference that was in no ENDING lease, a reference to a FREE block, and so on.
"""

from dataclasses import dataclass

import numpy as np

from tandem.kv.blocks import BlockState
from tandem.kv.records import Array, LeaseState, LedgerRecords


@dataclass(frozen=True, slots=True)
class Repairs:
    """How much was found half done."""

    num_ended_leases: int = 0
    num_freed_blocks: int = 0
    num_joined_blocks: int = 0  # SPARE or CACHED with a reference: they went into their lease
    num_recounted_blocks: int = 0
    num_sealed_leases: int = 0  # that had published blocks beyond their sealed tokens


def repair(records: LedgerRecords) -> Repairs:
    """Finishes or undoes what was half done; may itself be killed and run again."""
    ending = records.leases["state"] == LeaseState.ENDING
    ended = _references_of(records, records.leases["lease_id"][ending])
    unclaimed = _references_to_free(records) & ~ended
    kept = (records.references["lease_id"] != 0) & ~ended & ~unclaimed
    counts = _per_block(records, kept)
    repairs = Repairs(
        num_ended_leases=int(ending.sum()),
        num_joined_blocks=_join(records, counts),
        num_recounted_blocks=_recount(records, counts),
        num_freed_blocks=_free(records, counts, left=_per_block(records, ended) > 0) + int(unclaimed.sum()),
        num_sealed_leases=_seal(records, kept),
    )
    records.references["lease_id"][ended | unclaimed] = 0
    records.leases["state"][ending] = LeaseState.UNUSED
    return repairs


def _references_of(records: LedgerRecords, lease_ids: Array) -> Array:
    """Mask of the references that belong to the leases."""
    lease_id = records.references["lease_id"]
    mask: Array = (lease_id != 0) & np.isin(lease_id, lease_ids)
    return mask


def _references_to_free(records: LedgerRecords) -> Array:
    """Mask of the references to blocks that have left their last lease, and say so."""
    free = (records.blocks["state"] == BlockState.FREE) & (records.blocks["num_references"] == 0)
    mask: Array = (records.references["lease_id"] != 0) & np.isin(records.references["block_id"], np.flatnonzero(free))
    return mask


def _per_block(records: LedgerRecords, mask: Array) -> Array:
    """How many of the references in `mask` each block has."""
    block_ids = records.references["block_id"][mask]
    return np.bincount(block_ids[block_ids < records.num_blocks], minlength=records.num_blocks)


def _join(records: LedgerRecords, counts: Array) -> int:
    state = records.blocks["state"]
    joined = ((state == BlockState.SPARE) | (state == BlockState.CACHED)) & (counts > 0)
    records.blocks["num_references"][joined] = counts[joined]
    records.blocks["owner"][joined] = 0
    records.blocks["state"][joined] = BlockState.LEASED
    return int(joined.sum())


def _recount(records: LedgerRecords, counts: Array) -> int:
    wrong = (records.blocks["state"] == BlockState.LEASED) & (counts > 0) & (records.blocks["num_references"] != counts)
    records.blocks["num_references"][wrong] = counts[wrong]
    return int(wrong.sum())


def _free(records: LedgerRecords, counts: Array, left: Array) -> int:
    """Published contents of what is in no lease any more are kept."""
    state, owner, published = (records.blocks[name] for name in ("state", "owner", "published"))
    unreferenced = (state == BlockState.LEASED) & (counts == 0) & left
    records.blocks["num_references"][unreferenced] = 0
    state[unreferenced & (published != 0)] = BlockState.CACHED
    ownerless = (state == BlockState.SPARE) & (owner == 0)
    withdrawn = (state == BlockState.CACHED) & (published == 0)
    freed = (unreferenced & (published == 0)) | ownerless | withdrawn
    state[freed] = BlockState.FREE
    unowned = state == BlockState.FREE
    owner[unowned] = 0
    records.blocks["num_references"][unowned] = 0
    return int(freed.sum())


def _seal(records: LedgerRecords, kept: Array) -> int:
    """The tokens of each lease's first blocks, as far as these are published."""
    num_shared = _num_published_first(records, kept)
    num_sealed = 0
    for slot in np.flatnonzero(records.leases["state"] != LeaseState.UNUSED).tolist():
        num_tokens = num_shared.get(int(records.lease_field(slot, "lease_id")), 0) * records.block_size
        if records.lease_field(slot, "num_sealed_tokens") < num_tokens:
            records.set_lease(slot, "num_sealed_tokens", num_tokens)
            num_sealed += 1
    return num_sealed


def _num_published_first(records: LedgerRecords, kept: Array) -> dict[int, int]:
    """By lease, how many blocks from its start on are published."""
    published = records.blocks["published"] != 0
    own = np.sort(records.references[kept], order=["lease_id", "ordinal"])
    num_first: dict[int, int] = {}
    for lease_id, block_id, _, ordinal in own.tolist():
        if num_first.get(lease_id, 0) == ordinal and block_id < records.num_blocks and published[block_id]:
            num_first[lease_id] = ordinal + 1
    return num_first
