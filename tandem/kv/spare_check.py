"""What a holder names as its spare blocks, before anything is done with it."""

from collections.abc import Sequence

from tandem.errors import LeaseError, StaleBlockError
from tandem.kv.blocks import BlockState
from tandem.kv.records import LedgerRecords
from tandem.types import Block


def check_spare(records: LedgerRecords, holder_id: int, given: Sequence[Block]) -> None:
    """LeaseError: one is named twice, or is no spare block of this holder. StaleBlockError: it has been another's."""
    if len({block.block_id for block in given}) != len(given):
        raise LeaseError(f"a block is named twice: {sorted(block.block_id for block in given)}")
    for block in given:
        _check(records, holder_id, block)


def _check(records: LedgerRecords, holder_id: int, block: Block) -> None:
    if not 0 <= block.block_id < records.num_blocks:
        raise LeaseError(f"block {block.block_id} is not in the pool of {records.num_blocks}")
    record = records.block(block.block_id)
    if record.generation != block.generation:
        raise StaleBlockError(
            f"block {block.block_id} is at generation {record.generation}, the reference at {block.generation}"
        )
    if record.state is not BlockState.SPARE or record.owner != holder_id:
        state = f"spare of holder {record.owner}" if record.state is BlockState.SPARE else record.state.name
        raise LeaseError(f"block {block.block_id} is no spare block of holder {holder_id}: it is {state}")
