"""Attaching over the wire, and what ends it."""

import asyncio
import os

import pytest
import torch

from services.memd.daemon import Daemon
from tandem.device.cpu.memory import MemfdImporter
from tandem.errors import DeviceError, NotReadyError, StorageLostError
from tandem.kv.store import Holding
from tandem.rpc import memd_client
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


async def test_a_holder_whose_connection_broke_keeps_its_blocks_and_attaches_again(memd, client):
    attachment = await client.attach("decode", 1, Fingerprint())
    blocks = await client.lease_blocks(attachment.holder_id, 4)
    await client.close()
    await attachment.ended.wait()
    while memd.store.is_attached(attachment.holder_id):
        await asyncio.sleep(0.001)
    assert memd.store.current_statistics().num_free_blocks == 12, "it is this process, which lives and may write"
    assert memd.store.attach_again(attachment.holder_id)
    assert memd.store.holding(attachment.holder_id).spare == frozenset(blocks)
    await attachment.detach()


async def test_who_detaches_is_no_holder_any_more(memd, client):
    attachment = await client.attach("decode", 1, Fingerprint())
    await client.lease_blocks(attachment.holder_id, 4)
    await attachment.detach()
    assert memd.store.current_statistics().num_free_blocks == 16
    with pytest.raises(StorageLostError, match="has given holder 1 up"):
        memd.store.attach_again(attachment.holder_id)


async def test_who_does_not_get_the_segments_is_no_holder(memd, client, monkeypatch):
    async def damaged(_path: str, holder_id: int) -> None:
        assert memd.store.admit(holder_id, os.getpid())
        raise DeviceError("damaged")

    monkeypatch.setattr(memd_client, "receive_segments", damaged)
    with pytest.raises(DeviceError):
        await client.attach("decode", 1, Fingerprint())
    assert memd.store.current_statistics().holders == ()


async def test_a_holder_attaches_again_to_the_next_memd_over_the_same_ledger(memd, client):
    attachment = await client.attach("decode", 1, Fingerprint())
    assert attachment.holding == Holding(frozenset(), frozenset())
    blocks = await client.lease_blocks(attachment.holder_id, 3)
    await client.acquire_sequence(attachment.holder_id, 7, "r", create=True)
    memd.restart()
    await attachment.ended.wait()
    with pytest.raises(NotReadyError, match="not attached again"):
        await client.lease_blocks(attachment.holder_id, 1)
    again = await attachment.attach_again()
    assert (again.holder_id, again.epoch, again.segments) == (attachment.holder_id, 5, {})
    assert again.holding == Holding(frozenset(blocks), frozenset({7}))
    assert len(await client.lease_blocks(attachment.holder_id, 1)) == 1
    await attachment.detach()
    assert memd.store.is_attached(again.holder_id)
    await again.detach()


async def test_a_holder_of_other_storage_is_told_so(memd, client):
    attachment = await client.attach("decode", 1, Fingerprint())
    attachment.epoch = 4
    memd.restart()
    with pytest.raises(StorageLostError, match="its storage is of epoch 5, not 4"):
        await attachment.attach_again()


def test_a_memd_that_looks_for_its_storage_is_waited_for_and_one_that_loads_is_not():
    daemon = Daemon()
    with pytest.raises(NotReadyError, match="loading the model"):
        daemon.storage_of(5)
    daemon.begin_anew()
    with pytest.raises(StorageLostError, match="has begun anew"):
        daemon.storage_of(5)
