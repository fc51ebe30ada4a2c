"""What every pair of MemoryExporter and MemoryImporter does. Those of CUDA run over a fake driver."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tandem.device.cpu.memory import MemfdExporter
from tandem.device.cuda.ipc_export import IpcExporter
from tandem.device.cuda.vmm_export import VmmExporter
from tandem.device.memory import MemoryExporter, MemoryImporter, SegmentKind
from tandem.errors import DeviceError
from tandem.rpc.segments import ReceivedSegment
from tests.support.fake_cuda.host import fake_driver, importers_over

ROOT = Path(__file__).parents[2]
SIZE_BYTES = 2 << 20
HARD_READ_ONLY = {SegmentKind.MEMFD, SegmentKind.CUDA_VMM}
"""Kinds whose read-only mappings cannot be written to."""
OUTLIVES_ITS_OWNER = {SegmentKind.MEMFD, SegmentKind.CUDA_VMM}
"""Kinds whose mappings stay valid when the exporter has closed the segment."""


@contextmanager
def ipc_exporter() -> Iterator[MemoryExporter]:
    """With a segment that keeps the holder from being started anew for each test."""
    lost: list[bool] = []
    exporter = IpcExporter(lambda: lost.append(True), "tests.support.fake_cuda.holder")
    resident = exporter.create("resident", SIZE_BYTES)
    yield exporter
    resident.close()
    assert not lost


@pytest.fixture(params=list(SegmentKind), scope="module")
def exporter(request) -> Iterator[MemoryExporter]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        match request.param:
            case SegmentKind.MEMFD:
                yield MemfdExporter()
            case SegmentKind.CUDA_VMM:
                yield VmmExporter(fake_driver())
            case SegmentKind.CUDA_IPC:
                with ipc_exporter() as made:
                    yield made


@pytest.fixture
def importer(exporter) -> Iterator[MemoryImporter]:
    driver = fake_driver()
    yield importers_over(driver)[exporter.kind]()
    assert driver.memory.owned_bytes == 0, "an importer takes no memory of its own"


@pytest.fixture
def segment(exporter):
    made = exporter.create("test", SIZE_BYTES)
    yield made
    made.close()


def test_a_segment_is_of_its_name_size_and_kind(exporter, segment, importer):
    mapped = importer.map(segment, writable=False)
    assert (segment.name, segment.size_bytes, mapped.size_bytes) == ("test", SIZE_BYTES, SIZE_BYTES)
    assert (segment.kind, segment.sealed) == (exporter.kind, False)
    mapped.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_one_mapping_writes_the_others_read(segment, importer, dtype):
    writer = importer.map(segment, writable=True)
    reader = importer.map(segment, writable=False)
    values = torch.arange(24, dtype=getattr(torch, dtype)).view(2, 3, 4)
    writer.tensor(dtype, (2, 3, 4), 128).copy_(values)
    assert torch.equal(reader.tensor(dtype, (2, 3, 4), 128), values)
    writer.close()
    reader.close()


def test_views_are_the_memory_itself(segment, importer):
    mapped = importer.map(segment, writable=True)
    one, two = mapped.tensor("float32", (4, 4)), mapped.tensor("float32", (4,), 16)
    one[1, 0] = 5.0
    assert two[0] == 5.0
    assert one.data_ptr() + 16 == two.data_ptr()
    mapped.close()


def test_the_whole_segment_is_one_view_without_warnings(segment, importer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = importer.map(segment, writable=False)
        assert mapped.tensor("float32", (SIZE_BYTES // 4,)).nbytes == SIZE_BYTES
    mapped.close()


@pytest.mark.parametrize(("shape", "offset"), [((SIZE_BYTES // 4 + 1,), 0), ((1,), SIZE_BYTES), ((1,), -4), ((1,), 2)])
def test_a_view_stays_inside(segment, importer, shape, offset):
    mapped = importer.map(segment, writable=False)
    with pytest.raises(ValueError, match="does not lie in"):
        mapped.tensor("float32", shape, offset)
    mapped.close()


def test_a_sealed_segment_is_mapped_read_only(segment, importer):
    writer = importer.map(segment, writable=True)
    writer.tensor("float32", (1,))[0] = 3.0
    segment.seal()
    with pytest.raises(DeviceError, match="sealed"):
        importer.map(segment, writable=True)
    reader = importer.map(segment, writable=False)
    assert reader.tensor("float32", (1,))[0] == 3.0
    writer.close()
    reader.close()


def test_a_segment_that_is_announced_larger_than_it_is_is_refused(segment, importer):
    announced = ReceivedSegment("test", segment.fd, SIZE_BYTES * 2, segment.kind, sealed=False)
    with pytest.raises(DeviceError, match=rf"{SIZE_BYTES * 2} (bytes cannot be mapped|announced)"):
        importer.map(announced, writable=False)


def test_a_descriptor_of_something_else_is_refused(segment, importer, tmp_path):
    (tmp_path / "other").write_bytes(b"{}")
    with (tmp_path / "other").open("rb") as other, pytest.raises(DeviceError):
        announced = ReceivedSegment("test", other.fileno(), SIZE_BYTES, segment.kind, sealed=False)
        importer.map(announced, writable=False)


def test_mappings_outlive_the_exporters_descriptor(exporter, importer):
    if exporter.kind not in OUTLIVES_ITS_OWNER:
        pytest.skip(f"{exporter.kind}: the memory ends with its holder")
    segment = exporter.create("test", SIZE_BYTES)
    mapped = importer.map(segment, writable=True)
    segment.close()
    mapped.tensor("float32", (1,))[0] = 2.0
    assert mapped.tensor("float32", (1,))[0] == 2.0
    mapped.close()


def test_more_than_there_is_is_refused_with_sizes_and_remedy(exporter):
    with pytest.raises(DeviceError, match=r"needs 1073741824 MiB.*lower memd\.kv_bytes"):
        exporter.create("kv", 1 << 50)


def test_an_importer_knows_what_is_free(importer):
    assert importer.free_bytes() > SIZE_BYTES


def write_from_another_process(segment, how: str) -> int:
    module = [sys.executable, "-m", "tests.support.segment_writer"]
    arguments = [segment.kind.value, str(segment.fd), str(SIZE_BYTES), how]
    command = subprocess.run([*module, *arguments], pass_fds=[segment.fd], check=False, capture_output=True)
    return command.returncode


def test_another_process_writes(segment, importer):
    assert write_from_another_process(segment, "writable") == 0
    mapped = importer.map(segment, writable=True)
    assert mapped.tensor("float32", (4,)).tolist() == [7.0, 7.0, 7.0, 7.0]
    mapped.close()


def test_a_process_that_maps_read_only_cannot_write(segment, importer):
    if segment.kind not in HARD_READ_ONLY:
        pytest.skip(f"{segment.kind}: the driver maps it writable always")
    mapped = importer.map(segment, writable=True)
    mapped.tensor("float32", (4,)).zero_()
    assert write_from_another_process(segment, "read-only") == -11
    assert mapped.tensor("float32", (4,)).tolist() == [0.0] * 4
    mapped.close()
