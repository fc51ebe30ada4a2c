"""A link passes what it is given, and cuts, stalls and throttles when it is told to."""

import asyncio
import shutil
import sys

import pytest

from tests.chaos.between import Redirection
from tests.chaos.links import LATE_S, THROTTLED_BYTES_PER_S, Flow, Link
from tests.support.sockets import short_run_dir

CONNECT = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    connection.sendall(b"x")
    sys.exit(connection.recv(1) != b"x")
"""


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
        link = Link(socket_path, sleep=nap)
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


async def test_what_is_frozen_passes_nothing_not_even_its_end_and_new_connections_do(socket_path):
    async with await asyncio.start_unix_server(echo, socket_path):
        link = Link(socket_path)
        address = await link.open()
        old_reader, old_writer = await connected(address)
        old_writer.write(b"x")
        assert await old_reader.readexactly(1) == b"x"
        link.freeze()
        old_writer.write_eof()
        reader, writer = await connected(address)
        writer.write(b"y")
        assert await reader.readexactly(1) == b"y"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(old_reader.read(1), 0.1)
        assert link.num_connections == 2
        await link.close()


async def test_late_bytes_wait_and_all_come_over_a_socket_as_well(socket_path):
    nap, path = Nap(), socket_path.with_name("link.sock")
    async with await asyncio.start_unix_server(echo, socket_path):
        link = Link(socket_path, path, sleep=nap)
        assert await link.open() == f"unix:{path}"
        reader, writer = await asyncio.open_unix_connection(path)
        link.set(Flow.LATE)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await link.close()
    assert nap.slept_s == pytest.approx(2 * LATE_S)
    assert not path.exists()


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
async def test_a_process_is_led_through_its_link_by_name_and_others_are_not(socket_path, tmp_path):
    link = Link(socket_path, tmp_path / "decode-far")
    redirection = Redirection.built(tmp_path / "built")
    environment = {**redirection.environment, "CHAOS_LINKS": str(tmp_path)}
    async with await asyncio.start_unix_server(echo, socket_path):
        await link.open()
        for program, num_connections in (("prefill", 0), ("decode", 1)):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", CONNECT, str(socket_path), env={**environment, "SUPERVISOR_PROCESS_NAME": program}
            )
            assert await process.wait() == 0
            assert link.num_connections == num_connections
        await link.close()
