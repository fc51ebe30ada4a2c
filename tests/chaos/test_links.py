"""A link passes what it is given, and cuts, stalls and throttles when it is told to."""

import asyncio

import pytest

from tests.chaos.links import THROTTLED_BYTES_PER_S, Flow, Link
from tests.support.sockets import short_run_dir


@pytest.fixture
def socket_path():
    with short_run_dir() as path:
        yield path / "far.sock"


class Nap:
    """A sleep that is only counted."""

    def __init__(self):
        self.slept_s = 0.0

    async def __call__(self, seconds):
        self.slept_s += seconds
        await asyncio.sleep(0)


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def connected(address):
    host, port = address.split(":")
    return await asyncio.open_connection(host, int(port))


async def test_bytes_pass_and_a_cut_resets_and_refuses_until_it_is_over(socket_path):
    async with await asyncio.start_unix_server(echo, socket_path):
        link = Link(socket_path)
        address = await link.open()
        reader, writer = await connected(address)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        link.set(Flow.CUT)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        reader, _ = await connected(address)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        link.set(Flow.OPEN)
        reader, writer = await connected(address)
        writer.write(b"after")
        assert await reader.readexactly(5) == b"after"
        await link.close()


async def test_nothing_passes_while_it_is_stalled_and_nothing_is_lost(socket_path):
    async with await asyncio.start_unix_server(echo, socket_path):
        link = Link(socket_path)
        reader, writer = await connected(await link.open())
        link.set(Flow.STALLED)
        writer.write(b"x" * 10_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        link.set(Flow.OPEN)
        assert await reader.readexactly(10_000) == b"x" * 10_000
        await link.close()


async def test_a_slow_link_takes_its_time_for_each_byte(socket_path):
    nap = Nap()
    async with await asyncio.start_unix_server(echo, socket_path):
        link = Link(socket_path, nap)
        reader, writer = await connected(await link.open())
        link.set(Flow.SLOW)
        writer.write(b"x" * 8_000)
        await reader.readexactly(8_000)
        await link.close()
    assert nap.slept_s == pytest.approx(2 * 8_000 / THROTTLED_BYTES_PER_S)


async def test_without_a_server_behind_it_the_connection_ends(socket_path):
    link = Link(socket_path)
    reader, _ = await connected(await link.open())
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    await link.close()
