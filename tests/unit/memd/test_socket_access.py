"""Who gets to the sockets of a run directory, and that nobody there keeps the others from them."""

import asyncio
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from services.memd.handles import HandleServer
from services.memd.keeping import deposit, held_epoch, withdraw
from tandem.device.cpu.memory import MemfdExporter
from tandem.errors import NotFoundError, NotReadyError
from tandem.rpc.handles_client import receive_segments
from tandem.rpc.segments import close_segments
from tandem.rpc.server import ServiceHost

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SOMEBODY_ELSE = 65534
NUM_DESCRIPTORS = 40
NUM_SILENT = 20
ASK = """
import os, socket, sys
os.setuid(int(sys.argv[3]))
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    try:
        connection.sendall(sys.argv[2].encode() + b"\\n")
        print(connection.recv(100))
    except ConnectionError:
        print(b"")
"""


@contextmanager
def keeper(path: Path, num_descriptors: int = 1024) -> Iterator[None]:
    """A keeper's process, which answers."""
    command = [sys.executable, "-m", "services.memd.keeper", "--socket", str(path)]
    process = subprocess.Popen(command, env=ENVIRONMENT, umask=0)
    try:
        while True:
            assert process.poll() is None
            with suppress(NotFoundError):
                held_epoch(path)
                break
            time.sleep(0.02)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (num_descriptors, num_descriptors))
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait()


@contextmanager
def no_umask() -> Iterator[None]:
    """Nothing protects a file but its own mode."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tdm") as folder:
        yield Path(folder) / "run"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_directory_and_sockets_are_this_users_alone(run_dir):
    with keeper(run_dir / "memd.keeper.sock"), no_umask():
        server = HandleServer(run_dir / "memd.fd.sock", [], lambda _holder_id, _pid: True)
        host = ServiceHost(["x.Y"], [f"unix:{run_dir}/memd.sock"])
        server.start()
        await host.start()
        try:
            assert mode_of(run_dir) == 0o700
            modes = {path.name: mode_of(path) for path in run_dir.iterdir()}
            assert {name for name in modes if name.endswith(".sock")} == {
                "memd.keeper.sock", "memd.fd.sock", "memd.sock",
            }  # fmt: skip
            assert set(modes.values()) == {0o600}
        finally:
            await server.close()
            await host.stop(0)


def ask_as_somebody_else(path: Path, request: str) -> bytes:
    command = [sys.executable, "-c", ASK, str(path), request, str(SOMEBODY_ELSE)]
    return subprocess.run(command, check=True, capture_output=True).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
async def test_another_user_gets_no_answer_even_where_the_modes_let_it_in(run_dir):
    segment = MemfdExporter().create("kv", 4096)
    with keeper(run_dir / "memd.keeper.sock"):
        server = HandleServer(run_dir / "memd.fd.sock", [segment], lambda _holder_id, _pid: True)
        server.start()
        for path in (run_dir.parent, run_dir, *run_dir.glob("*.sock")):
            path.chmod(0o777)
        asked = {"memd.keeper.sock": '{"do": "look", "epoch": 0}', "memd.fd.sock": '{"holder_id": 1}'}
        for name, request in asked.items():
            assert await asyncio.to_thread(ask_as_somebody_else, run_dir / name, request) == b"b''", name
        close_segments((await receive_segments(str(run_dir / "memd.fd.sock"), 1)).values())
        assert held_epoch(run_dir / "memd.keeper.sock") == 0
        await server.close()
    segment.close()


def connect_silently(path: Path, number: int, connections: ExitStack) -> None:
    for _ in range(number):
        connection = connections.enter_context(socket.socket(socket.AF_UNIX))
        connection.setblocking(False)
        with suppress(BlockingIOError):  # as many wait as there may
            connection.connect(str(path))


def test_connections_that_say_nothing_keep_nobody_from_the_keeper(run_dir):
    path, segment = run_dir / "memd.keeper.sock", MemfdExporter().create("kv", 4096)
    with keeper(path), ExitStack() as connections:
        connect_silently(path, NUM_SILENT, connections)
        started_s = time.monotonic()
        for epoch in range(1, 4):
            deposit(path, epoch, [segment])
        held = withdraw(path)
        assert held.epoch == 3
        close_segments(held.segments.values())
        assert time.monotonic() - started_s < 60, "each silent one before it would have cost 5 s"
    segment.close()


def test_a_keeper_that_is_out_of_descriptors_lives_on_with_what_it_holds(run_dir):
    path, segment = run_dir / "memd.keeper.sock", MemfdExporter().create("kv", 4096)
    with keeper(path, 16), ExitStack() as connections:
        deposit(path, 7, [segment])
        connect_silently(path, NUM_DESCRIPTORS, connections)
        time.sleep(0.3)
        connections.close()
        while True:  # those that wait for a descriptor are refused one after another
            with suppress(NotReadyError):
                held = withdraw(path)
                break
        assert (held.epoch, list(held.segments)) == (7, ["kv"])
        close_segments(held.segments.values())
    segment.close()


async def test_connections_that_say_nothing_keep_nobody_from_the_handles(run_dir):
    segment = MemfdExporter().create("kv", 4096)
    server = HandleServer(run_dir / "memd.fd.sock", [segment], lambda _holder_id, _pid: True)
    server.start()
    with ExitStack() as connections:
        for _ in range(4):
            connect_silently(run_dir / "memd.fd.sock", NUM_SILENT, connections)
            await asyncio.sleep(0)
        close_segments((await receive_segments(str(run_dir / "memd.fd.sock"), 1)).values())
    await server.close()
    segment.close()
