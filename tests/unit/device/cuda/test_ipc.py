"""Legacy CUDA IPC: memory and context in a holder; over the fake driver."""

import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tandem.device.cuda.driver import open_driver
from tandem.device.cuda.ipc_export import BLOCK_BYTES, IpcExporter, write_handle
from tandem.device.cuda.ipc_holder import Holdings, answer, serve
from tandem.device.cuda.ipc_import import IpcImporter, read_description
from tandem.errors import DeviceError
from tandem.rpc.segments import ReceivedSegment
from tests.support.fake_cuda.host import fake_driver, host_bytes

ROOT = Path(__file__).parents[4]
HOLDER = "tests.support.fake_cuda.holder"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def lost() -> threading.Event:
    return threading.Event()


@pytest.fixture
def exporter(lost) -> IpcExporter:
    return IpcExporter(lost.set, HOLDER)


def holder_of(exporter: IpcExporter) -> "subprocess.Popen[bytes]":
    return exporter._holder._process


def test_a_holder_runs_as_long_as_there_are_segments(exporter, lost):
    one, two = exporter.create("weights", 1), exporter.create("kv", BLOCK_BYTES + 1)
    assert (one.size_bytes, two.size_bytes) == (BLOCK_BYTES, 2 * BLOCK_BYTES)
    process = holder_of(exporter)
    one.close()
    assert process.poll() is None
    two.close()
    assert process.wait() == 0
    assert not lost.is_set()
    exporter.create("again", 1).close()


def test_an_allocation_that_fails_ends_a_holder_without_any_other(exporter, lost):
    with pytest.raises(DeviceError, match=r"segment kv needs 2048 MiB.*cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY"):
        exporter.create("kv", 2 << 30)
    assert exporter._holder is None
    assert not lost.is_set()


def test_a_holder_that_ends_by_itself_is_said_and_its_memory_is_gone(exporter, lost):
    segment = exporter.create("kv", 1)
    holder_of(exporter).kill()
    assert lost.wait(60)
    with pytest.raises(DeviceError, match="MAP_FAILED"):
        IpcImporter(fake_driver(), host_bytes).map(segment, writable=True)
    with pytest.raises(DeviceError, match="does not answer"):
        exporter.create("more", 1)
    with pytest.raises(DeviceError, match="does not answer"):
        segment.close()


def test_a_signal_to_memds_group_does_not_end_the_memory(exporter):
    segment = exporter.create("kv", 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(holder_of(exporter).pid, number)
    exporter.create("more", 1).close()
    segment.close()


def test_one_segment_is_mapped_twice_in_a_process(exporter):
    segment = exporter.create("kv", 1)
    driver = fake_driver()
    importer = IpcImporter(driver, host_bytes)
    one, two = importer.map(segment, writable=True), importer.map(segment, writable=False)
    one.close()
    two.tensor("float32", (1,))[0] = 3.0
    two.close()
    assert driver.memory.leaks == {}
    segment.close()


def test_holdings_are_freed_once():
    driver = fake_driver()
    holdings = Holdings(driver)
    handle = answer(holdings, {"allocate": 4096})["handle"]
    assert driver.memory.owned_bytes == 4096
    assert answer(holdings, {"free": handle}) == {"freed": True}
    assert driver.memory.leaks == {}
    with pytest.raises(DeviceError, match="no memory is held"):
        answer(holdings, {"free": handle})


def test_without_a_device_every_request_is_answered_with_the_reason():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b'{"allocate": 4096}\n{"allocate": 4096}\n')
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, no_driver)
        theirs.close()
        said = [json.loads(line) for line in ours.makefile("rb")]
    assert said == [{"failure": "no CUDA driver"}] * 2


def no_driver() -> object:
    raise DeviceError("no CUDA driver")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"handle": "zz", "size_bytes": 1}', b"\xff"])
def test_what_is_no_description_is_refused(content):
    fd = os.memfd_create("other")
    os.pwrite(fd, content, 0)
    with pytest.raises(DeviceError, match="no CUDA IPC handle"):
        read_description(fd)
    os.close(fd)


def test_a_handle_of_another_length_is_refused():
    fd = write_handle("00" * 63, BLOCK_BYTES)
    with pytest.raises(DeviceError, match="64 bytes, not 63"):
        read_description(fd)
    os.close(fd)


@pytest.mark.parametrize("announced", [BLOCK_BYTES // 2, BLOCK_BYTES * 2])
def test_a_segment_of_another_size_is_refused(announced):
    fd = write_handle("00" * 64, BLOCK_BYTES)
    handle = ReceivedSegment("kv", fd, announced, None, sealed=False)
    with pytest.raises(DeviceError, match=f"has {BLOCK_BYTES} bytes, not the {announced} announced"):
        IpcImporter(fake_driver(), host_bytes).map(handle, writable=False)
    os.close(fd)


def test_a_module_that_does_not_start_is_a_device_error(lost):
    with pytest.raises(DeviceError, match="does not answer"):
        IpcExporter(lost.set, "tests.support.none").create("kv", 1)


def test_the_real_holder_says_that_there_is_no_driver():
    try:
        open_driver()
    except DeviceError:
        with pytest.raises(DeviceError, match=r"no CUDA driver|not installed"):
            IpcExporter(lambda: None).create("kv", 1)
    else:
        pytest.skip("there is a CUDA driver")
