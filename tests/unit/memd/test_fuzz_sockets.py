"""memd's handle socket, the keeper's, and their clients, against peers that say anything, with any descriptors."""

import asyncio
import json
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.memd.handles import HandleServer, RefusedError
from services.memd.keeper import Keeper, Verb
from services.memd.keeping import withdraw
from tandem.clock import ManualClock
from tandem.device.cpu.memory import MemfdExporter, MemfdSegment
from tandem.errors import TandemError
from tandem.rpc.handles_client import receive_segments
from tandem.rpc.segments import ReceivedSegment, close_segments, describe_segments
from tests.support.bounds import open_files
from tests.support.fuzzing import examples
from tests.support.hostile_json import changed
from tests.support.hostile_messages import damaged

HOLDER_ID = 7
EPOCH = 3
SEGMENT = {"name": "kv", "size_bytes": 4096, "kind": "memfd", "sealed": False}
REQUESTS = [
    {"do": Verb.DEPOSIT, "epoch": EPOCH, "segments": [SEGMENT, {**SEGMENT, "name": "weights"}]},
    {"do": Verb.WITHDRAW, "epoch": 0},
    {"do": Verb.FORGET, "epoch": 1},
    {"holder_id": HOLDER_ID},
]
ANSWER = {"epoch": EPOCH, **REQUESTS[0]}
HUGE_SIZE = json.dumps({**REQUESTS[0], "segments": [SEGMENT]}).replace("4096", "1e999").encode() + b"\n"


@dataclass(frozen=True)
class Part:
    """What is sent at once."""

    contents: bytes
    num_fds: int


def lines(document: object) -> st.SearchStrategy[bytes]:
    """The document as a line of JSON; one like it; one that was cut or altered."""
    good = json.dumps(document).encode() + b"\n"
    altered = changed(document).map(lambda other: json.dumps(other).encode() + b"\n")
    return st.one_of(st.just(good), altered, damaged(good), st.binary(max_size=40))


@st.composite
def talk(draw: st.DrawFn, documents: list[object]) -> list[Part]:
    """One peer's line, in pieces, with descriptors beside any of them."""
    line = draw(st.sampled_from(documents).flatmap(lines))
    cuts = sorted(draw(st.lists(st.integers(0, len(line)), max_size=2)))
    pieces = [line[start:end] for start, end in zip([0, *cuts], [*cuts, len(line)], strict=True)]
    return [Part(piece, draw(st.sampled_from([0, 0, 1, 2, 16, 20]))) for piece in pieces if piece]


class Lent:
    """Descriptors to send, of which it can be told whether somebody still has one."""

    def __init__(self) -> None:
        self._one, self._other = socket.socketpair()

    def send(self, connection: socket.socket, part: Part) -> None:
        """What the peer does not take any more is not sent."""
        with suppress(ConnectionError):
            socket.send_fds(connection, [part.contents], [self._one.fileno()] * part.num_fds)

    def nobody_has_one(self) -> bool:
        self._one.close()
        self._other.settimeout(20)
        with self._other:
            return self._other.recv(1) == b""


@pytest.fixture
def segments() -> Iterator[list[MemfdSegment]]:
    made = [MemfdExporter().create(name, 4096) for name in ("weights", "kv")]
    yield made
    for segment in made:
        segment.close()


def ask_keeper(keeper: Keeper, verb: Verb, segments: list[MemfdSegment]) -> bytes:
    """As a client that keeps to the protocol; the descriptors of the answer are let go."""
    line = (
        json.dumps({"do": verb, "epoch": EPOCH, **(describe_segments(segments) if segments else {})}).encode() + b"\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [line], [segment.fd for segment in segments])
        keeper.serve(theirs)
        return ours.recv(1 << 16)


def test_fuzz_the_keeper(segments):
    keeper = Keeper(ManualClock())
    ask_keeper(keeper, Verb.DEPOSIT, segments)

    @examples(120)
    @given(talk(REQUESTS))
    @example([Part(HUGE_SIZE, 1)])
    def check(parts: list[Part]) -> None:
        before, lent = open_files(), Lent()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for part in parts:
                lent.send(ours, part)
            ours.shutdown(socket.SHUT_WR)
            with suppress(RefusedError, OSError):
                keeper.serve(theirs)
        if json.loads(ask_keeper(keeper, Verb.LOOK, []))["segments"] != describe_segments(segments)["segments"]:
            ask_keeper(keeper, Verb.DEPOSIT, segments)  # it was a good request after all
        assert lent.nobody_has_one()
        assert len(open_files()) <= len(before)  # of what others left, some may be closed meanwhile

    check()


def test_fuzz_the_handle_socket(tmp_path, segments):
    path = tmp_path / "fd.sock"

    async def exchange(parts: list[Part], stays: bool) -> None:
        lent, connection = Lent(), socket.socket(socket.AF_UNIX)
        connection.connect(str(path))
        for part in parts:
            lent.send(connection, part)
            await asyncio.sleep(0)
        if not stays:
            connection.close()
        received = await receive_segments(str(path), HOLDER_ID)
        assert sorted(received) == ["kv", "weights"]
        close_segments(received.values())
        connection.close()
        assert lent.nobody_has_one()

    with asyncio.Runner() as runner:
        server = runner.run(_started(path, segments))
        before = set(open_files())

        @examples(60)
        @given(talk(REQUESTS), st.booleans())
        def check(parts: list[Part], stays: bool) -> None:
            runner.run(exchange(parts, stays))
            runner.run(_until_open_files_are_of(before))

        check()
        runner.run(server.close())


async def _until_open_files_are_of(numbers: set[int]) -> None:
    """The server closes a connection a little after its client has the answer."""
    async with asyncio.timeout(60):
        while not set(open_files()) <= numbers:
            await asyncio.sleep(0.001)


async def _started(path: Path, segments: list[MemfdSegment]) -> HandleServer:
    server = HandleServer(path, segments, lambda holder_id, _pid: holder_id == HOLDER_ID)
    server.start()
    return server


@pytest.mark.parametrize("asks", ["memd", "the keeper"])
def test_fuzz_answers(asks, tmp_path):
    """A client takes what it can use, else says so; no descriptor is left."""
    path = tmp_path / "s"

    def answer(parts: list[Part], lent: Lent) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            for part in parts:
                lent.send(connection, part)

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as thread:
        listener.bind(str(path))
        listener.listen()
        thread.submit(open_files).result()

        @examples(60)
        @given(talk([ANSWER]))
        def check(parts: list[Part]) -> None:
            before, lent = open_files(), Lent()
            answering = thread.submit(answer, parts, lent)
            with suppress(TandemError):
                close_segments(_ask(asks, path).values())
            answering.result()
            assert lent.nobody_has_one()
            assert set(open_files()) <= set(before)

        check()


def _ask(whom: str, path: Path) -> Mapping[str, ReceivedSegment]:
    if whom == "memd":
        return asyncio.run(receive_segments(str(path), HOLDER_ID))
    return withdraw(path).segments
