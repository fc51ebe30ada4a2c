"""Attaching over the wire, and what ends it."""

import asyncio
import os

import pytest
import torch

from tandem.device.cpu.memory import MemfdImporter
from tandem.errors import DeviceError, NotReadyError
from tandem.rpc.memd_client import MemdClient
from tandem.types import Fingerprint
from tests.support.memd import CONFIG, FINGERPRINT, LAYOUT, MANIFEST, local_memd


@pytest.fixture
async def memd():
    async with local_memd() as running:
        yield running


@pytest.fixture
async def client(memd):
    made = MemdClient(memd.address)
    yield made
    await made.close()


async def test_an_attachment_describes_and_hands_out_the_storage(memd, client):
    attachment = await client.attach("decode", 42, Fingerprint())
    assert (attachment.fingerprint, attachment.epoch) == (FINGERPRINT, 5)
    assert (attachment.model_config, attachment.manifest, attachment.kv_layout) == (CONFIG, MANIFEST, LAYOUT)
    assert set(attachment.segments) == {"weights", "kv"}
    kv, weights = attachment.segments["kv"], attachment.segments["weights"]
    mapped = MemfdImporter().map(kv, writable=True)
    mapped.tensor("bfloat16", LAYOUT.shape).fill_(3.0)
    theirs = MemfdImporter().map(memd.storage.segments.kv, writable=False)
    assert torch.equal(theirs.tensor("bfloat16", LAYOUT.shape), torch.full(LAYOUT.shape, 3.0, dtype=torch.bfloat16))
    with pytest.raises(DeviceError, match="sealed"):
        MemfdImporter().map(weights, writable=True)
    fds = [handle.fd for handle in attachment.segments.values()]
    await attachment.detach()
    await attachment.detach()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


async def test_attaching_waits_for_the_model():
    async with local_memd(loaded=False) as memd:
        client = MemdClient(memd.address)
        with pytest.raises(NotReadyError, match="loading the model"):
            await client.attach("decode", 1, Fingerprint())
        with pytest.raises(NotReadyError, match="loading the model"):
            await client.statistics()
        memd.daemon.ready(memd.storage)
        attachment = await client.attach("decode", 1, Fingerprint())
        await attachment.detach()
        await client.close()


async def test_no_memd_is_not_ready(tmp_path):
    client = MemdClient(f"unix:{tmp_path}/none.sock")
    with pytest.raises(NotReadyError):
        await client.attach("decode", 1, Fingerprint())
    with pytest.raises(NotReadyError):
        await client.statistics()
    await client.close()


async def test_the_end_of_memd_ends_the_attachment(memd, client):
    attachment = await client.attach("decode", 1, Fingerprint())
    waiting = asyncio.ensure_future(attachment.next_reclaim())
    await asyncio.sleep(0)
    memd.store.close()
    await attachment.ended.wait()
    with pytest.raises(NotReadyError, match="has ended"):
        await waiting
    with pytest.raises(NotReadyError, match="has ended"):
        await attachment.next_reclaim()
    await attachment.detach()


async def test_closing_the_client_ends_its_attachments(memd, client):
    attachment = await client.attach("decode", 1, Fingerprint())
    await client.lease_blocks(attachment.holder_id, 4)
    await client.close()
    await attachment.ended.wait()
    while memd.store.is_attached(attachment.holder_id):
        await asyncio.sleep(0.001)
    assert memd.store.current_statistics().num_free_blocks == 16
    await attachment.detach()
