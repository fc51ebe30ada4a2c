"""The first steps of a process, made before anybody waits for them: threads, kernels and graphs come with them."""

import structlog

from tandem.kv.store import MemoryStore
from tandem.model.batch import SequenceRows
from tandem.phase.stepper import StepPart, Stepper
from tandem.runner.sampler import Draw
from tandem.types import SamplingSpec

_log = structlog.get_logger()

NUM_BLOCKS = 2  # one full of a prompt, and the one that its first answer goes to


async def warm_up(store: MemoryStore, holder_id: int, stepper: Stepper, block_size: int) -> None:
    """A prompt of one block and one row of decode, over spare blocks of the holder: nobody else reads or writes them.

    A pool without two free blocks is left alone. Raises what a step raises.
    """
    blocks = await store.lease_blocks(holder_id, NUM_BLOCKS)
    try:
        if len(blocks) < NUM_BLOCKS:
            _log.info("warmup.skipped", num_spare_blocks=len(blocks))
            return
        block_ids = [block.block_id for block in blocks]
        prompt = [0] * block_size
        for tokens, start in ((prompt, 0), ([0], block_size)):
            draw = Draw(SamplingSpec(temperature=0.0), start + len(tokens), prompt, [0] * (start // block_size))
            await stepper.step([StepPart(SequenceRows(tokens, start, block_ids), draw)])
    finally:
        await store.return_blocks(holder_id, blocks)
