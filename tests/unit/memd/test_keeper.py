"""The keeper as a process of its own, and against clients that do not keep to its protocol."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.memd import keeper, keeping
from services.memd.handles import RefusedError
from services.memd.keeper import Keeper, parse_request, serve_until
from services.memd.keeping import Deposit, deposit, forget, held_epoch, withdraw
from tandem.clock import MonotonicClock
from tandem.device.cpu.memory import MemfdExporter, MemfdSegment
from tandem.device.memory import SegmentKind
from tandem.errors import DeviceError, NotFoundError, NotReadyError
from tandem.rpc.segments import close_segments
from tests.support.depositor import EPOCH
from tests.support.fake_cuda.host import fake_driver, importers_over

ROOT = Path(__file__).parents[3]
PATIENCE_S = 10.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@dataclass
class Running:
    path: Path
    process: "subprocess.Popen[bytes]"

    def comes_to_hold(self, num_segments: int) -> bool:
        """Whether the process soon has so many memory descriptors: a connection's thread closes its own at its end."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (num_held := self._num_held()) != num_segments and time.monotonic() < deadline_s:
            time.sleep(0.01)
        return num_held == num_segments

    def _num_held(self) -> int:
        links = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                links.append(str(link.readlink()))
        return sum(1 for link in links if link.startswith("/memfd:"))


def start(path: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "services.memd.keeper", "--socket", str(path)]
    return subprocess.Popen(command, env=ENVIRONMENT)


def wait_until_it_answers(path: Path, process: "subprocess.Popen[bytes]") -> None:
    while True:
        assert process.poll() is None
        with suppress(NotFoundError):
            held_epoch(path)
            return
        time.sleep(0.02)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="tdm") as folder:
        path = Path(folder) / "keeper.sock"
        process = start(path)
        wait_until_it_answers(path, process)
        yield Running(path, process)
        process.terminate()
        assert process.wait() == 0
        assert not path.exists()


@pytest.fixture(autouse=True)
def empty(request) -> None:
    if "running" in request.fixturenames:
        running = request.getfixturevalue("running")
        held = withdraw(running.path)
        close_segments(held.segments.values())
        forget(running.path, held.epoch)


@pytest.fixture
def segments() -> Iterator[list[MemfdSegment]]:
    made = [MemfdExporter().create(name, 4096) for name in ("weights", "kv", "ledger")]
    yield made
    for segment in made:
        segment.close()


def contents(held: Deposit, first_bytes: int = 4) -> dict[str, bytes]:
    return {name: os.pread(segment.fd, first_bytes, 0) for name, segment in held.segments.items()}


def test_an_empty_keeper_has_nothing(running):
    assert withdraw(running.path) == Deposit(0, {})


def test_what_is_deposited_is_withdrawn_as_often_as_wanted(running, segments):
    os.pwrite(segments[2].fd, b"abcd", 0)
    segments[0].seal()
    deposit(running.path, 7, segments)
    for _ in range(2):
        held = withdraw(running.path)
        assert (held.epoch, contents(held)["ledger"]) == (7, b"abcd")
        described = {name: (each.size_bytes, each.kind, each.sealed) for name, each in held.segments.items()}
        assert described == {each.name: (each.size_bytes, each.kind, each.sealed) for each in segments}
        assert not any(os.get_inheritable(each.fd) for each in held.segments.values())
        close_segments(held.segments.values())


def test_a_deposit_replaces_the_one_before(running, segments):
    deposit(running.path, 7, segments)
    deposit(running.path, 8, segments[:1])
    held = withdraw(running.path)
    assert (held.epoch, list(held.segments)) == (8, ["weights"])
    close_segments(held.segments.values())
    assert running.comes_to_hold(1)


def test_only_the_epoch_that_is_named_is_forgotten(running, segments):
    deposit(running.path, 7, segments)
    forget(running.path, 6)
    assert running.comes_to_hold(3)
    forget(running.path, 7)
    assert withdraw(running.path) == Deposit(0, {})
    assert running.comes_to_hold(0)


@pytest.mark.parametrize("kind", [SegmentKind.MEMFD, SegmentKind.CUDA_VMM])
def test_memory_outlives_a_memd_that_is_killed_and_mappings_go_on(running, kind):
    command = [sys.executable, "-m", "tests.support.depositor", str(running.path), kind.value]
    memd = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert memd.stdout.readline() == b"deposited\n"
    importer = importers_over(fake_driver())[kind]()
    phase = importer.map(withdraw(running.path).segments["kv"], writable=True)
    memd.send_signal(signal.SIGKILL)
    memd.wait()
    phase.tensor("int32", (1,), 4)[0] = 5
    held = withdraw(running.path)
    assert (held.epoch, {name: each.sealed for name, each in held.segments.items()}) == (
        EPOCH,
        {"weights": True, "kv": False},
    )
    weights = importer.map(held.segments["weights"], writable=False)
    kv = importer.map(held.segments["kv"], writable=True)
    assert (weights.tensor("int32", (1,)).tolist(), kv.tensor("int32", (2,)).tolist()) == ([1], [2, 5])
    with pytest.raises(DeviceError, match="sealed"):
        importer.map(held.segments["weights"], writable=True)
    memd.stdout.close()


BAD_REQUESTS = [
    b"\n",
    b"not json\n",
    b"[]\n",
    b"{}\n",
    b'{"do": "destroy", "epoch": 1}\n',
    b'{"do": "withdraw"}\n',
    b'{"do": "forget", "epoch": "7"}\n',
    b'{"do": "forget", "epoch": true}\n',
    b'{"do": "deposit", "epoch": 7}\n',
    b'{"do": "deposit", "epoch": 7, "segments": []}\n',
    b'{"do": "deposit", "epoch": 7, "segments": [{"name": "kv"}]}\n',
    b'{"do": "deposit", "epoch": 7, "segments": [{"name":"a","size_bytes":1,"kind":"disk","sealed":false}]}\n',
    b'{"do": "deposit", "epoch": 7, "segments": [{"name":"a","size_bytes":1e999,"kind":"memfd","sealed":false}]}\n',
    b"[" * 10_000 + b"\n",
    b"x" * (keeper.MAX_REQUEST_BYTES + 1),
    b'{"do": "forget", "epoch": 7}',
    b"",
]


def ask(path: Path, request: bytes, fds: list[int]) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        try:
            socket.send_fds(connection, [request or b" "], fds)
            connection.sendall(request[len(request) :])
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(100)
        except (ConnectionError, BrokenPipeError):
            return b""


@pytest.mark.parametrize("request_bytes", BAD_REQUESTS)
def test_what_is_no_request_changes_nothing_and_leaves_nothing(running, segments, request_bytes):
    deposit(running.path, 7, segments)
    assert ask(running.path, request_bytes, [segments[0].fd]) == b""
    held = withdraw(running.path)
    assert (held.epoch, len(held.segments)) == (7, 3)
    close_segments(held.segments.values())
    assert running.comes_to_hold(3)


def test_descriptors_beside_a_request_that_has_none_are_refused(segments):
    for verb in ("withdraw", "forget"):
        with pytest.raises(RefusedError, match="with 1 descriptors"):
            parse_request(json.dumps({"do": verb, "epoch": 7}).encode(), [segments[0].fd])


def test_two_segments_of_one_name_are_refused(segments):
    described = [{"name": "kv", "size_bytes": 4096, "kind": "memfd", "sealed": False}] * 2
    line = json.dumps({"do": "deposit", "epoch": 7, "segments": described}).encode()
    with pytest.raises(RefusedError, match="with 2 descriptors"):
        parse_request(line, [segments[0].fd, segments[1].fd])


def test_a_client_that_goes_without_a_word_keeps_nobody_else(running, segments):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(running.path))
    deposit(running.path, 7, segments)
    assert running.comes_to_hold(3)


def test_an_end_that_came_before_it_was_waited_for_is_seen(tmp_path):
    ended, notify = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as listener, ended, notify:
        listener.bind(str(tmp_path / "k"))
        listener.listen()
        notify.send(b"!")
        serve_until(ended, listener, Keeper(MonotonicClock()))


def test_it_ends_at_sigterm_though_a_client_is_silent():
    with tempfile.TemporaryDirectory(prefix="tdm") as folder, socket.socket(socket.AF_UNIX) as silent:
        path = Path(folder) / "keeper.sock"
        process = start(path)
        wait_until_it_answers(path, process)
        silent.connect(str(path))
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_only_the_user_may_open_the_socket(running):
    assert running.path.stat().st_mode & 0o777 == 0o600


def test_a_second_keeper_of_the_same_socket_is_refused(running):
    assert start(running.path).wait() == keeper.EXIT_USAGE
    assert withdraw(running.path) == Deposit(0, {})


def test_no_keeper_is_not_found(tmp_path, segments):
    for call in (withdraw, held_epoch, lambda path: forget(path, 1), lambda path: deposit(path, 1, segments)):
        with pytest.raises(NotFoundError, match="there is no keeper"):
            call(tmp_path / "keeper.sock")


def test_a_keeper_that_ends_the_connection_is_not_ready(tmp_path):
    path = tmp_path / "keeper.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        rude = threading.Thread(target=hang_up)
        rude.start()
        with pytest.raises(NotReadyError, match="the keeper does not answer"):
            withdraw(path)
        rude.join()


def test_looking_takes_no_descriptors(running, segments):
    assert held_epoch(running.path) == 0
    deposit(running.path, 7, segments)
    assert held_epoch(running.path) == 7


@pytest.mark.parametrize("answer", [b"\n", b"{}\n", b'{"epoch": 3}\n', b'{"epoch": "x", "segments": []}\n'])
def test_an_answer_that_makes_no_sense_is_a_device_error(monkeypatch, answer, segments):
    monkeypatch.setattr(keeping, "_ask", lambda *_: (answer, [os.dup(segments[0].fd)]))
    with pytest.raises(DeviceError):
        withdraw(Path("keeper.sock"))
