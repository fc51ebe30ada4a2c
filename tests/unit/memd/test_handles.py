"""The handle socket against clients that do not keep to it."""

import asyncio
import contextlib
import json
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.memd import handles
from services.memd.handles import HandleServer, RefusedError, parse_request, refuse_others
from tandem.device.cuda.vmm_export import VmmExporter
from tandem.device.memory import SegmentKind
from tandem.device.memory_backends import SegmentImporter
from tandem.errors import DeviceError, NotReadyError
from tandem.rpc import handles_client
from tandem.rpc.handles_client import receive_segments
from tandem.rpc.segments import close_segments
from tests.support.fake_cuda.host import fake_driver, importers_over
from tests.support.memd import FINGERPRINT, local_memd

BAD_REQUESTS = [
    b"",
    b"\n",
    b"not json\n",
    b"[]\n",
    b"7\n",
    b"{}\n",
    b'{"holder_id": "1"}\n',
    b'{"holder_id": true}\n',
    b'{"holder_id": 1.5}\n',
    b'{"holder_id": 12345}\n',
    b'{"holder_id": -1}\n',
    b"\xff\xfe\x00\n",
    b"[" * 1000 + b"\n",
    b"x" * 5000,
    b'{"holder_id": 1}',
]


@pytest.fixture
async def memd():
    async with local_memd() as running:
        yield running


async def ask(path: str, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    writer.write_eof()
    try:
        return await reader.read()
    except ConnectionResetError:  # closed with some of the request unread
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("request_bytes", BAD_REQUESTS)
async def test_a_bad_request_closes_its_own_connection_only(memd, request_bytes):
    path = str(memd.storage.handle_socket)
    attachment = memd.store.attach("decode", 1, FINGERPRINT)
    _, patient = await asyncio.open_unix_connection(path)
    assert await ask(path, request_bytes) == b""
    segments = await receive_segments(path, attachment.holder_id)
    assert sorted(segments) == ["kv", "weights"]
    close_segments(segments.values())
    patient.close()


async def test_descriptors_sent_to_memd_are_not_taken(memd):
    path = str(memd.storage.handle_socket)
    attachment = memd.store.attach("decode", 1, FINGERPRINT)
    one, other = socket.socketpair()
    with one, other, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        request = json.dumps({"holder_id": attachment.holder_id}).encode() + b"\n"
        await asyncio.to_thread(socket.send_fds, connection, [request], [one.fileno()])
        answer, fds, _, _ = await asyncio.to_thread(socket.recv_fds, connection, 4096, 8)
        one.close()
        assert await asyncio.to_thread(other.recv, 1) == b"", "memd kept the descriptor open"
    assert len(json.loads(answer)["segments"]) == len(fds) == 2
    for fd in fds:
        socket.close(fd)


async def test_device_memory_is_handed_out_with_its_kind(tmp_path):
    exporter = VmmExporter(fake_driver())
    segments = [exporter.create("weights", 1), exporter.create("kv", 1)]
    segments[0].seal()
    server = HandleServer(tmp_path / "fd.sock", segments, lambda _holder_id, _pid: True)
    server.start()
    received = await receive_segments(str(tmp_path / "fd.sock"), 1)
    await server.close()
    assert {(each.kind, each.name, each.sealed) for each in received.values()} == {
        (SegmentKind.CUDA_VMM, "weights", True),
        (SegmentKind.CUDA_VMM, "kv", False),
    }
    importer = SegmentImporter(importers_over(fake_driver()))
    for name in ("kv", "weights"):
        assert importer.map(received[name], writable=name == "kv").size_bytes == segments[0].size_bytes
    with pytest.raises(DeviceError, match="sealed"):
        importer.map(received["weights"], writable=True)
    close_segments(received.values())
    close_segments(segments)


async def test_a_client_that_says_nothing_is_let_go(memd, monkeypatch):
    monkeypatch.setattr(handles, "REQUEST_TIMEOUT_S", 0.01)
    reader, writer = await asyncio.open_unix_connection(str(memd.storage.handle_socket))
    assert await reader.read() == b""
    writer.close()


async def test_only_the_user_may_open_the_socket(memd):
    assert memd.storage.handle_socket.stat().st_mode & 0o777 == 0o600


def test_another_user_is_refused():
    class Connection:
        def getsockopt(self, *_: int) -> bytes:
            return struct.pack("3i", 1, 4_000_000, 4_000_000)

    with pytest.raises(RefusedError, match="user 4000000"):
        refuse_others(Connection())


def test_the_own_user_is_not_refused():
    one, other = socket.socketpair()
    with one, other:
        refuse_others(one)


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_refused(line):
    with contextlib.suppress(RefusedError):
        assert type(parse_request(line)) is int


async def test_a_holder_that_is_gone_gets_nothing(memd):
    attachment = memd.store.attach("decode", 1, FINGERPRINT)
    memd.store.detach(attachment)
    with pytest.raises(NotReadyError, match="without an answer"):
        await receive_segments(str(memd.storage.handle_socket), attachment.holder_id)


async def test_nobody_there_is_not_ready(tmp_path):
    with pytest.raises(NotReadyError, match=r"fd\.sock"):
        await receive_segments(str(tmp_path / "fd.sock"), 1)


@pytest.mark.parametrize(
    "answer", [b"{", b"[]", b'{"segments": [{"name": "kv"}]}', b'{"segments": [{"name": "kv", "size_bytes": 4}]}']
)
async def test_an_answer_that_makes_no_sense_is_a_device_error(tmp_path, answer):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "fd.sock")
    async with server:
        with pytest.raises(DeviceError):
            await receive_segments(str(tmp_path / "fd.sock"), 1)


async def test_an_answer_that_breaks_off_leaves_no_descriptor(tmp_path, monkeypatch):
    monkeypatch.setattr(handles_client, "TIMEOUT_S", 0.05)
    lent, other = socket.socketpair()

    def serve() -> socket.socket:
        connection, _ = listener.accept()
        socket.send_fds(connection, [b"{"], [lent.fileno()])
        return connection  # open, and silent

    with socket.socket(socket.AF_UNIX) as listener, lent, other:
        listener.bind(str(tmp_path / "fd.sock"))
        listener.listen()
        serving = asyncio.create_task(asyncio.to_thread(serve))
        with pytest.raises(NotReadyError, match="timed out"):
            await receive_segments(str(tmp_path / "fd.sock"), 1)
        with await serving:
            lent.close()
            assert await asyncio.to_thread(other.recv, 1) == b"", "the descriptor is still open"


async def test_a_silent_memd_is_not_ready(tmp_path, monkeypatch):
    monkeypatch.setattr(handles_client, "TIMEOUT_S", 0.01)
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(tmp_path / "fd.sock"))
        listener.listen()
        with pytest.raises(NotReadyError, match="timed out"):
            await receive_segments(str(tmp_path / "fd.sock"), 1)
