"""A process that attaches to memd as a phase does, holds blocks and maps the weights until it is killed.

It keeps its sequence lease alive itself, in a gateway's place.

``python -m tests.support.memd_client_process ADDRESS SERVICE NUM_BLOCKS`` prints its holder id once all is held.
"""

import asyncio
import mmap
import os
import sys

import numpy as np

from tandem.kv.store import SequenceUpdate
from tandem.rpc.memd_client import MemdClient
from tandem.types import Fingerprint

RENEWAL_S = 0.2


async def main(address: str, service: str, num_blocks: int) -> None:
    client = MemdClient(address)
    attachment = await client.attach(service, os.getpid(), Fingerprint())
    weights = attachment.segments["weights"]
    mapped = mmap.mmap(weights.fd, weights.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
    np.frombuffer(mapped, np.uint8)[::512].sum()
    blocks = await client.lease_blocks(attachment.holder_id, num_blocks)
    lease_id = attachment.holder_id * 1000
    await client.acquire_sequence(attachment.holder_id, lease_id, "r", create=True)
    await client.update_sequences(attachment.holder_id, [SequenceUpdate(lease_id, blocks[:1], 1)])
    sys.stdout.write(f"{attachment.holder_id}\n")
    sys.stdout.flush()
    while not attachment.ended.is_set():
        await client.renew_sequences([lease_id])
        await asyncio.sleep(RENEWAL_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
