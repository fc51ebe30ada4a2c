import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tandem.cli import leftovers
from tandem.rpc import guard

LISTEN = """
import signal, socket, sys
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def run_dir():
    with tempfile.TemporaryDirectory(prefix="tl") as name:
        yield Path(name)


def listener(path: Path, kind: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", LISTEN, str(path), kind], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_whoever_listens_is_found_and_nobody_else(run_dir):
    decode = listener(run_dir / "decode.sock", "ordinary")
    gateway = listener(run_dir / "gateway.sock", "ordinary")
    keeper = listener(run_dir / "memd.keeper.sock", "ordinary")
    (run_dir / "replica-1").mkdir()
    (run_dir / "supervisord.conf").write_text("[program:memd]\n[program:memd-1]\n")
    other_decode = listener(run_dir / "replica-1" / "decode.sock", "ordinary")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(run_dir / "memd.sock"))
    found = [process.pid for process in leftovers.find(run_dir)]
    assert found == [gateway.pid, decode.pid, other_decode.pid, keeper.pid]
    for process in (decode, gateway, keeper, other_decode):
        process.kill()
        process.communicate()
    assert leftovers.find(run_dir) == []


@pytest.mark.parametrize("kind", ["ordinary", "deaf"])
def test_it_is_ended_whether_it_listens_to_reason_or_not(run_dir, kind):
    process = psutil.Process(listener(run_dir / "decode.sock", kind).pid)
    told: list[tuple[int, bool]] = []
    before_kill = lambda pid: told.append((pid, process.is_running()))  # noqa: E731
    leftovers.end(process, timeout_s=1.0, before_kill=before_kill)
    assert not process.is_running()
    assert told == ([(process.pid, True)] if kind == "deaf" else [])
    leftovers.end(process, timeout_s=1.0, before_kill=before_kill)


def test_the_listener_is_the_one_the_kernel_names(run_dir):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(run_dir / "x.sock"))
        assert guard.listener_pid(run_dir / "x.sock") is None
        server.listen()
        assert guard.listener_pid(run_dir / "x.sock") == os.getpid()
