"""What is said of segments beside their descriptors."""

import json
import os
import socket

import pytest

from tandem.device.cpu.memory import MemfdExporter
from tandem.errors import DeviceError
from tandem.rpc.segments import MAX_FDS, close_segments, describe_segments, read_segments, receive


def described(**changes: object) -> bytes:
    entry = {"name": "kv", "size_bytes": 4096, "kind": "memfd", "sealed": False}
    return json.dumps({"segments": [{**entry, **changes}]}).encode()


def test_what_is_described_is_read():
    segments = [MemfdExporter().create(name, 4096) for name in ("weights", "kv")]
    segments[0].seal()
    read = read_segments(json.dumps(describe_segments(segments)).encode(), [segment.fd for segment in segments])
    for segment in segments:
        received = read[segment.name]
        assert (received.fd, received.size_bytes) == (segment.fd, 4096)
        assert (received.kind, received.sealed) == (segment.kind, segment.sealed)
    close_segments(read.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "disk"}, {"kind": None}, {"size_bytes": "much"}, {"size_bytes": None}, {"size_bytes": float("inf")},
        {"size_bytes": 0}, {"size_bytes": True}, {"name": 7}, {"sealed": "no"},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_device_error(changes):
    with pytest.raises(DeviceError, match="cannot be read"):
        read_segments(described(**changes), [0])


def test_segments_and_descriptors_must_be_as_many():
    with pytest.raises(DeviceError, match="describes 1 segments and hands out 2"):
        read_segments(described(), [0, 1])


def test_two_segments_of_one_name_are_no_answer():
    entry = json.loads(described())["segments"][0]
    with pytest.raises(DeviceError, match="two segments of one name"):
        read_segments(json.dumps({"segments": [entry, entry]}).encode(), [0, 1])


def test_received_descriptors_are_not_inherited():
    ours, theirs = socket.socketpair()
    fd = os.memfd_create("kv")
    with ours, theirs:
        socket.send_fds(theirs, [b"x"], [fd] * MAX_FDS)
        theirs.close()
        part, fds = receive(ours, 100)
        assert receive(ours, 100) == (b"", [])
    assert (part, len(fds)) == (b"x", MAX_FDS)
    assert not any(os.get_inheritable(each) for each in fds)
    for each in (fd, *fds):
        os.close(each)
