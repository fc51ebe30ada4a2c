"""The life of a block: its states, which may follow which, and each transition as a function from record to record."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from tandem.errors import LeaseError

MAX_GENERATION = (1 << 32) - 1


class BlockState(IntEnum):
    """Who may write to a block. The numbers are the ledger's."""

    FREE = 0  # nobody's
    SPARE = 1  # leased ahead by a holder
    LEASED = 2  # in one sequence lease, or shared by several
    CACHED = 3  # in no lease, kept for its contents, which are published


TRANSITIONS: Mapping[BlockState, frozenset[BlockState]] = {
    BlockState.FREE: frozenset({BlockState.SPARE}),
    BlockState.SPARE: frozenset({BlockState.FREE, BlockState.LEASED}),
    BlockState.LEASED: frozenset({BlockState.LEASED, BlockState.FREE, BlockState.CACHED}),
    BlockState.CACHED: frozenset({BlockState.LEASED, BlockState.SPARE, BlockState.FREE}),
}


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """What the ledger holds of a block. The leases that a LEASED block is in are the reference table's."""

    state: BlockState = BlockState.FREE
    generation: int = 0  # 0: never given out
    owner: int = 0  # holder of a SPARE block, otherwise 0
    num_references: int = 0  # leases that a LEASED block is in


def grant(record: BlockRecord, holder_id: int) -> BlockRecord:
    """Leaves the pool as the holder's spare block; references from before are stale from now on."""
    return _moved(record, BlockState.SPARE, generation=record.generation % MAX_GENERATION + 1, owner=holder_id)


def give_back(record: BlockRecord) -> BlockRecord:
    """From its holder's spare blocks to the pool."""
    return _moved(record, BlockState.FREE)


def join_lease(record: BlockRecord) -> BlockRecord:
    """From the holder's spare blocks into a sequence lease."""
    return _moved(record, BlockState.LEASED, num_references=1)


def share(record: BlockRecord) -> BlockRecord:
    """Into one more lease."""
    return _moved(record, BlockState.LEASED, num_references=record.num_references + 1)


def leave_lease(record: BlockRecord, *, is_published: bool) -> BlockRecord:
    """Out of one lease; out of the last one to the pool, where published contents are kept."""
    if record.num_references > 1:
        return _moved(record, BlockState.LEASED, num_references=record.num_references - 1)
    return _moved(record, BlockState.CACHED if is_published else BlockState.FREE)


def drop_contents(record: BlockRecord) -> BlockRecord:
    """From the cached blocks to the pool: what it holds is withdrawn."""
    return _moved(record, BlockState.FREE)


def _moved(
    record: BlockRecord, state: BlockState, *, generation: int = 0, owner: int = 0, num_references: int = 0
) -> BlockRecord:
    """In `state`, at its own generation unless another is given; LeaseError when the table does not have it."""
    if state not in TRANSITIONS[record.state]:
        raise LeaseError(f"a block that is {record.state.name} cannot become {state.name}")
    return BlockRecord(state, generation or record.generation, owner, num_references)
