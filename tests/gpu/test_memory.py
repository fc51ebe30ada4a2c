"""Memory on a real GPU: exported without a context, mapped by other processes without a copy."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tandem.device.cuda.driver import DriverApi, check, open_driver
from tandem.device.cuda.ipc_export import IpcExporter
from tandem.device.cuda.mps import ENV_PIPE_DIRECTORY, MpsControl, MpsDirectories
from tandem.device.cuda.primary_context import PrimaryContext
from tandem.device.cuda.vmm_export import VmmExporter, VmmSegment
from tandem.device.memory import ExportedSegment, SegmentKind
from tandem.device.memory_backends import choose_exporter
from tandem.errors import DeviceError

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
SEGMENT_BYTES = 4 << 30
VIEW_MAY_TAKE_BYTES = 256 << 20
"""For what torch and the driver set up with the first tensor; a copy of the segment would be 16 times as much."""

NO_ENVIRONMENT: Mapping[str, str] = {}

EXPORTER = """
import socket, sys
from tandem.device.cuda.driver import check, open_driver
from tandem.device.cuda.vmm_export import VmmExporter
driver = open_driver()
segment = VmmExporter(driver).create("kv", int(sys.argv[2]))
active = check(driver, driver.cuDevicePrimaryCtxGetState(0), "cuDevicePrimaryCtxGetState")[1]
with socket.socket(fileno=int(sys.argv[1])) as channel:
    socket.send_fds(channel, [f"{segment.size_bytes} {active}".encode()], [segment.fd])
    channel.recv(1)
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[DriverApi]:
    """Of this process, which is no client of MPS, as memd is none; nor are its children unless they are told to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENV_PIPE_DIRECTORY, "/nonexistent")
        try:
            made = open_driver()
        except DeviceError as error:
            pytest.skip(f"needs an NVIDIA GPU: {error}")
        yield made


@pytest.fixture
def mps() -> Iterator[dict[str, str]]:
    """The environment of a client of a daemon that runs for one test."""
    with tempfile.TemporaryDirectory(prefix="tdm") as folder:
        control = MpsControl(MpsDirectories(Path(folder) / "pipe", Path(folder) / "log"), os.environ)
        try:
            control.start()
        except DeviceError as error:
            pytest.skip(f"needs MPS: {error}")
        yield control.directories.environment()
        control.stop()


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


@pytest.fixture(params=[SegmentKind.CUDA_VMM, SegmentKind.CUDA_IPC])
def segment(request, driver):
    exporters = {SegmentKind.CUDA_VMM: lambda: VmmExporter(driver), SegmentKind.CUDA_IPC: lambda: IpcExporter(print)}
    made = exporters[request.param]().create("kv", SEGMENT_BYTES)
    yield made
    made.close()


def phases(segment: ExportedSegment, *hows: str | tuple[str, Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """What processes of their own see, one after the other; they are started at once.

    A word, or that and what is in the process's environment.
    """
    arguments = [segment.kind.value, str(segment.fd), str(segment.size_bytes)]
    wanted = [(how, NO_ENVIRONMENT) if isinstance(how, str) else how for how in hows]
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.gpu_phase", *arguments, how],
                    pass_fds=[segment.fd], env={**os.environ, **environment}, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )
            )
            for how, environment in wanted
        ]  # fmt: skip
        for process in started:
            assert process.stdout.readline() == "ready\n", process.communicate()
        for process in started:
            yield seen_by(process)


def seen_by(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Once it is told to go on."""
    said, error = process.communicate("\n")
    assert said, error
    seen: dict[str, Any] = json.loads(said)
    return seen


def test_this_device_exports_descriptors(driver):
    chosen = choose_exporter("auto", lambda: None)
    assert chosen.exporter.kind is SegmentKind.CUDA_VMM, chosen.reason


def test_phases_share_one_segment_and_take_no_memory_for_it(segment, record_property):
    writer, *readers = phases(segment, "write", "read", "read")
    assert writer["error"] == ""
    for seen in (writer, *readers):
        assert seen["ends"] == [7, 7]
        assert seen["taken_bytes"] < VIEW_MAY_TAKE_BYTES
    record_property("mib", segment.size_bytes >> 20)
    record_property("attach_ms", [round(1000 * seen["attach_s"], 1) for seen in (writer, *readers)])


def test_clients_of_mps_map_what_a_process_outside_it_exported(segment, mps):
    *clients, outside = phases(segment, ("write", mps), ("read", mps), "read")
    for seen in clients:
        assert (seen["has_mps"], seen["error"], seen["ends"]) == (True, "", [7, 7])
        assert seen["taken_bytes"] < VIEW_MAY_TAKE_BYTES
    assert (outside["has_mps"], outside["ends"]) == (False, [7, 7])


def test_a_write_through_a_read_only_mapping_faults_and_changes_nothing(driver):
    segment = VmmExporter(driver).create("weights", SEGMENT_BYTES)
    writer, seen, reader = phases(segment, "write", "overwrite", "read")
    assert writer["error"] == ""
    assert seen["error"] != "", "the device wrote to memory that is mapped read-only"
    assert reader["ends"] == [7, 7]
    segment.close()


def test_the_exporter_has_no_context_and_its_memory_outlives_it(driver):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", EXPORTER, str(theirs.fileno()), str(SEGMENT_BYTES)]
        exporter = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        said, (fd,), _, _ = socket.recv_fds(ours, 100, 1)
        size_bytes, context_active = map(int, said.split())
        received = VmmSegment("kv", fd, size_bytes)
        seen = phases(received, "write", "read")
        assert next(seen)["ends"] == [7, 7]
        exporter.send_signal(signal.SIGKILL)
        exporter.wait()
    assert context_active == 0
    assert next(seen)["ends"] == [7, 7]
    os.close(fd)


def test_one_allocation_can_be_most_of_the_device(driver, record_property):
    """A KV segment is one allocation, whatever its size."""
    context = PrimaryContext(driver, 0)
    free_before = context.free_bytes()
    segment = VmmExporter(driver).create("kv", int(free_before * 0.8))
    assert free_before - context.free_bytes() >= segment.size_bytes
    (seen,) = phases(segment, "read")
    assert seen["error"] == ""
    record_property("mib", segment.size_bytes >> 20)
    record_property("attach_ms", round(1000 * seen["attach_s"], 1))
    segment.close()
    assert context.free_bytes() >= free_before - VIEW_MAY_TAKE_BYTES


def test_more_than_the_device_has_is_refused(driver):
    total = check(driver, driver.cuDeviceTotalMem(0), "cuDeviceTotalMem")
    with pytest.raises(DeviceError, match=r"OUT_OF_MEMORY.*memd\.kv_bytes"):
        VmmExporter(driver).create("kv", total + (2 << 20))
