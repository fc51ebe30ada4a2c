"""Does a ledger contradict itself? Each rule names the blocks, leases and holders that break it."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from tandem.errors import LedgerCorruptError
from tandem.kv.blocks import BlockState
from tandem.kv.records import Array, LeaseState, LedgerRecords
from tandem.types import ContentKind

MAX_PROBLEMS = 8


def check(records: LedgerRecords) -> None:
    """LedgerCorruptError that names the first `MAX_PROBLEMS` contradictions."""
    problems = [problem for rule in _RULES for problem in rule(records)]
    if problems:
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise LedgerCorruptError("; ".join(problems[:MAX_PROBLEMS]) + more)


def _holders(records: LedgerRecords) -> Iterator[str]:
    ids = _holder_ids(records)
    last = int(records.header["last_holder_id"][0])
    for holder_id, count in Counter(ids).items():
        if count > 1:
            yield f"holder {holder_id} has {count} records"
        if holder_id > last:
            yield f"holder {holder_id} was never given out, the last was {last}"


def _leases(records: LedgerRecords) -> Iterator[str]:
    used = records.leases[records.leases["state"] != LeaseState.UNUSED]
    known = (LeaseState.OPEN, LeaseState.ABANDONED)
    holders = {0, *_holder_ids(records)}
    for lease_id, count in Counter(used["lease_id"].tolist()).items():
        if count > 1 or lease_id == 0:
            yield f"lease {lease_id} has {count} records"
    for lease in used:
        if int(lease["state"]) not in known:
            yield f"lease {int(lease['lease_id'])} is in state {int(lease['state'])}"
        if int(lease["holder_id"]) not in holders:
            yield f"lease {int(lease['lease_id'])} is held by {int(lease['holder_id'])}, which is not attached"


def _blocks(records: LedgerRecords) -> Iterator[str]:
    holders = _holder_ids(records)
    state, owner = records.blocks["state"], records.blocks["owner"]
    for block_id in _ids(state > max(BlockState)):
        yield f"block {block_id} is in state {state.item(block_id)}"
    for block_id in _ids((state == BlockState.SPARE) & ~np.isin(owner, holders)):
        yield f"block {block_id} is spare of holder {owner.item(block_id)}, which is not attached"
    for block_id in _ids((state != BlockState.SPARE) & (owner != 0)):
        yield f"block {block_id} is {_name(records, block_id)} and yet owned by holder {owner.item(block_id)}"


def _counts(records: LedgerRecords) -> Iterator[str]:
    valid = (records.references["lease_id"] != 0) & (records.references["block_id"] < records.num_blocks)
    counts = np.bincount(records.references["block_id"][valid], minlength=records.num_blocks)
    stored = records.blocks["num_references"]
    leased = records.blocks["state"] == BlockState.LEASED
    for block_id in _ids((counts != stored) | (leased & (counts == 0)) | (~leased & (counts != 0))):
        leases = _leases_of(records, block_id)
        owner = records.blocks["owner"].item(block_id)
        yield (
            f"block {block_id} is {_name(records, block_id)} (owner {owner}), counts {stored.item(block_id)} "
            f"references and is in {leases or 'no lease'}"
        )


def _references(records: LedgerRecords) -> Iterator[str]:
    open_leases = set(records.leases["lease_id"][records.leases["state"] != LeaseState.UNUSED].tolist())
    for reference in records.references[records.references["lease_id"] != 0]:
        lease_id, block_id = int(reference["lease_id"]), int(reference["block_id"])
        place = f"position {int(reference['ordinal'])} of lease {lease_id}"
        if lease_id not in open_leases:
            yield f"block {block_id} is at {place}, which does not exist"
        if block_id >= records.num_blocks:
            yield f"block {block_id} at {place} is past the pool's end"
        elif int(reference["generation"]) != records.blocks["generation"].item(block_id):
            generation = records.blocks["generation"].item(block_id)
            yield f"block {block_id} at {place} has generation {int(reference['generation'])}, not {generation}"


def _tables(records: LedgerRecords) -> Iterator[str]:
    """Each lease's positions are 0, 1, 2 ..., its blocks differ, and its sealed tokens fit into them."""
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for reference in records.references[records.references["lease_id"] != 0]:
        places[int(reference["lease_id"])].append((int(reference["ordinal"]), int(reference["block_id"])))
    for lease in records.leases[records.leases["state"] != LeaseState.UNUSED]:
        lease_id, num_sealed = int(lease["lease_id"]), int(lease["num_sealed_tokens"])
        own = sorted(places[lease_id])
        if [ordinal for ordinal, _ in own] != list(range(len(own))):
            yield f"lease {lease_id} has blocks at positions {[ordinal for ordinal, _ in own]}"
        if len({block_id for _, block_id in own}) != len(own):
            yield f"lease {lease_id} holds a block twice: {[block_id for _, block_id in own]}"
        if num_sealed > len(own) * records.block_size:
            yield f"lease {lease_id} has {num_sealed} sealed tokens in {len(own)} blocks of {records.block_size}"


def _contents(records: LedgerRecords) -> Iterator[str]:
    """Only what nobody writes to any more is published, each contents once; what is cached is published."""
    published, state = records.blocks["published"] != 0, records.blocks["state"]
    for block_id in _ids(published & (state != BlockState.LEASED) & (state != BlockState.CACHED)):
        yield f"block {block_id} is published and {_name(records, block_id)}"
    for block_id in _ids(~published & (state == BlockState.CACHED)):
        yield f"block {block_id} is cached and not published"
    for block_id in _ids(published & (records.blocks["kind"] > max(ContentKind))):
        yield f"block {block_id} is published as of kind {records.blocks['kind'].item(block_id)}"
    block_ids_by_key: dict[bytes, list[int]] = defaultdict(list)
    for block_id in _ids(published):
        block_ids_by_key[records.content_key(block_id)].append(block_id)
    for key, block_ids in block_ids_by_key.items():
        if len(block_ids) > 1:
            yield f"blocks {block_ids} are all published under {key.hex()[:16]}"


_RULES = (_holders, _leases, _blocks, _counts, _references, _tables, _contents)


def _holder_ids(records: LedgerRecords) -> list[int]:
    ids: list[int] = records.holders["holder_id"][records.holders["holder_id"] != 0].tolist()
    return ids


def _ids(mask: Array) -> list[int]:
    ids: list[int] = np.flatnonzero(mask).tolist()
    return ids


def _name(records: LedgerRecords, block_id: int) -> str:
    state = records.blocks["state"].item(block_id)
    return BlockState(state).name if state in set(BlockState) else f"in state {state}"


def _leases_of(records: LedgerRecords, block_id: int) -> str:
    used = records.references["lease_id"] != 0
    own = records.references[used & (records.references["block_id"] == block_id)]
    return ", ".join(f"lease {int(r['lease_id'])} at position {int(r['ordinal'])}" for r in own)
